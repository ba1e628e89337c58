//! Conversion in parts: [`convert_part`] on as many machines as there are, [`merge`] on one.
//!
//! Every part is planned as the whole is and has whole shards of it, so that the pack that `merge` publishes is, byte for
//! byte, the one that a single run writes, whatever the number of parts.

use crate::conversion::{Conversion, Options, PART, STATE, fingerprint};
use crate::error::ConvertError;
use crate::measure::Summary;
use crate::plan::Plan;
use crate::stamp::Stamps;
use ashlar_pack::{Done, Fingerprint, Part, PartManifest, Target, assemble, remove_part};
use ashlar_tensor::{Report, TensorStore};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Converts one part of `plan` (a whole one) to `OUT.part-I-of-N`. A killed run is taken up where it stopped; a part that is
/// complete is left as it is. `work` is to convert every record of the part's plan, which is returned with what it cost.
///
/// # Errors
/// [`ConvertError`]; a complete part of another conversion is replaced only with `force`.
pub fn convert_part(
    plan: &Plan,
    part: Part,
    source: &dyn TensorStore,
    out: &Path,
    options: &Options,
    report: &dyn Report,
    work: impl FnOnce(&Plan, &Conversion<'_>) -> Result<(), ConvertError>,
) -> Result<(Plan, Summary), ConvertError> {
    let piece = plan.part(part);
    let dir = part.dir(out);
    if let Some(found) = PartManifest::read(&dir)? {
        let inputs = fingerprint(&piece, &Stamps::take(&piece.origin.weights)?);
        let differs = differing(&found.inputs, &inputs);
        if differs.is_empty() && found.is_whole(&dir) && !options.force {
            report.note(&format!("{} is complete already", dir.display()));
            let summary = piece.summary_of(&found.done)?;
            return Ok((piece, summary));
        }
        if !options.force {
            return Err(ConvertError::Parts {
                what: format!(
                    "{} was made with another {}; give --force to replace it, or choose another output",
                    dir.display(),
                    if differs.is_empty() { "length of its shards".to_owned() } else { differs.join(", another ") }
                ),
            });
        }
        remove_part(&dir)?;
    }
    let conversion = Conversion::open(&piece, source, &dir, options, report)?;
    let summary = match work(&piece, &conversion) {
        Ok(()) => conversion.publish_part(report)?,
        Err(e) => return Err(conversion.fail(e)),
    };
    Ok((piece, summary))
}

/// Puts the parts beside `out` together and publishes the pack: byte for byte what a single run writes. Every record is
/// hashed again; what was damaged on the way `work` is to convert anew.
///
/// # Errors
/// [`ConvertError::Parts`] if there are none, some are missing, or they were made with other inputs; else as
/// [`crate::convert`].
pub fn merge(
    plan: &Plan,
    source: &dyn TensorStore,
    out: &Path,
    options: &Options,
    report: &dyn Report,
    work: impl FnOnce(&Plan, &Conversion<'_>) -> Result<(), ConvertError>,
) -> Result<Summary, ConvertError> {
    let out: PathBuf = out.components().collect();
    let inputs = fingerprint(plan, &Stamps::take(&plan.origin.weights)?);
    let mut parts = Vec::new();
    for part in complete(&out)? {
        let dir = part.dir(&out);
        let Some(manifest) = PartManifest::read(&dir)? else { continue };
        let differs = differing(&manifest.inputs, &inputs);
        if !differs.is_empty() {
            let what = format!("{} was made with another {}", dir.display(), differs.join(", another "));
            return Err(ConvertError::Parts { what: what + "; make it again with the same inputs as the others" });
        }
        parts.push((dir, manifest));
    }
    let target = Target { out: out.clone(), force: options.force, restart: options.restart };
    assemble(&target, &inputs, &parts)?;
    // What was just put together is not to be discarded.
    let options = Options { restart: false, ..*options };
    let conversion = Conversion::open(plan, source, &out, &options, report)?;
    let summary = match work(plan, &conversion) {
        Ok(()) => conversion.publish(report)?,
        Err(e) => return Err(conversion.fail(e)),
    };
    parts.iter().try_for_each(|(dir, _)| remove_part(dir))?;
    Ok(summary)
}

/// The parts beside `out`, all of them.
fn complete(out: &Path) -> Result<Vec<Part>, ConvertError> {
    let found = Part::found(out)?;
    let refuse = |what: String| Err(ConvertError::Parts { what });
    let Some(count) = found.first().map(|p| p.count()) else {
        return refuse(format!(
            "there is no part of {0} beside it; make them with `--part 1/N` to `--part N/N`",
            out.display()
        ));
    };
    if let Some(other) = found.iter().find(|p| p.count() != count) {
        return refuse(format!(
            "there are parts of {count} and parts of {} beside {}; remove those that do not belong",
            other.count(),
            out.display()
        ));
    }
    let missing = (1..=count).filter(|i| found.iter().all(|p| p.index() != *i));
    let missing: Vec<String> = missing.map(|i| format!("{i}/{count}")).collect();
    if missing.is_empty() {
        return Ok(found);
    }
    let shown = missing.iter().take(20).cloned().collect::<Vec<_>>().join(", ");
    let more = if missing.len() > 20 { format!(" and {} more", missing.len() - 20) } else { String::new() };
    refuse(format!(
        "{} of {count} parts are not complete: {shown}{more}; run them (`--part`), then merge again",
        missing.len()
    ))
}

/// The inputs in which two parts, or a part and the whole, differ.
fn differing(a: &Fingerprint, b: &Fingerprint) -> Vec<String> {
    let names: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    let counts = |name: &&&String| name.as_str() != STATE && name.as_str() != PART;
    names.iter().filter(counts).filter(|k| a.get(**k) != b.get(**k)).map(|k| (**k).clone()).collect()
}

/// Of a part: its records as the whole numbers them.
pub(crate) fn numbered(done: impl Iterator<Item = Done>, records: &[usize]) -> Vec<Done> {
    done.filter_map(|d| Some(Done { record: *records.get(d.record)?, ..d })).collect()
}

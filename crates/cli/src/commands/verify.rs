//! `ashlar verify`: is a pack what its manifest says, and how far is it from its source?

use crate::args::Globals;
use crate::exit::{CommandResult, Failure, Outcome};
use crate::model::{Model, SourceArgs, check_path};
use crate::progress::{Progress, Unit};
use crate::table::Table;
use crate::{hub, output, units};
use ashlar_convert::{Comparison, VerifyReport};
use ashlar_pack::Pack;
use clap::Args;
use serde_json::{Value, json};
use std::fmt::Write;
use std::num::NonZeroUsize;
use std::path::PathBuf;

/// Lines of a list before it is cut.
const LISTED: usize = 20;

/// Check a pack: every checksum, and against its source also the error of every tensor
///
/// Reads every byte. Exit code 3 if anything is not as the manifest says, or if tensors that a recipe kept differ from
/// the source by a bit.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  ashlar verify Qwen3-30B-A3B-4bit
  ashlar verify Qwen3-30B-A3B-4bit --against Qwen3-30B-A3B")]
pub struct Verify {
    /// A pack, or `hf:ORG/NAME` that holds one
    pub pack: PathBuf,
    /// The checkpoint or pack it was made from
    #[arg(long, value_name = "SRC")]
    pub against: Option<PathBuf>,
    #[command(flatten)]
    pub source: SourceArgs,
    /// Threads [default: one per core]
    #[arg(long, value_name = "N")]
    pub threads: Option<NonZeroUsize>,
    /// Print one JSON object, with every tensor if --against is given
    #[arg(long)]
    pub json: bool,
}

impl Verify {
    /// Checks, prints what was found.
    ///
    /// # Errors
    /// If something cannot be read; what is found wrong is an outcome.
    pub fn run(&self, globals: Globals) -> CommandResult {
        check_path(&self.pack)?;
        let pack = Pack::open(&hub::local(&self.pack)?)?;
        let source = self.against.as_deref().map(|path| Model::open_as(path, self.source)).transpose()?;
        let progress = Progress::new(globals.quiet, Unit::Bytes);
        let against = source.as_ref().map(Model::store);
        let threads = self.threads.map(NonZeroUsize::get);
        let report = ashlar_convert::verify(&pack, against, threads, &progress).map_err(Failure::from)?;
        if self.json {
            output::print_json(&report_json(&pack, &report))?;
        } else {
            output::print(&self.text(&pack, &report))?;
        }
        Ok(if report.ok() { Outcome::Done } else { Outcome::Wanting })
    }

    fn text(&self, pack: &Pack, report: &VerifyReport) -> String {
        let mut out = String::new();
        if self.against.is_some() {
            out.push_str(&class_table(report));
            out.push_str("error: |w − ŵ| / |w|, against the source\n\n");
        }
        let problems = problems(report);
        for problem in problems.iter().take(LISTED) {
            let _ = writeln!(out, "wrong: {problem}");
        }
        if let Some(more) = problems.len().checked_sub(LISTED + 1) {
            let _ = writeln!(out, "… and {} more (--json lists all)", more + 1);
        }
        let _ = if problems.is_empty() {
            let kept = report.compared.iter().filter(|c| c.must_be_exact).count();
            let same =
                if kept > 0 { format!("; {kept} kept tensors are bit-equal to the source") } else { String::new() };
            writeln!(
                out,
                "{}: {} records, {}, all checksums right{same}",
                self.pack.display(),
                pack.records().len(),
                units::bytes(pack.bytes())
            )
        } else {
            writeln!(out, "{}: {} problems; convert the model again", self.pack.display(), problems.len())
        };
        out
    }
}

/// Everything that is wrong, one sentence each.
fn problems(report: &VerifyReport) -> Vec<String> {
    let mut all = Vec::new();
    for d in &report.damage {
        let what = d.tensors.join(", ");
        all.push(format!(
            "{}: record {} at {} ({} bytes; {what}): checksum {}, expected {}",
            d.file, d.record, d.offset, d.bytes, d.got, d.expected
        ));
    }
    all.extend(report.padding.iter().map(|t| format!("tensor `{t}`: padding rows are not zero")));
    all.extend(report.not_finite.iter().map(|(t, what)| format!("tensor `{t}`: {what}")));
    all.extend(report.source_hash.iter().map(|t| format!("tensor `{t}`: does not give back the bytes of its source")));
    all.extend(
        report
            .missing
            .iter()
            .map(|t| format!("tensor `{t}`: the source has no such tensor of this shape; is it the right source?")),
    );
    let changed = report.compared.iter().filter(|c| c.must_be_exact && !c.exact);
    all.extend(
        changed.map(|c| {
            format!("tensor `{}`: was kept as {}, but its bits differ from the source", c.name, c.source_format)
        }),
    );
    all
}

fn class_table(report: &VerifyReport) -> String {
    let mut table = Table::new(&["class", ">tensors", ">error", ">NMSE", ">max |w − ŵ|"]);
    for (class, loss) in &report.classes {
        let count = report.compared.iter().filter(|c| c.class == *class).count();
        table.row([
            (*class).to_owned(),
            units::thousands(count as u64),
            format!("{:.3} %", 100.0 * loss.nmse().sqrt()),
            format!("{:.2e}", loss.nmse()),
            format!("{:.2e}", loss.max_abs),
        ]);
    }
    table.render()
}

fn report_json(pack: &Pack, report: &VerifyReport) -> Value {
    let damaged: Vec<Value> = report
        .damage
        .iter()
        .map(|d| {
            json!({"record": d.record, "file": d.file, "offset": d.offset, "bytes": d.bytes, "tensors": d.tensors,
                   "expected": d.expected.to_string(), "got": d.got.to_string()})
        })
        .collect();
    let tensors: Vec<Value> = report.compared.iter().map(tensor_json).collect();
    let classes: Vec<Value> = report
        .classes
        .iter()
        .map(|(class, loss)| json!({"class": class, "nmse": loss.nmse(), "relative_error": loss.nmse().sqrt(), "max_abs_error": loss.max_abs}))
        .collect();
    json!({
        "ok": report.ok(),
        "records": pack.records().len(),
        "bytes": pack.bytes(),
        "damaged": damaged,
        "bad_padding": report.padding,
        "not_finite": report.not_finite.iter().map(|(t, what)| json!({"tensor": t, "what": what})).collect::<Vec<_>>(),
        "bad_source_hash": report.source_hash,
        "missing": report.missing,
        "classes": classes,
        "tensors": tensors,
    })
}

fn tensor_json(c: &Comparison) -> Value {
    json!({
        "name": c.name,
        "class": c.class,
        "source_format": c.source_format,
        "format": c.format,
        "must_be_exact": c.must_be_exact,
        "exact": c.exact,
        "nmse": c.nmse,
        "relative_error": c.nmse.sqrt(),
        "max_abs_error": c.loss.max_abs,
    })
}

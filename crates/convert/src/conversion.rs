//! [`Conversion`]: a plan on its way to a pack, in as many steps as its caller wants. [`convert`] is the one-step way.

use crate::error::ConvertError;
use crate::measure::{Measured, Summary, classes};
use crate::parts::numbered;
use crate::pipeline::Pipeline;
use crate::plan::Plan;
use crate::pool;
use crate::stamp::{Stamps, check_apart};
use ashlar_pack::{
    Direct, Done, Fingerprint, Manifest, PackError, PartManifest, SealedRecord, Target, Unpublished, VERSION, WriteAt,
    Writer,
};
use ashlar_simd::Isa;
use ashlar_tensor::{Report, TensorStore};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// The input that only tells copies of the source's files apart.
pub(crate) const STATE: &str = "state of the source's files (size, time or inode)";
/// The input that parts do not have in common.
pub(crate) const PART: &str = "part";
const GENERATOR: &str = concat!("ashlar ", env!("CARGO_PKG_VERSION"));

/// How to convert. None of it changes a byte of the result.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Bytes that all buffers together may take.
    pub memory: u64,
    /// Threads; `None` for one per core and one more, which computes while another waits for the disk.
    pub threads: Option<usize>,
    /// Replace an existing pack.
    pub force: bool,
    /// Discard an interrupted conversion instead of going on with it.
    pub restart: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { memory: 1 << 30, threads: None, force: false, restart: false }
    }
}

/// Converts `source` to a pack at `out` as planned. The pack grows in `OUT.partial` and appears at `out` when it is
/// complete; a killed run is taken up where it stopped.
///
/// # Errors
/// [`ConvertError`]; nothing is published then. If the source is at fault, `OUT.partial` is removed as well.
pub fn convert(
    plan: &Plan,
    source: &dyn TensorStore,
    out: &Path,
    options: &Options,
    report: &dyn Report,
) -> Result<Summary, ConvertError> {
    convert_through(plan, source, out, options, report, &Direct)
}

/// [`convert`], writing through `sink`: for tests of what happens when writing fails.
///
/// # Errors
/// As [`convert`].
pub fn convert_through(
    plan: &Plan,
    source: &dyn TensorStore,
    out: &Path,
    options: &Options,
    report: &dyn Report,
    sink: &dyn WriteAt,
) -> Result<Summary, ConvertError> {
    let conversion = Conversion::open_through(plan, source, out, options, report, sink)?;
    match conversion.rest(options.memory, report) {
        Ok(()) => conversion.publish(report),
        Err(e) => Err(conversion.fail(e)),
    }
}

/// A conversion in progress. It holds the lock of `OUT.partial`; dropped, it leaves behind what a later one goes on with.
pub struct Conversion<'a> {
    plan: &'a Plan,
    pipeline: Pipeline<'a>,
    stamps: Stamps,
    threads: usize,
    started: Instant,
    resumed_records: usize,
}

impl<'a> Conversion<'a> {
    /// Begins, or takes up what an earlier run with the same inputs left in `OUT.partial`. `report` is told how the
    /// check of that goes.
    ///
    /// # Errors
    /// [`ConvertError`] if the plan cannot be carried out like this, or `out` may not be written.
    pub fn open(
        plan: &'a Plan,
        source: &'a dyn TensorStore,
        out: &Path,
        options: &Options,
        report: &dyn Report,
    ) -> Result<Self, ConvertError> {
        Self::open_through(plan, source, out, options, report, &Direct)
    }

    fn open_through(
        plan: &'a Plan,
        source: &'a dyn TensorStore,
        out: &Path,
        options: &Options,
        report: &dyn Report,
        sink: &'a dyn WriteAt,
    ) -> Result<Self, ConvertError> {
        let started = Instant::now();
        plan.check_methods()?;
        plan.check_memory(options.memory)?;
        let isa = Isa::detect()?;
        let threads = options.threads.unwrap_or_else(|| pool::default_threads() + 1).max(1);
        let target = Target { out: out.to_owned(), force: options.force, restart: options.restart }.tidy();
        let origin = &plan.origin;
        check_apart(&origin.dir, &[&target.out, &target.partial()])?;
        check_readable(&origin.side_files)?;
        let stamps = Stamps::take(&origin.weights)?;
        let extra = plan.side_bytes + plan.memory.fixed_bytes;
        let writer = Writer::open(&target, &plan.layout, &fingerprint(plan, &stamps), extra, sink)?;
        let resumed = usable(writer.resume(threads, report)?, plan);
        let resumed_records = resumed.len();
        let pipeline = Pipeline::new(plan, source, writer, isa, resumed);
        Ok(Self { plan, pipeline, stamps, threads, started, resumed_records })
    }

    /// Converts the records that hold any of `tensors` and are not done yet, within `memory` bytes.
    ///
    /// # Errors
    /// [`ConvertError`]; give it to [`Conversion::fail`].
    pub fn convert(&self, tensors: &HashSet<&str>, memory: u64, report: &dyn Report) -> Result<(), ConvertError> {
        let records = self.plan.layout.records.iter().enumerate();
        let others = records.filter(|(_, r)| !r.tensors.iter().any(|t| tensors.contains(t.name.as_str())));
        self.pipeline.all(&others.map(|(index, _)| index).collect(), self.threads, memory, report)
    }

    /// Converts the records of these indices that are not done yet, within `memory` bytes.
    ///
    /// # Errors
    /// As [`Conversion::convert`].
    pub fn records(&self, records: &HashSet<usize>, memory: u64, report: &dyn Report) -> Result<(), ConvertError> {
        let others = (0..self.plan.layout.records.len()).filter(|r| !records.contains(r)).collect();
        self.pipeline.all(&others, self.threads, memory, report)
    }

    /// The indices of the records that are done.
    #[must_use]
    pub fn done(&self) -> HashSet<usize> {
        self.pipeline.done().keys().copied().collect()
    }

    /// Converts all records that are not done yet, within `memory` bytes.
    ///
    /// # Errors
    /// As [`Conversion::convert`].
    pub fn rest(&self, memory: u64, report: &dyn Report) -> Result<(), ConvertError> {
        self.pipeline.all(&HashSet::new(), self.threads, memory, report)
    }

    /// Whether every record that holds any of `tensors` is done.
    #[must_use]
    pub fn is_done(&self, tensors: &HashSet<&str>) -> bool {
        let done = self.pipeline.done();
        let mut records = self.plan.layout.records.iter().enumerate();
        records.all(|(i, r)| done.contains_key(&i) || !r.tensors.iter().any(|t| tensors.contains(t.name.as_str())))
    }

    /// The converted weights, to be read back: only of records that are done.
    #[must_use]
    pub fn converted(&self) -> Unpublished<'_> {
        self.pipeline.writer.written()
    }

    /// A file in `OUT.partial` for what must be found again after a kill; it does not get into the pack.
    #[must_use]
    pub fn scratch(&self, name: &str) -> PathBuf {
        self.pipeline.writer.scratch(name)
    }

    /// Completes the pack and moves it to where it belongs.
    ///
    /// # Errors
    /// [`ConvertError`] if a record is not done, the source has changed meanwhile, or writing fails; nothing is
    /// published then.
    pub fn publish(self, report: &dyn Report) -> Result<Summary, ConvertError> {
        let (plan, pipeline) = (self.plan, self.pipeline);
        let (source_bytes, done) = (pipeline.source_bytes(), std::mem::take(&mut *pipeline.done()));
        let measured = measured(plan, &done)?;
        self.stamps.check(&plan.origin.weights)?;
        report.begin("syncing", plan.total_bytes);
        let origin = &plan.origin;
        pipeline.writer.publish(&manifest(plan, &done, &measured)?, &origin.side_files, origin.card.as_deref())?;
        report.end();
        let (bytes, records) = (plan.total_bytes, plan.layout.records.len());
        let (seconds, resumed_records) = (self.started.elapsed().as_secs_f64(), self.resumed_records);
        Ok(Summary { classes: classes(plan, &measured), bytes, source_bytes, resumed_records, records, seconds })
    }

    /// Completes a part and moves it to where it belongs; the plan must be a part's.
    ///
    /// # Errors
    /// As [`Conversion::publish`].
    pub fn publish_part(self, report: &dyn Report) -> Result<Summary, ConvertError> {
        let (plan, pipeline) = (self.plan, self.pipeline);
        let Some(piece) = &plan.piece else {
            return Err(ConvertError::Parts { what: "this is the plan of no part; please report this bug".into() });
        };
        let (source_bytes, done) = (pipeline.source_bytes(), std::mem::take(&mut *pipeline.done()));
        let measured = measured(plan, &done)?;
        self.stamps.check(&plan.origin.weights)?;
        report.begin("syncing", plan.total_bytes);
        pipeline.writer.publish_part(&PartManifest {
            part: piece.part,
            inputs: fingerprint(plan, &self.stamps),
            shards: Manifest::shards_of(&plan.layout),
            done: numbered(done.into_values(), &piece.records),
        })?;
        report.end();
        let (bytes, records) = (plan.total_bytes, plan.layout.records.len());
        let (seconds, resumed_records) = (self.started.elapsed().as_secs_f64(), self.resumed_records);
        Ok(Summary { classes: classes(plan, &measured), bytes, source_bytes, resumed_records, records, seconds })
    }

    /// Gives up: removes `OUT.partial` if the source is at fault, so that going on makes no sense. Returns what the user
    /// should be told.
    #[must_use]
    pub fn fail(self, error: ConvertError) -> ConvertError {
        if !error.is_about_the_source() {
            return error;
        }
        self.pipeline.writer.discard().err().map_or(error, Into::into)
    }
}

impl Plan {
    /// What a part that is complete cost, from what its manifest says is done.
    pub(crate) fn summary_of(&self, done: &[Done]) -> Result<Summary, ConvertError> {
        let records = self.piece.as_ref().map(|p| p.records.as_slice()).unwrap_or_default();
        let local = |d: &Done| records.binary_search(&d.record).ok().map(|i| (i, Done { record: i, ..d.clone() }));
        let measured = measured(self, &done.iter().filter_map(local).collect())?;
        let (bytes, records) = (self.total_bytes, self.layout.records.len());
        let classes = classes(self, &measured);
        Ok(Summary { classes, bytes, source_bytes: 0, resumed_records: records, records, seconds: 0.0 })
    }
}

/// What an interrupted run must have in common with the one that goes on with it.
pub(crate) fn fingerprint(plan: &Plan, stamps: &Stamps) -> Fingerprint {
    let recipe = blake3::hash(plan.origin.recipe.as_bytes()).to_hex().to_string();
    let layout = plan.piece.as_ref().map_or_else(|| plan.layout.hash(), |p| p.whole);
    let stats = plan.knowledge.as_ref().map_or_else(|| "none".to_owned(), |k| k.identity());
    let texts = [
        ("source", plan.origin.identity.clone()),
        (STATE, stamps.hash()),
        ("recipe", recipe),
        ("statistics", stats),
        ("layout", layout.to_hex().to_string()),
        ("version of ashlar", format!("{GENERATOR}, format {VERSION}")),
    ];
    let part = plan.piece.iter().map(|p| (PART, p.part.to_string()));
    texts.into_iter().chain(part).map(|(k, v)| (k.to_owned(), v)).collect()
}

/// What is copied at the end had better be found unreadable at the beginning.
fn check_readable(files: &[PathBuf]) -> Result<(), ConvertError> {
    for file in files {
        File::open(file).map_err(|source| PackError::Io {
            path: file.clone(),
            what: "open it, to copy it,",
            source,
        })?;
    }
    Ok(())
}

/// Finished records whose notes can be read; others are done again.
fn usable(done: Vec<Done>, plan: &Plan) -> BTreeMap<usize, Done> {
    let readable = |d: &Done| {
        let tensors = plan.layout.records.get(d.record).map_or(0, |r| r.tensors.len());
        d.notes.as_array().is_some_and(|a| a.len() == tensors && a.iter().all(|n| Measured::from_notes(n).is_some()))
    };
    done.into_iter().filter(readable).map(|d| (d.record, d)).collect()
}

/// What was measured, per tensor in file order.
fn measured(plan: &Plan, done: &BTreeMap<usize, Done>) -> Result<Vec<Measured>, ConvertError> {
    let mut out = Vec::new();
    for (index, record) in plan.layout.records.iter().enumerate() {
        let notes = done.get(&index).and_then(|d| d.notes.as_array()).map(Vec::as_slice).unwrap_or_default();
        let read: Vec<Measured> = notes.iter().filter_map(Measured::from_notes).collect();
        if read.len() != record.tensors.len() {
            return Err(PackError::Unsealed { record: index, what: "was not converted".into() }.into());
        }
        out.extend(read);
    }
    Ok(out)
}

/// What the manifest says of losses and of the statistics that guided the quantizers.
fn measured_json(plan: &Plan, losses: Map<String, Value>) -> Result<Value, ConvertError> {
    let mut all = Map::new();
    if !losses.is_empty() {
        all.insert("loss".into(), losses.into());
    }
    if let Some(knowledge) = &plan.knowledge {
        all.insert("statistics".into(), knowledge.provenance()?);
    }
    Ok(if all.is_empty() { Value::Null } else { all.into() })
}

fn manifest(plan: &Plan, done: &BTreeMap<usize, Done>, measured: &[Measured]) -> Result<Manifest, ConvertError> {
    let (mut records, mut losses, mut at) = (Vec::new(), Map::new(), measured.iter().zip(&plan.works));
    for (index, record) in plan.layout.records.iter().enumerate() {
        let unsealed = || PackError::Unsealed { record: index, what: "was not converted".into() };
        let blake3 = done.get(&index).ok_or_else(unsealed)?.blake3;
        let mut source_blake3 = BTreeMap::new();
        for (tensor, (m, work)) in record.tensors.iter().zip(&mut at) {
            let before = plan.origin.source_blake3.get(&tensor.name).copied().filter(|_| work.is_copied_panels());
            source_blake3.extend(m.source_blake3.or(before).map(|h| (tensor.name.clone(), h)));
            if let Some(loss) = m.loss {
                losses.insert(tensor.name.clone(), loss.json());
            }
        }
        records.push(SealedRecord { record: record.clone(), blake3, source_blake3 });
    }
    let origin = &plan.origin;
    Ok(Manifest {
        generator: GENERATOR.to_owned(),
        source: origin.identity.clone(),
        config: origin.config.clone(),
        recipe: origin.recipe.clone(),
        shards: Manifest::shards_of(&plan.layout),
        records,
        measured: measured_json(plan, losses)?,
    })
}

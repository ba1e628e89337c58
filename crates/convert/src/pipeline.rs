//! [`convert`]: the plan, carried out on all cores.

use crate::budget::{Budget, Share};
use crate::error::ConvertError;
use crate::factors::{self, Factors};
use crate::jobs::{Job, Tile, jobs};
use crate::measure::{Measured, Summary, classes};
use crate::plan::Plan;
use crate::record::{Records, contiguous, pieces};
use crate::stamp::{Stamps, check_apart};
use crate::tile::{Buffers, Guide, process};
use crate::{pool, work::Work};
use ashlar_pack::{
    Direct, Done, Fingerprint, Manifest, PackError, Record, SealedRecord, Target, Tensor, VERSION, WriteAt, Writer,
};
use ashlar_simd::Isa;
use ashlar_tensor::{Report, TensorStore};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread::Builder;
use std::time::Instant;

const GENERATOR: &str = concat!("ashlar ", env!("CARGO_PKG_VERSION"));
/// After so many bytes the disk is set to work, so that it writes while the cores compute.
const FLUSH_BYTES: u64 = 128 << 20;

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
    let run = Run {
        plan,
        source,
        writer: &writer,
        isa,
        report,
        records: Records::new(plan),
        done: Mutex::new(resumed),
        unflushed: AtomicU64::new(0),
    };
    let resumed_records = run.done().len();
    let source_bytes = match run.all(threads, options.memory) {
        Ok(bytes) => bytes,
        Err(e) if e.is_about_the_source() => {
            writer.discard()?;
            return Err(e);
        }
        Err(e) => return Err(e),
    };
    let done = std::mem::take(&mut *run.done());
    let measured = measured(plan, &done)?;
    stamps.check(&origin.weights)?;
    report.begin("syncing", plan.total_bytes);
    writer.publish(&manifest(plan, &done, &measured)?, &plan.origin.side_files)?;
    report.end();
    let (bytes, records) = (plan.total_bytes, plan.layout.records.len());
    let seconds = started.elapsed().as_secs_f64();
    Ok(Summary { classes: classes(plan, &measured), bytes, source_bytes, resumed_records, records, seconds })
}

/// What an interrupted run must have in common with the one that goes on with it.
fn fingerprint(plan: &Plan, stamps: &Stamps) -> Fingerprint {
    let recipe = blake3::hash(plan.origin.recipe.as_bytes()).to_hex().to_string();
    let stats = plan.knowledge.as_ref().map_or_else(|| "none".to_owned(), |k| k.identity());
    let texts = [
        ("source", plan.origin.identity.clone()),
        ("state of the source's files (size, time or inode)", stamps.hash()),
        ("recipe", recipe),
        ("statistics", stats),
        ("layout", plan.layout.hash().to_hex().to_string()),
        ("version of ashlar", format!("{GENERATOR}, format {VERSION}")),
    ];
    texts.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()
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

struct Run<'a> {
    plan: &'a Plan,
    source: &'a dyn TensorStore,
    writer: &'a Writer<'a>,
    isa: Isa,
    report: &'a dyn Report,
    records: Records<'a>,
    done: Mutex<BTreeMap<usize, Done>>,
    unflushed: AtomicU64,
}

impl Run<'_> {
    fn done(&self) -> std::sync::MutexGuard<'_, BTreeMap<usize, Done>> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does every job that is left; returns the source bytes read.
    fn all(&self, threads: usize, memory: u64) -> Result<u64, ConvertError> {
        let list = jobs(self.plan, &self.done().keys().copied().collect());
        let tile_bytes = |t: &Tile| self.plan.works.get(t.tensor).map_or(0, |w| w.source_bytes(&t.rows));
        let total = list.iter().flat_map(|j| &j.tiles).map(tile_bytes).sum();
        self.report.begin("converting", total);
        let (threads, factors) = self.fit(&list, threads, memory);
        let budget = Budget::new(memory.saturating_sub(factors));
        let factors = Factors::new(self.plan, &list, self.plan.knowledge.as_deref(), self.isa, self.report);
        std::thread::scope(|scope| {
            let (flush, shards) = sync_channel(4);
            // Where no thread can be had, all is synced at the end.
            let flusher = Builder::new().spawn_scoped(scope, move || self.flush(&shards)).ok();
            let state = || (Buffers::default(), Share::new(&budget));
            let worked = pool::for_each(threads, &list, state, |(buffers, share), job| {
                self.job(job, buffers, share, &factors, &flush)
            });
            drop(flush);
            let flushed = flusher.map(|f| f.join().unwrap_or_else(|p| Err(pool::panicked(&*p))));
            worked.and(flushed.unwrap_or(Ok(())))
        })?;
        self.report.end();
        Ok(total)
    }

    /// As many of `threads` threads as `memory` has room for, and what their factored Hessians take of it.
    fn fit(&self, list: &[Job], threads: usize, memory: u64) -> (usize, u64) {
        let tile = list.iter().map(|j| j.memory).max().unwrap_or(0);
        let bound = |threads: usize| factors::bound(self.plan, list, threads);
        let fits = |threads: &usize| tile.saturating_add(bound(*threads)) <= memory;
        let threads = (1..=threads).rev().find(fits).unwrap_or(1);
        (threads, bound(threads))
    }

    fn flush(&self, shards: &Receiver<usize>) -> Result<(), ConvertError> {
        Ok(shards.iter().try_for_each(|shard| self.writer.flush(shard))?)
    }

    fn job(
        &self,
        job: &Job,
        buffers: &mut Buffers,
        share: &mut Share<'_>,
        factors: &Factors<'_>,
        flush: &SyncSender<usize>,
    ) -> Result<(), ConvertError> {
        share.ensure(job.memory, || buffers.clear());
        for tile in &job.tiles {
            self.tile(tile, buffers, factors, flush)?;
        }
        Ok(())
    }

    fn tile(
        &self,
        tile: &Tile,
        buffers: &mut Buffers,
        factors: &Factors<'_>,
        flush: &SyncSender<usize>,
    ) -> Result<(), ConvertError> {
        let record = self.plan.layout.records.get(tile.record);
        let stored = record.and_then(|r| r.tensors.get(tile.tensor - self.records.first_tensor(tile.record)));
        let (Some(work), Some(record), Some(stored)) = (self.plan.works.get(tile.tensor), record, stored) else {
            return Ok(());
        };
        let factor = factors.get(work)?;
        let guide = Guide { knowledge: self.plan.knowledge.as_deref(), factor: factor.as_deref() };
        let lost = process(work, &tile.rows, self.source, guide, self.isa, buffers)?;
        drop(factor);
        factors.done(work);
        let written = self.write(work, record, stored, tile, buffers, flush)?;
        let read = if work.is_reordered() {
            pieces(work.entry.bytes(), &contiguous(&work.source), &work.source, &tile.rows, buffers.source())
        } else {
            Vec::new()
        };
        if let Some(done) = self.records.finish_tile(tile, written, read, lost)? {
            for (at, len) in record.gaps() {
                self.writer.write(record.shard, record.offset + at, &vec![0; len as usize])?;
            }
            self.writer.seal(&done)?;
            self.done().insert(done.record, done);
        }
        self.report.advance(work.source_bytes(&tile.rows), &work.entry.name);
        Ok(())
    }

    /// Writes a tile's planes; returns their hashes.
    fn write(
        &self,
        work: &Work,
        record: &Record,
        stored: &Tensor,
        tile: &Tile,
        buffers: &Buffers,
        flush: &SyncSender<usize>,
    ) -> Result<Vec<ashlar_pack::Piece>, ConvertError> {
        let planes = buffers.target(work);
        for (index, (place, bytes)) in stored.planes.iter().zip(planes).enumerate() {
            let at = stored.offset + place.offset + work.target.span(index, &tile.rows).start;
            self.writer.write(record.shard, at, bytes)?;
            let len = bytes.len() as u64;
            let before = self.unflushed.fetch_add(len, Ordering::Relaxed);
            if before / FLUSH_BYTES != (before + len) / FLUSH_BYTES {
                // A flusher that is still busy, or has failed, needs no further message.
                let _ = flush.try_send(record.shard);
            }
        }
        let starts: Vec<u64> = stored.planes.iter().map(|p| stored.offset - record.offset + p.offset).collect();
        Ok(pieces(record.bytes, &starts, &work.target, &tile.rows, planes))
    }
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

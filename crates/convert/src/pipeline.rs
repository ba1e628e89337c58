//! [`Pipeline`]: jobs on all cores: read, decode, quantize, write, hash.

use crate::budget::{Budget, Share};
use crate::error::ConvertError;
use crate::factors::{self, Factors};
use crate::jobs::{Job, Tile, jobs};
use crate::plan::Plan;
use crate::record::{Records, contiguous, pieces};
use crate::tile::{Buffers, Guide, process};
use crate::{pool, work::Work};
use ashlar_pack::{Done, Record, Tensor, Writer};
use ashlar_simd::Isa;
use ashlar_tensor::{Report, TensorStore};
use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread::Builder;

/// After so many bytes the disk is set to work, so that it writes while the cores compute.
const FLUSH_BYTES: u64 = 128 << 20;

/// A plan, its source and its writer, and how far they are.
pub(crate) struct Pipeline<'a> {
    plan: &'a Plan,
    source: &'a dyn TensorStore,
    pub writer: Writer<'a>,
    isa: Isa,
    records: Records<'a>,
    done: Mutex<BTreeMap<usize, Done>>,
    unflushed: AtomicU64,
    source_bytes: AtomicU64,
}

/// What the threads of one list of jobs share.
struct Shared<'a> {
    factors: Factors<'a>,
    flush: SyncSender<usize>,
    report: &'a dyn Report,
}

impl<'a> Pipeline<'a> {
    /// `done`: what an earlier run has finished.
    pub fn new(
        plan: &'a Plan,
        source: &'a dyn TensorStore,
        writer: Writer<'a>,
        isa: Isa,
        done: BTreeMap<usize, Done>,
    ) -> Self {
        let (done, records) = (Mutex::new(done), Records::new(plan));
        let (unflushed, source_bytes) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { plan, source, writer, isa, records, done, unflushed, source_bytes }
    }

    /// Source bytes read so far.
    pub fn source_bytes(&self) -> u64 {
        self.source_bytes.load(Ordering::Relaxed)
    }

    /// Finished records.
    pub fn done(&self) -> std::sync::MutexGuard<'_, BTreeMap<usize, Done>> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does every job that is left but those of the records `without`, within `memory` bytes.
    pub fn all(
        &self,
        without: &HashSet<usize>,
        threads: usize,
        memory: u64,
        report: &dyn Report,
    ) -> Result<(), ConvertError> {
        let skip = without.iter().chain(self.done().keys()).copied().collect();
        let list = jobs(self.plan, &skip);
        let tile_bytes = |t: &Tile| self.plan.works.get(t.tensor).map_or(0, |w| w.source_bytes(&t.rows));
        let total = list.iter().flat_map(|j| &j.tiles).map(tile_bytes).sum();
        report.begin("converting", total);
        let (threads, bytes) = self.fit(&list, threads, memory);
        let budget = Budget::new(memory.saturating_sub(bytes));
        std::thread::scope(|scope| {
            let (flush, shards) = sync_channel(4);
            // Where no thread can be had, all is synced at the end.
            let flusher = Builder::new().spawn_scoped(scope, move || self.flush(&shards)).ok();
            let factors = Factors::new(self.plan, &list, self.isa, report);
            let shared = Shared { factors, flush, report };
            let state = || (Buffers::default(), Share::new(&budget));
            let worked =
                pool::for_each(threads, &list, state, |(buffers, share), job| self.job(job, buffers, share, &shared));
            drop(shared);
            let flushed = flusher.map(|f| f.join().unwrap_or_else(|p| Err(pool::panicked(&*p))));
            worked.and(flushed.unwrap_or(Ok(())))
        })?;
        self.source_bytes.fetch_add(total, Ordering::Relaxed);
        report.end();
        Ok(())
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
        shared: &Shared<'_>,
    ) -> Result<(), ConvertError> {
        share.ensure(job.memory, || buffers.clear());
        for tile in &job.tiles {
            self.tile(tile, buffers, shared)?;
        }
        Ok(())
    }

    fn tile(&self, tile: &Tile, buffers: &mut Buffers, shared: &Shared<'_>) -> Result<(), ConvertError> {
        let record = self.plan.layout.records.get(tile.record);
        let stored = record.and_then(|r| r.tensors.get(tile.tensor - self.records.first_tensor(tile.record)));
        let (Some(work), Some(record), Some(stored)) = (self.plan.works.get(tile.tensor), record, stored) else {
            return Ok(());
        };
        let factor = shared.factors.get(work)?;
        let guide = Guide { knowledge: self.plan.knowledge.as_deref(), factor: factor.as_deref() };
        let lost = process(work, &tile.rows, self.source, guide, self.isa, buffers)?;
        drop(factor);
        shared.factors.done(work);
        let written = self.write(work, record, stored, tile, buffers, &shared.flush)?;
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
        shared.report.advance(work.source_bytes(&tile.rows), &work.entry.name);
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

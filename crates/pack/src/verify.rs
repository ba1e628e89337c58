//! Checksums, in parallel: records are cut into blocks that any thread may hash.

use crate::checksum::{Piece, TreeHash};
use crate::error::PackError;
use crate::layout::Record;
use crate::reader::Pack;
use ashlar_tensor::Report;
use blake3::Hash;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::Builder;

/// Bytes hashed at once: large enough for wide SIMD, small enough for a cache.
const BLOCK: u64 = 1 << 20;

/// A record whose bytes are not what the manifest says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Index of the record.
    pub record: usize,
    /// The shard's file name.
    pub file: String,
    /// First byte in the shard.
    pub offset: u64,
    /// Length in bytes.
    pub bytes: u64,
    /// The tensors it holds.
    pub tensors: Vec<String>,
    /// BLAKE3 in the manifest.
    pub expected: Hash,
    /// BLAKE3 of the bytes.
    pub got: Hash,
}

impl Pack {
    /// Hashes every record on `threads` threads and returns those that do not have the manifest's checksum.
    ///
    /// # Errors
    /// I/O.
    pub fn verify(&self, threads: usize, report: &dyn Report) -> Result<Vec<Damage>, PackError> {
        let records: Vec<&Record> = self.records().iter().map(|r| &r.record).collect();
        report.begin("checksums", records.iter().map(|r| r.bytes).sum());
        let hashes = hash_records(self.files(), &records, threads, report)?;
        report.end();
        let damage = |(index, (sealed, got)): (usize, (&crate::SealedRecord, Hash))| {
            let r = &sealed.record;
            (sealed.blake3 != got).then(|| Damage {
                record: index,
                file: self.shard_file(r.shard).to_owned(),
                offset: r.offset,
                bytes: r.bytes,
                tensors: r.tensors.iter().map(|t| t.name.clone()).collect(),
                expected: sealed.blake3,
                got,
            })
        };
        Ok(self.records().iter().zip(hashes).enumerate().filter_map(damage).collect())
    }
}

/// The BLAKE3 hash of every record, in order.
pub(crate) fn hash_records(
    files: &[File],
    records: &[&Record],
    threads: usize,
    report: &dyn Report,
) -> Result<Vec<Hash>, PackError> {
    // Blocks are counted, not listed: a sparse file may claim any number of them.
    let count = |end: &mut u64, r: &&Record| {
        *end = end.saturating_add(r.bytes.div_ceil(BLOCK));
        Some(*end)
    };
    let ends: Vec<u64> = records.iter().scan(0, count).collect();
    let total = ends.last().copied().unwrap_or(0);
    let trees: Vec<Mutex<TreeHash>> = records.iter().map(|r| Mutex::new(TreeHash::new(r.bytes))).collect();
    let next = AtomicU64::new(0);
    let block = |number: u64, buffer: &mut Vec<u8>| -> Result<(), PackError> {
        let index = ends.partition_point(|end| *end <= number);
        let first = index.checked_sub(1).and_then(|i| ends.get(i)).copied().unwrap_or(0);
        let (Some(record), Some(tree)) = (records.get(index), trees.get(index)) else { return Ok(()) };
        let at = (number - first) * BLOCK;
        buffer.resize(BLOCK.min(record.bytes - at) as usize, 0);
        let file = files.get(record.shard).ok_or_else(|| missing(index))?;
        let name = record.tensors.first().map_or("", |t| &t.name);
        file.read_exact_at(buffer, record.offset + at).map_err(|source| PackError::Io {
            path: name.into(),
            what: "read the record's bytes",
            source,
        })?;
        tree.lock().unwrap_or_else(PoisonError::into_inner).add(Piece::new(record.bytes, at, buffer));
        report.advance(buffer.len() as u64, name);
        Ok(())
    };
    let work = || -> Result<(), PackError> {
        let mut buffer = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= total {
                return Ok(());
            }
            // After a failure the others need not go on.
            block(number, &mut buffer).inspect_err(|_| next.store(total, Ordering::Relaxed))?;
        }
    };
    let threads = threads.clamp(1, usize::try_from(total).unwrap_or(usize::MAX).max(1));
    std::thread::scope(|scope| {
        // The calling thread works as well: where no others can be had, it is enough.
        let handles: Vec<_> = (1..threads).map_while(|_| Builder::new().spawn_scoped(scope, work).ok()).collect();
        let own = work();
        handles.into_iter().map(|h| h.join().unwrap_or_else(|_| Err(missing(0)))).fold(own, Result::and)
    })?;
    let finish = |(i, t): (usize, Mutex<TreeHash>)| {
        t.into_inner().unwrap_or_else(PoisonError::into_inner).finish().ok_or_else(|| missing(i))
    };
    trees.into_iter().enumerate().map(finish).collect()
}

fn missing(record: usize) -> PackError {
    PackError::Unsealed { record, what: "could not be hashed whole".into() }
}

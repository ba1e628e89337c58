//! A pack written in parts, by processes that share nothing but their inputs.
//!
//! Part I of N has the shards with the numbers I, I + N, I + 2N, … of the pack. Complete, it lies in `OUT.part-I-of-N`: its
//! shards under the names they have in the pack, and `part.json` with the inputs and the checksum of every record. Until
//! then it grows in `OUT.part-I-of-N.partial`, as a pack does. [`assemble`] moves the shards of all parts into
//! `OUT.partial` beside the journal that a single run would have left there, so that what follows is a resume: every
//! record is hashed again, and published.

use crate::error::PackError;
use crate::journal::{self, Done, Fingerprint};
use crate::layout::Layout;
use crate::partial::{self, JOURNAL, Target, claim, parent};
use crate::writer::{Writer, open_journal};
use blake3::Hash;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The manifest of a part.
const PART_FILE: &str = "part.json";
/// Bound on its size: as of a journal.
const MAX_PART: u64 = 1 << 29;
/// Most parts.
const MAX_COUNT: usize = 100_000;

/// Which part of how many, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Part {
    index: usize,
    count: usize,
}

impl FromStr for Part {
    type Err = String;

    /// Reads `3/8`.
    fn from_str(text: &str) -> Result<Self, String> {
        let numbers = text.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
        let part = numbers.and_then(|(index, count)| Self::new(index, count));
        part.ok_or_else(|| format!("`{text}` is no part; write I/N with I from 1 to N, such as 3/8"))
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.count)
    }
}

impl Part {
    /// Part `index` of `count`; `None` unless 1 ≤ index ≤ count.
    #[must_use]
    pub fn new(index: usize, count: usize) -> Option<Self> {
        ((1..=count).contains(&index) && count <= MAX_COUNT).then_some(Self { index, count })
    }

    /// Which one, from 1.
    #[must_use]
    pub fn index(self) -> usize {
        self.index
    }

    /// Of how many.
    #[must_use]
    pub fn count(self) -> usize {
        self.count
    }

    /// Whether it has the shard of that index (from 0).
    #[must_use]
    pub fn has(self, shard: usize) -> bool {
        shard % self.count == self.index - 1
    }

    /// Where it lies when it is complete: `OUT.part-I-of-N`, beside `OUT`.
    #[must_use]
    pub fn dir(self, out: &Path) -> PathBuf {
        let mut name = name_of(out);
        name.push(format!(".part-{}-of-{}", self.index, self.count));
        out.with_file_name(name)
    }

    /// The complete parts beside `out`, in order.
    ///
    /// # Errors
    /// If the directory cannot be listed.
    pub fn found(out: &Path) -> Result<Vec<Self>, PackError> {
        let (folder, prefix) = (parent(out), name_of(out));
        let prefix = format!("{}.part-", prefix.to_string_lossy());
        let listing = match fs::read_dir(folder) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            listing => listing.map_err(PackError::io(folder, "list it"))?,
        };
        let mut found = Vec::new();
        for entry in listing {
            let entry = entry.map_err(PackError::io(folder, "list it"))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let numbers = name.strip_prefix(&prefix).and_then(|rest| rest.split_once("-of-"));
            let part = numbers.and_then(|(i, n)| Self::new(i.parse().ok()?, n.parse().ok()?));
            found.extend(part.filter(|p| p.dir(out).join(PART_FILE).is_file()));
        }
        found.sort_by_key(|p| (p.count, p.index));
        Ok(found)
    }
}

fn name_of(out: &Path) -> OsString {
    out.components().next_back().map_or_else(|| "pack".into(), |c| c.as_os_str().to_owned())
}

impl Layout {
    /// The shards of a part and what lies in them, and the index of each of its records in the whole.
    #[must_use]
    pub fn part(&self, part: Part) -> (Self, Vec<usize>) {
        let mine: Vec<usize> = (0..self.shards.len()).filter(|s| part.has(*s)).collect();
        let shards = mine.iter().filter_map(|s| self.shards.get(*s)).cloned().collect();
        let (mut records, mut indices) = (Vec::new(), Vec::new());
        for (index, record) in self.records.iter().enumerate() {
            if let Ok(shard) = mine.binary_search(&record.shard) {
                records.push(crate::Record { shard, ..record.clone() });
                indices.push(index);
            }
        }
        (Self { shards, records }, indices)
    }
}

/// What a complete part says of itself.
#[derive(Clone, Debug, PartialEq)]
pub struct PartManifest {
    /// Which part.
    pub part: Part,
    /// The inputs it was made of.
    pub inputs: Fingerprint,
    /// File name and size of every shard.
    pub shards: Vec<(String, u64)>,
    /// Its records, by their index in the whole.
    pub done: Vec<Done>,
}

#[derive(Serialize, Deserialize)]
struct Raw {
    part_version: u32,
    index: usize,
    count: usize,
    inputs: Fingerprint,
    shards: Vec<(String, u64)>,
    records: Vec<RawDone>,
}

#[derive(Serialize, Deserialize)]
struct RawDone {
    record: usize,
    blake3: String,
    notes: Value,
}

impl PartManifest {
    /// The manifest in `dir`; `None` where there is none.
    ///
    /// # Errors
    /// [`PackError::Malformed`] if it cannot be understood; I/O.
    pub fn read(dir: &Path) -> Result<Option<Self>, PackError> {
        let path = dir.join(PART_FILE);
        let file = match File::open(&path) {
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
            file => file.map_err(PackError::io(&path, "open it"))?,
        };
        let mut bytes = Vec::new();
        file.take(MAX_PART).read_to_end(&mut bytes).map_err(PackError::io(&path, "read it"))?;
        let bad = |what: String| PackError::malformed(&path, what);
        let raw: Raw = serde_json::from_slice(&bytes).map_err(|e| bad(format!("no manifest of a part: {e}")))?;
        let part = Part::new(raw.index, raw.count).filter(|_| raw.part_version == 1);
        let part = part.ok_or_else(|| bad("a part of another version, or no part at all".into()))?;
        let done = raw.records.into_iter().map(|r| {
            let blake3 = Hash::from_hex(&r.blake3).map_err(|e| bad(format!("record {}: {e}", r.record)))?;
            Ok(Done { record: r.record, blake3, notes: r.notes })
        });
        let done = done.collect::<Result<_, PackError>>()?;
        Ok(Some(Self { part, inputs: raw.inputs, shards: raw.shards, done }))
    }

    fn to_json(&self) -> String {
        let record =
            |d: &Done| RawDone { record: d.record, blake3: d.blake3.to_hex().to_string(), notes: d.notes.clone() };
        let raw = Raw {
            part_version: 1,
            index: self.part.index,
            count: self.part.count,
            inputs: self.inputs.clone(),
            shards: self.shards.clone(),
            records: self.done.iter().map(record).collect(),
        };
        serde_json::to_string(&raw).unwrap_or_default() + "\n"
    }

    /// Whether its shards are there, as long as it says.
    #[must_use]
    pub fn is_whole(&self, dir: &Path) -> bool {
        self.shards.iter().all(|(file, bytes)| fs::metadata(dir.join(file)).is_ok_and(|m| m.len() == *bytes))
    }
}

impl Writer<'_> {
    /// Completes a part and moves it to where it belongs. The layout must be a part's.
    ///
    /// # Errors
    /// [`PackError::Unsealed`] unless every record is among `manifest.done`; I/O.
    pub fn publish_part(self, manifest: &PartManifest) -> Result<(), PackError> {
        if manifest.done.len() != self.layout().records.len() {
            return Err(PackError::Unsealed { record: manifest.done.len(), what: "was not converted".into() });
        }
        self.sync()?;
        let (target, dir) = (self.target(), self.dir());
        let path = dir.join(PART_FILE);
        let mut file = File::create(&path).map_err(PackError::io(&path, "create it"))?;
        let written = file.write_all(manifest.to_json().as_bytes()).and_then(|()| file.sync_all());
        written.map_err(PackError::io(&path, "write to it"))?;
        target.check()?;
        partial::sweep(dir)?;
        fs::rename(dir, &target.out).map_err(PackError::io(&target.out, "rename the finished part to it"))?;
        let journal = target.out.join(JOURNAL);
        fs::remove_file(&journal).map_err(PackError::io(&journal, "remove it"))?;
        crate::publish::sync_parent(&target.out)
    }
}

/// Moves the shards of `parts` into `OUT.partial`, and writes the journal of a run that has done all their records. Killed
/// on the way, it goes on when it is called again.
///
/// # Errors
/// As [`Writer::open`]; [`PackError::Malformed`] if a shard of a part is missing or cut.
pub fn assemble(target: &Target, inputs: &Fingerprint, parts: &[(PathBuf, PartManifest)]) -> Result<(), PackError> {
    let target = target.tidy();
    let partial = claim(&target, inputs)?;
    let path = partial.dir.join(JOURNAL);
    let mut journal = open_journal(&partial, inputs)?;
    for (dir, manifest) in parts {
        for (file, bytes) in &manifest.shards {
            take(&dir.join(file), &partial.dir.join(file), *bytes)?;
        }
        let new = manifest.done.iter().filter(|d| partial.contents.done.get(&d.record) != Some(d));
        let lines: String = new.map(journal::done_line).collect();
        journal.write_all(lines.as_bytes()).map_err(PackError::io(&path, "append to it"))?;
    }
    journal.sync_all().map_err(PackError::io(&path, "sync it"))
}

/// Removes a part whose shards have been moved, or that is to be made anew.
///
/// # Errors
/// I/O; [`PackError::Exists`] if it is no part's directory.
pub fn remove_part(dir: &Path) -> Result<(), PackError> {
    if !dir.join(PART_FILE).is_file() {
        let what = "is not a part of a pack, so it is not removed; move it away".into();
        return Err(PackError::Exists { path: dir.to_owned(), what });
    }
    partial::delete(dir)
}

/// Moves a shard, unless an earlier call has.
fn take(from: &Path, to: &Path, bytes: u64) -> Result<(), PackError> {
    let len = |path: &Path| fs::metadata(path).ok().map(|m| m.len());
    let wrong = |path: &Path, got: Option<u64>| match got {
        Some(got) => PackError::malformed(path, format!("{got} bytes, expected {bytes}")),
        None => PackError::malformed(path, "the shard of this part is missing"),
    };
    match (len(from), len(to)) {
        (Some(got), _) if got != bytes => Err(wrong(from, Some(got))),
        (Some(_), _) => relocate(from, to),
        (None, Some(got)) if got == bytes => Ok(()),
        (None, _) => Err(wrong(from, None)),
    }
}

/// Renames, or copies where the two lie on different file systems.
fn relocate(from: &Path, to: &Path) -> Result<(), PackError> {
    match fs::rename(from, to) {
        Err(e) if e.kind() == ErrorKind::CrossesDevices => {
            let mut source = File::open(from).map_err(PackError::io(from, "open it"))?;
            let mut copy = File::create(to).map_err(PackError::io(to, "create it"))?;
            let copied = io::copy(&mut source, &mut copy).and_then(|_| copy.sync_all());
            copied.map_err(PackError::io(to, "copy a shard to it"))?;
            fs::remove_file(from).map_err(PackError::io(from, "remove it"))
        }
        renamed => renamed.map_err(PackError::io(from, "move it into the pack")),
    }
}

//! What survives a kill: `OUT.partial/` with the statistics of every finished part and the hidden states after the last.
//!
//! ```text
//! part-00000.safetensors …   statistics of part 0 …
//! states                     fingerprint (32 bytes) | blake3 of what follows (32) | parts done (u64 LE) | f32 LE …
//! ```
//! A part's statistics are written before the states that follow it, and each file is renamed into place when it is
//! complete, so the states always tell the truth.

use crate::CalibrateError;
use crate::error::io;
use crate::states::{Frozen, States};
use ashlar_convert::stats::{Array, Shares, StatsFile, StatsOrigin, merge, write_sharing};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

const HEAD: usize = 72;

/// The journal of one output.
pub struct Journal {
    /// What the path of every file begins with.
    base: PathBuf,
    fingerprint: [u8; 32],
}

impl Journal {
    /// Opens or makes the journal of `out`; `restart` discards what is there.
    pub fn open(out: &Path, fingerprint: [u8; 32], restart: bool) -> Result<Self, CalibrateError> {
        let mut dir = out.as_os_str().to_owned();
        dir.push(".partial");
        let dir = PathBuf::from(dir);
        if restart && dir.exists() {
            fs::remove_dir_all(&dir).map_err(io(&dir, "remove"))?;
        }
        fs::create_dir_all(&dir).map_err(io(&dir, "create"))?;
        Ok(Self { base: dir.join(""), fingerprint })
    }

    /// The journal of something that has a place for it: files whose paths begin with `base`. Whoever owns that place
    /// removes them.
    pub fn within(base: PathBuf, fingerprint: [u8; 32]) -> Self {
        Self { base, fingerprint }
    }

    fn file(&self, name: &str) -> PathBuf {
        let mut path = self.base.as_os_str().to_owned();
        path.push(name);
        path.into()
    }

    fn part(&self, index: usize) -> PathBuf {
        self.file(&format!("part-{index:05}.safetensors"))
    }

    /// Parts done and the states after them; `None` if there is nothing to go on with. States whose bytes are damaged,
    /// or whose statistics are missing, count as nothing.
    pub fn resume(&self, mut states: States) -> Result<Option<(usize, Frozen)>, CalibrateError> {
        let path = self.file("states");
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(io(&path, "open")(e)),
        };
        let mut head = [0; HEAD];
        if file.read_exact(&mut head).is_err() {
            return Ok(None);
        }
        let (fingerprint, rest) = head.split_at(32);
        let (hash, done) = rest.split_at(32);
        if fingerprint != self.fingerprint {
            return Err(CalibrateError::OtherRun { dir: self.base.display().to_string() });
        }
        if file.read_exact(states.bytes_mut()).is_err() {
            return Ok(None);
        }
        let states = states.freeze();
        let mut number = [0; 8];
        number.copy_from_slice(done);
        let parts = usize::try_from(u64::from_le_bytes(number)).unwrap_or(usize::MAX);
        if self.hash(&number, &states) != hash || !(0..parts).all(|i| StatsFile::open(&self.part(i)).is_ok()) {
            return Ok(None);
        }
        Ok(Some((parts, states)))
    }

    fn hash(&self, done: &[u8; 8], states: &Frozen) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        hasher.update(done).update(states.bytes());
        *hasher.finalize().as_bytes()
    }

    /// Keeps the statistics of part `index`, and the states after it if another part needs them.
    pub fn keep(
        &self,
        index: usize,
        origin: &StatsOrigin,
        shares: &Shares,
        arrays: &[Array],
        states: Option<&Frozen>,
    ) -> Result<(), CalibrateError> {
        write_sharing(&self.part(index), origin, shares, arrays)?;
        let Some(states) = states else { return Ok(()) };
        let (new, path) = (self.file("states.new"), self.file("states"));
        let done = (index as u64 + 1).to_le_bytes();
        let store = || {
            let mut file = File::create(&new)?;
            file.write_all(&self.fingerprint)?;
            file.write_all(&self.hash(&done, states))?;
            file.write_all(&done)?;
            file.write_all(states.bytes())?;
            file.sync_all()?;
            fs::rename(&new, &path)
        };
        store().map_err(io(&new, "write"))
    }

    /// Puts the statistics of `parts` parts together at `out`.
    pub fn join(&self, parts: usize, origin: &StatsOrigin, out: &Path) -> Result<(), CalibrateError> {
        let files = (0..parts).map(|i| StatsFile::open(&self.part(i))).collect::<Result<Vec<_>, _>>()?;
        Ok(merge(&files, origin, out)?)
    }

    /// [`Journal::join`]; then the journal, which has a directory of its own, is removed.
    pub fn publish(self, parts: usize, origin: &StatsOrigin, out: &Path) -> Result<(), CalibrateError> {
        self.join(parts, origin, out)?;
        fs::remove_dir_all(&self.base).map_err(io(&self.base, "remove"))
    }
}

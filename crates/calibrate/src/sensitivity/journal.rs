//! What survives a kill: `STATS.sensitivity/` with the states of all copies after the last finished layer, and a
//! statistics file `progress` with the errors of the trials so far (`sensitivity.*`), the layers that are done
//! (`tokens.layers`) and the fingerprint of the run (in the place of a text's hash).

use crate::CalibrateError;
use crate::error::io;
use ashlar_convert::stats::{Array, Data, Sensitivities, Sensitivity, StatsFile, StatsOrigin, Text, write};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The journal of one measurement.
pub struct Journal {
    dir: PathBuf,
    origin: StatsOrigin,
    layers: usize,
    /// Relative errors of trials, by name.
    errors: BTreeMap<String, f64>,
}

impl Journal {
    /// Opens or makes the journal beside `stats`; `restart` discards what is there.
    pub fn open(stats: &Path, fingerprint: String, restart: bool) -> Result<Self, CalibrateError> {
        let mut dir = stats.as_os_str().to_owned();
        dir.push(".sensitivity");
        let dir = PathBuf::from(dir);
        if restart && dir.exists() {
            fs::remove_dir_all(&dir).map_err(io(&dir, "remove"))?;
        }
        fs::create_dir_all(&dir).map_err(io(&dir, "create"))?;
        let texts = vec![Text { name: "fingerprint".into(), blake3: fingerprint }];
        let origin = StatsOrigin { source: String::new(), tokens: 0, ctx: 0, texts };
        let mut this = Self { dir, origin, layers: 0, errors: BTreeMap::new() };
        this.resume()?;
        Ok(this)
    }

    fn resume(&mut self) -> Result<(), CalibrateError> {
        let path = self.progress();
        if !path.exists() {
            return Ok(());
        }
        // A damaged journal counts as none.
        let Ok(file) = StatsFile::open(&path) else { return Ok(()) };
        if *file.origin() != self.origin {
            return Err(CalibrateError::OtherRun { dir: self.dir.display().to_string() });
        }
        self.layers = usize::try_from(file.tokens("layers")?).unwrap_or(0);
        let known = file.sensitivities()?.unwrap_or_default();
        let joint = known.joint.into_iter().map(|(name, s)| (format!("joint.{name}"), s.error));
        self.errors = known.groups.into_iter().map(|(name, s)| (name, s.error)).chain(joint).collect();
        Ok(())
    }

    fn progress(&self) -> PathBuf {
        self.dir.join("progress")
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Layers that are done.
    pub fn layers(&self) -> usize {
        self.layers
    }

    /// Notes the error of a trial.
    pub fn record(&mut self, name: &str, error: Option<f64>) {
        if let Some(error) = error {
            self.errors.insert(name.to_owned(), error);
        }
    }

    /// The error of a trial.
    pub fn error(&self, name: &str) -> Option<f64> {
        self.errors.get(name).copied()
    }

    /// Keeps what was noted; the states of all copies after `layers` layers are complete.
    pub fn keep(&mut self, layers: usize) -> Result<(), CalibrateError> {
        self.layers = layers;
        let one = |error: &f64| Sensitivity { tokens: 1.0, kl: 0.0, error: *error };
        let groups = self.errors.iter().map(|(name, error)| (name.clone(), one(error))).collect();
        let mut arrays = Sensitivities { groups, ..Sensitivities::default() }.arrays();
        let count = i64::try_from(layers).unwrap_or(i64::MAX);
        arrays.push(Array { name: "tokens.layers".into(), shape: vec![1], data: Data::I64(vec![count]) });
        Ok(write(&self.progress(), &self.origin, &arrays)?)
    }

    /// Removes it; the measurement is complete.
    pub fn remove(self) -> Result<(), CalibrateError> {
        fs::remove_dir_all(&self.dir).map_err(io(&self.dir, "remove"))
    }
}

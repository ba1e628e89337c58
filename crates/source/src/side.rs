//! The files beside the weights: of a safetensors checkpoint those of its folder; of a GGUF file they are made from its
//! metadata, when first asked for, in a temporary folder.

use crate::find::side_files;
use ashlar_arch::GgufError;
use serde_json::{Map, Value};
use std::fs;
use std::io;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use tempfile::TempDir;

/// The file that makes the folder's own tokenizer count.
const TOKENIZER: &str = "tokenizer.json";
/// Files of the folder that are larger than this are no licence and no card.
const MAX_COPIED: u64 = 16 << 20;

/// The folder of a model's tokenizer, templates and licence. A temporary one is removed with the last copy of this.
#[derive(Clone, Debug)]
pub struct SideDir {
    path: PathBuf,
    _made: Option<Arc<TempDir>>,
}

impl From<PathBuf> for SideDir {
    fn from(path: PathBuf) -> Self {
        Self { path, _made: None }
    }
}

impl Deref for SideDir {
    type Target = Path;
    fn deref(&self) -> &Path {
        &self.path
    }
}

/// Where tokenizer, templates and licence are.
#[derive(Debug)]
pub struct Side {
    /// The folder of the weights.
    dir: PathBuf,
    /// What they are made from; `None` where the folder's are taken.
    metadata: Option<Map<String, Value>>,
    made: OnceLock<Made>,
}

/// What became of making them.
#[derive(Debug)]
struct Made {
    dir: Option<Arc<TempDir>>,
    /// What the user should know.
    note: Option<String>,
}

impl Side {
    /// The folder's own files.
    pub fn own(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), metadata: None, made: OnceLock::new() }
    }

    /// Files made from a GGUF file's metadata, unless the folder has a tokenizer.json.
    pub fn made(dir: &Path, metadata: Map<String, Value>) -> Self {
        let own = dir.join(TOKENIZER).is_file();
        Self { dir: dir.to_owned(), metadata: (!own).then_some(metadata), made: OnceLock::new() }
    }

    /// The folder they are in.
    pub fn dir(&self) -> SideDir {
        let made = self.metadata.as_ref().map(|m| self.made.get_or_init(|| make(&self.dir, m)));
        match made.and_then(|m| m.dir.clone()) {
            Some(made) => SideDir { path: made.path().to_owned(), _made: Some(made) },
            None => self.dir.clone().into(),
        }
    }

    /// Paths of the files that belong into a pack, sorted by name.
    pub fn files(&self) -> Vec<PathBuf> {
        side_files(&self.dir())
    }

    /// What the user should know of how they were made.
    pub fn note(&self) -> Option<String> {
        self.dir();
        self.made.get().and_then(|m| m.note.clone())
    }
}

fn make(dir: &Path, metadata: &Map<String, Value>) -> Made {
    let files = match ashlar_arch::tokenizer(metadata) {
        Ok(Some(files)) => files,
        Ok(None) => return Made { dir: None, note: Some("the file holds no tokenizer".into()) },
        Err(e @ GgufError::Tokenizer { .. }) => return Made { dir: None, note: Some(e.to_string()) },
        Err(e) => return Made { dir: None, note: Some(format!("the tokenizer cannot be read: {e}")) },
    };
    let write = || -> io::Result<TempDir> {
        let made = tempfile::Builder::new().prefix("ashlar-gguf-").tempdir()?;
        for (name, value) in [
            (TOKENIZER, &files.tokenizer),
            ("tokenizer_config.json", &files.config),
            ("generation_config.json", &files.generation),
        ] {
            fs::write(made.path().join(name), serde_json::to_vec_pretty(value)?)?;
        }
        if let Some(license) = metadata.get("general.license").and_then(Value::as_str) {
            let license: String = license.chars().filter(|c| !c.is_control()).take(200).collect();
            fs::write(made.path().join("README.md"), format!("---\nlicense: {license}\n---\n"))?;
        }
        for path in side_files(dir) {
            let name = path.file_name().unwrap_or_default();
            if path.metadata()?.len() <= MAX_COPIED {
                fs::copy(&path, made.path().join(name))?;
            }
        }
        Ok(made)
    };
    match write() {
        Ok(made) => Made { dir: Some(Arc::new(made)), note: None },
        Err(e) => Made { dir: None, note: Some(format!("the tokenizer cannot be written to a temporary folder: {e}")) },
    }
}

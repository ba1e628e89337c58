//! From a path to named weights and a config: a pack or a checkpoint, whichever it is.

use crate::RuntimeError;
use crate::placement::PlacementText;
use ashlar_arch::ModelSpec;
use ashlar_pack::Pack;
use ashlar_source::{Checkpoint, SideDir};
use ashlar_tensor::{Report, TensorStore};
use serde_json::Value;
use std::path::Path;

/// A model on disk, headers read, weights not.
pub struct Opened {
    /// The weights.
    pub store: Box<dyn TensorStore>,
    /// The original config.
    pub config: Value,
    /// The model as data.
    pub spec: ModelSpec,
    /// Where tokenizer and generation config lie.
    pub dir: SideDir,
    /// Whether it is a pack.
    pub is_pack: bool,
    /// A hash that the same model has wherever it lies.
    pub identity: String,
    /// Where the recipe of a pack wants its weights, if it says.
    pub placement: Option<PlacementText>,
}

/// Opens a pack or a checkpoint and checks its tensors against its config. Extra tensors that are known to be harmless
/// are told to `report`.
///
/// # Errors
/// [`RuntimeError`] if it is neither, if a header is bad, or if the tensors are not those of the architecture.
pub fn open(path: &Path, report: &dyn Report) -> Result<Opened, RuntimeError> {
    let is_pack = Pack::is_pack(path);
    let mut placement = None;
    let (store, config, dir, identity): (Box<dyn TensorStore>, Value, SideDir, String) = if is_pack {
        let pack = Pack::open(path)?;
        placement = packed(&pack.manifest().recipe);
        let (config, identity) = (pack.config().clone(), pack.identity());
        (Box::new(pack), config, path.to_owned().into(), identity)
    } else {
        let checkpoint = Checkpoint::open(path)?;
        checkpoint.notes().iter().for_each(|note| report.note(note));
        let (config, dir) = (checkpoint.config().clone(), checkpoint.side_dir());
        let identity = checkpoint.identity();
        (Box::new(checkpoint), config, dir, identity)
    };
    let arch = |source| RuntimeError::Arch { path: path.display().to_string(), source };
    let mut spec = ashlar_arch::model_spec(&config).map_err(arch)?;
    let tensors = || store.entries().iter().map(|e| (e.name.as_str(), e.shape.as_slice()));
    spec.adopt(tensors());
    for ignored in ashlar_arch::check(&spec, tensors()).map_err(arch)? {
        report.note(&format!("tensor `{ignored}` is not used by this architecture and is ignored"));
    }
    Ok(Opened { store, config, spec, dir, is_pack, identity, placement })
}

/// Tensors of a checkpoint of which bytes are read for [`fingerprint`], and how many of each.
const SAMPLES: [usize; 2] = [4096, 1024];

/// A hash that only the same weights and config have: of a pack its identity, which covers checksums of all bytes; of a
/// checkpoint also bytes out of the middle of its tensors, evenly chosen where there are very many.
///
/// # Errors
/// As [`open`], and if a tensor cannot be read.
pub fn fingerprint(path: &Path, report: &dyn Report) -> Result<String, RuntimeError> {
    let Opened { store, identity, is_pack, .. } = open(path, report)?;
    if is_pack {
        return Ok(identity);
    }
    let [tensors, bytes] = SAMPLES;
    let mut hasher = blake3::Hasher::new();
    hasher.update(identity.as_bytes());
    let entries = store.entries();
    for entry in entries.iter().step_by(entries.len().div_ceil(tensors).max(1)) {
        let Some(plane) = entry.planes.first() else { continue };
        let mut sample = vec![0; usize::try_from(plane.bytes).unwrap_or(usize::MAX).min(bytes)];
        store.read(entry, 0, (plane.bytes - sample.len() as u64) / 2, &mut sample)?;
        hasher.update(&sample);
    }
    Ok(hasher.finalize().to_hex().to_string())
}

/// The recipe of a pack, if it places anything.
fn packed(recipe: &str) -> Option<PlacementText> {
    // Most say nothing, and some have thousands of rules.
    let places = recipe.contains("device:") || recipe.contains("tier:");
    places.then(|| PlacementText { name: "the pack's recipe".into(), text: recipe.to_owned() })
}

/// Where tokenizer and templates of a model lie, without reading more of it than headers.
///
/// # Errors
/// As [`open`], as far as headers tell.
pub fn side_dir(path: &Path) -> Result<SideDir, RuntimeError> {
    if Pack::is_pack(path) { Ok(path.to_owned().into()) } else { Ok(Checkpoint::open(path)?.side_dir()) }
}

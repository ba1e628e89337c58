//! What an evaluated model is: where it came from, its size, its gates, the errors its conversion stored.

use super::anatomy::Anatomy;
use crate::exit::Failure;
use crate::model::{Model, Source, bpw};
use ashlar_recipe::{Recipe, Validate};
use std::path::{Path, PathBuf};

/// What is known of a model besides its predictions.
pub struct Facts {
    /// As the user gave it.
    pub path: PathBuf,
    /// Bytes of its weights.
    pub bytes: u64,
    /// Bits per weight.
    pub bpw: f64,
    /// Bits and errors, projection by projection.
    pub anatomy: Anatomy,
    /// A pack's own identity; `None` for a checkpoint.
    pub pack_identity: Option<String>,
    /// The identity of the model a pack was made from.
    pub source_identity: Option<String>,
    /// The identity of the reference.
    pub reference_identity: String,
    /// The resolved recipe of a pack.
    recipe: Option<String>,
}

impl Facts {
    /// Of every model, before any is run.
    ///
    /// # Errors
    /// If one cannot be opened.
    pub fn of_all(paths: &[PathBuf], reference: &Path) -> Result<Vec<Self>, Failure> {
        let reference = Model::open(reference)?.source.identity();
        paths.iter().map(|path| Self::of(path, &reference)).collect()
    }

    fn of(path: &Path, reference: &str) -> Result<Self, Failure> {
        let model = Model::open(path)?;
        let classes = model.classes();
        let bytes = classes.iter().map(|c| c.bytes).sum();
        let manifest = match &model.source {
            Source::Pack(pack) => Some((pack.identity(), pack.manifest())),
            _ => None,
        };
        Ok(Self {
            path: path.to_owned(),
            bytes,
            anatomy: Anatomy::of(&model),
            bpw: bpw(bytes, classes.iter().map(|c| c.parameters).sum()),
            source_identity: manifest.as_ref().map(|(_, m)| m.source.clone()),
            recipe: manifest.as_ref().map(|(_, m)| m.recipe.clone()),
            pack_identity: manifest.map(|(identity, _)| identity),
            reference_identity: reference.to_owned(),
        })
    }

    /// Whether the reference is what the pack was made from.
    #[must_use]
    pub fn is_from_reference(&self) -> bool {
        self.source_identity.as_ref() == Some(&self.reference_identity)
    }

    /// The gates of the pack's recipe.
    ///
    /// # Errors
    /// A sentence, if there are gates, or may be, that cannot be checked.
    pub fn gates(&self) -> Result<Validate, String> {
        let Some(recipe) = &self.recipe else { return Ok(Validate::default()) };
        let gates = Recipe::parse(recipe, "the pack's recipe").map_err(|e| e.to_string())?.validate();
        if gates != Validate::default() && !self.is_from_reference() {
            return Err("they are about the model that the pack was made from, which the reference is not".into());
        }
        Ok(gates)
    }
}

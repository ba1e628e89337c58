//! Fixtures, plans and packs for the tests of this crate.
#![allow(dead_code, reason = "each test file uses its own part")]

use ashlar_arch::{ModelSpec, model_spec};
use ashlar_convert::{Options, Origin, Plan, Summary, convert, plan};
use ashlar_recipe::{Choices, Recipe, emit};
use ashlar_source::Checkpoint;
use ashlar_tensor::{Bytes, Entry, Silent, StoreError, TensorStore};
use std::fs;
use std::path::{Path, PathBuf};

pub fn fixture(name: &str) -> Checkpoint {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name);
    Checkpoint::open(&path).unwrap()
}

pub fn choose(store: &dyn TensorStore, config: &serde_json::Value, recipe: &str) -> (ModelSpec, Choices) {
    let mut model = model_spec(config).unwrap();
    model.adopt(store.entries().iter().map(|e| (e.name.as_str(), e.shape.as_slice())));
    let choices = Recipe::parse(recipe, "recipe.yaml").unwrap().choose(&model, store, None).unwrap();
    (model, choices)
}

pub fn planned(checkpoint: &Checkpoint, recipe: &str, shard: u64) -> Plan {
    let (model, choices) = choose(checkpoint, checkpoint.config(), recipe);
    plan(&model, checkpoint, &choices, Origin::checkpoint(checkpoint, emit(&choices)), shard).unwrap()
}

pub const MIXED: &str = "version: 1
defaults: {format: q8}
rules:
  - {id: exp, match: {class: experts}, set: {format: i4}}
  - {id: down, match: {class: experts, proj: down}, set: {format: nf4, group: 32, outliers: {share: 0.02, sigma: 3.0}}}
  - {id: safe, match: {class: [router, norm]}, set: {format: keep, final: true}}
";

pub const Q8: &str = "version: 1
defaults: {format: q8}
rules:
  - {id: safe, match: {class: norm}, set: {format: keep, final: true}}
";

pub fn options(threads: usize) -> Options {
    Options { threads: Some(threads), ..Options::default() }
}

pub fn run(plan: &Plan, store: &dyn TensorStore, out: &Path, threads: usize) -> Summary {
    convert(plan, store, out, &options(threads), &Silent).unwrap()
}

/// Names and bytes of all files.
pub fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut all: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().path())
        .map(|p| (p.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(&p).unwrap()))
        .collect();
    all.sort();
    all
}

/// A store with one value of one tensor replaced.
pub struct Poisoned<'a> {
    pub inner: &'a dyn TensorStore,
    pub tensor: &'static str,
    pub at: u64,
    pub bytes: Vec<u8>,
}

impl TensorStore for Poisoned<'_> {
    fn entries(&self) -> &[Entry] {
        self.inner.entries()
    }

    fn read(&self, entry: &Entry, plane: usize, offset: u64, out: &mut [u8]) -> Result<(), StoreError> {
        self.inner.read(entry, plane, offset, out)?;
        if entry.name == self.tensor && plane == 0 && (offset..offset + out.len() as u64).contains(&self.at) {
            let at = (self.at - offset) as usize;
            out[at..at + self.bytes.len()].copy_from_slice(&self.bytes);
        }
        Ok(())
    }

    fn map(&self, entry: &Entry, plane: usize) -> Result<Bytes, StoreError> {
        self.inner.map(entry, plane)
    }
}

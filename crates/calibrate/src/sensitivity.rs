//! How much a model's predictions suffer from errors in each group of weights: measured, one perturbed copy of the hidden
//! states per group, in one pass over the weights (`docs/allocation.md`).
//!
//! Every layer sees the clean states and all copies that came before it; its own groups, quantized on trial one at a
//! time, begin new copies from the clean states. Further copies go through layers that are quantized as a whole, or in all
//! groups of one class, in several formats: [`shares`] corrects what groups show alone by what they do together. At the
//! end each copy is compared with the clean one by the KL divergence of their predictions.
//!
//! In memory: one layer, quantized as well, and one batch. The copies lie on the disk (4 bytes × tokens × hidden size
//! each) in `STATS.sensitivity/`, one generation per layer; a killed run goes on after its last finished layer.

mod copies;
mod divergence;
mod journal;
mod perturbed;
mod shares;

use crate::CalibrateError;
use crate::texts::{Input, windows};
use ashlar_arch::{Leaf, ModelSpec};
use ashlar_convert::Knowledge;
use ashlar_convert::allocate::Weights;
use ashlar_convert::allocate::groups::GroupKey;
use ashlar_convert::stats::{Importance, StatsFile, add_sensitivities};
use ashlar_runtime::{Opened, RuntimeError, Tokenizer, open};
use ashlar_simd::Isa;
use ashlar_tensor::Report;
use copies::{Copies, Kind, Run};
use journal::Journal;
use perturbed::Trials;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The format of the trial of a single group: coarse enough to be told from rounding, fine enough to be linear.
const PROBE: &str = "k3";
/// The format of a second trial, which shows how the KL grows where errors are large.
const COARSE: &str = "k2";
/// The format of small errors, in which groups are not measured alone.
const FINE: &str = "k4";
/// The formats in which all layers, and all groups of a class, are quantized at once.
const JOINT: &[&str] = &[FINE, PROBE, COARSE];
/// Longest window: more and shorter windows show more of the text.
const CTX: usize = 256;

/// How to measure sensitivities.
#[derive(Clone, Debug)]
pub struct SensitivityOptions {
    /// Tokens per window, at most 256.
    pub ctx: usize,
    /// Tokens in all, at most.
    pub tokens: usize,
    /// A device, as `--device` names it.
    pub device: String,
    /// Threads; `None` for all cores.
    pub threads: Option<usize>,
    /// Discard an interrupted run instead of going on with it.
    pub restart: bool,
}

impl Default for SensitivityOptions {
    fn default() -> Self {
        Self { ctx: CTX, tokens: 4096, device: "auto".into(), threads: None, restart: false }
    }
}

/// What was measured.
#[derive(Clone, Debug, PartialEq)]
pub struct SensitivitySummary {
    /// Tokens that every copy holds.
    pub tokens: u64,
    /// Groups, each with the mean KL of its trial and its relative error.
    pub groups: Vec<(String, f64, f64)>,
    /// Groups whose shapes the trial format cannot take.
    pub unmeasured: Vec<String>,
    /// Layers that an earlier, interrupted run had done.
    pub resumed_layers: usize,
}

/// Measures the sensitivities of the model at `path` with `texts` and adds them to its statistics at `stats`, which weigh
/// the trials. Sensitivities that are there are replaced.
///
/// # Errors
/// [`CalibrateError`]; `stats` is then as it was.
pub fn measure_sensitivity(
    path: &Path,
    texts: &[Input],
    stats: &Path,
    options: &SensitivityOptions,
    report: &dyn Report,
) -> Result<SensitivitySummary, CalibrateError> {
    let model = open(path, report)?;
    let tokenizer = Tokenizer::open(&model.dir)?;
    let windows = windows(&tokenizer, texts, options.ctx.min(CTX), Some(options.tokens))?;
    measure(&model, &windows, stats, options, report)
}

/// [`measure_sensitivity`] on windows of tokens.
fn measure(
    model: &Opened,
    windows: &[Vec<u32>],
    stats: &Path,
    options: &SensitivityOptions,
    report: &dyn Report,
) -> Result<SensitivitySummary, CalibrateError> {
    let importance = Importance::open(stats, &model.spec, &model.identity)?;
    let isa = Isa::detect().map_err(|e| RuntimeError::Option {
        option: "ASHLAR_ISA",
        got: e.to_string(),
        expected: "an instruction set of this machine".into(),
    })?;
    let weights = Weights::new(Some(&importance), model.spec.tensors())?;
    let trials = Trials { store: &*model.store, weights: &weights, isa, threads: options.threads };
    let copies = Copies::of(&model.spec);
    let mut journal = Journal::open(stats, fingerprint(model, &importance, windows), options.restart)?;
    let run = Run { model, windows, options, dir: journal.dir().to_owned(), report };
    let resumed_layers = journal.layers();
    let layers = model.spec.layers.len();
    report.begin("measuring sensitivity", run.total(&copies, resumed_layers));
    if resumed_layers == 0 {
        begin(&run, &copies, &trials, &mut journal)?;
    }
    for layer in resumed_layers..layers {
        self::layer(&run, &copies, &trials, &mut journal, layer)?;
        journal.keep(layer + 1)?;
        run.remove_generation(&copies, layer)?;
    }
    let sums = divergence::score(&run, &copies, &trials, &mut journal)?;
    report.end();
    let rows: Vec<usize> = windows.iter().map(Vec::len).collect();
    let kl = shares::balanced(&sums, &rows, copies.find(|kind| *kind == Kind::Joint(None, PROBE)));
    let rows: usize = rows.iter().sum();
    let (measured, unmeasured) = shares::shared(&copies, &journal, &kl, rows as f64);
    add_sensitivities(&StatsFile::open(stats)?, &measured, stats)?;
    journal.remove()?;
    let groups = measured.groups.iter().map(|(name, s)| (name.clone(), s.kl, s.error)).collect();
    Ok(SensitivitySummary { tokens: rows as u64, groups, unmeasured, resumed_layers })
}

/// The states before the first layer, clean and with the embedding quantized on trial.
fn begin(run: &Run<'_>, copies: &Copies, trials: &Trials<'_>, journal: &mut Journal) -> Result<(), CalibrateError> {
    for (index, copy) in copies.list.iter().enumerate() {
        match &copy.kind {
            Kind::Clean => run.embed(&*run.model.store, &run.states(index, 0))?,
            Kind::Embed(key) => {
                let trial = trials.group(&[&run.model.spec.embed], PROBE)?;
                journal.record(&key.to_string(), trial.error());
                run.embed(&trial.store(), &run.states(index, 0))?;
            }
            _ => {}
        }
    }
    journal.keep(0)
}

/// Runs everything that has states before a layer through it, and begins the copies of the layer's own groups.
fn layer(
    run: &Run<'_>,
    copies: &Copies,
    trials: &Trials<'_>,
    journal: &mut Journal,
    layer: usize,
) -> Result<(), CalibrateError> {
    let through = |(index, copy): (usize, &copies::Copy)| {
        let passes = matches!(copy.kind, Kind::Clean | Kind::Embed(_) | Kind::Group(..)) && copy.from <= layer;
        passes.then(|| (run.states(index, layer), run.states(index, layer + 1)))
    };
    let pairs: Vec<(PathBuf, PathBuf)> = copies.list.iter().enumerate().filter_map(through).collect();
    run.layer(layer, &*run.model.store, &pairs)?;
    let groups = groups(&run.model.spec, layer);
    let clean = run.states(copies.clean(), layer);
    for format in JOINT {
        let mut all = Vec::new();
        for (key, leaves) in &groups {
            let trial = trials.group(leaves, format)?;
            journal.record(&shares::name(key, format), trial.error());
            let copy = copies.find(|kind| *kind == Kind::Group(*key, format));
            if let Some(index) = copy {
                run.layer(layer, &trial.store(), &[(clean.clone(), run.states(index, layer + 1))])?;
            }
            all.push((key.class, trial));
        }
        for scope in copies::scopes(&run.model.spec) {
            let Some(index) = copies.find(|kind| *kind == Kind::Joint(scope, format)) else { continue };
            let from = if layer == 0 { clean.clone() } else { run.states(index, layer) };
            let within = all.iter().filter(|(class, _)| scope.is_none_or(|s| s == *class)).map(|(_, trial)| trial);
            run.layer(layer, &trials.together(within).store(), &[(from, run.states(index, layer + 1))])?;
        }
    }
    Ok(())
}

/// The quantizable groups of a layer with their matrices.
fn groups(spec: &ModelSpec, layer: usize) -> BTreeMap<GroupKey, Vec<&Leaf>> {
    let mut groups: BTreeMap<GroupKey, Vec<&Leaf>> = BTreeMap::new();
    for leaf in spec.tensors().filter(|l| l.role.layer == Some(layer)) {
        if let Some(key) = GroupKey::of(leaf) {
            groups.entry(key).or_default().push(leaf);
        }
    }
    groups
}

/// What an interrupted run must have in common with the one that goes on with it.
fn fingerprint(model: &Opened, importance: &Importance, windows: &[Vec<u32>]) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(concat!("ashlar sensitivity 2 ", env!("CARGO_PKG_VERSION"), " ").as_bytes());
    hasher.update(model.identity.as_bytes()).update(importance.identity().as_bytes());
    for format in JOINT {
        hasher.update(format.as_bytes());
    }
    for window in windows {
        hasher.update(&(window.len() as u64).to_le_bytes());
        window.iter().for_each(|id| {
            hasher.update(&id.to_le_bytes());
        });
    }
    hasher.finalize().to_hex().to_string()
}

#[cfg(test)]
mod tests;

//! [`calibrate`]: layer after layer, all windows through each.

use crate::CalibrateError;
use crate::journal::Journal;
use crate::parts::{leaves, sizes, wanted};
use crate::tally::{Tally, Wanted};
use crate::texts::{Input, windows};
use crate::walk::Walk;
use ashlar_convert::stats::{StatsError, StatsFile, StatsOrigin, Text, check_room};
use ashlar_runtime::program::Part;
use ashlar_runtime::{Opened, Tokenizer, open};
use ashlar_tensor::Report;
use std::path::Path;

/// How to gather statistics.
#[derive(Clone, Debug)]
pub struct Options {
    /// Tokens per window.
    pub ctx: usize,
    /// Tokens in all, at most (rounded down to windows); `None` for the whole text.
    pub tokens: Option<usize>,
    /// Also sum the Hessian of every input, for `method: gptq`.
    pub hessians: bool,
    /// Bytes that the Hessians of one part may take.
    pub memory: u64,
    /// A device, as `--device` names it.
    pub device: String,
    /// Threads; `None` for all cores. They change no sum.
    pub threads: Option<usize>,
    /// Replace an existing file.
    pub force: bool,
    /// Discard an interrupted run instead of going on with it.
    pub restart: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            ctx: 512,
            tokens: None,
            hessians: false,
            memory: 1 << 30,
            device: "auto".into(),
            threads: None,
            force: false,
            restart: false,
        }
    }
}

/// What was gathered.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// Tokens that went through the model.
    pub tokens: u64,
    /// Layers.
    pub layers: usize,
    /// Layers that an earlier, interrupted run had done.
    pub resumed_layers: usize,
}

/// An expert that saw few tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Starved {
    /// Its layer.
    pub layer: usize,
    /// Its number.
    pub expert: usize,
    /// Tokens it saw.
    pub tokens: u64,
}

/// Runs `texts` through the model at `path` and writes the statistics to `out`. A killed run leaves `OUT.partial` and is
/// taken up after its last finished layer.
///
/// # Errors
/// [`CalibrateError`]; `out` is then as it was.
pub fn calibrate(
    path: &Path,
    texts: &[Input],
    out: &Path,
    options: &Options,
    report: &dyn Report,
) -> Result<Summary, CalibrateError> {
    if out.exists() && !options.force {
        return Err(CalibrateError::Exists { path: out.display().to_string() });
    }
    let model = open(path, report)?;
    let tokenizer = Tokenizer::open(&model.dir)?;
    let windows = windows(&tokenizer, texts, options.ctx, options.tokens)?;
    let texts = texts.iter().map(Input::text).collect();
    gather(&model, &windows, texts, out, options, report)
}

/// [`calibrate`] on windows of tokens.
fn gather(
    model: &Opened,
    windows: &[Vec<u32>],
    texts: Vec<Text>,
    out: &Path,
    options: &Options,
    report: &dyn Report,
) -> Result<Summary, CalibrateError> {
    let spec = &model.spec;
    let walk = Walk { spec, windows, device: &options.device, threads: options.threads, report };
    let rows = walk.rows();
    let origin = StatsOrigin { source: model.identity.clone(), tokens: rows as u64, ctx: options.ctx, texts };
    if options.hessians {
        check_hessians(model, out, options.memory)?;
    }
    let journal = Journal::open(out, fingerprint(&origin, windows, options), options.restart)?;
    let layers = spec.layers.len();
    let resumed = journal.resume(walk.states(1)?)?;
    let resumed_layers = resumed.as_ref().map_or(0, |(done, _)| *done);
    report.begin("calibrating", (rows * (layers + 2 - resumed_layers)) as u64);
    let mut states = match resumed {
        Some((_, states)) => states,
        None => walk.forward(Part::Embed, &*model.store, None, None)?,
    };
    for index in resumed_layers..=layers {
        let part = if index == layers { Part::FinalNorm } else { Part::Layer(index) };
        let wanted = if options.hessians { wanted(&leaves(spec, part)) } else { Wanted::new() };
        let mut tally = Tally::new(Walk::isa()?, walk.threads(), index, wanted);
        states = walk.forward(part, &*model.store, Some(&states), Some(&mut tally))?;
        let (arrays, shares) = tally.arrays()?;
        journal.keep(index, &origin, &shares, &arrays, Some(&states).filter(|_| index < layers))?;
    }
    journal.publish(layers + 1, &origin, out)?;
    report.end();
    Ok(Summary { tokens: rows as u64, layers, resumed_layers })
}

/// Refuses Hessians for which there is no room: those of a part are in memory together, and the file is written twice,
/// part by part and as a whole.
fn check_hessians(model: &Opened, out: &Path, memory: u64) -> Result<(), CalibrateError> {
    let layers = (0..model.spec.layers.len()).map(Part::Layer);
    let (mut most, mut all) = (0, 0u64);
    for part in layers.chain([Part::FinalNorm]) {
        let (summed, stored) = sizes(&leaves(&model.spec, part));
        // As sums, then as the arrays that are written.
        most = most.max(summed + stored);
        all += stored;
    }
    if most > memory {
        return Err(CalibrateError::HessianSize { needed: most, given: memory });
    }
    Ok(check_room(out, 2 * all)?)
}

/// What an interrupted run must have in common with the one that goes on with it.
fn fingerprint(origin: &StatsOrigin, windows: &[Vec<u32>], options: &Options) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(concat!("ashlar ", env!("CARGO_PKG_VERSION"), " ").as_bytes()).update(origin.source.as_bytes());
    hasher.update(&[u8::from(options.hessians)]);
    for window in windows {
        hasher.update(&(window.len() as u64).to_le_bytes());
        for id in window {
            hasher.update(&id.to_le_bytes());
        }
    }
    *hasher.finalize().as_bytes()
}

/// Experts that saw fewer than `min_tokens` tokens, fewest first.
///
/// # Errors
/// [`StatsError`] if the file is damaged.
pub fn starved(file: &StatsFile, min_tokens: u64) -> Result<Vec<Starved>, StatsError> {
    let mut all = Vec::new();
    let layers = file.arrays().iter().filter_map(|a| a.name.strip_prefix("routing.")?.parse::<usize>().ok());
    for layer in layers {
        let Some(routing) = file.routing(layer)? else { continue };
        let few = routing.tokens.iter().enumerate().filter(|(_, tokens)| **tokens < min_tokens);
        all.extend(few.map(|(expert, tokens)| Starved { layer, expert, tokens: *tokens }));
    }
    all.sort_by_key(|s| (s.tokens, s.layer, s.expert));
    Ok(all)
}

#[cfg(test)]
mod tests;

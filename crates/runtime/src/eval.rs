//! Quality on a text: perplexity, and how far a model's predictions are from a reference model's.
//!
//! Definition. The text is encoded as a whole, without special tokens, and cut into non-overlapping windows of `ctx`
//! tokens; a rest shorter than that is dropped unless it is all there is. If the tokenizer puts tokens before every text
//! (a beginning-of-text token), each window begins with them and has so many fewer tokens of the text. Every window
//! starts with an empty cache. In each, every token of the text but the window's first token is scored by the prediction
//! made just before it: perplexity is exp of the mean negative log probability. KL(reference ‖ model) and top-1
//! agreement are means over those same predictions. Probabilities are f64 softmaxes of the f32 logits over the whole
//! vocabulary. Confidence intervals: bootstrap over windows, since tokens of one window are not independent.

mod score;

use crate::sampler::Xoshiro;
use crate::{Model, RuntimeError, Tokenizer, Wanted};
use ashlar_tensor::Report;
use score::{Score, scores};
use std::sync::atomic::{AtomicBool, Ordering};

const RESAMPLES: usize = 1000;
const SEED: u64 = 0;

/// A text cut into windows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Windows {
    list: Vec<Vec<u32>>,
    /// Tokens before the text in every window.
    prefix: usize,
}

impl Windows {
    /// Cuts `text` into windows of `ctx` tokens, at most `max_tokens` tokens in all.
    ///
    /// # Errors
    /// [`RuntimeError::Option`] if `ctx` leaves nothing to score; [`RuntimeError::Evaluate`] if the text is too short.
    pub fn of(tokenizer: &Tokenizer, text: &str, ctx: usize, max_tokens: Option<usize>) -> Result<Self, RuntimeError> {
        let prefix = tokenizer.prefix()?;
        let ids = tokenizer.encode(text, false)?;
        Self::cut(&prefix, &ids, ctx, max_tokens)
    }

    fn cut(prefix: &[u32], ids: &[u32], ctx: usize, max_tokens: Option<usize>) -> Result<Self, RuntimeError> {
        let least = prefix.len().max(1) + 1;
        if ctx < least {
            let expected = format!("at least {least}");
            return Err(RuntimeError::Option { option: "--ctx", got: ctx.to_string(), expected });
        }
        let ids = ids.get(..max_tokens.unwrap_or(ids.len()).min(ids.len())).unwrap_or_default();
        let window = |part: &[u32]| [prefix, part].concat();
        let mut list: Vec<Vec<u32>> = ids.chunks_exact(ctx - prefix.len()).map(window).collect();
        if list.is_empty() && prefix.len() + ids.len() >= least {
            list.push(window(ids));
        }
        if list.is_empty() {
            return Err(RuntimeError::Evaluate(format!(
                "the text has {} tokens; there is nothing to score",
                ids.len()
            )));
        }
        Ok(Self { list, prefix: prefix.len() })
    }

    /// The tokens of every window.
    pub fn iter(&self) -> impl Iterator<Item = &[u32]> {
        self.list.iter().map(Vec::as_slice)
    }

    /// Number of windows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there are none; never, as made by [`Windows::of`].
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Tokens that go through the model.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.list.iter().map(Vec::len).sum()
    }

    /// Longest window.
    #[must_use]
    pub fn ctx(&self) -> usize {
        self.list.iter().map(Vec::len).max().unwrap_or_default()
    }

    /// The first position whose token is scored.
    fn first_scored(&self) -> usize {
        self.prefix.max(1)
    }
}

/// How well a model predicts a text.
#[derive(Clone, Debug, PartialEq)]
pub struct Perplexity {
    /// exp of the mean negative log probability.
    pub perplexity: f64,
    /// 95 % bootstrap interval.
    pub ci95: [f64; 2],
    /// Tokens scored.
    pub tokens: usize,
    /// Windows they lie in.
    pub windows: usize,
}

/// Distances between predictions, in nats.
#[derive(Clone, Debug, PartialEq)]
pub struct Divergence {
    /// Mean of KL(reference ‖ model).
    pub mean: f64,
    /// 95 % bootstrap interval of the mean.
    pub ci95: [f64; 2],
    /// 90th percentile.
    pub p90: f64,
    /// 99th percentile.
    pub p99: f64,
    /// 99.9th percentile.
    pub p999: f64,
}

/// A model beside a reference.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// The model.
    pub model: Perplexity,
    /// The reference.
    pub reference: Perplexity,
    /// Perplexity of the model minus that of the reference, and its 95 % bootstrap interval (same windows for both).
    pub delta: f64,
    /// The interval of `delta`.
    pub delta_ci95: [f64; 2],
    /// KL(reference ‖ model).
    pub kl: Divergence,
    /// Share of predictions whose most probable token is the same.
    pub top1: f64,
    /// 95 % bootstrap interval of `top1`.
    pub top1_ci95: [f64; 2],
}

/// Perplexity of a text. `None` if `cancel` was set.
///
/// # Errors
/// [`RuntimeError`] if the windows are longer than the context, tokens are not in the vocabulary, or logits are NaN.
pub fn perplexity(
    model: &mut Model,
    windows: &Windows,
    cancel: &AtomicBool,
    report: &dyn Report,
) -> Result<Option<Perplexity>, RuntimeError> {
    let sums = run(windows, cancel, report, |window, position, tokens| {
        let logits = chunk(model, position, tokens)?;
        scores(&logits, None, model.spec().vocab_size, targets(window, position, tokens.len()))
    })?;
    Ok(sums.map(|windows| summarize(&windows, |s| s.nll)))
}

/// Compares a model with a reference on the same tokens. `None` if `cancel` was set.
///
/// # Errors
/// As [`perplexity`], and [`RuntimeError::Evaluate`] if the two have different vocabularies.
pub fn compare(
    model: &mut Model,
    reference: &mut Model,
    windows: &Windows,
    cancel: &AtomicBool,
    report: &dyn Report,
) -> Result<Option<Comparison>, RuntimeError> {
    let (vocab, other) = (model.spec().vocab_size, reference.spec().vocab_size);
    if vocab != other {
        let what = format!("the model has {vocab} tokens, the reference {other}: their predictions cannot be compared");
        return Err(RuntimeError::Evaluate(what));
    }
    let all = run(windows, cancel, report, |window, position, tokens| {
        let want = chunk(reference, position, tokens)?;
        let got = chunk(model, position, tokens)?;
        scores(&got, Some(&want), vocab, targets(window, position, tokens.len()))
    })?;
    Ok(all.map(|windows| comparison(&windows)))
}

fn comparison(windows: &[Vec<Score>]) -> Comparison {
    let (model, reference) = (summarize(windows, |s| s.nll), summarize(windows, |s| s.reference_nll));
    let mut kl: Vec<f64> = windows.iter().flatten().map(|s| s.kl).collect();
    kl.sort_unstable_by(f64::total_cmp);
    let means = |part: fn(&Score) -> f64| Means::of(windows, part);
    let (kl_means, top1) = (means(|s| s.kl), means(|s| s.agrees));
    let (nll, reference_nll) = (means(|s| s.nll), means(|s| s.reference_nll));
    Comparison {
        delta: model.perplexity - reference.perplexity,
        delta_ci95: bootstrap(windows.len(), |pick| nll.mean(pick).exp() - reference_nll.mean(pick).exp()),
        model,
        reference,
        kl: Divergence {
            mean: kl_means.all(),
            ci95: bootstrap(windows.len(), |pick| kl_means.mean(pick)),
            p90: quantile(&kl, 0.9),
            p99: quantile(&kl, 0.99),
            p999: quantile(&kl, 0.999),
        },
        top1: top1.all(),
        top1_ci95: bootstrap(windows.len(), |pick| top1.mean(pick)),
    }
}

/// The tokens that the predictions of a chunk are scored by: the next one of each, where there is one to score.
fn targets<'w>(window: &'w Window<'_>, position: usize, len: usize) -> impl Iterator<Item = Option<u32>> + 'w {
    (position + 1..position + 1 + len).map(|p| window.tokens.get(p).copied().filter(|_| p >= window.first_scored))
}

struct Window<'a> {
    tokens: &'a [u32],
    first_scored: usize,
}

/// Runs every window in chunks; memory holds the logits of one chunk at a time.
fn run(
    windows: &Windows,
    cancel: &AtomicBool,
    report: &dyn Report,
    mut step: impl FnMut(&Window<'_>, usize, &[u32]) -> Result<Vec<Score>, RuntimeError>,
) -> Result<Option<Vec<Vec<Score>>>, RuntimeError> {
    report.begin("eval", windows.tokens() as u64);
    let mut all = Vec::with_capacity(windows.len());
    for tokens in &windows.list {
        let window = Window { tokens, first_scored: windows.first_scored() };
        let mut scored = Vec::new();
        let mut position = 0;
        for part in tokens.chunks(CHUNK) {
            if cancel.load(Ordering::Relaxed) {
                report.end();
                return Ok(None);
            }
            let step = step(&window, position, part);
            if step.is_err() {
                report.end();
            }
            scored.extend(step?);
            position += part.len();
            report.advance(part.len() as u64, "");
        }
        all.push(scored);
    }
    report.end();
    Ok(Some(all))
}

/// Predictions that are in memory at once.
const CHUNK: usize = 128;

/// Logits of a part of a window.
fn chunk(model: &mut Model, position: usize, tokens: &[u32]) -> Result<Vec<f32>, RuntimeError> {
    let mut logits = Vec::new();
    model.feed(0, position, tokens, Wanted::All, &mut |rows| logits.extend_from_slice(rows), &mut |_| true)?;
    Ok(logits)
}

/// A quantity summed per window.
struct Means {
    sums: Vec<(f64, f64)>,
}

impl Means {
    fn of(windows: &[Vec<Score>], part: impl Fn(&Score) -> f64) -> Self {
        Self { sums: windows.iter().map(|w| (w.iter().map(&part).sum(), w.len() as f64)).collect() }
    }

    /// Mean over the tokens of the picked windows.
    fn mean(&self, pick: &[usize]) -> f64 {
        let picked = pick.iter().filter_map(|&i| self.sums.get(i));
        let (sum, count) = picked.fold((0.0, 0.0), |acc, w| (acc.0 + w.0, acc.1 + w.1));
        sum / count
    }

    fn all(&self) -> f64 {
        self.mean(&(0..self.sums.len()).collect::<Vec<_>>())
    }
}

fn summarize(windows: &[Vec<Score>], nll: impl Fn(&Score) -> f64) -> Perplexity {
    let means = Means::of(windows, nll);
    Perplexity {
        perplexity: means.all().exp(),
        ci95: bootstrap(windows.len(), |pick| means.mean(pick).exp()),
        tokens: windows.iter().map(Vec::len).sum(),
        windows: windows.len(),
    }
}

/// The 2.5th and 97.5th percentile of a statistic over windows drawn with replacement; the same draws for every
/// statistic. One window says nothing about spread: both ends are then the statistic itself.
fn bootstrap(windows: usize, statistic: impl Fn(&[usize]) -> f64) -> [f64; 2] {
    let mut random = Xoshiro::new(SEED);
    let mut draw = || (random.unit() * windows as f64) as usize;
    let mut values: Vec<f64> =
        (0..RESAMPLES).map(|_| statistic(&(0..windows).map(|_| draw()).collect::<Vec<_>>())).collect();
    values.sort_unstable_by(f64::total_cmp);
    [quantile(&values, 0.025), quantile(&values, 0.975)]
}

/// Linear interpolation between the order statistics, as numpy does by default.
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let at = q * sorted.len().saturating_sub(1) as f64;
    let value = |i: usize| sorted.get(i).or(sorted.last()).copied().unwrap_or(f64::NAN);
    let low = at.floor() as usize;
    value(low) + (value(low + 1) - value(low)) * (at - at.floor())
}

#[cfg(test)]
mod tests;

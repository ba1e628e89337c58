//! One pass of a text through models.

use super::figures::{self, Comparison, Perplexity};
use super::routing::{Sums, Tap};
use super::score::{Score, Scored, scores};
use super::windows::{Window, Windows};
use crate::{Model, RuntimeError, Wanted};
use ashlar_tensor::Report;
use std::sync::atomic::{AtomicBool, Ordering};

/// Predictions that are in memory at once, of every model.
const CHUNK: usize = 128;

/// The scores of one model.
#[derive(Default)]
struct Tally {
    /// By window.
    windows: Vec<Vec<Score>>,
    non_finite: usize,
    routing: Sums,
}

impl Tally {
    fn add(&mut self, scored: Scored) {
        self.non_finite += scored.non_finite;
        if let Some(window) = self.windows.last_mut() {
            window.extend(scored.scores);
        }
    }

    /// Something must be left to take means of.
    fn check(self) -> Result<Self, RuntimeError> {
        if self.windows.iter().all(Vec::is_empty) {
            let what = "the model's logits are no finite numbers; run `verify` on the model";
            return Err(RuntimeError::Evaluate(what.into()));
        }
        Ok(self)
    }
}

/// Perplexity of a text. `None` if `cancel` was set.
///
/// # Errors
/// [`RuntimeError`] if the windows are longer than the context, tokens are not in the vocabulary, or no logit is a
/// finite number.
pub fn perplexity(
    model: &mut Model,
    windows: &Windows,
    cancel: &AtomicBool,
    report: &dyn Report,
) -> Result<Option<Perplexity>, RuntimeError> {
    let mut tally = Tally::default();
    let done = run("eval", windows, cancel, report, |window, position, tokens| {
        if position == 0 {
            tally.windows.push(Vec::new());
        }
        let mut logits = Vec::new();
        model.feed(0, position, tokens, Wanted::All, &mut |rows| logits.extend_from_slice(rows), &mut |_| true)?;
        let targets = window.targets(position, tokens.len());
        tally.add(scores(&logits, None, model.spec().vocab_size, targets)?);
        Ok(())
    })?;
    let tally = if done { tally.check()? } else { return Ok(None) };
    Ok(Some(figures::perplexity(&tally.windows, tally.non_finite, |s| s.nll)))
}

/// Compares models with a reference on the same tokens; the reference runs once for all of them, in step with them.
/// `stage` is what `report` calls it. `None` if `cancel` was set.
///
/// # Errors
/// As [`perplexity`], and [`RuntimeError::Evaluate`] if a vocabulary differs from the reference's or its logits are not
/// finite.
pub fn compare(
    stage: &str,
    models: &mut [Model],
    reference: &mut Model,
    windows: &Windows,
    cancel: &AtomicBool,
    report: &dyn Report,
) -> Result<Option<Vec<Comparison>>, RuntimeError> {
    let vocab = reference.spec().vocab_size;
    if let Some(other) = models.iter().map(|m| m.spec().vocab_size).find(|other| *other != vocab) {
        let what = format!("the model has {other} tokens, the reference {vocab}: their predictions cannot be compared");
        return Err(RuntimeError::Evaluate(what));
    }
    let mut tallies: Vec<Tally> = models.iter().map(|_| Tally::default()).collect();
    let done = run(stage, windows, cancel, report, |window, position, tokens| {
        let mut theirs = Tap::default();
        let want = reference.observe(position, tokens, &mut theirs)?;
        for (model, tally) in models.iter_mut().zip(&mut tallies) {
            if position == 0 {
                tally.windows.push(Vec::new());
            }
            let mut ours = Tap::default();
            let got = model.observe(position, tokens, &mut ours)?;
            tally.routing.add(&ours, &theirs);
            tally.add(scores(&got, Some(&want), vocab, window.targets(position, tokens.len()))?);
        }
        Ok(())
    })?;
    if !done {
        return Ok(None);
    }
    let spec = reference.spec();
    let figures = tallies.into_iter().map(|t| {
        let tally = t.check()?;
        Ok(figures::comparison(&tally.windows, tally.non_finite, tally.routing.figures(spec)))
    });
    figures.collect::<Result<_, _>>().map(Some)
}

/// Runs every window in chunks; memory holds the logits of one chunk at a time. False if `cancel` was set.
fn run(
    stage: &str,
    windows: &Windows,
    cancel: &AtomicBool,
    report: &dyn Report,
    mut step: impl FnMut(&Window<'_>, usize, &[u32]) -> Result<(), RuntimeError>,
) -> Result<bool, RuntimeError> {
    report.begin(stage, windows.tokens() as u64);
    let mut all = || {
        for window in windows.windows() {
            let mut position = 0;
            for part in window.tokens.chunks(CHUNK) {
                if cancel.load(Ordering::Relaxed) {
                    return Ok(false);
                }
                step(&window, position, part)?;
                position += part.len();
                report.advance(part.len() as u64, "");
            }
        }
        Ok(true)
    };
    let done = all();
    report.end();
    done
}

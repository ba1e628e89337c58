//! The token that a sampler would find in a whole row of logits, from a survey of the row.
//!
//! What a survey lists comes before all that it does not list, so filters that end within the list are exact. What it sums is
//! known to [`SURE`]: a decision that the rest of that could turn is left to whoever has the row.

use super::{Candidate, Sampler, Sampling, by_logit, greedy, narrow, passed};
use crate::RuntimeError;
use ashlar_backend::{Ask, SURVEY_MOST, SURVEY_SPAN, Survey};
use std::ops::Range;

/// How far sums of weights may err, of the total: those of a survey by 1e-10, those of the sampler itself by 2^-53 per term.
const SURE: f64 = 1e-9;

/// Hands over some of the row's logits.
pub type Values<'v> = dyn FnMut(Range<usize>) -> Result<Vec<f32>, RuntimeError> + 'v;

impl Sampler {
    /// What to ask of a row of `vocab` logits; `None` if only the whole row will do. `seen` as in [`Sampler::sample`].
    #[must_use]
    pub fn ask(&self, row: usize, vocab: usize, seen: &[u32]) -> Option<Ask> {
        let Sampling { temperature, top_k, top_p, min_p, .. } = self.options;
        let mut named: Vec<u32> = self.penalized(seen).into_iter().filter(|id| (*id as usize) < vocab).collect();
        named.sort_unstable();
        let narrows = top_k > 0 && top_k < vocab;
        let count = match () {
            () if temperature == 0.0 => 1,
            () if narrows => top_k,
            () if top_p < 1.0 || min_p > 0.0 => SURVEY_MOST,
            () => 1,
        };
        // With a count of the best no sum is wanted.
        let temperature = if narrows { 0.0 } else { temperature };
        (count <= SURVEY_MOST).then_some(Ask { row, count, temperature, named })
    }

    /// The next token: the same as [`Sampler::sample`] finds in the row that was surveyed as [`Sampler::ask`] says. `None` if the
    /// survey does not tell; the sampler is as it was then.
    ///
    /// # Errors
    /// As [`Sampler::sample`]; what `values` returns.
    pub fn choose(
        &mut self,
        vocab: usize,
        ask: &Ask,
        survey: &Survey,
        values: &mut Values<'_>,
    ) -> Result<Option<u32>, RuntimeError> {
        if !survey.numbers {
            return Err(super::no_numbers());
        }
        let named: Vec<Candidate> =
            ask.named.iter().zip(&survey.named).map(|(id, l)| (*id, self.penalty(super::logit(*l)))).collect();
        let whole = survey.best.len() + named.len() == vocab;
        let listed = survey.best.iter().map(|(id, l)| (*id, super::logit(*l)));
        let mut known: Vec<Candidate> = listed.chain(named.iter().copied()).collect();
        if self.options.temperature == 0.0 {
            known.sort_unstable_by_key(|c| c.0);
            return Ok(Some(greedy(&known)));
        }
        known.sort_unstable_by(by_logit);
        let Some(&(_, max)) = known.first().filter(|c| c.1.is_finite()) else { return Ok(None) };
        if !whole {
            // What comes behind the last one of the list may come behind others too.
            let last = survey.best.last().map(|(id, l)| (*id, super::logit(*l)));
            known.truncate(last.map_or(0, |last| known.iter().take_while(|c| by_logit(c, &last).is_le()).count()));
        }
        let Sampling { top_k, top_p, min_p, .. } = self.options;
        let narrows = top_k > 0 && top_k < vocab;
        if narrows && known.len() < top_k {
            return Ok(None);
        }
        if narrows || whole {
            // Ids first where nothing is sorted.
            known.sort_unstable_by_key(|c| c.0);
            let kept = super::distribution(known, vocab, &self.options);
            return Ok(Some(self.draw(&kept)));
        }
        if top_p >= 1.0 && min_p <= 0.0 {
            return self.choose_of_all(max, &named, survey, &mut |span| values(span.start..span.end.min(vocab)));
        }
        let total = self.total(max, &named, survey);
        let weigh = |c: Candidate| (c.0, ((c.1 - max) / self.options.temperature).exp());
        let mut known: Vec<Candidate> = known.into_iter().map(weigh).collect();
        if top_p < 1.0 {
            let [low, high] = [1.0 - SURE, 1.0 + SURE].map(|side| narrow(&known, top_p * total * side));
            match (low, high) {
                (Some(low), Some(high)) if low == high => known.truncate(low),
                _ => return Ok(None),
            }
        } else if passed(&known, min_p) == known.len() {
            return Ok(None);
        }
        known.truncate(passed(&known, min_p));
        Ok(Some(self.draw(&known)))
    }

    /// What all tokens weigh, the greatest 1.
    fn total(&self, max: f64, named: &[Candidate], survey: &Survey) -> f64 {
        let named: f64 = named.iter().map(|c| self.weight(c.1, max)).sum();
        survey.spans.iter().fold(named, |sum, span| sum + span.sum * self.weight(super::logit(span.greatest), max))
    }

    fn weight(&self, logit: f64, max: f64) -> f64 {
        ((logit - max) / self.options.temperature).exp()
    }

    /// Of all tokens in order of their ids, without filters: the spans tell where the random number falls, the logits of that
    /// span on which token.
    fn choose_of_all(
        &mut self,
        max: f64,
        named: &[Candidate],
        survey: &Survey,
        values: &mut Values<'_>,
    ) -> Result<Option<u32>, RuntimeError> {
        let total = self.total(max, named, survey);
        let mut random = self.random.clone();
        let (target, slack) = (random.unit() * total, SURE * total);
        // Whether a sum lies beyond the target, if that is certain.
        let beyond = |sum: f64| if (sum - target).abs() <= slack { None } else { Some(sum > target) };
        let mut sum = 0.0;
        for (number, span) in survey.spans.iter().enumerate() {
            let first = number * SURVEY_SPAN;
            let of_span = |c: &&Candidate| (first..first + SURVEY_SPAN).contains(&(c.0 as usize));
            let own: f64 = named.iter().filter(of_span).map(|c| self.weight(c.1, max)).sum();
            let behind = sum + own + span.sum * self.weight(super::logit(span.greatest), max);
            match beyond(behind) {
                None => return Ok(None),
                Some(false) => {
                    sum = behind;
                    continue;
                }
                Some(true) => {}
            }
            let end = first + SURVEY_SPAN;
            for (id, logit) in (first as u32..).zip(values(first..end)?) {
                let penalized = named.iter().find(|c| c.0 == id).map(|c| c.1);
                sum += self.weight(penalized.unwrap_or(super::logit(logit)), max);
                match beyond(sum) {
                    None => return Ok(None),
                    Some(true) => {
                        self.random = random;
                        return Ok(Some(id));
                    }
                    Some(false) => {}
                }
            }
            return Ok(None);
        }
        Ok(None)
    }
}

//! What a sampler needs to know of a row of logits without the row itself: the few greatest of them, and what all of them
//! weigh together. A device that holds logits can tell it with some kilobytes where a row takes a megabyte.
//!
//! Owns: the question ([`Ask`]), the answer ([`Survey`]) and its definition ([`survey`]), the seam ([`Surveyor`]). Refuses:
//! choosing, which is the sampler's: it finds the very token that it would have found in the whole row, or asks for that.

use crate::{BackendError, BufferId};
use std::collections::BinaryHeap;
use std::ops::Range;

/// Neighbouring ids whose weights are summed together.
pub const SURVEY_SPAN: usize = 4096;

/// The most logits that a survey lists.
pub const SURVEY_MOST: usize = 256;

/// What is asked of one row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ask {
    /// Row of the buffer.
    pub row: usize,
    /// How many of the greatest logits to list: 1 to [`SURVEY_MOST`].
    pub count: usize,
    /// What logits are divided by before they are weighed; 0 if no weights are wanted.
    pub temperature: f64,
    /// Ids that are apart, ascending: their logits are told one by one, and nothing else counts them.
    pub named: Vec<u32>,
}

/// What neighbouring ids weigh.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Span {
    /// The greatest logit, −∞ if there is none.
    pub greatest: f32,
    /// Σ exp((logit − greatest) / temperature), within 1e-10 of it; 0 where no weights are wanted, or nothing is greater than −∞.
    pub sum: f64,
}

/// What a row looks like. −0 counts as 0.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Survey {
    /// Whether no logit is NaN and one at least is finite; if not, the rest means nothing.
    pub numbers: bool,
    /// Ids and logits of the greatest, of equal ones the lower id first. Fewer than asked for only if there are no more.
    pub best: Vec<(u32, f32)>,
    /// Logits of the named ids.
    pub named: Vec<f32>,
    /// By [`SURVEY_SPAN`] ids, the last span perhaps shorter.
    pub spans: Vec<Span>,
}

/// A device that surveys logits where they lie.
pub trait Surveyor {
    /// Surveys rows of a buffer.
    ///
    /// # Errors
    /// [`BackendError::Operand`] if a row, an id or a count is out of range; what the device reports.
    fn survey(&mut self, logits: BufferId, asks: &[Ask]) -> Result<Vec<Survey>, BackendError>;

    /// Copies some columns of a row to the host.
    ///
    /// # Errors
    /// [`BackendError::Operand`] if there are no such values; what the device reports.
    fn values(&mut self, logits: BufferId, row: usize, columns: Range<usize>) -> Result<Vec<f32>, BackendError>;
}

/// The survey of a row: the definition that devices are held to.
#[must_use]
pub fn survey(row: &[f32], ask: &Ask) -> Survey {
    let numbers = !row.iter().any(|v| v.is_nan()) && row.iter().any(|v| v.is_finite());
    let named = ask.named.iter().map(|id| row.get(*id as usize).copied().unwrap_or(f32::NAN)).collect();
    if !numbers {
        return Survey { numbers, named, ..Survey::default() };
    }
    let apart = |id: u32| ask.named.binary_search(&id).is_ok();
    let span = |(number, part): (usize, &[f32])| {
        let first = (number * SURVEY_SPAN) as u32;
        let own = || (first..).zip(part).filter(|(id, _)| !apart(*id)).map(|(_, v)| *v);
        let greatest = own().fold(f32::NEG_INFINITY, f32::max);
        let weight = |v: f32| ((f64::from(v) - f64::from(greatest)) / ask.temperature).exp();
        let weighed = ask.temperature > 0.0 && greatest > f32::NEG_INFINITY;
        Span { greatest, sum: if weighed { own().map(weight).sum() } else { 0.0 } }
    };
    let mut best: BinaryHeap<u64> = (0..).zip(row).filter(|(id, _)| !apart(*id)).map(|(id, v)| rank(id, *v)).collect();
    let best = (0..ask.count).map_while(|_| best.pop()).map(ranked).collect();
    Survey { numbers, best, named, spans: row.chunks(SURVEY_SPAN).enumerate().map(span).collect() }
}

/// A number that is greater for a greater logit, and of equal ones for the lower id; never 0.
#[must_use]
pub fn rank(id: u32, logit: f32) -> u64 {
    // Adding 0 makes −0 a 0.
    let bits = (logit + 0.0).to_bits();
    let ordered = if bits >> 31 == 0 { bits | 1 << 31 } else { !bits };
    u64::from(ordered) << 32 | u64::from(!id)
}

/// The id and the logit of a rank.
#[must_use]
pub fn ranked(rank: u64) -> (u32, f32) {
    let ordered = (rank >> 32) as u32;
    let bits = if ordered >> 31 == 1 { ordered & !(1 << 31) } else { !ordered };
    (!(rank as u32), f32::from_bits(bits))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_order_as_logits_and_of_equal_ones_the_lower_id_first() {
        let values = [f32::NEG_INFINITY, -1e30, -1.5, -1e-40, 0.0, 1e-40, 2.0, f32::MAX, f32::INFINITY];
        for (i, a) in values.iter().enumerate() {
            assert_eq!(ranked(rank(7, *a)), (7, *a));
            assert!(values[..i].iter().all(|b| rank(9, *b) < rank(1_000_000, *a)));
            assert!(rank(3, *a) > rank(4, *a) && rank(4, *a) > 0);
        }
        assert_eq!(rank(5, -0.0), rank(5, 0.0));
    }

    #[test]
    fn a_survey_tells_the_greatest_and_what_all_weigh_without_the_named() {
        let mut row: Vec<f32> = (0..5000).map(|i| (i as f32 * 0.37).sin()).collect();
        (row[4999], row[17], row[300]) = (9.0, 9.0, 50.0);
        let ask = Ask { row: 0, count: 3, temperature: 0.5, named: vec![300, 4000] };
        let got = survey(&row, &ask);
        assert!(got.numbers && got.spans.len() == 2);
        assert_eq!(got.best[..2], [(17, 9.0), (4999, 9.0)]);
        assert_eq!(got.named, [50.0, row[4000]]);
        let total: f64 = got.spans.iter().map(|s| s.sum * (f64::from(s.greatest) / 0.5).exp()).sum();
        let want: f64 =
            (0..5000).filter(|i| ![300, 4000].contains(i)).map(|i: usize| (f64::from(row[i]) / 0.5).exp()).sum();
        assert!((total / want - 1.0).abs() < 1e-12);
        row[3] = f32::NAN;
        assert!(!survey(&row, &ask).numbers && !survey(&[f32::NEG_INFINITY; 3], &ask).numbers);
    }
}

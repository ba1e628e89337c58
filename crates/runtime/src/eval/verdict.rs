//! A word for the figures. The bounds and the evidence for them are in `docs/eval.md`.

use super::{Comparison, Continuations};
use std::fmt;

/// How close a model is to its reference, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Quality {
    /// No task is known to tell it from the reference.
    Transparent,
    /// As the best 4- to 5-bit models.
    Excellent,
    /// As good 4-bit models.
    Good,
    /// As 3-bit models.
    Usable,
    /// As 2-bit models: worth it only where nothing larger fits.
    LastResort,
    /// Beyond every class, but not broken.
    Poor,
    /// Broken: logits that are not finite, text that loops, or predictions that have little to do with the reference's.
    Reject,
}

impl fmt::Display for Quality {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Transparent => "transparent",
            Self::Excellent => "excellent",
            Self::Good => "good",
            Self::Usable => "usable",
            Self::LastResort => "last resort",
            Self::Poor => "poor",
            Self::Reject => "reject",
        })
    }
}

/// A class, and what keeps the model from the next better one.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// The class.
    pub quality: Quality,
    /// For people, one reason each; empty for the best class.
    pub because: Vec<String>,
}

/// What a class asks for.
struct Bounds {
    quality: Quality,
    kl_mean: f64,
    top1: f64,
    kl_p999: f64,
}

const CLASSES: [Bounds; 5] = [
    Bounds { quality: Quality::Transparent, kl_mean: 0.005, top1: 0.97, kl_p999: 0.1 },
    Bounds { quality: Quality::Excellent, kl_mean: 0.015, top1: 0.945, kl_p999: 0.35 },
    Bounds { quality: Quality::Good, kl_mean: 0.03, top1: 0.925, kl_p999: 0.8 },
    Bounds { quality: Quality::Usable, kl_mean: 0.1, top1: 0.87, kl_p999: 2.0 },
    Bounds { quality: Quality::LastResort, kl_mean: 0.3, top1: 0.78, kl_p999: f64::INFINITY },
];

/// A larger mean KL divergence is no quantization error any more.
const REJECT_KL: f64 = 0.5;

/// So much larger a share of looping continuations than the reference's is a broken model.
const REJECT_LOOPS: f64 = 0.25;

/// The best class all of whose bounds hold.
#[must_use]
pub fn verdict(c: &Comparison, continuations: Option<&Continuations>) -> Verdict {
    let broken = broken(c, continuations);
    if !broken.is_empty() {
        return Verdict { quality: Quality::Reject, because: broken };
    }
    let mut because = Vec::new();
    for bounds in &CLASSES {
        let misses = bounds.misses(c);
        if misses.is_empty() {
            return Verdict { quality: bounds.quality, because };
        }
        because = misses;
    }
    Verdict { quality: Quality::Poor, because }
}

impl Bounds {
    fn misses(&self, c: &Comparison) -> Vec<String> {
        let mut misses = Vec::new();
        let Self { quality, kl_mean, top1, kl_p999 } = self;
        if c.kl.mean > *kl_mean {
            misses.push(format!("mean KL {:.4}, {quality} needs at most {kl_mean}", c.kl.mean));
        }
        if c.kl.p999 > *kl_p999 {
            misses.push(format!("99.9 % KL {:.3}, {quality} needs at most {kl_p999}", c.kl.p999));
        }
        if c.top1 < *top1 {
            let (got, needs) = (100.0 * c.top1, 100.0 * top1);
            misses.push(format!("same top token {got:.2} %, {quality} needs at least {needs:.1} %"));
        }
        misses
    }
}

fn broken(c: &Comparison, continuations: Option<&Continuations>) -> Vec<String> {
    let mut all = Vec::new();
    if c.model.non_finite > 0 {
        all.push(format!("{} predictions have logits that are not finite numbers", c.model.non_finite));
    }
    if c.kl.mean > REJECT_KL {
        all.push(format!("mean KL {:.3} is beyond {REJECT_KL}", c.kl.mean));
    }
    if let Some(c) = continuations.filter(|c| c.model.looping - c.reference.looping > REJECT_LOOPS) {
        let (ours, theirs) = (100.0 * c.model.looping, 100.0 * c.reference.looping);
        all.push(format!("{ours:.0} % of its continuations loop, of the reference's {theirs:.0} %"));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::super::figures::comparison;
    use super::super::score::Score;
    use super::*;

    fn model(mean: f64, p999: f64, top1: f64) -> Comparison {
        let mut c = comparison(&[vec![Score { position: 1, ..Score::default() }]], 0, None);
        (c.kl.mean, c.kl.p999, c.top1) = (mean, p999, top1);
        c
    }

    #[test]
    fn a_class_needs_all_of_its_bounds() {
        for (mean, p999, top1, want) in [
            (0.0014, 0.05, 0.99, Quality::Transparent),
            (0.005, 0.1, 0.97, Quality::Transparent),
            (0.0014, 0.2, 0.99, Quality::Excellent),
            (0.0146, 0.30, 0.95, Quality::Excellent),
            (0.0177, 0.5, 0.9405, Quality::Good),
            (0.0177, 0.5, 0.92, Quality::Usable),
            (0.053, 1.0, 0.9, Quality::Usable),
            (0.25, 9.0, 0.8, Quality::LastResort),
            (0.4, 9.0, 0.8, Quality::Poor),
            (0.1, 1.0, 0.5, Quality::Poor),
            (0.546, 9.0, 0.8, Quality::Reject),
        ] {
            assert_eq!(verdict(&model(mean, p999, top1), None).quality, want, "{mean} {p999} {top1}");
        }
    }

    #[test]
    fn the_reasons_name_what_the_next_class_needs() {
        let v = verdict(&model(0.0177, 0.2, 0.93), None);
        assert_eq!(
            v.because,
            [
                "mean KL 0.0177, excellent needs at most 0.015",
                "same top token 93.00 %, excellent needs at least 94.5 %"
            ]
        );
        assert!(verdict(&model(0.0, 0.0, 1.0), None).because.is_empty());
    }

    #[test]
    fn broken_logits_and_loops_are_rejected_whatever_the_figures() {
        let mut c = model(0.001, 0.01, 0.99);
        c.model.non_finite = 3;
        let v = verdict(&c, None);
        assert!(v.quality == Quality::Reject && v.because[0].starts_with("3 predictions"), "{v:?}");
        let loops = |share: usize| {
            let written: Vec<Vec<u32>> =
                (0..8).map(|i| if i < share { vec![1; 40] } else { (0..40).collect() }).collect();
            let flows = vec![(0..40).collect(); 8];
            Continuations::of(&vec![vec![0]; 8], &written, &flows)
        };
        let fine = model(0.001, 0.01, 0.99);
        assert_eq!(verdict(&fine, Some(&loops(2))).quality, Quality::Transparent);
        assert_eq!(verdict(&fine, Some(&loops(3))).quality, Quality::Reject);
    }
}

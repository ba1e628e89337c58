//! The knapsack of one model: its items, the exact size of its mixes, and how a mix is written into the choices.

use super::curves::{self, Item, Offer, Sampled};
use super::groups::GroupKey;
use super::predict::{Prediction, Predictor};
use super::solve::{self, Candidate};
use super::{AllocateError, Allocation, Inputs, Marginal, Part};
use crate::allocate::Weights;
use crate::error::ConvertError;
use ashlar_recipe::{Action, Choices, ExpertUsage};
use ashlar_simd::Isa;
use ashlar_tensor::Report;
use std::collections::BTreeMap;

/// Attempts to come closer to the target with the exact size of the pack.
const ATTEMPTS: usize = 8;
/// Single steps that are tried with the exact size at the end.
const LAST_STEPS: usize = 8;
/// From this size on marginal values are of 1 GB, below of 1 %.
const LARGE: u64 = 50_000_000_000;

/// An offer for every item.
#[derive(Clone, Debug, PartialEq)]
pub struct Mix {
    /// Index of the offer.
    pub answer: Vec<usize>,
    /// Exact bytes of the pack.
    pub bytes: u64,
}

/// Items with their curves.
pub struct Problem<'a, 'i> {
    items: Vec<Item>,
    candidates: Vec<Vec<Candidate>>,
    predictor: Predictor,
    inputs: &'a Inputs<'i>,
    sampled: Sampled,
}

impl<'a, 'i> Problem<'a, 'i> {
    /// Groups the choices and tries their formats.
    pub fn new(choices: &Choices, inputs: &'a Inputs<'i>, report: &dyn Report) -> Result<Self, AllocateError> {
        let file = inputs.stats.map(|s| s.file());
        let mut items = curves::items(choices, file.map(|f| f as &dyn ExpertUsage))?;
        let weights = Weights::new(inputs.stats, choices.list.iter().map(|c| &c.leaf))?;
        let isa = Isa::detect().map_err(ConvertError::from)?;
        let sampled = curves::measure(&mut items, choices, inputs, &weights, isa, report)?;
        let measured = file.map(|f| f.sensitivities()).transpose().map_err(ConvertError::from)?.flatten();
        let keys: Vec<GroupKey> = choices.list.iter().filter_map(|c| GroupKey::of(&c.leaf)).collect();
        let predictor = Predictor::new(&keys, measured.as_ref());
        let candidates = items.iter().map(|item| {
            let cost = |o: &Offer| item.share * predictor.part(&item.key, o.error);
            item.offers.iter().map(|o| Candidate { bytes: o.bytes, cost: cost(o) }).collect()
        });
        Ok(Self { candidates: candidates.collect(), items, predictor, inputs, sampled })
    }

    pub fn items(&self) -> &[Item] {
        &self.items
    }

    /// Whether there is anything to decide.
    pub fn is_open(&self) -> bool {
        self.items.iter().any(|i| i.is_open)
    }

    fn offer(&self, item: usize, offer: usize) -> Option<&Offer> {
        self.items.get(item)?.offers.get(offer)
    }

    /// What the parts of a mix add up to.
    fn cost(&self, answer: &[usize]) -> f64 {
        self.candidates.iter().zip(answer).filter_map(|(c, i)| c.get(*i)).map(|c| c.cost).sum()
    }

    /// Bytes of a mix as far as items have them.
    fn bytes(&self, answer: &[usize]) -> u64 {
        self.candidates.iter().zip(answer).filter_map(|(c, i)| c.get(*i)).map(|c| c.bytes).sum()
    }

    fn exact(&self, choices: &Choices, answer: Vec<usize>) -> Result<Mix, ConvertError> {
        let bytes = (self.inputs.size)(&self.decided(choices, &answer, false))?;
        Ok(Mix { answer, bytes })
    }

    /// The smallest mix and the one that costs least.
    pub fn extremes(&self, choices: &Choices) -> Result<[Mix; 2], ConvertError> {
        let (least, _) = solve::extremes(&self.candidates);
        let of = |budget| solve::solve(&self.candidates, budget).unwrap_or_default();
        Ok([self.exact(choices, of(least))?, self.exact(choices, of(u64::MAX >> 1))?])
    }

    /// The best mix whose exact size is at most `target`. Headers, padding and the alignment of records are what the
    /// smallest mix has, at first; the difference is learned.
    pub fn fit(&self, choices: &Choices, target: u64, floor: &Mix) -> Result<Mix, ConvertError> {
        let mut best = floor.clone();
        let mut budget = (target + self.bytes(&floor.answer)).saturating_sub(floor.bytes);
        let mut tried = Vec::new();
        for _ in 0..ATTEMPTS {
            if tried.contains(&budget) {
                break;
            }
            tried.push(budget);
            let Some(answer) = solve::solve(&self.candidates, budget) else { break };
            let mix = self.exact(choices, answer)?;
            let taken = self.bytes(&mix.answer);
            if mix.bytes <= target {
                budget = taken + (target - mix.bytes);
                if self.cost(&mix.answer) < self.cost(&best.answer) {
                    best = mix;
                }
            } else {
                budget = taken.saturating_sub(mix.bytes - target);
            }
        }
        self.last_steps(choices, target, best)
    }

    /// Single steps that the exact size allows, the best per byte first.
    fn last_steps(&self, choices: &Choices, target: u64, mut best: Mix) -> Result<Mix, ConvertError> {
        let mut steps: Vec<(f64, u64, usize, usize)> = Vec::new();
        for (item, (candidates, now)) in self.candidates.iter().zip(&best.answer).enumerate() {
            let Some(now) = candidates.get(*now) else { continue };
            for (to, c) in candidates.iter().enumerate().filter(|(_, c)| c.cost < now.cost && c.bytes >= now.bytes) {
                let bytes = c.bytes - now.bytes;
                if bytes <= target - best.bytes {
                    steps.push(((now.cost - c.cost) / bytes.max(1) as f64, bytes, item, to));
                }
            }
        }
        steps.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.2, a.3).cmp(&(b.2, b.3))));
        for (.., item, to) in steps.into_iter().take(LAST_STEPS) {
            let mut answer = best.answer.clone();
            if let Some(chosen) = answer.get_mut(item) {
                *chosen = to;
            }
            if self.cost(&answer) < self.cost(&best.answer) {
                let mix = self.exact(choices, answer)?;
                if mix.bytes <= target {
                    best = mix;
                }
            }
        }
        Ok(best)
    }

    /// What bytes are worth around a mix.
    pub fn marginal(&self, mix: &Mix) -> Marginal {
        let bytes = if mix.bytes >= LARGE { 1_000_000_000 } else { mix.bytes / 100 };
        let (taken, now) = (self.bytes(&mix.answer), self.cost(&mix.answer));
        let at = |budget: u64| solve::solve(&self.candidates, budget).map(|a| self.cost(&a));
        let more = at(taken + bytes).filter(|cost| *cost < now);
        let fewer = taken.checked_sub(bytes).and_then(at);
        let predict = |cost: f64| -> Prediction { self.predictor.kl(cost) };
        Marginal { bytes, more: more.map(predict), fewer: fewer.map(predict) }
    }

    /// The largest parts of the smallest mix, for the message that it does not fit.
    pub fn heaviest(&self, answer: &[usize]) -> String {
        let mut classes: BTreeMap<(&str, String), u64> = BTreeMap::new();
        for (number, (item, chosen)) in self.items.iter().zip(answer).enumerate() {
            let Some(offer) = self.offer(number, *chosen) else { continue };
            let fixed = if item.is_open { "" } else { ", by rule" };
            *classes.entry((item.key.class.name(), format!("{}{fixed}", name(&offer.action)))).or_default() +=
                offer.bytes;
        }
        let mut list: Vec<_> = classes.into_iter().collect();
        list.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(&b.0)));
        let text = |((class, format), bytes): &((&str, String), u64)| format!("{class} {bytes} ({format})");
        list.iter().take(4).map(text).collect::<Vec<_>>().join(", ")
    }

    /// The choices with a mix; `explain` adds a line to each trace.
    pub fn decided(&self, choices: &Choices, answer: &[usize], explain: bool) -> Choices {
        let mut decided = choices.clone();
        for (number, (item, chosen)) in self.items.iter().zip(answer).enumerate().filter(|(_, (i, _))| i.is_open) {
            let Some(offer) = self.offer(number, *chosen) else { continue };
            let why = if explain { self.why(number, *chosen) } else { String::new() };
            for tensor in &item.tensors {
                if let Some(choice) = decided.list.get_mut(*tensor) {
                    choice.decide(offer.action.clone(), why.clone());
                    choice.candidates.clear();
                }
            }
        }
        decided
    }

    /// The solver's reason, in one line.
    fn why(&self, number: usize, chosen: usize) -> String {
        let (Some(item), Some(candidates)) = (self.items.get(number), self.candidates.get(number)) else {
            return String::new();
        };
        let cost = |i: usize| candidates.get(i).map_or(0.0, |c| c.cost);
        let bytes = |i: usize| candidates.get(i).map_or(0, |c| c.bytes);
        let format = |i: usize| self.offer(number, i).map_or_else(String::new, |o| name(&o.action));
        let experts = match item.bucket {
            super::groups::Bucket::All => String::new(),
            bucket => format!(", {} of the experts", bucket.name()),
        };
        let mut text = format!("solver, group {}{experts}: {}, dKL {:.2e}", item.key, format(chosen), cost(chosen));
        if let Some(lower) = chosen.checked_sub(1) {
            let (more, saved) = (cost(lower) - cost(chosen), bytes(chosen) - bytes(lower));
            text.push_str(&format!("; {} would add {more:.2e} and save {saved} bytes", format(lower)));
        }
        if chosen + 1 < candidates.len() {
            let (less, more) = (cost(chosen) - cost(chosen + 1), bytes(chosen + 1) - bytes(chosen));
            text.push_str(&format!("; {} would take off {less:.2e} for {more} bytes", format(chosen + 1)));
        }
        text
    }

    /// What a mix comes to.
    pub fn summary(&self, mix: &Mix) -> Allocation {
        let part = |(number, (item, chosen)): (usize, (&Item, &usize))| {
            let offer = self.offer(number, *chosen)?;
            let kl = |o: &Offer| item.share * self.predictor.part(&item.key, o.error);
            Some(Part {
                group: item.key.to_string(),
                experts: item.bucket.name(),
                tensors: item.tensors.len(),
                format: name(&offer.action),
                solved: item.is_open,
                weights: item.weights,
                bytes: offer.bytes,
                error: offer.error,
                kl: kl(offer),
                offers: item.offers.iter().map(|o| (name(&o.action), o.bytes, kl(o))).collect(),
            })
        };
        let answer = self.items.iter().zip(&mix.answer);
        Allocation {
            target_bytes: None,
            total_bytes: mix.bytes,
            floor_bytes: None,
            ceiling_bytes: None,
            predicted: self.predictor.kl(self.cost(&mix.answer)),
            basis: self.predictor.basis(),
            marginal: None,
            sampled: self.sampled,
            parts: answer.enumerate().filter_map(part).collect(),
        }
    }
}

/// An action as a format's text.
fn name(action: &Action) -> String {
    match action {
        Action::Keep => "keep".to_owned(),
        Action::Encode { spec, .. } => spec.to_string(),
    }
}

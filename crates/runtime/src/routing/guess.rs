//! Guessing the experts of the next layer in a recording, and reading them ahead, as a running model does with the next layer's
//! router: what a guess is worth that needs no router.

use super::cache::{Admission, ExpertCache};
use super::routes::{LayerStep, Routes};
use super::score::Ema;
use crate::nvme::{Ahead, AheadUse};
use std::collections::HashMap;

/// How experts are guessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guesser {
    /// Those that the layer's router named one layer early, if that was recorded: what a running model does.
    Router,
    /// Those that the token before used in that layer.
    Previous,
    /// Those that most often came with the experts that this token used in the layer before: counts of pairs, learned
    /// from another recording, or from this one as it goes by.
    Learned,
}

impl Guesser {
    /// The word of `--look-ahead`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Router => "router",
            Self::Previous => "previous",
            Self::Learned => "learned",
        }
    }
}

/// How often an expert came with one of the layer before.
#[derive(Clone, Debug, Default)]
pub struct Pairs {
    /// By layer, expert before, expert.
    counts: HashMap<(usize, u32), HashMap<u32, u32>>,
}

impl Pairs {
    /// Those of a whole recording.
    #[must_use]
    pub fn of(routes: &Routes) -> Self {
        let mut pairs = Self::default();
        pairs.add(routes);
        pairs
    }

    /// Learns from a whole recording more.
    pub fn add(&mut self, routes: &Routes) {
        let mut before = HashMap::new();
        for step in &routes.steps {
            self.learn(before.get(&step.token), step);
            before.insert(step.token, step.clone());
        }
    }

    fn learn(&mut self, before: Option<&LayerStep>, step: &LayerStep) {
        let Some(before) = before.filter(|b| b.layer + 1 == step.layer) else { return };
        for (old, _) in &before.chosen {
            let counts = self.counts.entry((step.layer, *old)).or_default();
            step.chosen.iter().for_each(|(new, _)| *counts.entry(*new).or_default() += 1);
        }
    }

    /// The experts of `layer` that came most often with these of the layer before, at most `count`, ascending.
    #[must_use]
    pub fn guess(&self, layer: usize, before: &[(u32, f32)], count: usize) -> Vec<u32> {
        let mut sums: HashMap<u32, f64> = HashMap::new();
        for (old, weight) in before {
            let Some(counts) = self.counts.get(&(layer, *old)) else { continue };
            let all: u32 = counts.values().sum();
            for (new, n) in counts {
                *sums.entry(*new).or_default() += f64::from(*weight) * f64::from(*n) / f64::from(all.max(1));
            }
        }
        let mut order: Vec<(u32, f64)> = sums.into_iter().collect();
        order.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let mut best: Vec<u32> = order.into_iter().take(count).map(|(expert, _)| expert).collect();
        best.sort_unstable();
        best
    }
}

/// What is guessed, and with which cache.
#[derive(Clone, Copy, Debug)]
pub struct LookAhead<'a> {
    /// How.
    pub guesser: Guesser,
    /// What was learned elsewhere; `None` to learn as the recording goes by.
    pub trained: Option<&'a Pairs>,
    /// Slots for experts, of all layers together.
    pub capacity: usize,
    /// Half-life of uses, tokens.
    pub half_life: f64,
}

/// Replays a recording through an EMA cache whose next layer is guessed for every decoded token, and read ahead: hits without and
/// with what was read ahead, accesses, and what came of guesses.
#[must_use]
pub fn look_ahead(routes: &Routes, what: &LookAhead<'_>) -> (u64, u64, AheadUse) {
    let total = routes.layers.len() * routes.experts;
    let (mut cache, mut ema) = (ExpertCache::new(total, what.capacity), Ema::new(total, what.half_life));
    let (mut ahead, mut learned) = (Ahead::default(), Pairs::default());
    let mut last: Vec<Option<LayerStep>> = vec![None; routes.layers.len()];
    let mut by_token: HashMap<u64, LayerStep> = HashMap::new();
    let number = |layer: usize, expert: u32| (layer * routes.experts) as u32 + expert;
    let all = Admission { most: None, margin: None };
    let (mut hits, mut accesses) = (0, 0);
    for (place, step) in routes.steps.iter().enumerate() {
        let mut used: Vec<u32> = step.chosen.iter().map(|(e, _)| number(step.layer, *e)).collect();
        used.sort_unstable();
        for record in ahead.settle(step.layer, &used, |r| cache.holds(r)) {
            cache.rescore(record, ema.score(record));
        }
        let scored: Vec<(u32, f64)> = used.iter().map(|&e| (e, ema.touch(e, step.token, 1, 1))).collect();
        let found = cache.step(&scored, all);
        if step.decode {
            hits += found.hits as u64;
            accesses += used.len() as u64;
        }
        if what.trained.is_none() {
            // Prompts are recorded layer by layer.
            learned.learn(by_token.get(&step.token), step);
            by_token.insert(step.token, step.clone());
        }
        let next = step.layer + 1;
        let guess = match what.guesser {
            Guesser::Router => {
                let follows = routes.steps.get(place + 1).filter(|s| s.layer == next && s.token == step.token);
                let mut experts = follows.map(|s| s.named.clone()).unwrap_or_default();
                experts.sort_unstable();
                experts
            }
            Guesser::Learned => what.trained.unwrap_or(&learned).guess(next, &step.chosen, routes.top_k),
            Guesser::Previous => {
                let before = last.get(next).and_then(Option::as_ref);
                let mut experts: Vec<u32> = before.iter().flat_map(|b| b.chosen.iter().map(|(e, _)| *e)).collect();
                experts.sort_unstable();
                experts
            }
        };
        if let Some(last) = last.get_mut(step.layer) {
            *last = Some(step.clone());
        }
        if step.decode && next < routes.layers.len() && !guess.is_empty() {
            let records: Vec<u32> = guess.iter().map(|e| number(next, *e)).collect();
            let mut read = Vec::new();
            if ahead.pays(false) {
                let admission = Admission { most: None, margin: Some(0.0) };
                for &record in records.iter().filter(|r| !cache.holds(**r)).collect::<Vec<_>>() {
                    let score = ema.if_used(record, step.token);
                    cache.fill(&[(record, score)], &records, admission, &mut |new, _| read.push(new));
                }
            }
            ahead.guess(next, &records, read, false);
        }
    }
    (hits, accesses, ahead.used)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routing::{LayerBytes, Policy, Replay, replay};

    /// Two layers; the second always uses the same as the first, which goes round.
    fn round(tokens: u64) -> Routes {
        let step = |token: u64, layer| LayerStep {
            decode: token > 8,
            token,
            layer,
            chosen: vec![((token % 8) as u32, 0.6), (((token + 1) % 8) as u32, 0.4)],
            named: if layer == 1 { vec![((token + 1) % 8) as u32, 7] } else { Vec::new() },
        };
        let steps = (0..tokens).flat_map(|token| [step(token, 0), step(token, 1)]).collect();
        Routes { model: "m".into(), experts: 8, top_k: 2, layers: vec![LayerBytes { expert: 7, dense: 3 }; 2], steps }
    }

    #[test]
    fn pairs_that_always_come_together_are_learned_and_a_round_is_never_what_came_before() {
        let routes = round(200);
        let what = |guesser, trained| LookAhead { guesser, trained, capacity: 4, half_life: 4.0 };
        let (hits, accesses, used) = look_ahead(&routes, &what(Guesser::Learned, None));
        assert!(used.named * 10 > used.uses * 9 && used.useful > 10 * used.wasted, "{used:?}");
        let alone = Replay { policy: Policy::Ema { half_life: 4.0 }, capacity: 4, max_fills: None, hysteresis: None };
        let alone = replay(&routes, &alone, None);
        assert!(hits > alone.hits && accesses == alone.accesses, "{hits} of {accesses}, without {}", alone.hits);
        let (fewer, _, used) = look_ahead(&routes, &what(Guesser::Previous, None));
        // Of two experts one is that of the token before.
        assert!(used.named * 10 < used.uses * 6 && fewer <= hits, "{used:?}");
        // Of two experts the router names one, and 7, which is right every eighth time, and once the same.
        let (_, _, used) = look_ahead(&routes, &what(Guesser::Router, None));
        assert!(used.named * 10 > used.uses * 5 && used.named * 10 < used.uses * 7, "{used:?}");
        let trained = Pairs::of(&round(40));
        let (_, _, used) = look_ahead(&routes, &what(Guesser::Learned, Some(&trained)));
        assert_eq!(used.named, used.uses);
    }

    #[test]
    fn without_slots_nothing_is_read() {
        let what = LookAhead { guesser: Guesser::Learned, trained: None, capacity: 0, half_life: 4.0 };
        let (hits, accesses, used) = look_ahead(&round(50), &what);
        assert_eq!((hits, used.useful, used.wasted), (0, 0, 0));
        assert!(accesses > 0);
    }
}

//! [`replay`]: a recording through a cache of experts. Prompts warm it; decoded tokens are counted.

use super::cache::{Admission, ExpertCache};
use super::routes::Routes;
use super::score::Ema;
use super::timeline::{LayerUse, Machine, Timeline};
use std::collections::HashMap;

/// How experts are scored; the lowest score leaves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Policy {
    /// The last use.
    Lru,
    /// The number of uses; of equal ones the last use.
    Lfu,
    /// Uses, each counting half after so many tokens.
    Ema {
        /// Tokens.
        half_life: f64,
    },
    /// The experts that this recording uses most, from the start: what a list could do at best.
    Static,
    /// The next use, which nobody knows: the bound for all others.
    Belady,
}

impl Policy {
    /// The word of `--policies`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Lru => "lru",
            Self::Lfu => "lfu",
            Self::Ema { .. } => "ema",
            Self::Static => "static",
            Self::Belady => "belady",
        }
    }
}

/// What is replayed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Replay {
    /// How experts are scored.
    pub policy: Policy,
    /// Slots for experts, of all layers together.
    pub capacity: usize,
    /// Fills per layer and token at most; `None` for all misses.
    pub max_fills: Option<usize>,
    /// Of [`Policy::Ema`]: fill only if the score is more than so many times the lowest; `None` to fill always.
    pub hysteresis: Option<f64>,
}

/// A machine that a recording is replayed on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tiers {
    /// How fast it is. Slots are its accelerator's; where it has none, they are memory of the processor, and what they lack is on disk.
    pub machine: Machine,
    /// Experts that memory holds, by the score `ema`; the others are on disk. `None` for all. Of an accelerated machine: those that
    /// its slots lack.
    pub memory: Option<usize>,
    /// Bytes that every token reads behind the layers.
    pub head: u64,
}

/// What came of it, over decoded tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Replayed {
    /// Experts used.
    pub accesses: u64,
    /// Of these, those that were there.
    pub hits: u64,
    /// Bytes of experts used.
    pub bytes: u64,
    /// Of these, those that were there.
    pub hit_bytes: u64,
    /// Experts brought in.
    pub fills: u64,
    /// Tokens.
    pub tokens: u64,
    /// Experts that came from the disk, where a machine is given.
    pub read: u64,
    /// Seconds for all of them at best, where a machine is given: the accelerator computes hits while the processor computes misses.
    pub seconds: f64,
}

impl Replayed {
    /// Hits per access.
    #[must_use]
    pub fn hit_rate(&self) -> f64 {
        self.hits as f64 / (self.accesses as f64).max(1.0)
    }

    /// Fills per access.
    #[must_use]
    pub fn fill_rate(&self) -> f64 {
        self.fills as f64 / (self.accesses as f64).max(1.0)
    }
}

/// Scores of one policy.
struct Scores {
    policy: Policy,
    /// Uses.
    value: Vec<f64>,
    recent: Ema,
    /// Of every access in order: when the expert is used next.
    next_use: Vec<f64>,
    /// Layer steps so far, and accesses.
    now: f64,
    access: usize,
}

impl Scores {
    fn new(policy: Policy, routes: &Routes, experts: usize) -> Self {
        let next_use = if policy == Policy::Belady { next_uses(routes) } else { Vec::new() };
        let half_life = if let Policy::Ema { half_life } = policy { half_life } else { 1.0 };
        Self { policy, value: vec![0.0; experts], recent: Ema::new(experts, half_life), next_use, now: 0.0, access: 0 }
    }

    /// The score of an expert that is used now.
    fn touch(&mut self, expert: u32, token: u64) -> f64 {
        let access = self.access;
        self.access += 1;
        let value = &mut self.value[expert as usize];
        match self.policy {
            Policy::Lru => self.now,
            Policy::Lfu => {
                *value += 1.0;
                *value + self.now * 1e-12
            }
            Policy::Ema { .. } => self.recent.touch(expert, token, 1, 1),
            Policy::Static => 0.0,
            Policy::Belady => -self.next_use[access],
        }
    }
}

fn number(routes: &Routes, layer: usize, expert: u32) -> u32 {
    (layer * routes.experts) as u32 + expert
}

/// For every access, the layer step of the next one to the same expert.
fn next_uses(routes: &Routes) -> Vec<f64> {
    let mut all = Vec::new();
    let mut next: HashMap<u32, usize> = HashMap::new();
    for (i, step) in routes.steps.iter().enumerate().rev() {
        for (expert, _) in step.chosen.iter().rev() {
            let before = next.insert(number(routes, step.layer, *expert), i);
            all.push(before.map_or(f64::INFINITY, |i| i as f64));
        }
    }
    all.reverse();
    all
}

/// The experts that decoded tokens use, most used first.
fn most_used(routes: &Routes) -> Vec<u32> {
    let mut uses: HashMap<u32, u64> = HashMap::new();
    for step in routes.steps.iter().filter(|s| s.decode) {
        step.chosen.iter().for_each(|(e, _)| *uses.entry(number(routes, step.layer, *e)).or_default() += 1);
    }
    let mut all: Vec<(u32, u64)> = uses.into_iter().collect();
    all.sort_by_key(|(expert, uses)| (std::cmp::Reverse(*uses), *expert));
    all.into_iter().map(|(expert, _)| expert).collect()
}

/// Experts in memory of a machine whose others are on disk.
struct Memory {
    cache: ExpertCache,
    recent: Ema,
}

impl Memory {
    fn new(experts: usize, slots: usize) -> Self {
        Self { cache: ExpertCache::new(experts, slots), recent: Ema::new(experts, crate::nvme::HALF_LIFE) }
    }

    /// Those of `wanted` that have to be read.
    fn read(&mut self, wanted: &[u32], token: u64) -> Vec<u32> {
        let lacking: Vec<u32> = wanted.iter().copied().filter(|e| !self.cache.holds(*e)).collect();
        let used: Vec<(u32, f64)> = wanted.iter().map(|e| (*e, self.recent.touch(*e, token, 1, 1))).collect();
        self.cache.step(&used, Admission { most: None, margin: None });
        lacking
    }
}

fn admission(what: &Replay) -> Admission {
    match what.policy {
        Policy::Static => Admission { most: Some(0), margin: None },
        // Never for one that is used later than all that are there.
        Policy::Belady => Admission { most: what.max_fills, margin: Some(0.0) },
        Policy::Ema { .. } => Admission { most: what.max_fills, margin: what.hysteresis.map(f64::log2) },
        Policy::Lru | Policy::Lfu => Admission { most: what.max_fills, margin: None },
    }
}

/// Replays a recording; on a machine, tells how long it takes too.
#[must_use]
pub fn replay(routes: &Routes, what: &Replay, tiers: Option<&Tiers>) -> Replayed {
    let experts = routes.layers.len() * routes.experts;
    let mut cache = ExpertCache::new(experts, what.capacity);
    let mut scores = Scores::new(what.policy, routes, experts);
    if what.policy == Policy::Static {
        most_used(routes).into_iter().for_each(|expert| cache.preload(expert));
    }
    let mut memory = tiers.and_then(|t| t.memory).map(|slots| Memory::new(experts, slots));
    let mut timeline = tiers.map(|t| Timeline::new(t.machine));
    let (mut sum, mut last) = (Replayed::default(), None);
    for step in &routes.steps {
        scores.now += 1.0;
        let one = |(expert, _): &(u32, f32)| {
            let expert = number(routes, step.layer, *expert);
            (expert, scores.touch(expert, step.token))
        };
        let used: Vec<(u32, f64)> = step.chosen.iter().map(one).collect();
        let (hits, misses): (Vec<u32>, Vec<u32>) = used.iter().map(|(e, _)| *e).partition(|e| cache.holds(*e));
        let mut fills = Vec::new();
        cache.fill(&used, &[], admission(what), &mut |expert, _| fills.push(expert));
        let accelerated = tiers.is_none_or(|t| t.machine.accelerated);
        let read = match &mut memory {
            Some(memory) => memory.read(&misses, step.token),
            None if accelerated => Vec::new(),
            None => misses.clone(),
        };
        if !step.decode {
            continue;
        }
        let layer = routes.layers.get(step.layer).copied().unwrap_or_default();
        let first = last.replace(step.token) != Some(step.token);
        if let (Some(timeline), Some(tiers)) = (&mut timeline, tiers) {
            if first && sum.tokens > 0 {
                timeline.dense(tiers.head);
            }
            let all: Vec<u32> = used.iter().map(|(e, _)| *e).collect();
            let (hits, misses) = if accelerated { (&hits[..], &misses[..]) } else { (&[][..], &all[..]) };
            let fills = if accelerated { &fills[..] } else { &[] };
            timeline.layer(layer, &LayerUse { hits, misses, read: &read, fills });
        }
        sum.tokens += u64::from(first);
        sum.accesses += used.len() as u64;
        sum.hits += hits.len() as u64;
        sum.fills += fills.len() as u64;
        sum.read += read.len() as u64;
        sum.bytes += used.len() as u64 * layer.expert;
        sum.hit_bytes += hits.len() as u64 * layer.expert;
    }
    if let (Some(mut timeline), Some(tiers)) = (timeline, tiers) {
        timeline.dense(tiers.head);
        sum.seconds = timeline.seconds();
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routing::{LayerBytes, LayerStep};
    use ashlar_backend::Speeds;

    /// 32 tokens, 12 of them a prompt, through 12 layers of a released model.
    fn recorded() -> Routes {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/routes/qwen3-30b.route.csv");
        Routes::read(std::io::BufReader::new(std::fs::File::open(path).unwrap())).unwrap()
    }

    const EMA: Policy = Policy::Ema { half_life: 16.0 };
    const ALL: [Policy; 5] = [Policy::Lru, Policy::Lfu, EMA, Policy::Static, Policy::Belady];

    fn run(routes: &Routes, policy: Policy, capacity: usize) -> Replayed {
        replay(routes, &Replay { policy, capacity, max_fills: None, hysteresis: None }, None)
    }

    /// (hits, fills) of 1440 accesses, by a script that shares no code with this one.
    #[test]
    fn hits_and_fills_of_a_real_recording_are_those_of_another_program() {
        let routes = recorded();
        for (capacity, expected) in [
            (76, [(482, 958), (374, 1066), (406, 1034), (640, 0), (804, 280)]),
            (184, [(747, 693), (658, 782), (664, 776), (1002, 0), (1068, 190)]),
            (460, [(1082, 358), (1047, 393), (1062, 378), (1401, 0), (1161, 169)]),
        ] {
            let found = ALL.map(|policy| run(&routes, policy, capacity));
            assert_eq!(found.map(|r| (r.hits, r.fills)), expected, "{capacity} slots");
            assert!(found.iter().all(|r| (r.accesses, r.tokens) == (1440, 20)));
        }
        let careful = Replay { policy: EMA, capacity: 184, max_fills: Some(1), hysteresis: Some(1.1) };
        let found = replay(&routes, &careful, None);
        assert_eq!((found.hits, found.fills), (663, 196));
    }

    #[test]
    fn belady_is_beaten_by_no_policy_that_brings_experts_in() {
        let routes = recorded();
        for capacity in [0, 1, 30, 72, 100, 300, 700, 1536] {
            let best = run(&routes, Policy::Belady, capacity).hits;
            for policy in [Policy::Lru, Policy::Lfu, EMA] {
                assert!(run(&routes, policy, capacity).hits <= best, "{policy:?} with {capacity} slots");
            }
        }
    }

    #[test]
    fn more_slots_never_cost_lru_a_hit_and_below_one_cycle_it_has_none() {
        let routes = recorded();
        let hits: Vec<u64> = (0..16).map(|i| run(&routes, Policy::Lru, i * 100).hits).collect();
        assert!(hits.is_sorted(), "{hits:?}");
        // Every token uses the same experts, one after the other: a cache that is one layer too small never hits.
        let step = |token, layer| LayerStep {
            decode: token > 0,
            token,
            layer,
            chosen: vec![(0, 1.0), (1, 0.5)],
            named: Vec::new(),
        };
        let steps = (0..50).flat_map(|token| (0..10).map(move |layer| step(token, layer))).collect();
        let cyclic = Routes {
            model: "m".into(),
            experts: 4,
            top_k: 2,
            layers: vec![LayerBytes { expert: 7, dense: 3 }; 10],
            steps,
        };
        assert_eq!([18, 20].map(|slots| run(&cyclic, Policy::Lru, slots).hits), [0, 980]);
        assert_eq!(run(&cyclic, Policy::Belady, 10).hits, 490);
    }

    #[test]
    fn seconds_are_those_of_the_slower_side_of_every_layer() {
        let step = |token, other| {
            let chosen = vec![(0, 1.0), (other, 0.5)];
            LayerStep { decode: token > 0, token, layer: 0, chosen, named: Vec::new() }
        };
        let routes = Routes {
            model: "m".into(),
            experts: 4,
            top_k: 2,
            layers: vec![LayerBytes { expert: 100, dense: 50 }],
            steps: vec![step(0, 2), step(1, 1), step(2, 1)],
        };
        let what = Replay { policy: Policy::Lru, capacity: 4, max_fills: None, hysteresis: None };
        let speeds = Speeds {
            vram: 100.0,
            ram: 10.0,
            link: 1e12,
            disk: 5.0,
            device_multiply: 1e12,
            host_multiply: 1e12,
            launch: 0.0,
            handshake: 3.0,
            unified: false,
        };
        let machine = Machine { speeds, accelerated: true, dense_on_host: 0.0 };
        let tiers = Tiers { machine, memory: None, head: 25 };
        // A hit and a miss, which is copied to a slot at the memory's rate; two hits wait for it.
        let found = replay(&routes, &what, Some(&tiers));
        assert!((found.seconds - (0.5 + 3.0 + 10.0 + 10.0 + 2.0 + 0.25)).abs() < 1e-9, "{found:?}");
        assert_eq!(found.tokens, 2);
        // The same slots as memory of the processor: the miss comes from the disk, and all is computed there.
        let processor =
            replay(&routes, &what, Some(&Tiers { machine: Machine { accelerated: false, ..machine }, ..tiers }));
        assert_eq!((processor.read, processor.hits), (1, 3));
        assert!((processor.seconds - (5.0 + 20.0 + 10.0 + 2.5 + 5.0 + 20.0 + 2.5)).abs() < 1e-9, "{processor:?}");
        // An accelerator's misses, of which memory holds some.
        let both = replay(&routes, &what, Some(&Tiers { memory: Some(4), ..tiers }));
        assert_eq!((both.read, both.hits), (1, 3));
        assert_eq!((found.bytes, found.hit_bytes), (400, 300));
    }
}

//! `ashlar simulate`: a recording of routes through caches of experts.

mod hardware;

use crate::args::Globals;
use crate::exit::{CommandResult, Failure, OrUsage, Outcome};
use crate::output;
use crate::table::Table;
use anyhow::{Context, anyhow};
use ashlar_runtime::AheadUse;
use ashlar_runtime::routing::{Guesser, LookAhead, Pairs, Policy, Replay, Replayed, Routes, look_ahead, replay};
use clap::{Args, ValueEnum};
use hardware::{HardwareArgs, Laid};
use serde_json::json;
use std::io::BufReader;
use std::path::{Path, PathBuf};

/// Replay recorded routes through a cache of experts: how often it would have hit, by policy and size
///
/// The prompt warms the cache; decoded tokens are counted. Every policy is held against Belady's, which knows the future and
/// cannot be beaten. With --hardware, tokens per second at best, by a clock on which the accelerator computes what is in its slots while
/// the processor computes what is not, copies to slots and reads of the disk share memory with it, and every layer costs a
/// handshake. With --model and no recording, the same by the share of uses that slots hold.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  ashlar simulate qwen.route.csv
  ashlar simulate qwen.route.csv --policies ema,belady --capacity 5%,12%,20% --max-fills 1 --hysteresis 1.1
  ashlar simulate qwen.route.csv --hardware rtx3080-10gb-64gb --policies ema --max-fills 1 --hysteresis 1.1
  ashlar simulate --model deepseek-v4-flash --recipe v4-flash-2bit-experts --hardware rtx3080-10gb-64gb-nvme")]
pub struct Simulate {
    /// What `ashlar trace` wrote
    #[arg(required_unless_present = "model")]
    pub trace: Option<PathBuf>,
    /// Who leaves when a slot is needed
    #[arg(long, value_name = "P", value_enum, value_delimiter = ',', default_value = "lru,lfu,ema,static,belady")]
    pub policies: Vec<Word>,
    /// Slots: a share of all experts, or a number
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "5%,8%,12%,20%,30%,40%,50%", value_parser = capacity)]
    pub capacity: Vec<Capacity>,
    /// Of ema: tokens after which a use counts half
    #[arg(long, value_name = "TOKENS", default_value_t = 16.0, value_parser = positive)]
    pub half_life: f64,
    /// Experts that may be brought in per layer and token [default: all that miss]
    #[arg(long, value_name = "N")]
    pub max_fills: Option<usize>,
    /// Of ema: bring in only what scores so many times more than what leaves [default: whatever it scores]
    #[arg(long, value_name = "X", value_parser = positive)]
    pub hysteresis: Option<f64>,
    /// Guess the experts of the next layer and read them ahead, as a model does whose experts lie on disk: those that the layer's router named one
    /// layer early (router), what the token before used there (previous), or which experts came together (learned); with `ema`
    #[arg(long, value_name = "G", value_enum, value_delimiter = ',', requires = "trace")]
    pub look_ahead: Vec<GuesserWord>,
    /// With --look-ahead learned: other recordings to learn from, instead of this one as it goes by
    #[arg(long, value_name = "TRACE,…", value_delimiter = ',', requires = "look_ahead")]
    pub train: Vec<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub hardware: HardwareArgs,
}

/// A policy by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Word {
    /// Who was used last longest ago
    Lru,
    /// Who was used least often
    Lfu,
    /// Who was used least often lately
    Ema,
    /// Nobody: the most used experts of this recording, fixed
    Static,
    /// Who will be used last
    Belady,
}

impl Word {
    fn heading(self) -> &'static str {
        match self {
            Self::Lru => ">lru",
            Self::Lfu => ">lfu",
            Self::Ema => ">ema",
            Self::Static => ">static",
            Self::Belady => ">belady",
        }
    }
}

/// How experts of the next layer are guessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum GuesserWord {
    /// What the layer's router named one layer early, if the recording has that
    Router,
    /// What the token before used there
    Previous,
    /// What came most often with what this token used in the layer before
    Learned,
}

impl From<GuesserWord> for Guesser {
    fn from(word: GuesserWord) -> Self {
        match word {
            GuesserWord::Router => Self::Router,
            GuesserWord::Previous => Self::Previous,
            GuesserWord::Learned => Self::Learned,
        }
    }
}

/// One guesser with one number of slots.
struct Guessed {
    guesser: Guesser,
    slots: usize,
    hits: f64,
    used: AheadUse,
}

/// Slots of a cache.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Capacity {
    /// Of all experts.
    Share(f64),
    /// So many.
    Slots(usize),
}

fn capacity(text: &str) -> Result<Capacity, String> {
    let wrong = || format!("`{text}` is no size of a cache; write e.g. 12% or 700");
    match text.strip_suffix('%') {
        Some(share) => {
            let share = share.trim().parse::<f64>().ok().filter(|s| (0.0..=100.0).contains(s));
            share.map(|s| Capacity::Share(s / 100.0)).ok_or_else(wrong)
        }
        None => text.parse().map(Capacity::Slots).map_err(|_| wrong()),
    }
}

fn positive(text: &str) -> Result<f64, String> {
    let value = text.parse::<f64>().ok().filter(|v| v.is_finite() && *v > 0.0);
    value.ok_or_else(|| format!("`{text}` is no number above 0"))
}

impl Capacity {
    fn slots(self, all: usize) -> usize {
        match self {
            Self::Share(share) => (share * all as f64) as usize,
            Self::Slots(slots) => slots.min(all),
        }
    }
}

impl Simulate {
    /// Replays and prints.
    ///
    /// # Errors
    /// A recording or machine that cannot be read is the user's mistake.
    pub fn run(&self, _globals: Globals) -> CommandResult {
        let Some(trace) = &self.trace else { return self.without_recording() };
        let mut routes = read(trace)?;
        let laid = self.hardware.laid(Some(&mut routes))?;
        let tiers = laid.as_ref().map(Laid::tiers);
        let mut sizes: Vec<usize> = self.capacity.iter().map(|capacity| capacity.slots(routes.slots())).collect();
        // What the machine has room for.
        sizes.extend(laid.as_ref().map(Laid::slots).filter(|here| !sizes.contains(here)));
        let one = |slots: usize| {
            let found = self.policies.iter().map(|policy| replay(&routes, &self.what(*policy, slots), tiers.as_ref()));
            (slots, found.collect())
        };
        let all: Vec<(usize, Vec<Replayed>)> = sizes.into_iter().map(one).collect();
        let guessed = self.guessed(&routes)?;
        if self.json {
            output::print_json(&self.as_json(&routes, &all, &guessed, laid.as_ref()))?;
        } else {
            output::print(&self.text(&routes, &all, laid.as_ref()))?;
            output::print(&guessed_text(&guessed))?;
        }
        Ok(Outcome::Done)
    }

    /// A model's shape on a machine.
    fn without_recording(&self) -> CommandResult {
        if let Some(laid) = self.hardware.laid(None)? {
            if self.json {
                output::print_json(&laid.json())?;
            } else {
                output::print(&laid.text())?;
            }
        }
        Ok(Outcome::Done)
    }

    /// What guesses come to.
    fn guessed(&self, routes: &Routes) -> Result<Vec<Guessed>, Failure> {
        let mut trained = (!self.train.is_empty()).then(Pairs::default);
        for path in &self.train {
            trained.get_or_insert_default().add(&read(path)?);
        }
        let mut all = Vec::new();
        for guesser in self.look_ahead.iter().map(|word| Guesser::from(*word)) {
            for capacity in self.capacity.iter().map(|c| c.slots(routes.slots())) {
                let what = LookAhead { guesser, trained: trained.as_ref(), capacity, half_life: self.half_life };
                let (hits, accesses, used) = look_ahead(routes, &what);
                if guesser == Guesser::Router && used.named == 0 {
                    let what = "the recording does not have what routers named one layer early; record it again with `ashlar trace`";
                    return Err(Failure::usage(anyhow!("--look-ahead router: {what}")));
                }
                all.push(Guessed { guesser, slots: capacity, hits: hits as f64 / (accesses as f64).max(1.0), used });
            }
        }
        Ok(all)
    }

    fn what(&self, policy: Word, capacity: usize) -> Replay {
        let policy = match policy {
            Word::Lru => Policy::Lru,
            Word::Lfu => Policy::Lfu,
            Word::Ema => Policy::Ema { half_life: self.half_life },
            Word::Static => Policy::Static,
            Word::Belady => Policy::Belady,
        };
        // What the future brings is not held back.
        let max_fills = self.max_fills.filter(|_| policy != Policy::Belady);
        Replay { policy, capacity, max_fills, hysteresis: self.hysteresis }
    }

    fn text(&self, routes: &Routes, all: &[(usize, Vec<Replayed>)], laid: Option<&Laid>) -> String {
        let decoded = all.first().and_then(|(_, r)| r.first()).map_or(0, |r| r.tokens);
        let mut out = format!(
            "{}: {} layers of {} experts, {} per token, {decoded} decoded tokens\n\nhits in % of accesses, in brackets experts \
             brought in per access\n",
            routes.model,
            routes.slots() / routes.experts.max(1),
            routes.experts,
            routes.top_k
        );
        let columns: Vec<&'static str> =
            std::iter::once(">slots").chain(self.policies.iter().map(|policy| policy.heading())).collect();
        let mut hits = Table::new(&columns);
        for (slots, found) in all {
            let cell = |r: &Replayed| format!("{:.1} ({:.2})", 100.0 * r.hit_rate(), r.fill_rate());
            hits.row(std::iter::once(slots.to_string()).chain(found.iter().map(cell)).collect::<Vec<_>>());
        }
        out.push_str(&hits.render());
        if let Some(laid) = laid {
            out.push_str(&format!("\n{}; tokens per second at best\n", laid.told()));
            let mut rates = Table::new(&columns);
            for (slots, found) in all {
                let cell = |r: &Replayed| format!("{:.1}", r.tokens as f64 / r.seconds);
                let here = if *slots == laid.slots() { format!("{slots} (here)") } else { slots.to_string() };
                rates.row(std::iter::once(here).chain(found.iter().map(cell)).collect::<Vec<_>>());
            }
            out.push_str(&rates.render());
        }
        out
    }

    fn as_json(
        &self,
        routes: &Routes,
        all: &[(usize, Vec<Replayed>)],
        guessed: &[Guessed],
        laid: Option<&Laid>,
    ) -> serde_json::Value {
        let ahead = guessed.iter().map(|g| {
            json!({
                "guesser": g.guesser.name(),
                "slots": g.slots,
                "hit_rate": g.hits,
                "uses": g.used.uses,
                "named": g.used.named,
                "absent": g.used.absent,
                "covered": g.used.covered,
                "useful": g.used.useful,
                "wasted": g.used.wasted,
                "pauses": g.used.pauses,
            })
        });
        let ahead: Vec<_> = ahead.collect();
        let rows = all.iter().flat_map(|(slots, found)| {
            self.policies.iter().zip(found).map(move |(policy, r)| {
                json!({
                    "policy": self.what(*policy, 0).policy.name(),
                    "slots": slots,
                    "tokens": r.tokens,
                    "accesses": r.accesses,
                    "hits": r.hits,
                    "bytes": r.bytes,
                    "hit_bytes": r.hit_bytes,
                    "fills": r.fills,
                    "read": r.read,
                    "tokens_per_s": laid.map(|_| r.tokens as f64 / r.seconds),
                })
            })
        });
        json!({
            "model": routes.model,
            "experts": routes.slots(),
            "machine_slots": laid.map(Laid::slots),
            "replayed": rows.collect::<Vec<_>>(),
            "look_ahead": ahead,
        })
    }
}

fn read(path: &Path) -> Result<Routes, Failure> {
    let name = path.display().to_string();
    let file = std::fs::File::open(path).with_context(|| format!("cannot read {name}")).or_usage()?;
    Routes::read(BufReader::new(file)).with_context(|| name).or_usage()
}

/// The table of guesses; nothing where none were asked for.
fn guessed_text(all: &[Guessed]) -> String {
    if all.is_empty() {
        return String::new();
    }
    let mut table =
        Table::new(&["guesser", ">slots", ">hits", ">named", ">of missing", ">useful", ">in vain", ">given up"]);
    for Guessed { guesser, slots, hits, used } in all {
        let share = |part: u64, of: u64| format!("{:.1} %", 100.0 * part as f64 / (of as f64).max(1.0));
        table.row([
            guesser.name().to_owned(),
            slots.to_string(),
            format!("{:.1} %", 100.0 * hits),
            share(used.named, used.uses),
            share(used.covered, used.absent),
            used.useful.to_string(),
            used.wasted.to_string(),
            used.pauses.to_string(),
        ]);
    }
    format!(
        "\nread ahead into an ema cache: experts that a guess named, missing ones that it had read, reads in time and in vain\n{}",
        table.render()
    )
}

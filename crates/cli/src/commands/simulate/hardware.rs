//! The machine that a recording, or a model of which only shapes are known, is simulated on.

use crate::commands::plan::machines::{Builds, CHUNK, CONTEXT, Limits, Machine};
use crate::exit::Failure;
use crate::model::{Model, SourceArgs};
use crate::table::Table;
use crate::units;
use anyhow::anyhow;
use ashlar_runtime::fit::{Known, Layout, Needs, Prediction, Verdict, Work, chunk, fit, predict, speeds};
use ashlar_runtime::routing::{self, LayerBytes, Routes, Shares, Tiers};
use clap::Args;
use serde_json::{Value, json};
use std::path::PathBuf;

/// Shares of uses found in slots that are told where there is no recording.
const SHARES: [f64; 7] = [0.0, 0.2, 0.4, 0.6, 0.8, 0.95, 1.0];

/// What is simulated besides caches.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Time")]
pub struct HardwareArgs {
    /// Tokens per second on a machine: a kind (`plan --list-tiers`), a file of `ashlar doctor`, or `vram=24GiB,ram=64GiB,nvme=7GB/s`
    #[arg(long, value_name = "H", visible_alias = "machine")]
    pub hardware: Option<String>,
    /// Of this model instead of the one that was recorded: a checkpoint, a pack, or a name of the catalogue
    #[arg(long, value_name = "SRC", requires = "hardware")]
    pub model: Option<PathBuf>,
    /// With --model: in the formats of a recipe
    #[arg(long, value_name = "R", default_value = "keep", requires = "model")]
    pub recipe: String,
    /// With --model: keys and values of so many tokens lie beside weights [default: 16384, or what the model was made for if less]
    #[arg(long, value_name = "N", requires = "model")]
    pub context: Option<usize>,
    /// The most that the model may take of each card
    #[arg(long, value_name = "BYTES", value_parser = ashlar_recipe::parse_bytes, requires = "hardware")]
    pub vram_limit: Option<u64>,
    /// The most that the model may take of the host's memory
    #[arg(long, value_name = "BYTES", value_parser = ashlar_recipe::parse_bytes, requires = "hardware")]
    pub ram_limit: Option<u64>,
}

/// A model laid out on a machine.
pub struct Laid {
    pub machine: Machine,
    pub layout: Layout,
    pub needs: Needs,
    layers: Vec<LayerBytes>,
    head: u64,
    work: Vec<Work>,
    context: usize,
}

impl HardwareArgs {
    /// The machine with the model on it; `None` if no machine is named.
    ///
    /// # Errors
    /// What cannot be read, or does not fit, is the user's mistake.
    pub fn laid(&self, routes: Option<&mut Routes>) -> Result<Option<Laid>, Failure> {
        let Some(name) = &self.hardware else { return Ok(None) };
        let machine = Limits { vram: self.vram_limit, ram: self.ram_limit }.on(Machine::named(name)?);
        let (needs, layers, head, work, context) = match (&self.model, routes) {
            (Some(src), routes) => {
                let model = Model::look_at(src, SourceArgs::default())?;
                let context = self.context.unwrap_or(CONTEXT).min(model.spec()?.max_position);
                let build = Builds::of(&model, Some(&self.recipe), context)?.get(&model, 0)?;
                let (layers, head) = build.layers;
                routes.map(|routes| replace(routes, &layers, &build.needs)).transpose()?;
                (build.needs, layers, head, build.work, context)
            }
            (None, Some(routes)) => (Needs::of_routes(routes), routes.layers.clone(), 0, Vec::new(), 0),
            (None, None) => {
                return Err(Failure::usage(anyhow!("give a recording (`ashlar trace`), or --model with --hardware")));
            }
        };
        let fit = fit(&needs, &machine.hardware);
        if fit.verdict == Verdict::No {
            return Err(Failure::usage(anyhow!(
                "the model does not fit {}: {} are missing; `ashlar plan --hardware` tells what does",
                machine.name,
                units::bytes(fit.lacks)
            )));
        }
        let layout = Layout::of(&needs, &fit);
        Ok(Some(Laid { machine, layout, needs, layers, head, work, context }))
    }
}

/// Gives a recording the bytes of another model, which must have as many layers and experts.
fn replace(routes: &mut Routes, layers: &[LayerBytes], needs: &Needs) -> Result<(), Failure> {
    let of = |layers: &[LayerBytes]| layers.iter().map(|l| l.expert > 0).collect::<Vec<_>>();
    if of(&routes.layers) != of(layers) || routes.top_k > needs.top_k {
        return Err(Failure::usage(anyhow!(
            "--model has {} layers of which {} have experts, {} of them per token; the recording has {}, {} and {}",
            layers.len(),
            of(layers).iter().filter(|e| **e).count(),
            needs.top_k,
            routes.layers.len(),
            of(&routes.layers).iter().filter(|e| **e).count(),
            routes.top_k
        )));
    }
    routes.layers = layers.to_vec();
    Ok(())
}

impl Laid {
    fn machine(&self) -> routing::Machine {
        let dense = self.layout.dense[0] + self.layout.dense[1];
        routing::Machine {
            speeds: speeds(&self.machine.hardware),
            accelerated: self.layout.has_card(),
            dense_on_host: if dense > 0.0 { self.layout.dense[1] / dense } else { 0.0 },
        }
    }

    /// For replaying a recording.
    pub fn tiers(&self) -> Tiers {
        let lacks = self.layout.disk() > 0.0;
        let memory = (self.layout.memory / self.needs.largest_expert.max(1) as f64) as usize;
        Tiers { machine: self.machine(), memory: (lacks && self.layout.has_card()).then_some(memory), head: self.head }
    }

    /// Experts that find room in slots: of cards, or of memory where there are none.
    pub fn slots(&self) -> usize {
        let bytes = if self.layout.has_card() { self.layout.slots + self.layout.fixed } else { self.layout.memory };
        ((bytes / self.needs.largest_expert.max(1) as f64) as usize).min(self.needs.expert_count)
    }

    /// What the planner says.
    pub fn prediction(&self, routes: Option<&Routes>) -> Prediction {
        predict(&Known {
            needs: &self.needs,
            work: &self.work,
            layout: self.layout,
            context: self.context,
            chunk: chunk(&self.needs, &self.layout, CHUNK, self.context),
            layers: self.layers.len(),
            hardware: &self.machine.hardware,
            measured: self.machine.measured.as_ref(),
            routes,
        })
    }

    /// What lies where, in a line.
    pub fn told(&self) -> String {
        let l = &self.layout;
        let bytes = |n: f64| units::bytes(n as u64);
        let mut parts = Vec::new();
        if l.has_card() {
            parts.push(format!(
                "the card holds {} of what every token reads and {} of {} experts",
                bytes(l.dense[0]),
                units::thousands(self.slots() as u64),
                units::thousands(self.needs.expert_count as u64)
            ));
        }
        if l.dense[1] > 0.0 {
            parts.push(format!("the processor reads {} of what every token reads", bytes(l.dense[1])));
        }
        if l.disk() > 0.0 {
            parts.push(format!("{} of experts are on disk alone", bytes(l.disk())));
        }
        format!("{}: {}", self.machine.name, parts.join("; "))
    }

    /// Tokens per second by the share of uses that slots hold, with what memory lacks from the disk: all else in memory, and as a
    /// hopeful and a cautious guess have it.
    fn by_share(&self) -> Vec<(f64, [f64; 3])> {
        let prediction = self.prediction(None);
        let from_disk = |end: usize| {
            let (slots, held) = (prediction.slots.get(end), prediction.hits.get(end));
            let (slots, held) = (slots.copied().unwrap_or(0.0), held.copied().unwrap_or(1.0));
            ((1.0 - held) / (1.0 - slots).max(1e-9)).clamp(0.0, 1.0)
        };
        let rate = |hits: f64, from_disk: f64| {
            let (layers, top_k) = (self.layers.as_slice(), self.needs.top_k);
            Shares { layers, head: self.head, top_k, hits, from_disk, fills: 0.0 }.tokens_per_s(self.machine())
        };
        let shares = if self.layout.has_card() { &SHARES[..] } else { &SHARES[..1] };
        shares.iter().map(|&h| (h, [0.0, from_disk(1), from_disk(0)].map(|disk| rate(h, disk)))).collect()
    }

    /// The table of a model without a recording.
    pub fn text(&self) -> String {
        let mut out =
            format!("{}\n\ntokens per second at best, by the share of uses of experts found in slots\n", self.told());
        let disk = self.layout.disk() > 0.0;
        let columns: &[&'static str] = match disk {
            true => &[">in slots", ">others in memory", ">from disk, hopeful", ">from disk, cautious"],
            false => &[">in slots", ">tokens/s"],
        };
        let mut table = Table::new(columns);
        for (share, rates) in self.by_share() {
            let shown = if disk { &rates[..] } else { &rates[..1] };
            let first = std::iter::once(format!("{:.0} %", 100.0 * share));
            table.row(first.chain(shown.iter().map(|r| format!("{r:.1}"))).collect::<Vec<_>>());
        }
        out.push_str(&table.render());
        let name = &self.machine.name;
        out.push_str(&format!("\n{}", crate::commands::plan::machines::predicted(name, &self.prediction(None))));
        out
    }

    /// The same as JSON.
    pub fn json(&self) -> Value {
        let rows = self.by_share().into_iter().map(|(share, [memory, hopeful, cautious])| {
            json!({"in_slots": share, "tokens_per_s": memory, "with_disk": [cautious, hopeful]})
        });
        json!({
            "machine": self.machine.name,
            "slots": self.slots(),
            "slot_bytes": self.layout.slots,
            "on_disk": self.layout.disk(),
            "shares": rows.collect::<Vec<_>>(),
            "prediction": self.prediction(None),
        })
    }
}

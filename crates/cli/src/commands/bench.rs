//! `ashlar bench`: tokens per second, and what the machine would allow.

mod kernels;

use crate::args::Globals;
use crate::device::{self, DeviceArgs};
use crate::exit::{CommandResult, Failure, OrUsage, Outcome};
use crate::interrupt::Interrupt;
use crate::output;
use crate::progress::{Progress, Unit};
use crate::resident;
use crate::table::Table;
use anyhow::Context;
use ashlar_runtime::bench::{BenchOptions, BenchReport, Profile, Rate, TokenCost, bench};
use ashlar_runtime::{Model, OpenOptions, SlotUse, first_layers, random_model};
use clap::Args;
use serde_json::{Value, json};
use std::fmt::Write;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

/// Measure how fast a model runs, and how much of what the machine can do that is
///
/// Every round first measures two ceilings with the same threads: streaming reads, which bound the generation of text
/// (every token reads every weight it uses), and int8 dot products in registers, which bound the reading of a prompt.
/// Then it measures prefill and decoding. Medians over the rounds are printed.
///
/// `--shape` needs no checkpoint: random weights in the shape that a config.json describes. `--kernels` measures no model
/// but every matrix kernel that this machine can run, and fails (exit status 3) if one is chosen that is not the fastest.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  ashlar bench Qwen3-0.6B-4bit
  ashlar bench --shape config.json --format k4
  ashlar bench --shape llama-3.3-70b --layers 8 --format k4
  ashlar bench Qwen3-0.6B-4bit --prompt-tokens 0 --batch 1,2,4,8
  ashlar bench --kernels --formats 'q8;i4:g32' --rows 1,64,512
  ashlar bench Qwen3-0.6B-4bit --depth 0,4096 --profile
  ashlar bench Qwen3-0.6B-4bit --json --quiet")]
pub struct Bench {
    /// A checkpoint folder or a pack
    #[arg(required_unless_present_any = ["kernels", "shape"], conflicts_with_all = ["kernels", "shape"])]
    pub src: Option<PathBuf>,
    /// A config.json, or a released model by name (`plan --list-models`): measure random weights in its shape
    #[arg(long, value_name = "NAME|CONFIG", conflicts_with = "kernels")]
    pub shape: Option<PathBuf>,
    /// The first N layers of the shape only
    #[arg(long, value_name = "N", requires = "shape")]
    pub layers: Option<NonZeroUsize>,
    /// The format of random weights; embedding, router and norms are bf16
    #[arg(long, value_name = "F", default_value = "q8", requires = "shape")]
    pub format: String,
    /// Measure matrix kernels instead of a model
    #[arg(long)]
    pub kernels: bool,
    /// Formats of the kernels, as in recipes, with semicolons between [default: one of each]
    #[arg(long, value_name = "F;…", value_delimiter = ';', requires = "kernels")]
    pub formats: Vec<String>,
    /// Rows of activations of the kernels
    #[arg(long, value_name = "N,…", default_value = "1,4,16,64,512", value_delimiter = ',', requires = "kernels")]
    pub rows: Vec<usize>,
    /// Tokens of a prompt; 0 to leave prefill out
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub prompt_tokens: usize,
    /// Tokens to generate; 0 to leave decoding out
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub gen_tokens: usize,
    /// Tokens that the cache holds before each measurement
    #[arg(long, value_name = "N,…", default_value = "0", value_delimiter = ',')]
    pub depth: Vec<usize>,
    /// Sequences to decode at the same time; tokens per second are those of all together
    #[arg(long, value_name = "N,…", default_value = "1", value_delimiter = ',')]
    pub batch: Vec<usize>,
    /// Rounds
    #[arg(long, value_name = "N", default_value = "3")]
    pub rounds: NonZeroUsize,
    /// Tokens of a prompt that go through the model at once
    #[arg(long, value_name = "N", default_value_t = NonZeroUsize::new(ashlar_runtime::DEFAULT_CHUNK).unwrap_or(NonZeroUsize::MIN))]
    pub chunk: NonZeroUsize,
    /// Also print the time of every op
    #[arg(long)]
    pub profile: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub device: DeviceArgs,
}

impl Bench {
    /// Measures and prints.
    ///
    /// # Errors
    /// If the model cannot be used.
    pub fn run(&self, globals: Globals) -> CommandResult {
        if self.kernels {
            return kernels::run(self, globals);
        }
        let asked = BenchOptions {
            prompt_tokens: self.prompt_tokens,
            gen_tokens: self.gen_tokens,
            depths: self.depth.clone(),
            batches: self.batch.clone(),
            rounds: self.rounds.get(),
            profile: self.profile,
        };
        let context = Some(asked.context().max(1));
        let sequences = asked.sequences();
        let chunk = self.chunk.get().max(sequences);
        let options = OpenOptions { context, chunk, sequences, ..self.device.options()? };
        let mut model = self.model(&options, globals)?;
        let meter = ashlar_runtime::meter(&self.device.device, self.device.threads.map(NonZeroUsize::get));
        let interrupt = Interrupt::install()?;
        let progress = Progress::new(globals.quiet, Unit::Rounds);
        let measured = bench(&mut model, meter.as_ref(), &asked, interrupt.flag(), &progress);
        let Some(measured) = measured.map_err(device::failure)? else {
            return Err(anyhow::anyhow!("interrupted; nothing was measured").into());
        };
        let (slots, modelled) = (model.slots(), model.modelled());
        if self.json {
            let mut all = json(&measured, &model.device());
            all["slots"] = slots.iter().map(|(device, used)| slots_json(device, used)).collect();
            if let Some(used) = &modelled {
                all["modelled"] = json!({"machine": used.machine, "tokens_per_s": used.tokens_per_s()});
            }
            output::print_json(&all)?;
        } else {
            let slots = slots.iter().map(|(device, used)| resident::slots(device, used));
            let lines: String = slots.chain(modelled.as_ref().and_then(resident::modelled)).map(|l| l + "\n").collect();
            output::print(&(text(&measured, &model.device()) + &lines))?;
        }
        Ok(Outcome::Done)
    }

    /// What is to be measured: a model on disk, or random weights.
    fn model(&self, options: &OpenOptions, globals: Globals) -> Result<Model, Failure> {
        let Some(shape) = &self.shape else {
            let src =
                self.src.as_deref().ok_or_else(|| Failure::usage(anyhow::anyhow!("a model, --shape or --kernels")))?;
            return device::open(src, options, globals);
        };
        let mut config = config(shape).or_usage()?;
        if let Some(layers) = self.layers {
            first_layers(&mut config, layers.get()).or_usage()?;
        }
        let opened = random_model(config, &self.format).or_usage()?;
        let progress = Progress::new(globals.quiet, Unit::Bytes);
        Model::load(opened, options, &progress).map_err(device::failure)
    }
}

/// A config: that of a file, or of a released model of that name.
fn config(shape: &Path) -> anyhow::Result<Value> {
    let released = shape.to_str().filter(|_| !shape.exists()).and_then(ashlar_recipe::catalogued);
    if let Some(release) = released {
        return Ok(release?.config);
    }
    let bytes = std::fs::read(shape).with_context(|| {
        format!(
            "{}: cannot be read, and no released model has that name (`ashlar plan --list-models`)",
            shape.display()
        )
    })?;
    serde_json::from_slice(&bytes).with_context(|| format!("{}: no JSON", shape.display()))
}

const GIGA: f64 = 1e9;

fn json(report: &BenchReport, device: &str) -> Value {
    let prefill = |r: &Rate| {
        json!({
            "depth": r.depth, "tokens": r.tokens, "tokens_per_s": r.tokens_per_s(), "rounds": r.rounds,
            "gmac_per_s": r.tokens_per_s() * report.cost.multiply_adds / GIGA, "int8_share": r.share,
            "gflop_per_s": 2.0 * r.tokens_per_s() * report.cost.multiply_adds / GIGA, "joules_per_token": r.joules_per_token,
        })
    };
    let decode = |r: &Rate| {
        json!({
            "depth": r.depth, "sequences": r.sequences, "tokens": r.tokens, "tokens_per_s": r.tokens_per_s(),
            "rounds": r.rounds, "bytes_per_token": bytes_per_token(r, &report.cost),
            "gb_per_s": bytes_per_token(r, &report.cost).map(|b| r.tokens_per_s() * b / GIGA), "read_share": r.share,
            "joules_per_token": r.joules_per_token,
        })
    };
    let ops = |p: &Profile| -> Vec<Value> {
        let one = |(name, t): &(&str, ashlar_runtime::bench::OpTime)| json!({"op": name, "calls": t.calls, "seconds": t.time.as_secs_f64()});
        p.ops().iter().map(one).collect()
    };
    json!({
        "device": device,
        "prefill": report.prefill.iter().map(prefill).collect::<Vec<_>>(),
        "decode": report.decode.iter().map(decode).collect::<Vec<_>>(),
        "ceilings": report.ceilings.map(|c| json!({"read_gb_per_s": c.read / GIGA, "int8_gmac_per_s": c.int8 / GIGA})),
        "profile": report.profile.as_ref().map(|[p, d]| json!({"prefill": ops(p), "decode": ops(d)})),
    })
}

fn slots_json(device: &str, used: &SlotUse) -> Value {
    json!({
        "device": device, "experts": used.experts, "slots": used.slots, "bytes": used.bytes, "hits": used.hits,
        "misses": used.misses, "prompt_hits": used.prompt_hits, "prompt_misses": used.prompt_misses, "fills": used.fills,
        "streamed": used.streamed, "copied_bytes": used.copied,
    })
}

/// Bytes of weights that decoding reads for each token of a step; `None` where that depends on what tokens choose.
fn bytes_per_token(rate: &Rate, cost: &TokenCost) -> Option<f64> {
    cost.step_bytes(rate.sequences).map(|bytes| bytes / rate.sequences.max(1) as f64)
}

fn text(report: &BenchReport, device: &str) -> String {
    let mut out = format!("{device}\n");
    let columns = ["work", ">depth", ">sequences", ">tokens", ">tokens/s", ">rate", ">of ceiling", ">J/token"];
    let mut table = Table::new(&columns);
    let share = |r: &Rate| r.share.map_or_else(String::new, |s| format!("{:.0} %", 100.0 * s));
    let mut rows = |name: &str, rates: &[Rate], cost: &dyn Fn(&Rate) -> Option<f64>, unit: &str| {
        for r in rates {
            let rate = cost(r).map_or_else(String::new, |c| format!("{:.1} {unit}", r.tokens_per_s() * c / GIGA));
            let joules = r.joules_per_token.map_or_else(|| "not told".to_owned(), |j| format!("{j:.2}"));
            let speed = format!("{:.1}", r.tokens_per_s());
            let [depth, sequences, tokens] = [r.depth, r.sequences, r.tokens].map(|n| n.to_string());
            table.row([name.to_owned(), depth, sequences, tokens, speed, rate, share(r), joules]);
        }
    };
    rows("prefill", &report.prefill, &|_| Some(report.cost.multiply_adds), "GMAC/s");
    rows("decode", &report.decode, &|r| bytes_per_token(r, &report.cost), "GB/s");
    out.push_str(&table.render());
    if let Some(c) = report.ceilings {
        let (read, int8) = (c.read / GIGA, c.int8 / GIGA);
        let _ = writeln!(out, "ceilings: {read:.1} GB/s streaming reads, {int8:.0} GMAC/s int8 dot products");
    }
    let per_token = crate::units::bytes(report.cost.weight_bytes as u64);
    let _ = writeln!(out, "a token reads {per_token} of weights (keys and values not counted)");
    for (name, profile) in report.profile.iter().flat_map(|[p, d]| [("prefill", p), ("decode", d)]) {
        let total = profile.total().as_secs_f64().max(f64::MIN_POSITIVE);
        let mut table = Table::new(&[name, ">calls", ">ms", ">share"]);
        for (op, t) in profile.ops() {
            let seconds = t.time.as_secs_f64();
            let (ms, share) = (format!("{:.1}", 1e3 * seconds), format!("{:.1} %", 100.0 * seconds / total));
            table.row([op.to_owned(), t.calls.to_string(), ms, share]);
        }
        out.push_str(&table.render());
    }
    out
}

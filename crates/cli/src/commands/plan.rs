//! `ashlar plan`: what a conversion would do and how large its result would be, from headers alone; what runs where.

pub(super) mod machines;

use super::convert::{open_stats, weigh};
use crate::allocation::{Decided, Request, ShardArgs, TargetArgs};
use crate::args::{Globals, MemoryArgs};
use crate::device;
use crate::exit::{CommandResult, Failure, OrUsage, Outcome};
use crate::model::{Model, SourceArgs, format_list};
use crate::placement::PlanPlacementArgs;
use crate::progress::{Progress, Unit};
use crate::table::Table;
use crate::{allocation, output, placement, recipe, units};
use ashlar_arch::Leaf;
use ashlar_calibrate::PartKnowledge;
use ashlar_convert::{ConvertError, Knowledge, Plan};
use ashlar_recipe::{catalogue, catalogued};
use ashlar_runtime::fit::{Known, Layout, Needs, Prediction, Work, predict};
use ashlar_runtime::placement::Planned;
use ashlar_tensor::{Entry, TensorStore};
use clap::Args;
use machines::MachineArgs;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::fmt::Write;
use std::path::PathBuf;
use std::sync::Arc;

/// Show how large a recipe makes each part of a model, before a weight is read
///
/// Reads headers only, unless there is a target or --stats: then formats are tried on a sample of rows, and the mean KL
/// divergence from the original is predicted. Everything that is wrong with the recipe is told at once, with line and
/// nearest valid name. With --placement (or --device), what the result takes of the memory of each device. With --hardware or
/// --all-tiers, which build runs where: how far it is from fitting, what disk and time it takes to convert, about how fast
/// bandwidths allow it to be. Exit code 3 if the conversion does not fit into --memory, the target cannot be reached, the
/// placement does not fit, or nothing fits the --hardware.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  ashlar plan --list-recipes
  ashlar plan Qwen3-30B-A3B --recipe 4bit-experts
  ashlar plan deepseek-v4-flash --recipe v4-flash-2bit-experts
  ashlar plan deepseek-v4-flash --all-tiers
  ashlar plan Qwen3-30B-A3B --recipe 4bit-experts --hardware vram=12GiB,ram=32GiB
  ashlar plan Qwen3-30B-A3B --recipe my.yaml --explain model.layers.0.self_attn.q_proj.weight
  ashlar plan Qwen3-30B-A3B --recipe my.yaml --emit resolved.yaml
  ashlar plan qwen3-30b-a3b --recipe 4bit-experts --placement rtx3080-10gb-64gb --emit placed.yaml
  ashlar plan Qwen3-30B-A3B --target-size 12GB --stats qwen.stats --emit solved.yaml")]
pub struct PlanCommand {
    /// A checkpoint folder, a pack, hf:ORG/NAME (of which only headers are read), or a model of the catalogue such as
    /// deepseek-v4-flash (`--list-models`)
    #[arg(required_unless_present_any = ["list_recipes", "list_models", "list_tiers"])]
    pub src: Option<PathBuf>,
    /// A recipe file, or the name of a preset; with a placement `keep` if absent
    #[arg(long, value_name = "R", required_unless_present_any = [
        "list_recipes", "list_models", "list_tiers", "target_size", "target_bpw", "placement", "device", "ram_limit", "all_tiers", "hardware"
    ])]
    pub recipe: Option<String>,
    #[command(flatten)]
    pub target: TargetArgs,
    #[command(flatten)]
    pub machines: MachineArgs,
    /// What `ashlar calibrate` wrote for SRC: predictions, targets and `experts: {top: 25%}` go by it
    #[arg(long, value_name = "S")]
    pub stats: Option<PathBuf>,
    /// Plan for `convert --calibrate`, which knows the inputs of every matrix
    #[arg(long)]
    pub calibrate: bool,
    /// Tell which rules decided about this tensor, and nothing else
    #[arg(long, value_name = "TENSOR")]
    pub explain: Option<String>,
    /// Write the resolved recipe to a file; it decides the same for this model
    #[arg(long, value_name = "FILE", conflicts_with = "explain")]
    pub emit: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long, conflicts_with = "explain")]
    pub json: bool,
    #[command(flatten)]
    pub source: SourceArgs,
    #[command(flatten)]
    pub shards: ShardArgs,
    #[command(flatten)]
    pub memory: MemoryArgs,
    #[command(flatten)]
    pub place: PlanPlacementArgs,
    /// Show the presets, and nothing else
    #[arg(long, exclusive = true)]
    pub list_recipes: bool,
    /// Show the models of the catalogue, which are planned without a download, and nothing else
    #[arg(long, exclusive = true)]
    pub list_models: bool,
    /// Show the kinds of machines that there are placements for, and nothing else
    #[arg(long, exclusive = true)]
    pub list_tiers: bool,
}

impl PlanCommand {
    /// Prints the plan.
    ///
    /// # Errors
    /// A recipe that cannot be carried out is the user's mistake.
    pub fn run(&self, globals: Globals) -> CommandResult {
        let Some(src) = &self.src else {
            output::print(&match (self.list_models, self.list_tiers) {
                (true, _) => list_models()?,
                (_, true) => placement::list(),
                _ => recipe::list(),
            })?;
            return Ok(Outcome::Done);
        };
        let model = Model::look_at(src, self.source)?;
        if self.machines.asked() {
            return machines::run(&model, self.recipe.as_deref(), &self.machines, self.limits(), self.json);
        }
        let stats = open_stats(self.stats.as_deref(), &model)?.map(Arc::new);
        let request = Request {
            recipe: self.recipe.as_deref().or(self
                .place
                .asked()
                .then_some("keep")
                .filter(|_| self.target.size().is_none())),
            target: self.target,
            stats: stats.as_deref(),
            hessians: self.calibrate,
            predict: stats.is_some() && self.explain.is_none(),
            threads: None,
            shard_bytes: self.shards.shard_size,
        };
        let decided = request.decide(&model, &Progress::new(globals.quiet, Unit::Bytes))?;
        if let Some(tensor) = &self.explain {
            let text = ashlar_recipe::explain(&decided.choices, tensor).or_usage()?;
            output::print(&format!("{text}\n"))?;
            return Ok(Outcome::Done);
        }
        let known = if self.calibrate {
            Some(Arc::new(PartKnowledge::new(model.spec()?, String::new())) as Arc<dyn Knowledge>)
        } else {
            stats.map(|s| s as Arc<dyn Knowledge>)
        };
        let (plan, unknown) = weigh(decided.plan(&model)?, known)?;
        let without_mtp = decided.bytes_without_next_token(&model)?;
        let (own, warnings) = (model.notes(), allocation::warnings(&plan));
        let notes: Vec<&String> = own.iter().chain(&decided.choices.notes).chain(&unknown).chain(&warnings).collect();
        let fits = plan.check_memory(self.memory.memory);
        let placed = if self.place.asked() { Some(self.placed(&model, &plan)?) } else { None };
        let prediction = placed.as_ref().map(|placed| self.predicted(&model, &plan, placed)).transpose()?.flatten();
        if let Some(path) = &self.emit {
            let text = match &placed {
                Some(placed) => placement::emit(decided.choices.clone(), placed),
                None => plan.recipe().to_owned(),
            };
            output::write_atomic(path, text.as_bytes())?;
        }
        if self.json {
            let mut json = json(&plan, &decided, &notes, fits.is_ok());
            if let Value::Object(all) = &mut json {
                all.insert("total_bytes_without_mtp".into(), without_mtp.into());
                all.extend(placed.iter().map(|placed| ("placement".to_owned(), placement::json(placed))));
                all.insert("prediction".into(), json!(prediction.as_ref().map(|(_, p)| p)));
            }
            output::print_json(&json)?;
        } else {
            output::print(&text(&plan, without_mtp, &decided, &notes, fits.as_ref().err()))?;
            if let Some(placed) = &placed {
                output::print(&format!("\n{}", placement::text(placed)))?;
            }
            if let Some((name, prediction)) = &prediction {
                output::print(&format!("\n{}", machines::predicted(name, prediction)))?;
            }
        }
        let placed = placed.is_none_or(|placed| placed.misfit.is_none());
        let outcome = if fits.is_ok() && placed { Outcome::Done } else { Outcome::Wanting };
        // The process ends here: to free a hundred thousand tensors one by one takes a tenth of the time.
        std::mem::forget((decided, plan));
        Ok(outcome)
    }

    /// How fast that would be, where the placement describes a machine.
    fn predicted(&self, model: &Model, plan: &Plan, placed: &Planned) -> Result<Option<(String, Prediction)>, Failure> {
        let (Some(name), Some(hardware)) = (&self.place.placement.placement, placed.hardware) else { return Ok(None) };
        let machine = machines::Machine::named(name)?;
        let spec = model.spec()?;
        let mut tensors = HashMap::new();
        let mut bytes = HashMap::new();
        for tensor in &plan.tensors {
            bytes.insert(tensor.name.as_str(), tensor.bytes);
            tensors.insert(tensor.name.as_str(), (tensor.bytes, tensor.format.clone()));
        }
        let sizes = placed.draft.sizes;
        let needs = Needs::of(spec, &bytes, sizes.context, sizes.rows);
        let routes = self.machines.routes.as_deref().map(machines::read_routes).transpose()?;
        let prediction = predict(&Known {
            needs: &needs,
            work: &Work::of(spec, &tensors),
            layout: Layout::placed(placed, spec.lm_head.is_none(), &|name| bytes.get(name).copied()),
            context: sizes.context,
            chunk: sizes.rows,
            layers: spec.layers.len(),
            hardware: &hardware,
            measured: machine.measured.as_ref(),
            routes: routes.as_ref(),
        });
        Ok(Some((machine.name, prediction)))
    }

    fn limits(&self) -> machines::Limits {
        machines::Limits { vram: self.place.placement.vram_limit, ram: self.place.placement.ram_limit }
    }

    /// Where the planned pack would lie.
    fn placed(&self, model: &Model, plan: &Plan) -> Result<Planned, Failure> {
        let bytes: HashMap<&str, u64> = plan.tensors.iter().map(|t| (t.name.as_str(), t.bytes)).collect();
        let of = |name: &str| bytes.get(name).copied();
        let options = self.place.options(self.machines.context)?;
        ashlar_runtime::placement::plan(model.spec()?, &of, &options).map_err(device::failure)
    }
}

/// Every model of the catalogue: weights, bytes as released, repository.
fn list_models() -> anyhow::Result<String> {
    let mut table = Table::new(&["model", ">parameters", ">as released", "repository"]);
    for release in catalogue().filter_map(catalogued) {
        let release = release?;
        let bytes = release.entries().iter().map(Entry::bytes).sum();
        let parameters = release.spec.loaded().map(Leaf::params).sum();
        table.row([release.name, units::count(parameters), units::bytes(bytes), release.repository]);
    }
    Ok(table.render())
}

fn json(plan: &Plan, decided: &Decided, notes: &[&String], fits: bool) -> Value {
    json!({
        "total_bytes": plan.total_bytes,
        "side_bytes": plan.side_bytes,
        "source_bytes": plan.source_bytes,
        "parameters": plan.params,
        "bpw": plan.bpw,
        "fits": fits,
        "classes": plan.classes,
        "shards": plan.shards,
        "memory": plan.memory,
        "notes": notes,
        "allocation": decided.allocation,
    })
}

fn text(
    plan: &Plan,
    without_mtp: Option<u64>,
    decided: &Decided,
    notes: &[&String],
    misfit: Option<&ConvertError>,
) -> String {
    let mut out = plan_table(plan);
    let shards = plan.shards.len();
    let _ = writeln!(
        out,
        "\n{} in {shards} {}, {:.2} bits per weight; the source has {}",
        units::bytes(plan.total_bytes),
        if shards == 1 { "file" } else { "files" },
        plan.bpw,
        units::bytes(plan.source_bytes)
    );
    if let Some(bytes) = without_mtp {
        let _ = writeln!(out, "without next-token layers, which no program runs yet: {}", units::bytes(bytes));
    }
    let _ = writeln!(
        out,
        "converting needs --memory of at least {}, and about {} besides",
        units::memory(plan.memory.largest_tile_bytes),
        units::memory(plan.memory.fixed_bytes)
    );
    if let Some(allocation) = &decided.allocation {
        out.push_str(&allocation::text(allocation));
    }
    for note in notes {
        let _ = writeln!(out, "note: {note}");
    }
    if let Some(error) = misfit {
        let _ = writeln!(out, "does not fit: {error}");
    }
    out
}

/// Bytes and formats per class, and in total.
#[must_use]
pub fn plan_table(plan: &Plan) -> String {
    let classes = &plan.classes;
    let mut table = Table::new(&["class", ">tensors", ">parameters", ">from", ">to", ">bpw", "formats", "method"]);
    for c in classes {
        let formats = c.formats.iter().map(|(f, n)| (f.clone(), *n as u64)).collect();
        let methods = c.methods.iter().map(|(m, n)| ((*m).to_owned(), *n as u64)).collect();
        table.row([
            c.class.to_owned(),
            units::thousands(c.tensors as u64),
            units::count(c.params),
            units::bytes(c.source_bytes),
            units::bytes(c.bytes),
            format!("{:.2}", c.bpw),
            format_list(&formats),
            format_list(&methods),
        ]);
    }
    table.row([
        "total".to_owned(),
        units::thousands(classes.iter().map(|c| c.tensors as u64).sum()),
        units::count(plan.params),
        units::bytes(plan.source_bytes),
        units::bytes(plan.total_bytes),
        format!("{:.2}", plan.bpw),
    ]);
    table.render()
}

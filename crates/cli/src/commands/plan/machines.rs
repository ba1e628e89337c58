//! `plan --hardware` and `--all-tiers`: on which machines a model runs, in which build.

mod builds;
mod machine;
mod show;

pub use show::predicted;

use crate::exit::{CommandResult, Failure, Outcome};
use crate::model::{Model, Source, SourceArgs};
use crate::output;
use anyhow::anyhow;
use ashlar_arch::Leaf;
use ashlar_recipe::{catalogue, catalogued};
use ashlar_runtime::fit::{Fit, Known, Layout, Prediction, Verdict, chunk, fit, predict};
use ashlar_runtime::routing::Routes;
pub use builds::{Build, Builds, CHUNK};
use clap::Args;
pub use machine::Machine;
use serde_json::json;
use std::path::{Path, PathBuf};

/// Context that is planned for unless one is given.
pub const CONTEXT: usize = 16_384;

/// Which machines a model is planned for.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Machines")]
pub struct MachineArgs {
    /// Say whether and how the model runs on H: `this` machine, a name such as rtx4090-24gb-64gb (--list-tiers), a file as in recipes/tiers, or
    /// `vram=24GiB,ram=64GiB,nvme=7GB/s`
    #[arg(long, value_name = "H", conflicts_with_all = ["all_tiers", "target_size", "target_bpw", "stats", "calibrate", "explain", "emit"])]
    pub hardware: Option<String>,
    /// The same for every kind of machine that people have; without --recipe, each gets the best build that fits it
    #[arg(long, conflicts_with_all = ["target_size", "target_bpw", "stats", "calibrate", "explain", "emit"])]
    pub all_tiers: bool,
    /// Tokens of context whose keys and values have to fit [default: 16384, with a placement 4096, or what the model was
    /// made for if less]
    #[arg(long, value_name = "N")]
    pub context: Option<usize>,
    /// With --hardware or --placement: the experts that texts used, as `ashlar trace` wrote them; hits of experts in slots and in memory
    /// follow from these instead of from what others measured
    #[arg(long, value_name = "TRACE")]
    pub routes: Option<PathBuf>,
    /// The best build that is predicted to make at least so many tokens per second with a full context, by the cautious end; exit code 3 if
    /// there is none
    #[arg(long, value_name = "N")]
    pub min_tps: Option<f64>,
}

impl MachineArgs {
    /// Whether machines are asked about.
    #[must_use]
    pub fn asked(&self) -> bool {
        self.hardware.is_some() || self.all_tiers
    }

    fn context(&self, model: &Model) -> Result<usize, Failure> {
        let most = model.spec()?.max_position;
        match self.context {
            Some(asked) if asked == 0 || asked > most => {
                Err(Failure::usage(anyhow!("--context {asked}: this model was made for 1 to {most} tokens")))
            }
            Some(asked) => Ok(asked),
            None => Ok(CONTEXT.min(most)),
        }
    }
}

/// The most that a model may take of a machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// Of each card.
    pub vram: Option<u64>,
    /// Of the host's memory.
    pub ram: Option<u64>,
}

impl Limits {
    /// The machine with no more than that.
    pub fn on(self, machine: Machine) -> Machine {
        let machine = self.vram.into_iter().fold(machine, Machine::with_vram);
        self.ram.into_iter().fold(machine, Machine::limited)
    }
}

/// What is said about one machine.
pub struct Row {
    pub machine: Machine,
    /// The build that is advised, or, where none fits, the one that lacks least.
    pub build: Build,
    pub fit: Fit,
    /// How fast it is there, if it fits.
    pub prediction: Option<Prediction>,
    /// A smaller model that memory holds, where it does not hold this one.
    pub instead: Option<(String, Build)>,
}

/// Says which builds run where.
///
/// # Errors
/// If a machine or recipe cannot be understood, or the model has no architecture that is known.
pub fn run(model: &Model, recipe: Option<&str>, args: &MachineArgs, limits: Limits, as_json: bool) -> CommandResult {
    let context = args.context(model)?;
    let routes = args.routes.as_deref().map(read_routes).transpose()?;
    let machines = match &args.hardware {
        Some(text) => vec![Machine::named(text)?],
        None => Machine::all()?,
    };
    let mut builds = Builds::of(model, recipe, context)?;
    let mut others = Others::smaller_than(model.spec()?.loaded().map(Leaf::params).sum(), context)?;
    let mut rows = Vec::new();
    let wish = Wish { context, layers: model.spec()?.layers.len(), routes: routes.as_ref(), min_tps: args.min_tps };
    let mut reached = false;
    for machine in machines {
        let machine = limits.on(machine);
        let (build, fit) = wish.best(&mut builds, model, &machine)?;
        let prediction = wish.predict(&build, &fit, &machine);
        reached |= wish.is_met(&build, &fit, &machine);
        let instead = if fit.verdict <= Verdict::Memory { None } else { others.on(&machine)? };
        rows.push(Row { machine, build, fit, prediction, instead });
    }
    let source: u64 = model.classes().iter().map(|c| c.bytes).sum();
    if as_json {
        let rows: Vec<_> = rows.iter().map(|row| show::json(row, source)).collect();
        output::print_json(&json!({"context": context, "source_bytes": source, "tiers": rows}))?;
    } else {
        output::print(&show::text(&rows, context, source))?;
    }
    Ok(if reached { Outcome::Done } else { Outcome::Wanting })
}

pub fn read_routes(path: &Path) -> Result<Routes, Failure> {
    let told = |what: String| Failure::usage(anyhow!("--routes {}: {what}", path.display()));
    let file = std::fs::File::open(path).map_err(|e| told(e.to_string()))?;
    Routes::read(std::io::BufReader::new(file)).map_err(|e| told(e.to_string()))
}

/// What a build is chosen by.
struct Wish<'a> {
    context: usize,
    layers: usize,
    routes: Option<&'a Routes>,
    min_tps: Option<f64>,
}

impl Wish<'_> {
    fn predict(&self, build: &Build, fit: &Fit, machine: &Machine) -> Option<Prediction> {
        (fit.verdict != Verdict::No).then(|| {
            let layout = Layout::of(&build.needs, fit);
            predict(&Known {
                needs: &build.needs,
                work: &build.work,
                layout,
                context: self.context,
                chunk: chunk(&build.needs, &layout, CHUNK, self.context),
                layers: self.layers,
                hardware: &machine.hardware,
                measured: machine.measured.as_ref(),
                routes: self.routes,
            })
        })
    }

    /// Whether a build fits, and is fast enough if that is asked for.
    fn is_met(&self, build: &Build, fit: &Fit, machine: &Machine) -> bool {
        let Some(least) = self.min_tps else { return fit.verdict != Verdict::No };
        let predicted = self.predict(build, fit, machine).map(|p| p.full_context);
        predicted.is_some_and(|[cautious, _]| cautious >= least)
    }

    /// The first (best) build that memory holds, or, where speed is asked for, that is fast enough; else the one that comes nearest.
    fn best(&self, builds: &mut Builds, model: &Model, machine: &Machine) -> Result<(Build, Fit), Failure> {
        let mut nearest: Option<(Build, Fit)> = None;
        for i in 0..builds.len() {
            let build = builds.get(model, i)?;
            let fit = fit(&build.needs, &machine.hardware);
            let found = match self.min_tps {
                None => fit.verdict <= Verdict::Memory,
                Some(_) => self.is_met(&build, &fit, machine),
            };
            if found {
                return Ok((build, fit));
            }
            // Where speed is asked for, a smaller one that fits as well is nearer.
            let rank = |f: &Fit| (f.verdict, f.lacks, f.nvme);
            let nearer = |before: &Fit| match self.min_tps {
                None => rank(&fit) < rank(before),
                Some(_) => rank(&fit) <= rank(before),
            };
            if nearest.as_ref().is_none_or(|(_, before)| nearer(before)) {
                nearest = Some((build, fit));
            }
        }
        nearest.ok_or_else(|| Failure::usage(anyhow!("no preset can be applied to this model; give one with --recipe")))
    }
}

/// Models of the catalogue, the largest first; their builds are worked out as they are needed.
struct Others {
    context: usize,
    models: Vec<(Model, Option<Builds>)>,
}

impl Others {
    fn smaller_than(parameters: u64, context: usize) -> Result<Self, Failure> {
        let mut models = Vec::new();
        for release in catalogue().filter_map(catalogued) {
            let release = release?;
            let count: u64 = release.spec.loaded().map(Leaf::params).sum();
            if count < parameters {
                let name = release.name.clone();
                let source = Source::Catalogue(Box::new(release));
                models.push((count, Model::of(Path::new(&name), source, SourceArgs::default())?));
            }
        }
        models.sort_by_key(|(count, _)| std::cmp::Reverse(*count));
        Ok(Self { context, models: models.into_iter().map(|(_, model)| (model, None)).collect() })
    }

    /// The largest that memory holds, in its best build.
    fn on(&mut self, machine: &Machine) -> Result<Option<(String, Build)>, Failure> {
        for (model, builds) in &mut self.models {
            let builds = match builds {
                Some(builds) => builds,
                None => {
                    let context = self.context.min(model.spec()?.max_position);
                    builds.insert(Builds::of(model, None, context)?)
                }
            };
            let any = Wish { context: self.context, layers: 0, routes: None, min_tps: None };
            let (build, fit) = any.best(builds, model, machine)?;
            if fit.verdict <= Verdict::Memory {
                return Ok(Some((model.path.display().to_string(), build)));
            }
        }
        Ok(None)
    }
}

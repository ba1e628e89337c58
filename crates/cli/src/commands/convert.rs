//! `ashlar convert`: a checkpoint or pack becomes a pack.

mod streamed;

use super::calibrate;
use crate::allocation::{Decided, Request, ShardArgs, TargetArgs};
use crate::args::{Globals, MemoryArgs};
use crate::card::card;
use crate::exit::{CommandResult, Failure, OrUsage, Outcome};
use crate::interrupt::Interrupt;
use crate::model::{Model, Source, SourceArgs, format_list};
use crate::progress::{Progress, Unit};
use crate::table::Table;
use crate::{allocation, hub, output, units};
use ashlar_calibrate::{Stream, StreamOptions, StreamSummary};
use ashlar_convert::stats::Importance;
use ashlar_convert::{Conversion, ConvertError, Knowledge, Options, Plan, Summary};
use ashlar_pack::{PackError, Part};
use ashlar_simd::Isa;
use ashlar_tensor::Report;
use clap::Args;
use serde_json::{Value, json};
use std::fmt::Write;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Convert a checkpoint into a pack, by a recipe
///
/// One pass over the weights, within --memory. The pack grows in OUT.partial and appears at OUT when it is complete; after
/// a kill or a full disk the same command goes on where it stopped. The bytes of the result do not depend on threads,
/// memory or processor.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  ashlar convert Qwen3-30B-A3B -o Qwen3-30B-A3B-4bit --recipe 4bit-experts
  ashlar convert Qwen3-30B-A3B -o mixed --recipe my.yaml --memory 4GiB --threads 8
  ashlar convert Qwen3-30B-A3B -o better --recipe 4bit-experts --stats qwen.stats
  ashlar convert Qwen3-30B-A3B -o small --target-bpw 2.7 --stats qwen.stats
  ashlar convert Qwen3-30B-A3B -o best --recipe 4bit-experts --calibrate
  ashlar convert hf:Qwen/Qwen3-30B-A3B -o Qwen3-30B-A3B-4bit --recipe 4bit-experts --stream
  ashlar convert DeepSeek-V3 -o v3 --recipe deepseek-v3-2bit-experts --part 3/16     then --merge, see docs/distributed.md
  ashlar convert Qwen3-30B-A3B -o mine --recipe my.yaml --calibrate mine.txt code.txt --tokens 65536")]
pub struct Convert {
    /// A checkpoint folder, a pack to be quantized again, or `hf:ORG/NAME[@REVISION]`
    pub src: PathBuf,
    /// The folder to write
    #[arg(short, long, value_name = "OUT")]
    pub output: PathBuf,
    /// A recipe file, or the name of a preset (`ashlar plan --list-recipes`)
    #[arg(long, value_name = "R", required_unless_present_any = ["target_size", "target_bpw"])]
    pub recipe: Option<String>,
    #[command(flatten)]
    pub target: TargetArgs,
    /// What `ashlar calibrate` wrote for SRC: quantizers then spare the columns that matter
    #[arg(long, value_name = "S")]
    pub stats: Option<PathBuf>,
    /// Calibrate on the way, layer by layer, on these texts in UTF-8 (without any: on the text that comes with the
    /// program). Each layer sees what came through the converted layers before it; `method: gptq` needs no file of Hessians.
    /// With --stats as well, those only tell how often experts are used
    #[arg(long, value_name = "TEXT", num_args = 0..)]
    pub calibrate: Option<Vec<PathBuf>>,
    #[command(flatten)]
    pub calibration: CalibrationArgs,
    #[command(flatten)]
    pub source: SourceArgs,
    #[command(flatten)]
    pub shards: ShardArgs,
    /// Convert while downloading (SRC is hf:ORG/NAME): a shard is dropped once it is converted, so that the disk holds the
    /// pack and a few shards
    #[arg(long, conflicts_with_all = ["calibrate", "merge"])]
    pub stream: bool,
    /// Convert only part I of N, into OUT.part-I-of-N: for many machines at once; --merge makes the pack of all parts
    #[arg(long, value_name = "I/N", conflicts_with_all = ["calibrate", "merge"])]
    pub part: Option<Part>,
    /// Put the parts beside OUT together and publish the pack, the same bytes that a single run writes
    #[arg(long, conflicts_with = "calibrate")]
    pub merge: bool,
    #[command(flatten)]
    pub memory: MemoryArgs,
    /// Threads [default: one per core]
    #[arg(long, value_name = "N")]
    pub threads: Option<NonZeroUsize>,
    /// Replace the pack at OUT once the new one is complete
    #[arg(long)]
    pub force: bool,
    /// Discard what an interrupted conversion with other inputs left in OUT.partial
    #[arg(long)]
    pub restart: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

impl Convert {
    /// Plans, converts, prints what it cost.
    ///
    /// # Errors
    /// A recipe that cannot be carried out, too little memory or an occupied output are the user's mistake and nothing is
    /// written; a bad weight or a full disk is a failure, and nothing is published.
    pub fn run(&self, globals: Globals) -> CommandResult {
        let model = self.model()?;
        let stats = open_stats(self.stats.as_deref(), &model)?;
        let progress = Progress::new(globals.quiet, if self.calibrate.is_some() { Unit::Tokens } else { Unit::Bytes });
        let stats = stats.map(Arc::new);
        let request = Request {
            recipe: self.recipe.as_deref(),
            target: self.target,
            stats: stats.as_deref(),
            hessians: self.calibrate.is_some(),
            predict: false,
            threads: self.threads.map(NonZeroUsize::get),
            shard_bytes: self.shards.shard_size,
        };
        let decided = request.decide(&model, &progress)?;
        let stream = self.stream(&progress)?;
        let known = match &stream {
            Some(stream) => Some(stream.knowledge()),
            None => stats.map(|s| s as Arc<dyn Knowledge>),
        };
        let (plan, unknown) = weigh(decided.plan(&model)?, known)?;
        let plan = self.with_card(plan, &model);
        for note in
            model.source.checkpoint().map(ashlar_source::Checkpoint::notes).iter().flatten().chain(&model.notes())
        {
            progress.note(note);
        }
        for name in &model.ignored {
            progress.note(&format!("tensor `{name}` is not used by this architecture and is left out"));
        }
        for note in decided.choices.notes.iter().chain(&unknown).chain(&allocation::warnings(&plan)) {
            progress.note(note);
        }
        if globals.verbose {
            let threads = self.threads.map_or_else(|| "one thread per core".to_owned(), |n| format!("{n} threads"));
            progress.note(&format!(
                "instruction set {}, {threads}, --memory {}",
                Isa::detect()?.name(),
                units::memory(self.memory.memory)
            ));
        }
        let out = self.output.display();
        Interrupt::exit_saying(&format!(
            "interrupted; run the same command again to go on from {out}.partial, or delete that folder"
        ))?;
        let options = Options {
            memory: self.memory.memory,
            threads: self.threads.map(NonZeroUsize::get),
            force: self.force,
            restart: self.restart,
        };
        let (plan, summary, calibrated) = match &stream {
            Some(stream) => {
                let done = stream.convert(&plan, &self.output, &options, &progress).map_err(calibrate::failure)?;
                (plan, done.conversion.clone(), Some(done))
            }
            None => {
                let carried = self.carry_out(plan, &model, &options, &progress);
                if let Source::Stream(stream) = &model.source {
                    // Of no use to a later run, which reads the headers again.
                    stream.remove().map_err(hub::failure)?;
                }
                let (plan, summary) = carried.map_err(failure)?;
                (plan, summary, None)
            }
        };
        if self.json {
            let mut json = summary_json(&plan, &summary, &decided, &self.output);
            if let (Some(part), Value::Object(all)) = (self.part, &mut json) {
                all.insert("output".into(), part.dir(&self.output).display().to_string().into());
                all.insert("part".into(), json!({"index": part.index(), "count": part.count(), "shards": plan.shards}));
            }
            if let (Some(done), Value::Object(all)) = (&calibrated, &mut json) {
                all.insert("calibration".into(), self.calibration.json(done));
            }
            output::print_json(&json)?;
        } else {
            let coverage = calibrated.as_ref().map(|done| self.calibration.text(done)).transpose()?;
            let text = match self.part {
                Some(part) => part_text(&plan, &summary, part, &self.output),
                None => text(&plan, &summary, &decided, &self.output),
            };
            output::print(&(text + &coverage.unwrap_or_default()))?;
        }
        Ok(Outcome::Done)
    }

    /// The plan with the README.md that the pack is to have.
    fn with_card(&self, plan: Plan, model: &Model) -> Plan {
        let name = self.recipe.as_deref().map(|r| Path::new(r).file_stem().unwrap_or_default().to_string_lossy());
        let recipe = name.map_or_else(|| "formats chosen for a size".to_owned(), |name| format!("`{name}`"));
        let text = card(model, &plan, &recipe);
        plan.with_card(text)
    }

    /// The source; of a repository of the hub the weights as well, unless they are to come one by one.
    fn model(&self) -> Result<Model, Failure> {
        // What is merged has been read already: shards come only if a record was damaged since.
        let merged = self.merge && hub::repository(&self.src)?.is_some();
        if self.stream || merged {
            streamed::open(&self.src, &self.output, self.source)
        } else {
            Model::open_as(&self.src, self.source)
        }
    }

    /// Converts the whole or a part, or merges; returns the plan of what was done.
    fn carry_out(
        &self,
        plan: Plan,
        model: &Model,
        options: &Options,
        report: &dyn Report,
    ) -> Result<(Plan, Summary), ConvertError> {
        let work = |plan: &Plan, conversion: &Conversion<'_>| match &model.source {
            Source::Stream(stream) => streamed::drive(plan, conversion, stream, options.memory, report),
            _ => conversion.rest(options.memory, report),
        };
        let (store, out) = (model.store(), self.output.as_path());
        if let Some(part) = self.part {
            return ashlar_convert::convert_part(&plan, part, store, out, options, report, work);
        }
        if self.merge {
            let summary = ashlar_convert::merge(&plan, store, out, options, report, work)?;
            return Ok((plan, summary));
        }
        let summary = {
            let conversion = Conversion::open(&plan, store, out, options, report)?;
            match work(&plan, &conversion) {
                Ok(()) => conversion.publish(report)?,
                Err(e) => return Err(conversion.fail(e)),
            }
        };
        Ok((plan, summary))
    }

    /// The model and the texts of `--calibrate`.
    fn stream(&self, report: &dyn Report) -> Result<Option<Stream>, Failure> {
        let Some(texts) = &self.calibrate else { return Ok(None) };
        let threads = self.threads.map(NonZeroUsize::get);
        let stream =
            Stream::open(&hub::local(&self.src)?, &calibrate::texts(texts)?, self.calibration.options(threads), report);
        stream.map(Some).map_err(calibrate::failure)
    }
}

/// How `--calibrate` goes about it.
#[derive(Args, Debug)]
pub struct CalibrationArgs {
    /// Tokens per window of --calibrate
    #[arg(long, value_name = "N", default_value_t = 512, requires = "calibrate")]
    pub ctx: usize,
    /// Use at most N tokens for --calibrate, in windows spread evenly over the text
    #[arg(long, value_name = "N", requires = "calibrate")]
    pub tokens: Option<usize>,
    /// Experts that saw fewer tokens than this while calibrating are named
    #[arg(long, value_name = "N", default_value_t = 64, requires = "calibrate")]
    pub min_tokens: u64,
    /// Also leave the statistics that --calibrate gathers (moments and routing) in a file
    #[arg(long, value_name = "F", requires = "calibrate")]
    pub save_stats: Option<PathBuf>,
}

impl CalibrationArgs {
    fn options(&self, threads: Option<usize>) -> StreamOptions {
        StreamOptions {
            ctx: self.ctx,
            tokens: self.tokens,
            device: "auto".into(),
            threads,
            save_stats: self.save_stats.clone(),
            min_tokens: self.min_tokens,
        }
    }

    fn json(&self, done: &StreamSummary) -> Value {
        json!({
            "tokens": done.tokens,
            "experts": done.experts,
            "min_tokens": self.min_tokens,
            "starved": calibrate::starved_json(&done.starved),
            "resumed_parts": done.resumed_parts,
        })
    }

    fn text(&self, done: &StreamSummary) -> anyhow::Result<String> {
        let mut text = format!("calibrated on {} tokens\n", units::thousands(done.tokens));
        text += &calibrate::coverage(&done.starved, done.experts, self.min_tokens)?;
        Ok(text)
    }
}

/// The plan with quantizers that use what is known, and which tensors nothing is known of.
///
/// # Errors
/// A method that needs more than is known is the user's mistake.
pub fn weigh(plan: Plan, known: Option<Arc<dyn Knowledge>>) -> Result<(Plan, Vec<String>), Failure> {
    match known {
        Some(known) => plan.with_knowledge(known).map_err(failure),
        None => plan.check_methods().map(|()| (plan, Vec::new())).map_err(failure),
    }
}

/// What `--stats` knows of the model.
///
/// # Errors
/// Statistics of another model, or a damaged file, are the user's mistake.
pub fn open_stats(path: Option<&Path>, model: &Model) -> Result<Option<Importance>, Failure> {
    let open = |path: &Path| Importance::open(path, model.spec()?, &model.source.identity()).or_usage();
    path.map(open).transpose()
}

/// Tells mistakes of the user's from failures.
pub fn failure(error: ConvertError) -> Failure {
    match error {
        ConvertError::Memory { .. }
        | ConvertError::NoHessian { .. }
        | ConvertError::Parts { .. }
        | ConvertError::Pack(PackError::Exists { .. } | PackError::OtherInputs { .. } | PackError::Locked { .. }) => {
            Failure::usage(error)
        }
        error => error.into(),
    }
}

/// ‖w − ŵ‖ / ‖w‖
fn relative_error(nmse: f64) -> f64 {
    nmse.sqrt()
}

fn summary_json(plan: &Plan, summary: &Summary, decided: &Decided, out: &Path) -> Value {
    let classes: Vec<Value> = plan
        .classes
        .iter()
        .zip(&summary.classes)
        .map(|(total, cost)| {
            json!({
                "class": total.class,
                "tensors": total.tensors,
                "kept": cost.kept,
                "parameters": total.params,
                "bytes": total.bytes,
                "bpw": total.bpw,
                "formats": total.formats,
                "methods": total.methods,
                "nmse": cost.nmse,
                "relative_error": relative_error(cost.nmse),
                "max_abs_error": cost.loss.max_abs,
                "outlier_overflow": cost.loss.outlier_overflow,
            })
        })
        .collect();
    json!({
        "output": out.display().to_string(),
        "total_bytes": summary.bytes,
        "parameters": plan.params,
        "bpw": plan.bpw,
        "classes": classes,
        "records": summary.records,
        "resumed_records": summary.resumed_records,
        "source_bytes_read": summary.source_bytes,
        "seconds": summary.seconds,
        "notes": decided.choices.notes,
        "allocation": decided.allocation,
    })
}

/// Size and error per class.
#[must_use]
pub fn cost_table(plan: &Plan, summary: &Summary) -> String {
    let mut table = Table::new(&["class", ">tensors", ">bytes", ">bpw", ">error", ">NMSE", "formats", "method"]);
    for (total, cost) in plan.classes.iter().zip(&summary.classes) {
        let formats = total.formats.iter().map(|(f, n)| (f.clone(), *n as u64)).collect();
        let methods = total.methods.iter().map(|(m, n)| ((*m).to_owned(), *n as u64)).collect();
        let kept = cost.kept == cost.tensors;
        table.row([
            total.class.to_owned(),
            units::thousands(total.tensors as u64),
            units::bytes(total.bytes),
            format!("{:.2}", total.bpw),
            if kept { "kept".to_owned() } else { format!("{:.3} %", 100.0 * relative_error(cost.nmse)) },
            if kept { "0".to_owned() } else { format!("{:.2e}", cost.nmse) },
            format_list(&formats),
            format_list(&methods),
        ]);
    }
    table.render()
}

/// What a part has, and what comes next.
fn part_text(plan: &Plan, summary: &Summary, part: Part, out: &Path) -> String {
    format!(
        "{}\n{}: part {} of {}, {} of the pack's files, {}, in {}\nwhen all parts are complete: the same command with --merge \
         instead of --part\n",
        cost_table(plan, summary),
        part.dir(out).display(),
        part.index(),
        part.count(),
        plan.shards.len(),
        units::bytes(summary.bytes),
        units::duration(summary.seconds),
    )
}

fn text(plan: &Plan, summary: &Summary, decided: &Decided, out: &Path) -> String {
    let mut text = cost_table(plan, summary);
    text.push_str("error: |w − ŵ| / |w| over the tensors that were not kept\n");
    let overflow: u64 = summary.classes.iter().map(|c| c.loss.outlier_overflow).sum();
    if overflow > 0 {
        let _ = writeln!(
            text,
            "note: {} outliers found no slot and were quantized like the rest; a larger `share` holds them",
            units::thousands(overflow)
        );
    }
    if let Some(a) = &decided.allocation {
        text.push('\n');
        text.push_str(&allocation::text(a));
    }
    let resumed = match summary.resumed_records {
        0 => String::new(),
        n => format!(" ({n} of {} records were there from an earlier run)", summary.records),
    };
    let _ = write!(
        text,
        "\n{}: {}, {:.2} bits per weight, in {}{resumed}\nrun it:   ashlar run {0} --chat\nmeasure:  ashlar eval {0} --text TEXT --reference SRC\n",
        out.display(),
        units::bytes(summary.bytes),
        plan.bpw,
        units::duration(summary.seconds),
    );
    text
}

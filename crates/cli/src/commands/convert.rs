//! `ashlar convert`: a checkpoint or pack becomes a pack.

use crate::allocation::{Decided, Request, TargetArgs};
use crate::args::{Globals, MemoryArgs};
use crate::exit::{CommandResult, Failure, Outcome};
use crate::interrupt::Interrupt;
use crate::model::{Model, Source, format_list};
use crate::progress::{Progress, Unit};
use crate::table::Table;
use crate::{allocation, output, units};
use ashlar_convert::stats::Importance;
use ashlar_convert::{ConvertError, Options, Plan, Summary};
use ashlar_pack::PackError;
use ashlar_simd::Isa;
use ashlar_tensor::Report;
use clap::Args;
use serde_json::{Value, json};
use std::fmt::Write;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

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
  ashlar convert Qwen3-30B-A3B -o small --target-bpw 2.7 --stats qwen.stats")]
pub struct Convert {
    /// A checkpoint folder, or a pack to be quantized again
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
        let model = Model::open(&self.src)?;
        let stats = open_stats(self.stats.as_deref(), &model)?;
        let progress = Progress::new(globals.quiet, Unit::Bytes);
        let request = Request {
            recipe: self.recipe.as_deref(),
            target: self.target,
            stats: stats.as_ref(),
            predict: false,
            threads: self.threads.map(NonZeroUsize::get),
        };
        let decided = request.decide(&model, &progress)?;
        let plan = decided.plan(&model)?;
        let (plan, unknown) = match stats {
            Some(stats) => plan.with_stats(stats),
            None => (plan, Vec::new()),
        };
        if let Source::Checkpoint(checkpoint) = &model.source {
            checkpoint.notes().iter().for_each(|note| progress.note(note));
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
        let summary =
            ashlar_convert::convert(&plan, model.store(), &self.output, &options, &progress).map_err(failure)?;
        if self.json {
            output::print_json(&summary_json(&plan, &summary, &decided, &self.output))?;
        } else {
            output::print(&text(&plan, &summary, &decided, &self.output))?;
        }
        Ok(Outcome::Done)
    }
}

/// What `--stats` knows of the model.
///
/// # Errors
/// Statistics of another model, or a damaged file, are the user's mistake.
pub fn open_stats(path: Option<&Path>, model: &Model) -> Result<Option<Importance>, Failure> {
    let open = |path: &Path| Importance::open(path, &model.spec, &model.source.identity());
    path.map(open).transpose().map_err(Failure::usage)
}

/// Tells mistakes of the user's from failures.
pub fn failure(error: ConvertError) -> Failure {
    match error {
        ConvertError::Memory { .. }
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
    let mut table = Table::new(&["class", ">tensors", ">bytes", ">bpw", ">error", ">NMSE", "formats"]);
    for (total, cost) in plan.classes.iter().zip(&summary.classes) {
        let formats = total.formats.iter().map(|(f, n)| (f.clone(), *n as u64)).collect();
        let kept = cost.kept == cost.tensors;
        table.row([
            total.class.to_owned(),
            units::thousands(total.tensors as u64),
            units::bytes(total.bytes),
            format!("{:.2}", total.bpw),
            if kept { "kept".to_owned() } else { format!("{:.3} %", 100.0 * relative_error(cost.nmse)) },
            if kept { "0".to_owned() } else { format!("{:.2e}", cost.nmse) },
            format_list(&formats),
        ]);
    }
    table.render()
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

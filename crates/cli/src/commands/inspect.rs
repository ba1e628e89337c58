//! `ashlar inspect`: what a checkpoint or pack holds, from its headers alone.

use crate::args::Globals;
use crate::commands::eval::quality;
use crate::exit::{CommandResult, Outcome};
use crate::license::License;
use crate::model::{ClassTotals, FormatTotals, Model, Source, SourceArgs, bpw, format_list};
use crate::table::Table;
use crate::{output, units};
use ashlar_arch::{Class, Ffn, ModelSpec};
use ashlar_pack::Pack;
use ashlar_source::Checkpoint;
use clap::Args;
use serde_json::{Value, json};
use std::fmt::Write;
use std::path::PathBuf;

/// Show what a checkpoint or pack holds
///
/// Architecture, parameters and bytes per class, formats, bits per weight, and the licence with what its text changes in the
/// standard text of that name; of a pack also its recipe and what `eval` measured. Reads headers only, so
/// it takes a moment even for the largest model.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  ashlar inspect Qwen3-30B-A3B\n  ashlar inspect Qwen3-30B-A3B-4bit --json")]
pub struct Inspect {
    /// A checkpoint folder, a single .safetensors file with config.json beside it, a .gguf file, or a pack
    pub src: PathBuf,
    #[command(flatten)]
    pub source: SourceArgs,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

impl Inspect {
    /// Prints the summary.
    ///
    /// # Errors
    /// If `SRC` cannot be opened or is not what it claims to be.
    pub fn run(&self, _globals: Globals) -> CommandResult {
        let model = Model::look_at(&self.src, self.source)?;
        let facts = Facts::of(&model);
        if self.json {
            output::print_json(&facts.json(&model))?;
        } else {
            output::print(&facts.text(&model))?;
        }
        Ok(Outcome::Done)
    }
}

struct Facts {
    classes: Vec<ClassTotals>,
    parameters: u64,
    active: u64,
    bytes: u64,
    /// (experts per layer, experts per token, layers with experts)
    experts: Option<(usize, usize, usize)>,
    license: License,
    pack: Value,
}

impl Facts {
    fn of(model: &Model) -> Self {
        let classes = model.classes();
        let moes = || {
            model.spec.iter().flat_map(|s| &s.layers).filter_map(|l| match &l.ffn {
                Ffn::Moe(moe) => Some(moe),
                Ffn::Dense(_) => None,
            })
        };
        let size = |leaf: &ashlar_arch::Leaf| leaf.shape.iter().map(|&d| d as u64).product::<u64>();
        let parameters = classes.iter().map(|c| c.parameters).sum();
        // Next-token layers do not run.
        let next: u64 = model.leaves.iter().filter(|l| l.role.class == Class::Mtp).map(size).sum();
        // Experts that a token does not visit; all of a layer have the same size.
        let idle: u64 = moes()
            .filter_map(|moe| {
                let one: u64 = moe.experts.first()?.tensors().into_iter().map(size).sum();
                Some(one * moe.experts.len().saturating_sub(moe.routing.top_k) as u64)
            })
            .sum();
        Self {
            parameters,
            active: parameters.saturating_sub(idle).saturating_sub(next),
            bytes: classes.iter().map(|c| c.bytes).sum(),
            experts: moes().next().map(|m| (m.experts.len(), m.routing.top_k, moes().count())),
            license: License::of_source(&model.source),
            pack: pack_facts(&model.source),
            classes,
        }
    }

    fn json(&self, model: &Model) -> Value {
        let spec = model.spec.as_ref();
        let classes: Vec<Value> = self.classes.iter().map(class_json).collect();
        json!({
            "source": model.path.display().to_string(),
            "kind": kind(&model.source),
            "files": model.source.checkpoint().map(Checkpoint::kind),
            "family": spec.map(|s| s.family),
            "architectures": model.source.config().get("architectures"),
            "layers": spec.map(|s| s.layers.len()),
            "hidden_size": spec.map(|s| s.hidden_size),
            "vocab_size": spec.map(|s| s.vocab_size),
            "max_position": spec.map(|s| s.max_position),
            "experts": self.experts.map(|(all, top_k, layers)| json!({"per_layer": all, "per_token": top_k, "layers": layers})),
            "tied_embeddings": spec.map(|s| s.lm_head.is_none()),
            "parameters": self.parameters,
            "active_parameters": self.active,
            "bytes": self.bytes,
            "bpw": bpw(self.bytes, self.parameters),
            "classes": classes,
            "formats": model.formats().iter().map(format_json).collect::<Vec<_>>(),
            "ignored": model.ignored,
            "notes": model.notes(),
            "license": self.license.name,
            "license_text": self.license.json(),
            "pack": self.pack,
        })
    }

    fn text(&self, model: &Model) -> String {
        let family =
            model.spec.as_ref().map_or_else(|| "family unknown".to_owned(), |s| format!("family {}", s.family));
        let files = model.source.checkpoint().map(Checkpoint::kind).filter(|kind| *kind != "safetensors");
        let files = files.map_or_else(String::new, |kind| format!(" as {kind}"));
        let mut out = format!("{} ({}{files}, {family})\n", model.path.display(), kind(&model.source));
        out.push_str(&model.spec.as_ref().map_or_else(String::new, |spec| self.structure(spec)));
        let _ = writeln!(
            out,
            "{} parameters ({} per token), {}, {:.2} bits per weight",
            units::count(self.parameters),
            units::count(self.active),
            units::bytes(self.bytes),
            bpw(self.bytes, self.parameters)
        );
        let _ = writeln!(out, "{}", self.license.text());
        out.push_str(&class_table(&self.classes));
        let formats = model.formats();
        if formats.len() > 1 {
            out.push('\n');
            out.push_str(&format_table(&formats));
        }
        for note in model.notes() {
            let _ = writeln!(out, "note: {note}");
        }
        if !model.ignored.is_empty() {
            let _ = writeln!(out, "\nignored, as no model needs them: {}", model.ignored.join(", "));
        }
        if let (Some(records), Some(recipe)) =
            (self.pack.get("records"), self.pack.get("recipe").and_then(Value::as_str))
        {
            let _ = write!(out, "\n{records} records; recipe:\n\n{recipe}");
        }
        if let Source::Pack(pack) = &model.source {
            out.push_str(&quality_text(pack));
        }
        out
    }
}

impl Facts {
    /// One line about layers and experts.
    fn structure(&self, spec: &ModelSpec) -> String {
        let mut out = format!(
            "{} layers, hidden size {}, vocabulary {}, context {}",
            spec.layers.len(),
            spec.hidden_size,
            spec.vocab_size,
            spec.max_position
        );
        if let Some((all, top_k, layers)) = self.experts {
            let _ = write!(out, "; {all} experts in each of {layers} layers, {top_k} per token");
        }
        if spec.lm_head.is_none() {
            out.push_str("; embeddings tied");
        }
        out + "\n"
    }
}

fn class_json(c: &ClassTotals) -> Value {
    json!({
        "class": c.class.name(),
        "tensors": c.tensors,
        "parameters": c.parameters,
        "bytes": c.bytes,
        "bpw": bpw(c.bytes, c.parameters),
        "formats": c.formats,
    })
}

fn class_table(classes: &[ClassTotals]) -> String {
    let mut table = Table::new(&["class", ">tensors", ">parameters", ">bytes", ">bpw", "formats"]);
    for c in classes {
        table.row([
            c.class.name().to_owned(),
            units::thousands(c.tensors),
            units::count(c.parameters),
            units::bytes(c.bytes),
            format!("{:.2}", bpw(c.bytes, c.parameters)),
            format_list(&c.formats),
        ]);
    }
    table.render()
}

fn format_json(f: &FormatTotals) -> Value {
    json!({
        "format": f.format,
        "tensors": f.tensors,
        "parameters": f.parameters,
        "bytes": f.bytes,
        "bpw": bpw(f.bytes, f.parameters),
    })
}

fn format_table(formats: &[FormatTotals]) -> String {
    let mut table = Table::new(&["format", ">tensors", ">parameters", ">bytes", ">bpw"]);
    for f in formats {
        table.row([
            f.format.clone(),
            units::thousands(f.tensors),
            units::count(f.parameters),
            units::bytes(f.bytes),
            format!("{:.2}", bpw(f.bytes, f.parameters)),
        ]);
    }
    table.render()
}

fn kind(source: &Source) -> &'static str {
    match source {
        Source::Checkpoint(_) => "checkpoint",
        Source::Pack(_) => "pack",
        Source::Catalogue(_) => "catalogue",
        Source::Headers(_) | Source::Stream(_) => "checkpoint",
    }
}

/// What only packs have; null for a checkpoint.
fn pack_facts(source: &Source) -> Value {
    let Source::Pack(pack) = source else { return Value::Null };
    let manifest = pack.manifest();
    json!({
        "records": pack.records().len(),
        "shards": manifest.shards.len(),
        "file_bytes": pack.bytes(),
        "generator": manifest.generator,
        "source_identity": manifest.source,
        "recipe": manifest.recipe,
        "measured": manifest.measured,
        "quality": quality_json(pack),
    })
}

/// What `ashlar eval` measured on this pack; null if it was not run, or on another pack.
fn quality_json(pack: &Pack) -> Value {
    let read = quality::read(pack.dir()).ok().flatten();
    let own = read.filter(|q| q.pack == pack.identity());
    own.map_or(Value::Null, |q| json!({ "evaluations": q.evaluations }))
}

/// The same for people; empty if it was not run.
fn quality_text(pack: &Pack) -> String {
    match quality::read(pack.dir()) {
        Ok(None) => String::new(),
        Ok(Some(q)) if q.pack != pack.identity() => {
            format!("\n{} is about another pack; `ashlar eval` replaces it\n", quality::FILE)
        }
        Ok(Some(q)) => {
            let lines: String = q.evaluations.iter().map(|e| format!("  {}\n", quality::line(e))).collect();
            format!("\nmeasured quality:\n\n{lines}")
        }
        Err(why) => format!("\n{} cannot be read: {why}\n", quality::FILE),
    }
}

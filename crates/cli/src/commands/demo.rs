//! `ashlar demo`: the whole path on the bundled checkpoint.

mod bundled;

use crate::allocation::Request;
use crate::args::Globals;
use crate::commands::convert::cost_table;
use crate::commands::eval::comparison_text;
use crate::commands::plan::plan_table;
use crate::device::{self, DeviceArgs};
use crate::exit::{CommandResult, Failure, Outcome};
use crate::interrupt::Interrupt;
use crate::model::Model as Opened;
use crate::progress::{Progress, Unit};
use crate::{output, units};
use anyhow::anyhow;
use ashlar_convert::Options;
use ashlar_pack::Pack;
use ashlar_runtime::eval::{Windows, compare};
use ashlar_runtime::{GenerateOptions, Generator, Model, OpenOptions, Tokenizer};
use ashlar_tensor::Silent;
use clap::Args;
use std::path::{Path, PathBuf};

/// The preset that the demo converts with: 4-bit experts, 8 bits for the rest and for the experts' down projections of
/// the first and last layers.
const RECIPE: &str = "4bit-best";
const PROMPT: &str = "And it came to pass in those days, that";
/// The checkpoint's own beginning of a text, as it was trained.
const BEGIN: &str = "<|begin_of_text|>";
const TOKENS: usize = 40;
/// The context the checkpoint was trained with.
const CTX: usize = 256;

/// Show the whole path on a small bundled model: plan, convert, verify, measure, generate
///
/// The model (8 million parameters, 16 experts per layer) was trained for this project on public-domain text and is inside
/// the program, so this needs no download. It takes a few seconds.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  ashlar demo
  ashlar demo --keep tour        # then try: ashlar run tour/pack --chat")]
pub struct Demo {
    /// Keep checkpoint and pack in this new folder instead of removing them
    #[arg(long, value_name = "DIR")]
    pub keep: Option<PathBuf>,
    #[command(flatten)]
    pub device: DeviceArgs,
}

impl Demo {
    /// Runs every step and prints what it shows.
    ///
    /// # Errors
    /// If any step fails. A pack that does not verify is found wanting.
    pub fn run(&self, globals: Globals) -> CommandResult {
        let temporary = if self.keep.is_none() { Some(tempfile::tempdir()?) } else { None };
        let dir = match (&self.keep, &temporary) {
            (Some(keep), _) if keep.exists() => {
                return Err(Failure::usage(anyhow!("{} exists; choose another folder", keep.display())));
            }
            (Some(keep), _) => keep.as_path(),
            (None, Some(temporary)) => temporary.path(),
            (None, None) => Path::new("."),
        };
        let (src, out) = (dir.join("checkpoint"), dir.join("pack"));
        bundled::write_checkpoint(&src)?;
        convert(&src, &out, self, globals)?;
        if !verify(&src, &out, self, globals)? {
            return Ok(Outcome::Wanting);
        }
        let interrupt = Interrupt::install()?;
        measure(&src, &out, self, &interrupt, globals)?;
        generate(&src, &out, self, &interrupt, globals)?;
        output::print(&match &self.keep {
            Some(keep) => format!(
                "\nNext: ashlar run {} --chat, or a model of your own (README.md).\n",
                keep.join("pack").display()
            ),
            None => {
                "\nNext: ashlar demo --keep DIR keeps both models to play with; README.md shows a model from the hub.\n"
                    .to_owned()
            }
        })?;
        Ok(Outcome::Done)
    }
}

fn convert(src: &Path, out: &Path, args: &Demo, globals: Globals) -> Result<(), Failure> {
    let model = Opened::open(src)?;
    let request = Request { recipe: Some(RECIPE), ..Request::default() };
    let plan = request.decide(&model, &Silent)?.plan(&model)?;
    output::print(&format!(
        "1. plan: what recipe `{RECIPE}` makes of the bundled {} model\n\n{}\n",
        model.spec()?.family,
        plan_table(&plan)
    ))?;
    let options = Options { threads: args.device.threads.map(Into::into), ..Options::default() };
    let progress = Progress::new(globals.quiet, Unit::Bytes);
    let summary = ashlar_convert::convert(&plan, model.store(), out, &options, &progress)?;
    output::print(&format!(
        "2. convert: {} → {}, {:.2} bits per weight, in {}; error: |w − ŵ| / |w|\n\n{}\n",
        units::bytes(plan.source_bytes),
        units::bytes(summary.bytes),
        plan.bpw,
        units::duration(summary.seconds),
        cost_table(&plan, &summary)
    ))?;
    Ok(())
}

fn verify(src: &Path, out: &Path, args: &Demo, globals: Globals) -> Result<bool, Failure> {
    let (pack, source) = (Pack::open(out)?, Opened::open(src)?);
    let progress = Progress::new(globals.quiet, Unit::Bytes);
    let report = ashlar_convert::verify(&pack, Some(source.store()), args.device.threads.map(Into::into), &progress)?;
    let kept = report.compared.iter().filter(|c| c.must_be_exact).count();
    let records = pack.records().len();
    output::print(&if report.ok() {
        format!("3. verify: all {records} checksums right, {kept} kept tensors bit-equal to the original\n\n")
    } else {
        format!("3. verify: something is wrong with {}; `ashlar verify` tells what\n\n", out.display())
    })?;
    Ok(report.ok())
}

fn open(path: &Path, args: &Demo, context: usize, globals: Globals) -> Result<Model, Failure> {
    let options = OpenOptions { context: Some(context), ..args.device.options()? };
    // What the bundled model falls back to is of no interest here, unless asked for.
    device::open(path, &options, Globals { quiet: globals.quiet || !globals.verbose, ..globals })
}

fn measure(src: &Path, out: &Path, args: &Demo, interrupt: &Interrupt, globals: Globals) -> Result<(), Failure> {
    let windows = Windows::of(&Tokenizer::open(src)?, bundled::TEXT, CTX, None)?;
    let (pack, mut original) = (open(out, args, CTX, globals)?, open(src, args, CTX, globals)?);
    let progress = Progress::new(globals.quiet, Unit::Tokens);
    let mut packs = [pack];
    let measured = compare("eval", &mut packs, &mut original, &windows, interrupt.flag(), &progress);
    let measured = measured.map_err(device::failure)?.ok_or_else(|| anyhow!("interrupted"))?;
    let [pack] = &packs;
    let text: String = measured.iter().map(comparison_text).collect();
    let text = text.replace("reference", "original");
    output::print(&format!(
        "4. measure: the pack against the original, on text neither was trained on, on {}\n\n{}\n",
        pack.device(),
        indent(&text)
    ))?;
    Ok(())
}

fn generate(src: &Path, out: &Path, args: &Demo, interrupt: &Interrupt, globals: Globals) -> Result<(), Failure> {
    let options = GenerateOptions { max_tokens: Some(TOKENS), ..GenerateOptions::default() };
    let mut texts = Vec::new();
    for path in [src, out] {
        let mut generator = Generator::new(open(path, args, CTX, globals)?)?;
        let prompt = generator.tokenizer().encode(&format!("{BEGIN}{PROMPT}"), false)?;
        texts.push(generator.generate(&prompt, &options, interrupt.flag(), &mut |_, _| {})?);
    }
    let [original, pack] = texts.as_slice() else { return Ok(()) };
    let same = original.ids.iter().zip(&pack.ids).take_while(|(a, b)| a == b).count();
    output::print(&format!(
        "5. generate: both continue \"{PROMPT}\"\n\n  original:{}\n  pack:    {}\n\n  the first {same} of {} tokens agree; {:.0} and {:.0} tokens/s\n",
        original.text,
        pack.text,
        original.ids.len(),
        original.timings.decode_rate(),
        pack.timings.decode_rate()
    ))?;
    Ok(())
}

fn indent(text: &str) -> String {
    text.lines().map(|l| format!("  {l}\n")).collect()
}

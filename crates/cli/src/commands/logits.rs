//! `ashlar logits`: token ids in, logits out, for comparing with other programs.

use crate::args::Globals;
use crate::device::{self, DeviceArgs};
use crate::exit::{CommandResult, Failure, Outcome};
use crate::output;
use crate::progress::{Progress, Unit};
use anyhow::{Context, anyhow, bail};
use ashlar_runtime::Wanted;
use ashlar_tensor::Report;
use clap::Args;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use std::path::{Path, PathBuf};

/// Write the logits of given token ids to a file, for comparing with another program
///
/// The input holds `input_ids`, int64 [1, T]; the output `logits`, f32 [1, T, V]: row t is what the model predicts after
/// token t. The output is written as a whole or not at all.
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  ashlar logits Qwen3-0.6B --input ids.safetensors --output logits.safetensors --device reference"
)]
pub struct Logits {
    /// A checkpoint folder or a pack
    pub src: PathBuf,
    /// Safetensors file with `input_ids`, int64 [1, T]
    #[arg(long, value_name = "FILE")]
    pub input: PathBuf,
    /// Safetensors file to write `logits`, f32 [1, T, V], to
    #[arg(long, value_name = "FILE")]
    pub output: PathBuf,
    #[command(flatten)]
    pub device: DeviceArgs,
}

impl Logits {
    /// Runs the model over the ids.
    ///
    /// # Errors
    /// If the input is no such file, the model cannot run, or the output cannot be written.
    pub fn run(&self, globals: Globals) -> CommandResult {
        let ids = read_ids(&self.input)?;
        let options = ashlar_runtime::OpenOptions { context: Some(ids.len()), ..self.device.options()? };
        let mut model = device::open(&self.src, &options, globals)?;
        let vocab = model.spec().vocab_size;
        check_ids(&ids, vocab).map_err(|e| Failure::usage(e.context(self.input.display().to_string())))?;
        let progress = Progress::new(globals.quiet, Unit::Tokens);
        progress.begin("logits", ids.len() as u64);
        let mut bytes = Vec::with_capacity(ids.len() * vocab * 4);
        let mut told = 0;
        let fed = model.feed(
            0,
            0,
            &ids,
            Wanted::All,
            &mut |rows| bytes.extend(rows.iter().flat_map(|v| v.to_le_bytes())),
            &mut |done| {
                progress.advance((done - told) as u64, "");
                told = done;
                true
            },
        );
        progress.end();
        fed.map_err(device::failure)?;
        let view = TensorView::new(Dtype::F32, vec![1, ids.len(), vocab], &bytes)?;
        output::write_atomic(&self.output, &safetensors::serialize([("logits", view)], None)?)?;
        Ok(Outcome::Done)
    }
}

fn read_ids(path: &Path) -> Result<Vec<u32>, Failure> {
    let read = || -> anyhow::Result<Vec<u32>> {
        let bytes = std::fs::read(path)?;
        let file = SafeTensors::deserialize(&bytes)?;
        let tensor =
            file.tensor("input_ids").map_err(|_| anyhow!("there is no tensor `input_ids`; it must be int64 [1, T]"))?;
        match (tensor.dtype(), tensor.shape()) {
            (Dtype::I64, [1, t]) if *t > 0 => {}
            (dtype, shape) => bail!("tensor `input_ids`: expected int64 [1, T] with T ≥ 1, got {dtype:?} {shape:?}"),
        }
        let (ids, _) = tensor.data().as_chunks();
        ids.iter()
            .map(|c| i64::from_le_bytes(*c))
            .map(|id| u32::try_from(id).with_context(|| format!("{id} is no token id")))
            .collect()
    };
    read().map_err(|e| Failure::usage(e.context(format!("cannot use {}", path.display()))))
}

fn check_ids(ids: &[u32], vocab: usize) -> anyhow::Result<()> {
    match ids.iter().position(|&id| id as usize >= vocab) {
        Some(at) => {
            bail!("token {at} is {}, but the vocabulary has {vocab} entries", ids.get(at).copied().unwrap_or_default())
        }
        None => Ok(()),
    }
}

//! Where a model runs, and opening it there.

use crate::args::Globals;
use crate::exit::Failure;
use crate::hub;
use crate::model::check_path;
use crate::placement::{self, PlacementArgs};
use crate::progress::{Progress, Unit};
use ashlar_arch::ArchError;
use ashlar_runtime::placement::PlaceError;
use ashlar_runtime::{ActivationMode, KvFormat, Model, OpenOptions, RuntimeError};
use ashlar_simd::Isa;
use ashlar_tensor::Report;
use clap::{Args, ValueEnum};
use std::num::NonZeroUsize;
use std::path::Path;

/// In which precision inputs of weights are multiplied.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Activations {
    /// As they are
    F32,
    /// Rounded to 8 bits, one scale per 32 values; floats and fp8 meet inputs as they are
    Int8,
    /// The same, and rounded to bf16 for bf16 and fp8 weights: about twice as fast on CPUs with AVX512-BF16
    Bf16,
}

impl From<Activations> for ActivationMode {
    fn from(activations: Activations) -> Self {
        match activations {
            Activations::F32 => Self::F32,
            Activations::Int8 => Self::Int8,
            Activations::Bf16 => Self::Bf16,
        }
    }
}

/// How keys and values are stored.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Kv {
    /// As computed
    F32,
    /// 16-bit floats
    F16,
    /// 8 bits, one scale per position and head
    Q8,
    /// As the release rounds them, where it does (DeepSeek-V4: FP8, bf16 and FP4)
    Native,
}

impl From<Kv> for ashlar_runtime::Kv {
    fn from(kv: Kv) -> Self {
        match kv {
            Kv::F32 => KvFormat::F32.into(),
            Kv::F16 => KvFormat::F16.into(),
            Kv::Q8 => KvFormat::Q8.into(),
            Kv::Native => Self::Native,
        }
    }
}

/// Where a model runs.
#[derive(Args, Clone, Debug)]
pub struct DeviceArgs {
    /// Where to run: auto, cpu, cuda:0, reference (slow and exact), virtual:0 (a device that is not there, for rehearsing
    /// placements). Beside --placement: the accelerator that it may fill
    #[arg(long, value_name = "D", default_value = "auto", value_parser = word)]
    pub device: String,
    #[command(flatten)]
    pub placement: PlacementArgs,
    /// Threads [default: one per core]
    #[arg(long, value_name = "N")]
    pub threads: Option<NonZeroUsize>,
    /// Inputs of quantized weights: int8 is faster, f32 tells what the weights alone cost [default: int8 on the CPU,
    /// f32 on the reference]
    #[arg(long, value_name = "A", value_enum)]
    pub activations: Option<Activations>,
    /// How keys and values of earlier tokens are stored [default: f32 on the reference; on the CPU native where the model has
    /// that, else f16]
    #[arg(long, value_name = "K", value_enum)]
    pub kv: Option<Kv>,
}

impl DeviceArgs {
    /// Options for [`Model::open`].
    ///
    /// # Errors
    /// A placement that cannot be read is the user's mistake.
    pub fn options(&self) -> Result<OpenOptions, Failure> {
        Ok(OpenOptions {
            device: self.device.clone(),
            placement: self.placement.read()?,
            vram_limit: self.placement.vram_limit,
            ram_limit: self.placement.ram_limit,
            threads: self.threads.map(NonZeroUsize::get),
            activations: self.activations.map(Into::into),
            kv: self.kv.map(Into::into),
            ..OpenOptions::default()
        })
    }
}

/// Checks the name of a device; clap prints the message.
///
/// # Errors
/// A sentence with the names there are.
pub fn word(name: &str) -> Result<String, String> {
    ashlar_runtime::device_named(name).map(|_| name.to_owned()).map_err(|e| e.to_string())
}

/// Opens and loads a model; with `--verbose` tells where it runs.
///
/// # Errors
/// A bad option is the user's mistake; anything wrong with the files or the device is a failure.
pub fn open(path: &Path, options: &OpenOptions, globals: Globals) -> Result<Model, Failure> {
    check_path(path)?;
    let local = hub::local(path)?;
    let progress = Progress::new(globals.quiet, Unit::Bytes);
    let model = Model::open(&local, options, &progress).map_err(failure)?;
    if globals.verbose {
        let isa = Isa::detect().map_or_else(|e| e.to_string(), |isa| isa.name().to_owned());
        progress.note(&format!(
            "{}: runs on {}, instruction set {isa}, context {}",
            path.display(),
            model.device(),
            model.context()
        ));
        if model.placement().devices.len() > 1 || options.placement.is_some() || model.nvme().is_some() {
            progress.note(&placement::shares(model.placement()));
        }
    }
    Ok(model)
}

/// Options and texts that do not fit are the user's mistake.
pub fn failure(error: RuntimeError) -> Failure {
    match error {
        RuntimeError::Arch { source: ArchError::UnknownArchitecture { .. }, .. } => Failure::from(error).context(
            "this architecture is not known, so there is no program that could run it (`--generic` of inspect, plan and \
             convert goes by tensor names, which is no knowledge of how to compute with them)"
                .to_owned(),
        ),
        RuntimeError::Option { .. }
        | RuntimeError::Context { .. }
        | RuntimeError::KvBudget { .. }
        | RuntimeError::Recipe(_)
        | RuntimeError::Resolved { .. } => Failure::usage(error),
        RuntimeError::Place(PlaceError::Misfit(_)) | RuntimeError::Device { .. } => Failure::wanting(error),
        RuntimeError::Place(_) => Failure::usage(error),
        error => error.into(),
    }
}

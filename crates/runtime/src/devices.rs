//! Devices by name. The only file that names device crates.

use crate::{Kv, RuntimeError};
use ashlar_backend::{ActivationMode, Backend, KvFormat, Reference};
use ashlar_cpu::Cpu;
use ashlar_simd::Isa;

pub use ashlar_cpu::Meter;
pub(crate) use ashlar_cpu::bench::{KernelBench, Scheme};

/// What `--device` accepts.
pub const DEVICES: &[&str] = &["auto", "cpu", "reference"];

/// The device of that name; `auto` is the fastest one present. `activations` says how inputs of quantized weights are
/// rounded; `None` leaves it to the device (int8 on the CPU, f32 on the reference).
///
/// # Errors
/// [`RuntimeError::Option`] for an unknown name, no threads, or an instruction set forced by `ASHLAR_ISA` that is not
/// there.
pub fn device(
    name: &str,
    threads: Option<usize>,
    activations: Option<ActivationMode>,
) -> Result<Box<dyn Backend>, RuntimeError> {
    if threads == Some(0) {
        return Err(RuntimeError::Option { option: "--threads", got: "0".into(), expected: "at least 1".into() });
    }
    let mode = activation_mode(name, activations);
    match name {
        "auto" | "cpu" => {
            let isa = Isa::detect().map_err(|e| RuntimeError::Option {
                option: "ASHLAR_ISA",
                got: e.to_string(),
                expected: "an instruction set of this machine".into(),
            })?;
            Ok(Box::new(Cpu::with_mode(threads, isa, mode)))
        }
        "reference" => Ok(Box::new(Reference::new(mode))),
        _ => Err(RuntimeError::Option {
            option: "--device",
            got: format!("`{name}`"),
            expected: format!("one of {}", DEVICES.join(", ")),
        }),
    }
}

/// What bounds the device of that name, if it is the CPU and there is memory to measure it.
#[must_use]
pub fn meter(name: &str, threads: Option<usize>) -> Option<Meter> {
    Isa::detect().ok().filter(|_| name != "reference").and_then(|isa| Meter::new(threads, isa))
}

/// How the device of that name rounds the inputs of quantized weights: as asked, else in its own way.
#[must_use]
pub fn activation_mode(name: &str, asked: Option<ActivationMode>) -> ActivationMode {
    let own = if name == "reference" { ActivationMode::F32 } else { ActivationMode::Int8 };
    asked.unwrap_or(own)
}

/// How the device of that name stores the keys and values of a model: as asked; else the reference as computed, and others as
/// the release does, or in halves where it has no way of its own.
///
/// # Errors
/// [`RuntimeError::Option`] if the release's own way is asked for and it has none.
pub fn kv_format(name: &str, asked: Option<Kv>, has_native: bool) -> Result<Kv, RuntimeError> {
    match asked {
        Some(Kv::Native) if !has_native => Err(RuntimeError::Option {
            option: "--kv",
            got: Kv::Native.name().into(),
            expected: "f32, f16 or q8: this model was not trained with a rounding of its keys and values".into(),
        }),
        Some(kv) => Ok(kv),
        None if name == "reference" => Ok(KvFormat::F32.into()),
        None if has_native => Ok(Kv::Native),
        None => Ok(KvFormat::F16.into()),
    }
}

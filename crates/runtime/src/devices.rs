//! Devices by name. The only file that names device crates.

use crate::RuntimeError;
use ashlar_backend::{ActivationMode, Backend, Reference};
use ashlar_cpu::Cpu;
use ashlar_simd::Isa;

/// What `--device` accepts.
pub const DEVICES: &[&str] = &["auto", "cpu", "reference"];

/// The device of that name; `auto` is the fastest one present.
///
/// # Errors
/// [`RuntimeError::Option`] for an unknown name, no threads, or an instruction set forced by `ASHLAR_ISA` that is not
/// there.
pub fn device(name: &str, threads: Option<usize>) -> Result<Box<dyn Backend>, RuntimeError> {
    if threads == Some(0) {
        return Err(RuntimeError::Option { option: "--threads", got: "0".into(), expected: "at least 1".into() });
    }
    match name {
        "auto" | "cpu" => {
            let isa = Isa::detect().map_err(|e| RuntimeError::Option {
                option: "ASHLAR_ISA",
                got: e.to_string(),
                expected: "an instruction set of this machine".into(),
            })?;
            Ok(Box::new(Cpu::new(threads, isa)))
        }
        "reference" => Ok(Box::new(Reference::new(ActivationMode::F32))),
        _ => Err(RuntimeError::Option {
            option: "--device",
            got: format!("`{name}`"),
            expected: format!("one of {}", DEVICES.join(", ")),
        }),
    }
}

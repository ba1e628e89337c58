//! Devices by name. The only file that names device crates.

use crate::RuntimeError;
use ashlar_backend::{ActivationMode, Backend, Reference};

/// What `--device` accepts.
pub const DEVICES: &[&str] = &["auto", "reference"];

/// The device of that name; `auto` is the fastest one present.
///
/// # Errors
/// [`RuntimeError::Option`] for an unknown name.
pub fn device(name: &str, _threads: Option<usize>) -> Result<Box<dyn Backend>, RuntimeError> {
    match name {
        "auto" | "reference" => Ok(Box::new(Reference::new(ActivationMode::F32))),
        _ => Err(RuntimeError::Option {
            option: "--device",
            got: format!("`{name}`"),
            expected: format!("one of {}", DEVICES.join(", ")),
        }),
    }
}

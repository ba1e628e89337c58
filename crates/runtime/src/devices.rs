//! Devices by name. The only file that names device crates: one line of [`REGISTRY`] per kind.

use crate::{Kv, RuntimeError};
use ashlar_backend::{ActivationMode, Backend, KvFormat, Reference, Virtual};
use ashlar_cpu::Cpu;
use ashlar_cuda::Cuda;
use ashlar_recipe::{DEVICE_EXAMPLES, Device, parse_device};
use ashlar_simd::Isa;

pub use ashlar_cpu::Meter;
pub(crate) use ashlar_cpu::bench::{KernelBench, Scheme};

/// The kind of accelerators that `gpus` of a machine are.
pub(crate) const ACCELERATOR: &str = "cuda";

/// How a device is to be opened.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Settings {
    /// Threads of a device that computes on the processor; `None` for all cores.
    pub threads: Option<usize>,
    /// How inputs of quantized weights are rounded; `None` for the device's own way.
    pub activations: Option<ActivationMode>,
    /// The most bytes that an accelerator may hold.
    pub limit: Option<u64>,
}

/// Opens the device of a number.
type Open = fn(usize, &Settings) -> Result<Box<dyn Backend>, RuntimeError>;

/// A kind of devices.
struct Kind {
    name: &'static str,
    open: Open,
    /// How many bytes it can hold now; `None` where that is not bounded.
    memory: fn(usize) -> Result<Option<u64>, RuntimeError>,
}

/// Every kind, alphabetical.
const REGISTRY: &[Kind] = &[
    Kind { name: "cpu", open: |_, settings| Ok(Box::new(cpu(settings)?)), memory: |_| Ok(None) },
    Kind { name: "cuda", open: |index, settings| Ok(Box::new(cuda(index, settings)?)), memory: cuda_memory },
    Kind { name: "cuda-host", open: |_, settings| Ok(Box::new(cuda_host(settings)?)), memory: |_| Ok(None) },
    Kind { name: "reference", open: |_, settings| Ok(Box::new(reference(settings))), memory: |_| Ok(None) },
    Kind { name: "virtual", open: |_, settings| Ok(Box::new(virtual_device(settings)?)), memory: |_| Ok(None) },
];

fn cpu(settings: &Settings) -> Result<Cpu, RuntimeError> {
    if settings.threads == Some(0) {
        return Err(RuntimeError::Option { option: "--threads", got: "0".into(), expected: "at least 1".into() });
    }
    let isa = Isa::detect().map_err(|e| RuntimeError::Option {
        option: "ASHLAR_ISA",
        got: e.to_string(),
        expected: "an instruction set of this machine".into(),
    })?;
    Ok(Cpu::with_mode(settings.threads, isa, activation_mode("cpu", settings.activations)))
}

fn reference(settings: &Settings) -> Reference {
    Reference::new(activation_mode("reference", settings.activations))
}

fn virtual_device(settings: &Settings) -> Result<Virtual, RuntimeError> {
    Ok(Virtual::new(Box::new(cpu(settings)?), settings.limit.unwrap_or(u64::MAX)))
}

/// A GPU behind its driver.
fn cuda(index: usize, settings: &Settings) -> Result<Cuda, RuntimeError> {
    let mode = activation_mode("cuda", settings.activations);
    ashlar_cuda::open(index, mode, settings.limit).map_err(|e| no_cuda(index, &e))
}

/// The CUDA kernels compiled for the processor: slow, for tests.
fn cuda_host(settings: &Settings) -> Result<Cuda, RuntimeError> {
    let mode = activation_mode("cuda-host", settings.activations);
    ashlar_cuda::open_host(mode, false).map_err(|e| no_cuda(0, &e))
}

fn cuda_memory(index: usize) -> Result<Option<u64>, RuntimeError> {
    ashlar_cuda::budget(index).map(Some).map_err(|e| no_cuda(index, &e))
}

fn no_cuda(index: usize, error: &ashlar_cuda::Error) -> RuntimeError {
    RuntimeError::Device { device: format!("{ACCELERATOR}:{index}"), why: error.to_string() }
}

/// Opens a device.
///
/// # Errors
/// [`RuntimeError::Device`] if it is not there, [`RuntimeError::Option`] for bad settings.
pub(crate) fn open(device: Device, settings: &Settings) -> Result<Box<dyn Backend>, RuntimeError> {
    (kind(device)?.open)(device.index.unwrap_or(0), settings)
}

/// How many bytes a device can hold; `None` where that is not bounded.
///
/// # Errors
/// [`RuntimeError::Device`] if it is not there.
pub(crate) fn memory(device: Device) -> Result<Option<u64>, RuntimeError> {
    (kind(device)?.memory)(device.index.unwrap_or(0))
}

/// The accelerators of this machine, none of them opened yet.
pub(crate) fn accelerators() -> Vec<Device> {
    (0..ashlar_cuda::count()).map(|i| Device { kind: ACCELERATOR, index: Some(i) }).collect()
}

/// Threads that a device on the processor takes: as asked, else one per physical core.
pub(crate) fn threads(asked: Option<usize>) -> usize {
    asked.unwrap_or_else(ashlar_cpu::physical_cores).max(1)
}

/// Memory of every accelerator; why there is none, in the words of its driver's loader.
pub(crate) fn cards() -> Result<Vec<u64>, String> {
    match ashlar_cuda::count() {
        0 => match ashlar_cuda::budget(0) {
            Ok(bytes) => Ok(vec![bytes]),
            Err(error) => Err(error.to_string()),
        },
        count => (0..count).map(|index| ashlar_cuda::budget(index).map_err(|e| e.to_string())).collect(),
    }
}

/// Whether a device stands for an accelerator that is not there.
pub(crate) fn is_rehearsed(device: Device) -> bool {
    device.kind == "virtual"
}

/// Whether weights on that device are read where the file is mapped, and not from memory of its own.
pub(crate) fn computes_from_the_mapping(device: Device) -> bool {
    device.kind != ACCELERATOR
}

fn kind(device: Device) -> Result<&'static Kind, RuntimeError> {
    let found = REGISTRY.iter().find(|k| k.name == device.kind);
    found.ok_or_else(|| RuntimeError::Device { device: device.to_string(), why: "no backend of that kind".into() })
}

/// The device that a word of `--device` means; `None` for `auto`.
///
/// # Errors
/// [`RuntimeError::Option`] for what is no device.
pub fn device_named(name: &str) -> Result<Option<Device>, RuntimeError> {
    let unknown = || RuntimeError::Option {
        option: "--device",
        got: format!("`{name}`"),
        expected: format!("one of {}", DEVICE_EXAMPLES.join(", ")),
    };
    if name == "auto" { Ok(None) } else { parse_device(name).map(Some).ok_or_else(unknown) }
}

/// The device of that name; `auto` is the CPU, where placement is not asked. `activations` says how inputs of quantized weights are rounded; `None` leaves
/// it to the device (int8 on the CPU, f32 on the reference).
///
/// # Errors
/// [`RuntimeError::Option`] for an unknown name, no threads, or an instruction set forced by `ASHLAR_ISA` that is not
/// there; [`RuntimeError::Device`] for a device that is not there.
pub fn device(
    name: &str,
    threads: Option<usize>,
    activations: Option<ActivationMode>,
) -> Result<Box<dyn Backend>, RuntimeError> {
    let device = device_named(name)?.unwrap_or(Device::CPU);
    open(device, &Settings { threads, activations, limit: None })
}

/// What bounds the device of that name, if it computes on the CPU and there is memory to measure it.
#[must_use]
pub fn meter(name: &str, threads: Option<usize>) -> Option<Meter> {
    let own = |device: Device| [ACCELERATOR, "cuda-host", "reference"].contains(&device.kind);
    let on_cpu = device_named(name).ok()?.map_or_else(|| accelerators().is_empty(), |device| !own(device));
    Isa::detect().ok().filter(|_| on_cpu).and_then(|isa| Meter::new(threads, isa))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_that_messages_show_is_a_device_of_the_registry() {
        for name in DEVICE_EXAMPLES {
            match device_named(name).unwrap() {
                Some(device) => assert!(kind(device).is_ok(), "{name}"),
                None => assert_eq!(name, "auto"),
            }
        }
        let kinds: Vec<_> = REGISTRY.iter().map(|k| k.name).collect();
        assert!(kinds.is_sorted() && kinds.contains(&ACCELERATOR));
    }

    #[test]
    fn what_is_no_device_and_what_is_not_there_are_told_apart() {
        let unknown = device("gpu", None, None).err().unwrap();
        assert!(matches!(unknown, RuntimeError::Option { .. }), "{unknown}");
        assert!(unknown.to_string().contains("virtual:0"), "{unknown}");
    }
}

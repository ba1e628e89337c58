//! The CPU backend: [`Cpu`] runs the op set with kernels per format and instruction set.
//!
//! Ops live in `ops/`, one file each, and hand out work to `pool`; matmuls go through `gemv/`, whose table says which
//! kernel reads which format; `inputs` rounds activations. Weights stay where they are mapped. What no kernel reads is
//! decoded row block by row block ([`Backend::support`](ashlar_backend::Backend::support) says so).
//!
//! Results do not depend on the number of threads (every output is computed whole by one task, in a fixed order), nor on
//! the instruction set, nor on how many rows a batch has.

pub mod bench;
mod buffers;
mod cores;
mod cpu;
mod gemv;
mod inputs;
mod kv;
mod loaded;
mod math;
mod meter;
mod ops;
mod pool;
mod shards;
#[cfg(test)]
mod testing;

pub use cores::physical as physical_cores;
pub use cpu::Cpu;
pub use meter::Meter;

/// The kernel family that reads packed weights of `spec`; `None` if they are decoded.
#[must_use]
pub fn kernel_name(spec: &ashlar_formats::Spec) -> Option<&'static str> {
    gemv::table::entry(spec, ashlar_tensor::Order::X16).map(|entry| entry.name)
}

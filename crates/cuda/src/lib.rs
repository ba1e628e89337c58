//! The CUDA backend: packs run on an NVIDIA GPU from the bytes that lie on disk, with only the driver installed.
//!
//! Kernels are the CUDA sources in `kernels/`, compiled to PTX by `cargo xtask kernels` and embedded; the driver turns them
//! into machine code. Owns: [`Cuda`] (the backend), the device seam with its two sides, the driver and the host shim
//! that runs the same sources on the CPU for tests; which kernel serves which grid (`table`). Refuses: what a device
//! cannot do it says, with a remedy; nothing falls back in silence.
//!
//! Inputs of quantized weights are rounded to int8 as the CPU's are, and integer products are exact; what remains is f32
//! rounding in another order, so kernels are held to the reference as tightly as the CPU's.

mod args;
pub mod bench;
mod buffers;
mod caches;
mod cuda;
mod device;
mod error;
pub mod modules;
pub mod nvrtc;
mod ops;
mod pool;
mod replay;
mod rope;
mod slots;
mod step;
mod survey;
mod table;
mod weights;

#[doc(hidden)]
pub use args::ARGUMENTS;
pub use ashlar_backend::{ActivationMode, Backend, BackendError};
pub use cuda::Cuda;
pub use error::Error;

/// Bytes of the shim's pool.
const HOST_POOL: u64 = 1 << 30;

/// Device number `index`, with a pool of nearly all memory that is free; inputs of quantized weights are rounded as `mode`
/// says. `limit`: the most bytes that weights, caches and activations may take.
///
/// # Errors
/// [`Error`]: no driver, too old a driver, no such device, one that lacks instructions, no memory.
pub fn open(index: usize, mode: ActivationMode, limit: Option<u64>) -> Result<Cuda, Error> {
    let device = device::driver::Driver::open(index)?;
    let room = device::Device::room(&device)?;
    let bytes = device::driver::pool_bytes(room);
    let bytes = limit.map_or(bytes, |limit| bytes.min(cuda::pool_for(limit)));
    Cuda::new(Box::new(device), bytes, mode)
}

/// The bytes that weights, caches and activations may take on a device that nothing else uses more of meanwhile.
///
/// # Errors
/// As [`open`].
pub fn budget(index: usize) -> Result<u64, Error> {
    let device = device::driver::Driver::open(index)?;
    Ok(cuda::budget_of(device::driver::pool_bytes(device::Device::room(&device)?)))
}

/// How many devices there are, without opening one; 0 without a driver.
#[must_use]
pub fn count() -> usize {
    device::driver::count().unwrap_or(0)
}

/// The host shim: the same kernels and the same orchestration on the CPU, for tests. `reversed` runs a kernel's blocks and threads in
/// the opposite order, which shows missing barriers.
///
/// # Errors
/// [`Error::Compiler`] if there is no C++ compiler.
pub fn open_host(mode: ActivationMode, reversed: bool) -> Result<Cuda, Error> {
    Cuda::new(Box::new(device::host::Host::new(reversed)?), HOST_POOL, mode)
}

/// What the host shim has compiled; for the test that compares argument structs.
///
/// # Errors
/// As [`open_host`].
#[doc(hidden)]
pub fn argument_bytes(kernel: &str) -> Result<Option<u32>, Error> {
    Ok(device::host::Library::open()?.argument_bytes(kernel))
}

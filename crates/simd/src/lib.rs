//! Instruction sets: which one this machine has, and how Rust is compiled for it.
//!
//! [`Isa::detect`] asks the CPU once; `ASHLAR_ISA=portable|avx2|avx_vnni|avx512_vnni|neon_dotprod` forces a lesser one
//! (for tests and for telling a kernel bug from a format bug). [`Isa::vectorize`] runs a closure compiled with the
//! wide instructions: used by encoders, which are ordinary loops over fixed lanes and therefore give the same bytes on
//! every ISA (Rust never contracts a multiply and an add, nor reorders float sums). [`Isa::run`] runs a [`Kernel`]
//! written over [`Simd`]'s vectors: used by `cpu`.

#[cfg(target_arch = "aarch64")]
mod aarch64;
mod bf16;
mod isa;
mod portable;
#[cfg(test)]
mod tests;
mod vector;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use isa::{Isa, IsaError};
pub use vector::{Kernel, Simd};

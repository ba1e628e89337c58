//! Instruction sets: which one this machine has, and how plain Rust is compiled for it.
//!
//! [`Isa::detect`] asks the CPU once; `ASHLAR_ISA=portable|avx2|avx_vnni|avx512_vnni|neon_dotprod` forces a lesser one
//! (for tests and for telling a kernel bug from a format bug). [`Isa::vectorize`] runs a closure compiled with the
//! wide instructions: used by encoders, which are ordinary loops over fixed lanes and therefore give the same bytes on
//! every ISA (Rust never contracts a multiply and an add, nor reorders float sums). Hand-written kernels live in `cpu`.

mod isa;
mod lanes;

pub use isa::{Isa, IsaError};
pub use lanes::{Portable, Simd, Task};

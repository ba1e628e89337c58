//! x86-64 tokens. Each is made only by its `detect`, which asks the CPU for every feature its methods use.

mod avx2;
mod avx512;

pub use avx2::{Avx2, AvxVnni};
pub use avx512::Avx512;

//! aarch64 tokens, made only by `detect`.

mod neon;

pub use neon::NeonDotprod;

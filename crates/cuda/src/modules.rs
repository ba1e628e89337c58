//! The sources of all kernels and the modules they are compiled to: what is embedded in the program.
//!
//! A module is one file compiled once: per format for matrices, once for everything else. `cargo xtask kernels` makes the
//! PTX from this list, the host shim a shared library.

/// A file below `kernels/`.
#[derive(Clone, Copy, Debug)]
pub struct File {
    /// Relative to `kernels/`, as `#include` names it.
    pub path: &'static str,
    /// Its text.
    pub text: &'static str,
}

/// A compiled unit.
#[derive(Clone, Copy, Debug)]
pub struct Module {
    /// Name of the PTX file; the end of its kernels' names where there is a format.
    pub name: &'static str,
    /// The file that is compiled.
    pub source: &'static str,
    /// The struct of the format and the header that defines it.
    pub format: Option<(&'static str, &'static str)>,
    /// What `cargo xtask kernels` made of it.
    pub ptx: &'static str,
}

impl Module {
    /// Macro definitions it is compiled with, such as `FORMAT=K3`.
    #[must_use]
    pub fn definitions(&self) -> Vec<String> {
        let Some((format, header)) = self.format else { return Vec::new() };
        vec![format!("FORMAT={format}"), format!("FILE=\"formats/{header}\""), format!("NAME={}", self.name)]
    }
}

macro_rules! files {
    ($($path:literal,)*) => {
        &[$(File { path: $path, text: include_str!(concat!("../../../kernels/", $path)) },)*]
    };
}

macro_rules! module {
    ($name:literal, $source:literal, $format:expr) => {
        Module {
            name: $name,
            source: $source,
            format: $format,
            ptx: include_str!(concat!("../../../kernels/ptx/", $name, ".ptx")),
        }
    };
}

/// Headers and sources, for NVRTC and the host shim.
pub const FILES: &[File] = files![
    "args.cuh",
    "attention.cu",
    "attention.cuh",
    "base.cuh",
    "cache.cuh",
    "exact.cuh",
    "flash.cu",
    "floating.cu",
    "formats/float.cuh",
    "formats/fp8.cuh",
    "formats/i4.cuh",
    "formats/k2.cuh",
    "formats/k3.cuh",
    "formats/k4.cuh",
    "formats/lut4.cuh",
    "formats/nested.cuh",
    "formats/nf4.cuh",
    "formats/nibbles.cuh",
    "formats/q6.cuh",
    "formats/q8.cuh",
    "host/shim.cpp",
    "host/shim.h",
    "integer.cu",
    "large.cuh",
    "levels.cuh",
    "moe.cu",
    "native.cuh",
    "pooled.cu",
    "ptx.cuh",
    "rounding.cuh",
    "rows.cu",
    "small.cuh",
    "survey.cu",
    "tf32.cuh",
    "weight.cuh",
];

/// Kernels without a format.
pub const ROWS: &str = "rows";
/// Mixtures of experts.
pub const MOE: &str = "moe";
/// Attention.
pub const ATTENTION: &str = "attention";
/// Attention on the tensor cores.
pub const FLASH: &str = "flash";
/// Pooled entries.
pub const POOLED: &str = "pooled";

/// Surveys of logits.
pub const SURVEY: &str = "survey";

/// All modules. Those of formats come first, in the order of `table::Kind`.
pub const MODULES: &[Module] = &[
    module!("q8", "integer.cu", Some(("Q8", "q8.cuh"))),
    module!("i4", "integer.cu", Some(("I4", "i4.cuh"))),
    module!("lut4", "integer.cu", Some(("Lut4", "lut4.cuh"))),
    module!("k4", "integer.cu", Some(("K4", "k4.cuh"))),
    module!("k3", "integer.cu", Some(("K3", "k3.cuh"))),
    module!("k2", "integer.cu", Some(("K2", "k2.cuh"))),
    module!("k2h", "integer.cu", Some(("K2h", "k2.cuh"))),
    module!("q6", "integer.cu", Some(("Q6", "q6.cuh"))),
    module!("nf4", "floating.cu", Some(("Nf4", "nf4.cuh"))),
    module!("fp8", "floating.cu", Some(("Fp8", "fp8.cuh"))),
    module!("bf16", "floating.cu", Some(("BF16", "float.cuh"))),
    module!("f16", "floating.cu", Some(("F16", "float.cuh"))),
    module!("f32", "floating.cu", Some(("F32", "float.cuh"))),
    module!("rows", "rows.cu", None),
    module!("moe", "moe.cu", None),
    module!("attention", "attention.cu", None),
    module!("flash", "flash.cu", None),
    module!("pooled", "pooled.cu", None),
    module!("survey", "survey.cu", None),
];

/// The module of that name.
#[must_use]
pub fn module(name: &str) -> Option<&'static Module> {
    MODULES.iter().find(|m| m.name == name)
}

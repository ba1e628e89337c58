//! Detection, the override, and [`Isa::vectorize`].

use std::fmt;
use std::sync::OnceLock;

/// An instruction set that ashlar has kernels for, from least to best within an architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Isa {
    /// Plain Rust, any CPU.
    Portable,
    /// aarch64 with the dot-product extension.
    NeonDotprod,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// AVX2 and the VEX-encoded int8 dot product.
    AvxVnni,
    /// AVX-512 F, BW, DQ, VL, VNNI and VBMI.
    Avx512Vnni,
}

/// `ASHLAR_ISA` asks for something this machine cannot run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("ASHLAR_ISA={asked}: {why}; this machine has {has}")]
pub struct IsaError {
    /// What was asked for.
    pub asked: String,
    /// Unknown name, or absent on this CPU.
    pub why: &'static str,
    /// What the machine has, comma-separated.
    pub has: String,
}

const ALL: &[(Isa, &str)] = &[
    (Isa::Portable, "portable"),
    (Isa::NeonDotprod, "neon_dotprod"),
    (Isa::Avx2, "avx2"),
    (Isa::AvxVnni, "avx_vnni"),
    (Isa::Avx512Vnni, "avx512_vnni"),
];

impl Isa {
    /// Every ISA this machine can run, least first; always begins with [`Isa::Portable`].
    #[must_use]
    pub fn available() -> Vec<Self> {
        ALL.iter().map(|(isa, _)| *isa).filter(|isa| isa.present()).collect()
    }

    /// Every ISA ashlar knows, for tests that count what they skip.
    #[must_use]
    pub fn known() -> Vec<Self> {
        ALL.iter().map(|(isa, _)| *isa).collect()
    }

    /// The ISA to use: the best available, or what `ASHLAR_ISA` forces. Decided once per process.
    ///
    /// # Errors
    /// [`IsaError`] if `ASHLAR_ISA` names an unknown or absent ISA.
    pub fn detect() -> Result<Self, IsaError> {
        static CHOICE: OnceLock<Result<Isa, IsaError>> = OnceLock::new();
        CHOICE.get_or_init(|| Self::choose(std::env::var("ASHLAR_ISA").ok().as_deref())).clone()
    }

    fn choose(asked: Option<&str>) -> Result<Self, IsaError> {
        let available = Self::available();
        let Some(asked) = asked.filter(|a| !a.is_empty()) else {
            return Ok(available.last().copied().unwrap_or(Self::Portable));
        };
        let has = || available.iter().map(|i| i.name()).collect::<Vec<_>>().join(", ");
        match ALL.iter().find(|(_, name)| *name == asked) {
            Some((isa, _)) if available.contains(isa) => Ok(*isa),
            Some(_) => Err(IsaError { asked: asked.to_owned(), why: "not on this CPU", has: has() }),
            None => Err(IsaError { asked: asked.to_owned(), why: "no such instruction set", has: has() }),
        }
    }

    /// The name `ASHLAR_ISA` and the reports use.
    #[must_use]
    pub fn name(self) -> &'static str {
        ALL.iter().find(|(isa, _)| *isa == self).map_or("?", |(_, name)| name)
    }

    #[cfg(target_arch = "x86_64")]
    pub(crate) fn present(self) -> bool {
        let avx2 =
            is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
        match self {
            Self::Portable => true,
            Self::NeonDotprod => false,
            Self::Avx2 => avx2,
            Self::AvxVnni => avx2 && is_x86_feature_detected!("avxvnni"),
            Self::Avx512Vnni => {
                avx2 && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vnni")
                    && is_x86_feature_detected!("avx512vbmi")
            }
        }
    }

    #[cfg(target_arch = "aarch64")]
    pub(crate) fn present(self) -> bool {
        match self {
            Self::Portable => true,
            Self::NeonDotprod => std::arch::is_aarch64_feature_detected!("dotprod"),
            _ => false,
        }
    }

    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    pub(crate) fn present(self) -> bool {
        self == Self::Portable
    }

    /// Whether this CPU has an instruction for dot products of bfloat16 beside this ISA (AVX512-BF16).
    #[must_use]
    pub fn multiplies_bf16(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        if self == Self::Avx512Vnni {
            return self.present() && is_x86_feature_detected!("avx512bf16");
        }
        false
    }

    /// Runs `body` compiled for this ISA. `body` and what it calls must be `#[inline(always)]` to benefit; results do
    /// not depend on the ISA.
    #[inline]
    pub fn vectorize<R>(self, body: impl FnOnce() -> R) -> R {
        #[cfg(target_arch = "x86_64")]
        {
            if self == Self::Avx512Vnni && self.present() {
                // SAFETY: `present` saw every feature that `with_avx512` enables.
                return unsafe { with_avx512(body) };
            }
            if self >= Self::Avx2 && Self::Avx2.present() {
                // SAFETY: `present` saw every feature that `with_avx2` enables.
                return unsafe { with_avx2(body) };
            }
        }
        body()
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn with_avx2<R>(body: impl FnOnce() -> R) -> R {
    body()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
fn with_avx512<R>(body: impl FnOnce() -> R) -> R {
    body()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn portable_is_always_available_and_can_be_forced() {
        assert_eq!(Isa::available().first(), Some(&Isa::Portable));
        assert_eq!(Isa::choose(Some("portable")), Ok(Isa::Portable));
    }

    #[test]
    fn an_unknown_name_is_refused_with_what_the_machine_has() {
        let e = Isa::choose(Some("sse9")).unwrap_err();
        assert!(e.to_string().contains("no such instruction set") && e.to_string().contains("portable"), "{e}");
    }

    #[test]
    fn vectorize_gives_the_same_sum_on_every_isa() {
        let x: Vec<f32> = (0..1000).map(|i| (i as f32).sin()).collect();
        let sum = |isa: Isa| isa.vectorize(|| x.iter().fold(0.0f32, |a, b| a * 0.5 + b));
        let want = sum(Isa::Portable).to_bits();
        for isa in Isa::available() {
            assert_eq!(sum(isa).to_bits(), want, "{isa}");
        }
    }
}

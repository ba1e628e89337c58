//! How a format rounds, as plain data: quantizers and kernels choose a loop once per tile instead of calling through a
//! pointer per value. A format with a new table or width is new data here, not new code in `quantize`.

use crate::ScaleType;
use crate::x16::Width;
use ashlar_tensor::Dtype;

/// What values the codes of a format stand for.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Grid {
    /// Every value is a float of this type.
    Float(Dtype),
    /// One scale (and perhaps zero point) per row and group of columns.
    Groups(Groups),
    /// Small integer scales per group times a float scale per row, or per so many columns.
    TwoLevel(TwoLevel),
    /// E4M3 floats (`e4m3`) with one scale of this type per 128 × 128 block.
    Blocks(ScaleType),
    /// Blocks that only [`crate::Format::decode`] gives a meaning to: kept as they lie, in one order, encoded by nothing.
    Opaque,
}

/// A scalar grid with group scales: value = (level(code) − zero point) · scale.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Groups {
    /// Bits of a code.
    pub width: Width,
    /// Columns that share a scale; a multiple of 32.
    pub group: usize,
    /// What codes stand for before scaling.
    pub levels: Levels,
    /// How round-to-nearest derives the scale from the group's largest magnitude.
    pub peak: Peak,
    /// How scales are stored.
    pub scale: ScaleType,
    /// Whether every group has its own zero point; without, [`Levels::Linear::zero`] holds for all.
    pub zero_point: bool,
}

/// A scalar grid whose group scales are small integers: value = level(code) · (outer · inner), both products rounded to
/// f32 in this order. A code's high bits lie in a plane of their own where no single [`Width`] holds it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TwoLevel {
    /// The low bits of a code.
    pub low: Width,
    /// The bits above them.
    pub high: Option<Width>,
    /// Columns that share an inner scale: 16 or 32.
    pub group: usize,
    /// Columns that share an outer scale, a multiple of `group` (the last may be short); `None`: the row.
    pub span: Option<usize>,
    /// How outer scales are stored.
    pub outer: ScaleType,
    /// What a group's parameter says.
    pub inner: Inner,
    /// What codes stand for: one grid, or two that a group chooses between.
    pub grids: &'static [Levels],
}

/// A group's parameter: an inner scale and, where there are two grids, the choice between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inner {
    /// One grid; the parameter is the scale, a two's-complement byte.
    Signed,
    /// Two grids: the lowest bit is the grid, the bits above it are u, and the scale is step · u − zero.
    Dual {
        /// Bits of the parameter, 5 to 8.
        bits: usize,
        /// Between neighbouring scales.
        step: i32,
        /// Minus the scale of u = 0.
        zero: i32,
    },
}

impl Inner {
    /// Bits of a parameter.
    #[inline(always)]
    #[must_use]
    pub const fn bits(self) -> usize {
        match self {
            Self::Signed => 8,
            Self::Dual { bits, .. } => bits,
        }
    }

    /// Scale and grid of a parameter.
    #[inline(always)]
    #[must_use]
    pub fn read(self, parameter: u8) -> (i32, usize) {
        match self {
            Self::Signed => (i32::from(parameter.cast_signed()), 0),
            Self::Dual { step, zero, .. } => (step * i32::from(parameter >> 1) - zero, usize::from(parameter & 1)),
        }
    }

    /// The parameter that [`Inner::read`] reads as this scale, one of [`Inner::bounds`] and the steps between, and grid.
    #[inline(always)]
    #[must_use]
    pub fn parameter(self, scale: i32, grid: usize) -> u8 {
        match self {
            Self::Signed => scale as u8,
            Self::Dual { step, zero, .. } => (((scale + zero) / step) << 1) as u8 | grid as u8,
        }
    }

    /// The smallest and the largest scale. The smallest is negative and of the largest magnitude.
    #[must_use]
    pub const fn bounds(self) -> (i32, i32) {
        match self {
            Self::Signed => (-128, 127),
            Self::Dual { bits, step, zero } => (-zero, step * ((1 << (bits - 1)) - 1) - zero),
        }
    }

    /// Between neighbouring scales.
    #[must_use]
    pub const fn step(self) -> i32 {
        match self {
            Self::Signed => 1,
            Self::Dual { step, .. } => step,
        }
    }
}

impl TwoLevel {
    /// Bits of a code.
    #[must_use]
    pub const fn code_bits(&self) -> usize {
        self.low.bits()
            + match self.high {
                Some(high) => high.bits(),
                None => 0,
            }
    }

    /// Outer scales of a row of k columns.
    #[must_use]
    pub const fn spans(&self, k: usize) -> usize {
        match self.span {
            Some(span) => k.div_ceil(span),
            None => 1,
        }
    }

    /// The level of every code, per grid. A code has at most 6 bits.
    #[must_use]
    pub fn tables(&self) -> [[f32; 64]; 2] {
        std::array::from_fn(|grid| {
            let levels = self.grids.get(grid).or(self.grids.first());
            std::array::from_fn(|code| match levels {
                Some(Levels::Linear { zero, .. }) => (code as i32 - zero) as f32,
                Some(Levels::Table(t)) => {
                    t.codes.iter().position(|&c| usize::from(c) == code).map_or(0.0, |i| t.levels[i])
                }
                None => 0.0,
            })
        })
    }

    /// The largest magnitude of any level.
    #[must_use]
    pub fn reach(&self) -> f32 {
        self.tables().iter().flatten().fold(0.0, |a, &b| a.max(b.abs()))
    }
}

/// The levels of a grid.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Levels {
    /// Codes min..=max, level = code − zero (a group's own zero point replaces `zero`).
    Linear {
        /// Smallest code.
        min: i32,
        /// Largest code.
        max: i32,
        /// The code that stands for zero.
        zero: i32,
    },
    /// A table of 16 levels.
    Table(&'static Table),
}

/// Sixteen levels in ascending order and the code of each. A table of fewer repeats its last level and code.
#[derive(Debug, PartialEq)]
pub struct Table {
    /// Ascending.
    pub levels: [f32; 16],
    /// Code of each level.
    pub codes: [u8; 16],
}

impl Table {
    /// The borders between neighbouring levels: y belongs to the level above border i if y > border i.
    #[inline]
    #[must_use]
    pub fn borders(&self) -> [f32; 15] {
        std::array::from_fn(|i| {
            let (low, high) = (self.levels[i], self.levels[i + 1]);
            if low == high { f32::INFINITY } else { (low + high) * 0.5 }
        })
    }
}

/// How round-to-nearest derives a scale.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Peak {
    /// scale = max |w| / level
    Absolute(f32),
    /// scale = (the w of largest magnitude) / level, so that this w is met exactly; scales may be negative.
    Signed(f32),
    /// scale = 2^(⌊log2 max |w|⌋ − exponent)
    Exponent(u8),
}

impl Groups {
    /// The level of every byte a code can be; bytes that no code is (above 15 for 4 bits) repeat the low nibble's.
    #[must_use]
    pub fn table(&self) -> [f32; 256] {
        let mut table = [0.0; 256];
        match self.levels {
            Levels::Linear { zero, .. } => {
                let zero = if self.zero_point { 0 } else { zero };
                for (byte, level) in (0..=u8::MAX).zip(&mut table) {
                    let code = match self.width {
                        Width::Eight => i32::from(byte.cast_signed()),
                        narrow => i32::from(byte & narrow.mask()),
                    };
                    *level = (code - zero) as f32;
                }
            }
            Levels::Table(t) => {
                for (byte, level) in (0..=u8::MAX).zip(&mut table) {
                    let code = byte & 15;
                    *level = match t.codes.iter().position(|&c| c == code) {
                        Some(i) => t.levels[i],
                        // E2M1 has two zeros; the table lists one.
                        None => -0.0,
                    };
                }
            }
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_ascend_and_every_code_is_listed_or_a_second_zero() -> Result<(), crate::FormatError> {
        for id in crate::ids() {
            for variant in crate::format(id)?.variants() {
                let text = if variant.text.is_empty() { id.to_owned() } else { format!("{id}:{}", variant.text) };
                let Grid::Groups(Groups { levels: Levels::Table(t), .. }) = text.parse::<crate::Spec>()?.grid()? else {
                    continue;
                };
                assert!(t.levels.is_sorted());
                let missing = (0..16u8).filter(|c| !t.codes.contains(c)).count();
                let repeated = t.levels.windows(2).filter(|w| w[0] == w[1]).count();
                assert_eq!(missing, repeated, "{id}");
            }
        }
        Ok(())
    }
}

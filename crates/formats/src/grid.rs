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
    /// E4M3 floats (`e4m3`) with one scale of this type per 128 × 128 block.
    Blocks(ScaleType),
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
                        Width::Four => i32::from(byte & 15),
                        Width::Eight => i32::from(byte.cast_signed()),
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

//! Which module reads which grid: the only place that tells formats apart.

use crate::args;
use crate::modules::{MODULES, Module};
use ashlar_formats::x16::Width;
use ashlar_formats::{Grid, Groups, Inner, Levels, ScaleType, Spec, TwoLevel};
use ashlar_tensor::{Dtype, PlaneKind};

/// A module of matrix kernels; the number is its place in [`MODULES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum Kind {
    /// Signed bytes.
    Bytes,
    /// Integers of 4 bits, with or without zero points.
    Nibbles,
    /// Tables of 16 integers.
    IntegerTable,
    /// Two tables of 16, inner and outer scales.
    Four,
    /// Two tables of 8.
    Three,
    /// Two tables of 4.
    Two,
    /// The same with 16 columns per group.
    TwoFine,
    /// Integers of 6 bits, 16 columns per group.
    Six,
    /// Tables of 16 floats.
    FloatTable,
    /// E4M3 with block scales.
    Fp8,
    /// bfloat16.
    BF16,
    /// IEEE half.
    F16,
    /// IEEE single.
    F32,
}

impl Kind {
    /// All kinds, in the order of [`MODULES`].
    pub const ALL: [Self; 13] = [
        Self::Bytes,
        Self::Nibbles,
        Self::IntegerTable,
        Self::Four,
        Self::Three,
        Self::Two,
        Self::TwoFine,
        Self::Six,
        Self::FloatTable,
        Self::Fp8,
        Self::BF16,
        Self::F16,
        Self::F32,
    ];

    /// Its module.
    pub fn module(self) -> &'static Module {
        &MODULES[self as usize]
    }

    /// Whether its inputs are rounded to int8, unless f32 is asked for.
    pub fn rounds(self) -> bool {
        self <= Self::Six
    }
}

/// The kind that reads weights of `spec`, and its part of the descriptor; `None` if no kernel does.
pub fn entry(spec: &Spec) -> Option<(Kind, args::Weight)> {
    let mut w: args::Weight = bytemuck::Zeroable::zeroed();
    w.unit = 1.0;
    w.group_shift = 5;
    let kind = match spec.grid().ok()? {
        Grid::Float(Dtype::F32) => Kind::F32,
        Grid::Float(Dtype::F16) => Kind::F16,
        Grid::Float(Dtype::BF16) => Kind::BF16,
        Grid::Blocks(scale) => {
            w.scale_type = scale_type(scale);
            Kind::Fp8
        }
        Grid::Groups(groups) => grouped(&groups, &mut w)?,
        Grid::TwoLevel(grid) => nested(&grid, &mut w)?,
        _ => return None,
    };
    w.kind = kind as u32;
    w.slots = u32::try_from(spec.outlier_slots).ok()?;
    Some((kind, w))
}

fn scale_type(scale: ScaleType) -> u32 {
    match scale {
        ScaleType::F16 => 0,
        ScaleType::BF16 => 1,
        ScaleType::F32 => 2,
        ScaleType::E8M0 => 3,
    }
}

fn grouped(groups: &Groups, w: &mut args::Weight) -> Option<Kind> {
    if !groups.group.is_power_of_two() || groups.group < 32 {
        return None;
    }
    w.group_shift = groups.group.trailing_zeros();
    w.scale_type = scale_type(groups.scale);
    match (groups.width, groups.levels) {
        (Width::Eight, Levels::Linear { zero: 0, .. }) if !groups.zero_point => Some(Kind::Bytes),
        (Width::Four, Levels::Linear { zero: 8, .. }) => Some(Kind::Nibbles),
        (Width::Four, Levels::Table(_)) if !groups.zero_point => {
            let levels: [f32; 16] = groups.table().first_chunk().copied()?;
            match [1.0, 0.5].into_iter().find_map(|unit| Some((unit, integers(&levels, unit)?))) {
                Some((unit, integers)) => {
                    (w.unit, w.levels) = (unit, integers);
                    Some(Kind::IntegerTable)
                }
                None => Some(Kind::FloatTable),
            }
        }
        _ => None,
    }
}

fn nested(grid: &TwoLevel, w: &mut args::Weight) -> Option<Kind> {
    w.group_shift = grid.group.trailing_zeros();
    w.scale_type = scale_type(grid.outer);
    w.span = grid.span.unwrap_or(0) as u32;
    let bits = match grid.inner {
        Inner::Signed => 8,
        Inner::Dual { bits, step, zero } => {
            (w.step, w.zero) = (step, zero);
            bits
        }
    };
    let [first, second] = grid.tables();
    let codes = 1usize << grid.code_bits();
    let moved = second[0] - first[0];
    if codes <= 16 {
        w.levels = integers(first.first_chunk()?, 1.0)?;
    }
    if moved.fract() != 0.0 || first.iter().zip(second).take(codes).any(|(a, b)| a + moved != b) {
        return None;
    }
    w.moved = moved as i32;
    let reach = first.iter().take(codes).fold(0.0f32, |m, l| m.max(l.abs())) + moved.abs();
    let fits = reach <= 127.0;
    match (grid.low, grid.high, grid.group, bits) {
        // The grids of these differ by 4, and 127 − 4 is a level of the second one: in reach all the same.
        (Width::Four, None, 32, 8) if w.step != 0 => Some(Kind::Four),
        (Width::Two, Some(Width::One), 32, 6) if fits => Some(Kind::Three),
        (Width::Two, None, 32, 6) if fits => Some(Kind::Two),
        (Width::Two, None, 16, 5) if fits => Some(Kind::TwoFine),
        (Width::Four, Some(Width::Two), 16, 8) if w.step == 0 && first[0] == -32.0 => Some(Kind::Six),
        _ => None,
    }
}

fn integers(levels: &[f32; 16], unit: f32) -> Option<[i8; 16]> {
    let whole = levels.iter().all(|l| (l / unit).fract() == 0.0 && (l / unit).abs() <= 127.0);
    whole.then(|| levels.map(|l| (l / unit) as i8))
}

/// Puts the addresses of planes where kernels look for them.
pub fn place(w: &mut args::Weight, kind: PlaneKind, address: u64) {
    let field = match kind {
        PlaneKind::Values | PlaneKind::Codes => &mut w.codes,
        PlaneKind::HighCodes => &mut w.high,
        PlaneKind::Scales => &mut w.scales,
        PlaneKind::OuterScales => &mut w.outer,
        PlaneKind::Zeros => &mut w.zeros,
        PlaneKind::Outliers => &mut w.outliers,
    };
    *field = address;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_variant_of_every_format_has_a_kernel() -> Result<(), ashlar_formats::FormatError> {
        for id in ashlar_formats::ids() {
            for variant in ashlar_formats::format(id)?.variants() {
                let text = if variant.text.is_empty() { id.to_owned() } else { format!("{id}:{}", variant.text) };
                let spec: Spec = text.parse()?;
                let (kind, w) = entry(&spec).unwrap_or_else(|| panic!("{spec} has no kernel"));
                assert_eq!((w.kind, kind.module().name.is_empty()), (kind as u32, false));
            }
        }
        Ok(())
    }

    #[test]
    fn kinds_stand_in_the_order_of_their_modules() {
        for (i, kind) in Kind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, i);
            assert!(kind.module().format.is_some());
        }
        assert!(MODULES[Kind::ALL.len()..].iter().all(|m| m.format.is_none()));
        let name = |text: &str| entry(&text.parse().unwrap()).unwrap().0.module().name;
        assert_eq!(["q8", "i4:g64,zp", "iq4nl", "mxfp4", "nf4"].map(name), ["q8", "i4", "lut4", "lut4", "nf4"]);
        assert_eq!(["k4", "k3", "k2", "k2h", "q6", "bf16"].map(name), ["k4", "k3", "k2", "k2h", "q6", "bf16"]);
    }
}

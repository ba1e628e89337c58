//! Which kernel serves which grid: the only place that tells formats apart. The ISA is chosen inside each kernel, which
//! is compiled for all of them.

use super::levels::Levels;
use super::two_level::{Four, Kind, Six, Three, Two, TwoFive};
use super::{Expand, LEAST_TILED_ROWS, Multiply, Scheme, bf16, float, fp8, grouped, two_level};
use crate::inputs::Form;
use ashlar_formats::x16::Width;
use ashlar_formats::{Grid, Groups, Levels as FormatLevels, ScaleType, Spec};
use ashlar_simd::Isa;
use ashlar_tensor::{Dtype, Order};

/// A kernel family and what it serves.
pub struct Entry {
    /// Name for reports.
    pub name: &'static str,
    /// Whether it reads weights of this grid.
    pub serves: fn(&Grid) -> bool,
    /// Whether it reads [`Order::Rows`] too; all read [`Order::X16`].
    pub rows: bool,
    /// The kernel for inputs rounded to int8 and the form it reads them in; `None`: this family always sees f32.
    pub rounded: Option<(Form, Multiply)>,
    /// The kernel for inputs rounded to bfloat16, if this family has one.
    pub bf16: Option<Multiply>,
    /// The kernel for f32 inputs.
    pub exact: Multiply,
    /// Writes panels down as f32; `None` for plain floats.
    pub expand: Option<Expand>,
    /// Rows of int8 inputs from which tiles are faster, for codes that are expanded with little effort: AVX2 without VNNI
    /// multiplies so slowly that expanding them again and again hardly shows.
    pub tiled_from: fn(Isa) -> usize,
}

fn from_few(_: Isa) -> usize {
    LEAST_TILED_ROWS
}

fn from_many_on_avx2(isa: Isa) -> usize {
    if isa == Isa::Avx2 { 128 } else { LEAST_TILED_ROWS }
}

/// All kernels. The first entry that serves a grid is taken.
pub const TABLE: &[Entry] = &[
    Entry {
        name: "bf16",
        serves: is_bf16,
        rows: true,
        rounded: None,
        bf16: Some(bf16::multiply),
        exact: float::multiply,
        expand: None,
        tiled_from: from_few,
    },
    Entry {
        name: "float",
        serves: is_float,
        rows: true,
        rounded: None,
        bf16: None,
        exact: float::multiply,
        expand: None,
        tiled_from: from_few,
    },
    Entry {
        name: "fp8",
        serves: is_fp8,
        rows: false,
        rounded: None,
        bf16: Some(fp8::rounded),
        exact: fp8::multiply,
        expand: Some(fp8::expand),
        tiled_from: from_few,
    },
    Entry {
        name: "q8",
        serves: is_q8,
        rows: false,
        rounded: Some((Form::Int8, grouped::bytes_int8)),
        bf16: None,
        exact: grouped::bytes_f32,
        expand: Some(grouped::bytes_expand),
        tiled_from: from_many_on_avx2,
    },
    Entry {
        name: "i4",
        serves: is_i4,
        rows: false,
        rounded: Some((Form::Int8, grouped::nibbles_int8)),
        bf16: None,
        exact: grouped::nibbles_f32,
        expand: Some(grouped::nibbles_expand),
        tiled_from: from_few,
    },
    // Tables whose levels are multiples of a common unit, such as iq4nl and mxfp4.
    Entry {
        name: "integer table",
        serves: is_integer_table,
        rows: false,
        rounded: Some((Form::Int8, grouped::table_int8)),
        bf16: None,
        exact: grouped::table_f32,
        expand: Some(grouped::table_expand),
        tiled_from: from_few,
    },
    // Any other table, such as nf4: levels are sums of integers.
    Entry {
        name: "table",
        serves: is_table,
        rows: false,
        rounded: Some((Form::Int8, grouped::digits_int8)),
        bf16: None,
        exact: grouped::table_f32,
        expand: Some(grouped::table_expand),
        tiled_from: from_few,
    },
    nested::<Four, 1>("k4"),
    nested::<Three, 1>("k3"),
    nested::<Two, 1>("k2"),
    nested::<TwoFive, 2>("k2h"),
    nested::<Six, 2>("q6"),
];

/// Inner and outer scales.
const fn nested<T: Kind, const PARTS: usize>(name: &'static str) -> Entry {
    Entry {
        name,
        serves: two_level::serves::<T, PARTS>,
        rows: false,
        rounded: Some((Form::Int8, two_level::rounded::<T, PARTS>)),
        bf16: None,
        exact: two_level::exact::<T, PARTS>,
        expand: Some(two_level::expand::<T, PARTS>),
        tiled_from: from_few,
    }
}

/// The kernels for weights of `spec` in that order; `None` if they must be decoded first.
pub fn entry(spec: &Spec, order: Order) -> Option<&'static Entry> {
    let grid = spec.grid().ok()?;
    TABLE.iter().find(|e| (order == Order::X16 || e.rows) && (e.serves)(&grid))
}

/// The schemes of kernels that read inputs in that form.
pub fn schemes(form: Form) -> &'static [Scheme] {
    match form {
        Form::Int8 => &[Scheme::Direct, Scheme::Tiled],
        Form::F32 | Form::Rounded | Form::Bf16 | Form::Bf16Values => &[Scheme::Direct],
    }
}

fn is_float(grid: &Grid) -> bool {
    matches!(grid, Grid::Float(_))
}

fn is_bf16(grid: &Grid) -> bool {
    matches!(grid, Grid::Float(Dtype::BF16))
}

fn is_fp8(grid: &Grid) -> bool {
    matches!(grid, Grid::Blocks(_))
}

fn is_q8(grid: &Grid) -> bool {
    let levels = |g: &Groups| matches!(g.levels, FormatLevels::Linear { zero: 0, .. }) && !g.zero_point;
    grouped(grid).is_some_and(|g| g.width == Width::Eight && g.scale == ScaleType::F16 && levels(g))
}

fn is_i4(grid: &Grid) -> bool {
    let levels = |g: &Groups| matches!(g.levels, FormatLevels::Linear { zero: grouped::NIBBLE_ZERO, .. });
    grouped(grid).is_some_and(|g| g.width == Width::Four && g.scale == ScaleType::F16 && levels(g))
}

fn is_integer_table(grid: &Grid) -> bool {
    is_table(grid) && Levels::of(grid).is_some_and(|levels| levels.unit != 0.0)
}

fn is_table(grid: &Grid) -> bool {
    let scale = |g: &Groups| matches!(g.scale, ScaleType::F16 | ScaleType::E8M0) && !g.zero_point;
    grouped(grid).is_some_and(|g| g.width == Width::Four && scale(g) && matches!(g.levels, FormatLevels::Table(_)))
}

/// Groups whose panels have one scale vector for any 32 columns.
fn grouped(grid: &Grid) -> Option<&Groups> {
    match grid {
        Grid::Groups(g) if g.group.is_multiple_of(32) && (g.group / 32).is_power_of_two() => Some(g),
        _ => None,
    }
}

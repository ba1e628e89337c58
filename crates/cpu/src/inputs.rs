//! Activations as kernels read them: f32 as they are, and rounded to int8 once per op.

use crate::loaded::Loaded;
use crate::math::load_part;
use crate::pool::Pool;
use crate::shards::Shards;
use ashlar_backend::{INT8_GROUP, int8_scale, round_bf16};
use ashlar_simd::{Isa, Kernel, Simd};
use std::ops::Range;

/// Which form of its inputs a kernel reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// f32 as the op got them.
    F32,
    /// f32 values of the int8 rounding.
    Rounded,
    /// The int8 codes and scales; an outlier plane reads the rounded f32 values beside them.
    Int8,
    /// bfloat16.
    Bf16,
    /// f32 values of the bfloat16 rounding.
    Bf16Values,
}

/// Which rounded forms some weights read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forms {
    int8: bool,
    int8_values: bool,
    bf16: bool,
    bf16_values: bool,
}

impl Forms {
    /// Those of these weights.
    pub fn of<'a>(weights: impl IntoIterator<Item = &'a Loaded>) -> Self {
        let mut forms = Self::default();
        for weight in weights {
            let form = weight.form();
            forms.int8 |= matches!(form, Form::Int8 | Form::Rounded);
            forms.int8_values |= weight.reads_rounded_values();
            forms.bf16 |= form == Form::Bf16;
            forms.bf16_values |= form == Form::Bf16Values;
        }
        forms
    }
}

/// Groups of a row that lie side by side. Rows follow one another, then comes the next slab of groups: prefill multiplies
/// a slab of all rows with a tile of weights, and so streams through memory.
pub const SLAB: usize = 8;

/// The rounded forms of some rows; buffers are reused from op to op.
#[derive(Default)]
pub struct Rounded {
    rows: usize,
    groups: usize,
    /// `[slab][row][group of the slab]`, see [`SLAB`]
    int8: Vec<Int8Group>,
    /// rows × k, if asked for
    values: Vec<f32>,
    /// `[row][chunk of 32 values]`, the last padded with zeros
    bf16: Vec<Bf16Chunk>,
    /// rows × k, if asked for
    bf16_values: Vec<f32>,
}

/// Values of a [`Bf16Chunk`].
pub const BF16_CHUNK: usize = 32;

/// 32 bfloat16.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(align(64))]
pub struct Bf16Chunk(pub [u8; 2 * BF16_CHUNK]);

/// The inputs of a matmul: m rows of k values.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    /// m × k, row-major.
    pub f32: &'a [f32],
    /// Values per row.
    pub k: usize,
    rounded: Option<&'a Rounded>,
}

/// 32 activations in int8. All that a kernel needs of them lies in one cache line: it then holds one pointer per row.
///
/// The scale is m / 8 · 2^e with 8 ≤ m < 16 ([`ashlar_backend::int8_scale`]), so that kernels may take it apart: m
/// multiplies weights' scales beforehand, and 2^e comes with the conversion of the integer sum to a float. A sum that
/// starts at the bits of 1.5 · 2^(23 + e) ends, read as a float, at 1.5 · 2^(23 + e) + sum · 2^e.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(align(64))]
pub struct Int8Group {
    /// The codes, four to a word, the first in the lowest byte.
    pub words: [i32; INT8_GROUP / 4],
    /// x̂ = code · scale
    pub scale: f32,
    /// 1.5 · 2^(23 + e)
    pub base: f32,
    /// The bits of `base` − OFFSET · Σ codes: where a sum of [`Simd::dot`] starts.
    start: i32,
    /// The same with the codes of the first and of the second 16.
    starts: [i32; 2],
    /// −Σ codes
    minus_sum: i32,
    /// The same of the first and of the second 16.
    minus_sums: [i32; 2],
}

impl Int8Group {
    /// −Σ codes of part `part` of `parts`, 1 or 2.
    #[inline(always)]
    pub fn minus(&self, parts: usize, part: usize) -> i32 {
        if parts == 1 { self.minus_sum } else { self.minus_sums[part] }
    }

    /// Where the sum over a part starts that is to be read as a float, see above.
    #[inline(always)]
    pub fn start(&self, parts: usize, part: usize) -> i32 {
        if parts == 1 { self.start } else { self.starts[part] }
    }

    /// m − 8, of the scale m / 8 · 2^e.
    #[inline(always)]
    pub fn eighths(&self) -> usize {
        (self.scale.to_bits() >> 20 & 7) as usize
    }

    /// Sets the scale and, from it and the sums of codes, what kernels read.
    #[inline(always)]
    fn set_scale<S: Simd>(&mut self, scale: f32) {
        const EXPONENT: u32 = 0x7f80_0000;
        self.scale = scale;
        let power = scale.to_bits() & EXPONENT;
        // 1.5 · 2^23 times the power; what is zero or infinite stays so.
        let base = if scale.is_normal() { power + (23 << 23) + (1 << 22) } else { power };
        self.base = f32::from_bits(base);
        let start = |minus: i32| base.cast_signed().wrapping_add(minus * S::OFFSET);
        self.start = start(self.minus_sum);
        self.starts = [start(self.minus_sums[0]), start(self.minus_sums[1])];
    }
}

impl<'a> Inputs<'a> {
    /// Rows of `k` f32; `rounded` is needed by kernels that read another form.
    pub fn new(f32: &'a [f32], k: usize, rounded: Option<&'a Rounded>) -> Self {
        Self { f32, k, rounded }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.f32.len() / self.k.max(1)
    }

    /// One row of f32 values, rounded or not. Rounded ones must have been asked for.
    #[inline(always)]
    pub fn values(&self, row: usize, form: Form) -> &'a [f32] {
        let all = match (form, self.rounded) {
            (Form::Rounded | Form::Int8, Some(rounded)) => &rounded.values,
            (Form::Bf16 | Form::Bf16Values, Some(rounded)) => &rounded.bf16_values,
            _ => self.f32,
        };
        &all[row * self.k..(row + 1) * self.k]
    }

    /// One row in bfloat16; empty if the inputs were not rounded to it.
    #[inline(always)]
    pub fn bf16(&self, row: usize) -> &'a [Bf16Chunk] {
        let chunks = self.k.div_ceil(BF16_CHUNK);
        self.rounded.map_or(&[], |r| &r.bf16[row * chunks..(row + 1) * chunks])
    }

    /// The groups of a slab of one row in int8; empty if the inputs were not rounded.
    #[inline(always)]
    pub fn int8(&self, row: usize, slab: usize) -> &'a [Int8Group] {
        self.rounded.map_or(&[], |r| &r.int8[slab_of(r.rows, r.groups, row, slab)])
    }
}

/// Where a slab of a row lies.
#[inline(always)]
fn slab_of(rows: usize, groups: usize, row: usize, slab: usize) -> Range<usize> {
    let width = SLAB.min(groups - slab * SLAB);
    let start = slab * SLAB * rows + row * width;
    start..start + width
}

impl Rounded {
    /// Rounds every row of `x` (rows × k) to the forms that are asked for, as [`ashlar_backend::round_int8`] and
    /// [`ashlar_backend::round_bf16`] do, to the same bits.
    pub fn round(&mut self, pool: &Pool, isa: Isa, x: &[f32], k: usize, forms: Forms) {
        if forms.int8 {
            self.int8(pool, isa, x, k, forms.int8_values);
        }
        if forms.bf16 {
            self.bf16(pool, isa, x, k);
        }
        if forms.bf16_values {
            self.bf16_values.clear();
            self.bf16_values.extend(x.iter().map(|v| round_bf16(*v)));
        }
    }

    fn int8(&mut self, pool: &Pool, isa: Isa, x: &[f32], k: usize, with_values: bool) {
        (self.rows, self.groups) = (x.len() / k.max(1), k.div_ceil(INT8_GROUP));
        let (rows, groups, width) = (self.rows, self.groups, if with_values { k } else { 0 });
        self.int8.resize(rows * groups, Int8Group::default());
        self.values.resize(rows * width, 0.0);
        let (int8, values) = (Shards::new(&mut self.int8), Shards::new(&mut self.values));
        let body = |row: usize| {
            // SAFETY: every row is one index of the pool.
            let values = unsafe { values.slice(row * width..(row + 1) * width) };
            let columns = SLAB * INT8_GROUP;
            for (slab, x) in x[row * k..(row + 1) * k].chunks(columns).enumerate() {
                // SAFETY: as above, and slabs of a row do not overlap.
                let int8 = unsafe { int8.slice(slab_of(rows, groups, row, slab)) };
                let values = values.chunks_mut(columns).nth(slab).unwrap_or_default();
                isa.run(RoundSlab { x, int8, values });
            }
        };
        pool.run(rows, &body);
    }

    fn bf16(&mut self, pool: &Pool, isa: Isa, x: &[f32], k: usize) {
        let (rows, chunks) = (x.len() / k.max(1), k.div_ceil(BF16_CHUNK));
        self.bf16.resize(rows * chunks, Bf16Chunk([0; 2 * BF16_CHUNK]));
        let out = Shards::new(&mut self.bf16);
        pool.run(rows, &|row| {
            // SAFETY: every row is one index of the pool.
            let out = unsafe { out.slice(row * chunks..(row + 1) * chunks) };
            isa.run(RoundBf16 { x: &x[row * k..(row + 1) * k], out });
        });
    }
}

/// A row to bfloat16.
struct RoundBf16<'a> {
    x: &'a [f32],
    out: &'a mut [Bf16Chunk],
}

impl Kernel for RoundBf16<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (x, out) in self.x.chunks(BF16_CHUNK).zip(self.out) {
            for (x, out) in x.chunks(16).zip(out.0.as_chunks_mut::<32>().0) {
                // [`round_bf16`], lane by lane.
                let bits = s.bits(load_part(s, x));
                let half = s.add_i32(s.and(s.shr(bits, 16), s.splat_i32(1)), s.splat_i32(0x7fff));
                let rounded = s.as_f32(s.and(s.add_i32(bits, half), s.splat_i32(!0xffff)));
                let magnitude = s.as_f32(s.and(s.bits(rounded), s.splat_i32(i32::MAX)));
                // A NaN is greater than nothing, and stays.
                let kept = s.if_gt(s.splat(f32::MIN_POSITIVE), magnitude, s.splat(0.0), rounded);
                let mut lanes = [0.0; 16];
                s.store(kept, &mut lanes);
                for (to, lane) in out.as_chunks_mut::<2>().0.iter_mut().zip(lanes) {
                    *to = ((lane.to_bits() >> 16) as u16).to_le_bytes();
                }
            }
            if x.len() < BF16_CHUNK {
                out.0[2 * x.len()..].fill(0);
            }
        }
    }
}

/// At most a slab of a row.
struct RoundSlab<'a> {
    x: &'a [f32],
    int8: &'a mut [Int8Group],
    /// As long as x, or empty.
    values: &'a mut [f32],
}

impl Kernel for RoundSlab<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (whole, rest) = self.x.as_chunks::<INT8_GROUP>();
        for (x, out) in whole.iter().zip(&mut *self.int8) {
            *out = round_group(s, x);
        }
        if let (false, Some(out)) = (rest.is_empty(), self.int8.last_mut()) {
            let mut group = [0.0; INT8_GROUP];
            group[..rest.len()].copy_from_slice(rest);
            *out = round_group(s, &group);
        }
        for (values, group) in self.values.chunks_mut(INT8_GROUP).zip(&*self.int8) {
            for (v, code) in values.iter_mut().zip(group.words.iter().flat_map(|w| w.to_le_bytes())) {
                *v = f32::from(code.cast_signed()) * group.scale;
            }
        }
    }
}

/// One group; the formula, operation by operation, of [`ashlar_backend::round_int8`].
#[inline(always)]
fn round_group<S: Simd>(s: S, x: &[f32; INT8_GROUP]) -> Int8Group {
    // Plain code, no closures: what is not inlined for certain is compiled without the ISA.
    let halves = x.as_chunks::<16>().0;
    let mut greatest = s.splat(0.0);
    for x in halves {
        // A NaN is no maximum: `max` gives the second operand.
        greatest = s.max(s.as_f32(s.and(s.bits(s.load(x)), s.splat_i32(i32::MAX))), greatest);
    }
    let max = s.greatest(greatest);
    let scale = int8_scale(max);
    let mut group = Int8Group::default();
    if scale == 0.0 {
        return group;
    }
    let factor = s.splat(1.0 / scale);
    for (half, x) in halves.iter().enumerate() {
        // For the same reason a NaN becomes −127 rather than a wild code.
        let v = s.min(s.max(s.mul(s.load(x), factor), s.splat(-127.0)), s.splat(127.0));
        let codes = s.to_i32(v);
        let mut bytes = [0; 16];
        s.store_i8(codes, &mut bytes);
        for (word, bytes) in group.words[4 * half..4 * half + 4].iter_mut().zip(bytes.as_chunks::<4>().0) {
            *word = i32::from_le_bytes(*bytes);
        }
        group.minus_sums[half] = -s.sum_i32(codes);
    }
    group.minus_sum = group.minus_sums[0] + group.minus_sums[1];
    group.set_scale::<S>(scale);
    group
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By arithmetic, not by bits.
    fn base_and_eighths(scale: f32) -> (f32, usize) {
        let power = scale.log2().floor().exp2();
        (12_582_912.0 * power, (scale / power * 8.0) as usize - 8)
    }
    use ashlar_backend::{round_int8, round_row};

    #[test]
    fn codes_scales_and_values_are_those_of_the_reference() {
        // A slab, and a part of one that ends within a group.
        let k = 346;
        let mut x: Vec<f32> = (0..3 * k).map(|i| ((i * 2_654_435_761usize) as u32 as f32).sin() * 3.0).collect();
        x[k..k + 32].fill(0.0);
        x[..4].copy_from_slice(&[127.0, 2.5, 3.5, -0.5]);
        x[40..43].copy_from_slice(&[1e-39, -2e-38, 1.0 + 1.0 / 256.0]);
        for isa in Isa::available() {
            let pool = Pool::new(2);
            let mut rounded = Rounded::default();
            rounded.round(&pool, isa, &x, k, Forms { int8: true, int8_values: true, bf16: true, bf16_values: true });
            let inputs = Inputs::new(&x, k, Some(&rounded));
            for row in 0..3 {
                let x = &x[row * k..(row + 1) * k];
                let got = [inputs.int8(row, 0), inputs.int8(row, 1)].concat();
                for (g, x) in x.chunks(32).enumerate() {
                    let mut want = [0i8; 32];
                    let scale = round_int8(x, &mut want[..x.len()]);
                    let codes: Vec<i8> = got[g].words.iter().flat_map(|w| w.to_le_bytes().map(|b| b as i8)).collect();
                    assert_eq!((codes.as_slice(), got[g].scale), (want.as_slice(), scale), "{isa} row {row} group {g}");
                    let sum = |codes: &[i8]| codes.iter().map(|c| i32::from(*c)).sum::<i32>();
                    assert_eq!(got[g].minus(1, 0), -sum(&want));
                    assert_eq!([0, 1].map(|half| got[g].minus(2, half)), [-sum(&want[..16]), -sum(&want[16..])]);
                    assert!(scale == 0.0 || base_and_eighths(scale) == (got[g].base, got[g].eighths()), "{scale}");
                }
                let mut want = x.to_vec();
                round_row(&mut want);
                assert_eq!(inputs.values(row, Form::Rounded), want);
                let want: Vec<f32> = x.iter().map(|v| round_bf16(*v)).collect();
                assert_eq!(inputs.values(row, Form::Bf16Values), want);
                let chunks = inputs.bf16(row).iter().flat_map(|chunk| chunk.0.as_chunks::<2>().0);
                let got: Vec<f32> = chunks.map(|b| f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16)).collect();
                assert_eq!((&got[..k], got[k..].iter().all(|v| *v == 0.0)), (&want[..], true), "{isa} row {row}");
            }
        }
    }
}

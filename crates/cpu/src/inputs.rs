//! Activations as kernels read them: f32 as they are, and rounded to int8 once per op.

use crate::pool::Pool;
use crate::shards::Shards;
use ashlar_backend::INT8_GROUP;
use ashlar_simd::{Isa, Kernel, Simd};

/// Which form of its inputs a kernel reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// f32 as the op got them.
    F32,
    /// f32 values of the int8 rounding.
    Rounded,
    /// The int8 codes and scales; an outlier plane reads the rounded f32 values beside them.
    Int8,
}

/// The rounded forms of some rows; buffers are reused from op to op.
#[derive(Default)]
pub struct Rounded {
    groups: usize,
    /// rows × groups × 32 codes, four to a word, the first in the lowest byte.
    words: Vec<[i32; 8]>,
    /// rows × groups
    scales: Vec<f32>,
    /// rows × groups: Σ codes.
    sums: Vec<i32>,
    /// rows × k
    values: Vec<f32>,
}

/// The inputs of a matmul: m rows of k values.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    /// m × k, row-major.
    pub f32: &'a [f32],
    /// Values per row.
    pub k: usize,
    rounded: Option<&'a Rounded>,
}

/// One row in int8.
#[derive(Clone, Copy)]
pub struct Int8Row<'a> {
    /// 32 codes per group.
    pub words: &'a [[i32; 8]],
    /// One scale per group.
    pub scales: &'a [f32],
    /// Σ codes per group.
    pub sums: &'a [i32],
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

    /// One row of f32 values, rounded or not.
    #[inline(always)]
    pub fn values(&self, row: usize, form: Form) -> &'a [f32] {
        let all = match (form, self.rounded) {
            (Form::Rounded | Form::Int8, Some(rounded)) => &rounded.values,
            _ => self.f32,
        };
        &all[row * self.k..(row + 1) * self.k]
    }

    /// One row in int8; empty if the inputs were not rounded.
    #[inline(always)]
    pub fn int8(&self, row: usize) -> Int8Row<'a> {
        let Some(r) = self.rounded else { return Int8Row { words: &[], scales: &[], sums: &[] } };
        let groups = row * r.groups..(row + 1) * r.groups;
        Int8Row { words: &r.words[groups.clone()], scales: &r.scales[groups.clone()], sums: &r.sums[groups] }
    }
}

impl Rounded {
    /// Rounds every row of `x` (rows × k) as [`ashlar_backend::round_int8`] does, to the same bits.
    pub fn round(&mut self, pool: &Pool, isa: Isa, x: &[f32], k: usize) {
        let rows = x.len() / k.max(1);
        self.groups = k.div_ceil(INT8_GROUP);
        let groups = self.groups;
        self.words.resize(rows * groups, [0; 8]);
        self.scales.resize(rows * groups, 0.0);
        self.sums.resize(rows * groups, 0);
        self.values.resize(rows * k, 0.0);
        let (words, scales) = (Shards::new(&mut self.words), Shards::new(&mut self.scales));
        let (sums, values) = (Shards::new(&mut self.sums), Shards::new(&mut self.values));
        let body = |row: usize| {
            let of = row * groups..(row + 1) * groups;
            // SAFETY: every row is one index of the pool, and its parts of the four buffers are its own.
            let (words, scales) = unsafe { (words.slice(of.clone()), scales.slice(of.clone())) };
            // SAFETY: as above.
            let (sums, values) = unsafe { (sums.slice(of), values.slice(row * k..(row + 1) * k)) };
            isa.run(RoundRow { x: &x[row * k..(row + 1) * k], words, scales, sums, values });
        };
        pool.run(rows, &body);
    }
}

struct RoundRow<'a> {
    x: &'a [f32],
    words: &'a mut [[i32; 8]],
    scales: &'a mut [f32],
    sums: &'a mut [i32],
    values: &'a mut [f32],
}

impl Kernel for RoundRow<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let groups = self.x.chunks(INT8_GROUP).zip(self.values.chunks_mut(INT8_GROUP));
        let outs = self.words.iter_mut().zip(self.scales).zip(self.sums);
        for ((x, values), ((words, scale), sum)) in groups.zip(outs) {
            let mut group = [0.0f32; INT8_GROUP];
            group[..x.len()].copy_from_slice(x);
            let codes = round_group(s, &group, scale);
            *sum = codes.iter().sum();
            for (word, codes) in words.iter_mut().zip(codes.as_chunks::<4>().0) {
                *word = i32::from_le_bytes(codes.map(|c| c as u8));
            }
            for (v, code) in values.iter_mut().zip(codes) {
                *v = code as f32 * *scale;
            }
        }
    }
}

/// Codes of one group; the formula, operation by operation, of [`ashlar_backend::round_int8`].
#[inline(always)]
fn round_group<S: Simd>(s: S, x: &[f32; INT8_GROUP], scale: &mut f32) -> [i32; INT8_GROUP] {
    let mut max = 0.0f32;
    for v in x {
        let v = v.abs();
        max = if v > max { v } else { max };
    }
    let inverse = 127.0 / max;
    let mut codes = [0; INT8_GROUP];
    if !inverse.is_finite() {
        *scale = 0.0;
        return codes;
    }
    *scale = max / 127.0;
    let factor = s.splat(inverse);
    for (x, codes) in x.as_chunks::<16>().0.iter().zip(codes.as_chunks_mut::<16>().0) {
        // A NaN, which any comparison lets fall through to the second operand, becomes −127 rather than a wild code.
        let v = s.min(s.max(s.mul(s.load(x), factor), s.splat(-127.0)), s.splat(127.0));
        s.store_i32(s.to_i32(v), codes);
    }
    codes
}

#[cfg(test)]
mod tests {
    use super::*;
    use ashlar_backend::{round_int8, round_row};

    #[test]
    fn codes_scales_and_values_are_those_of_the_reference() {
        let k = 90;
        let mut x: Vec<f32> = (0..3 * k).map(|i| ((i * 2_654_435_761usize) as u32 as f32).sin() * 3.0).collect();
        x[k..k + 32].fill(0.0);
        x[..4].copy_from_slice(&[127.0, 2.5, 3.5, -0.5]);
        for isa in Isa::available() {
            let pool = Pool::new(2);
            let mut rounded = Rounded::default();
            rounded.round(&pool, isa, &x, k);
            let inputs = Inputs::new(&x, k, Some(&rounded));
            for row in 0..3 {
                let x = &x[row * k..(row + 1) * k];
                let got = inputs.int8(row);
                for (g, x) in x.chunks(32).enumerate() {
                    let mut want = [0i8; 32];
                    let scale = round_int8(x, &mut want[..x.len()]);
                    let codes: Vec<i8> = got.words[g].iter().flat_map(|w| w.to_le_bytes().map(|b| b as i8)).collect();
                    assert_eq!(
                        (codes.as_slice(), got.scales[g]),
                        (want.as_slice(), scale),
                        "{isa} row {row} group {g}"
                    );
                    assert_eq!(got.sums[g], want.iter().map(|c| i32::from(*c)).sum::<i32>());
                }
                let mut want = x.to_vec();
                round_row(&mut want);
                assert_eq!(inputs.values(row, Form::Rounded), want);
            }
        }
    }
}

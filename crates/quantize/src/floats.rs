//! Rounds tiles to a float type: nearest, ties to even.

use crate::lanes::{V, splat};
use crate::panel::{Sums, peaks};
use crate::{Tile, TileError};
use ashlar_formats::scale::{bf16_bits, f16_bits, f16_to_f32};
use ashlar_formats::x16::ROWS;
use ashlar_formats::{FormatError, ScaleType};
use ashlar_simd::{Isa, Kernel, Simd};
use ashlar_tensor::Dtype;

/// Vectors that are rounded at once.
const VECTORS: usize = 32;

/// Writes the tile as `dtype`.
pub fn quantize(
    dtype: Dtype,
    id: &'static str,
    tile: Tile<'_>,
    isa: Isa,
    out: &mut [&mut [u8]],
) -> Result<TileError, FormatError> {
    let bytes: &mut [u8] = out.first_mut().map(|o| &mut **o).unwrap_or_default();
    isa.run(Job { dtype, id, tile, bytes })
}

struct Job<'a> {
    dtype: Dtype,
    id: &'static str,
    tile: Tile<'a>,
    bytes: &'a mut [u8],
}

impl Kernel for Job<'_> {
    type Output = Result<TileError, FormatError>;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Self::Output {
        let mut sums = Sums::default();
        let (mut x, mut decoded) = ([splat(0.0); VECTORS], [splat(0.0); VECTORS]);
        let step = VECTORS * ROWS;
        let chunks = self.tile.values.chunks(step).zip(self.bytes.chunks_mut(step * self.dtype.size()));
        for (i, (values, bytes)) in chunks.enumerate() {
            let flat = x.as_flattened_mut();
            flat.fill(0.0);
            flat.iter_mut().zip(values).for_each(|(x, &value)| *x = value);
            round(self.dtype, values, bytes, decoded.as_flattened_mut());
            decoded.as_flattened_mut().iter_mut().skip(values.len()).for_each(|d| *d = 0.0);
            if peaks(s, &x).is_none() || peaks(s, &decoded).is_none() {
                return Err(self.tile.refuse(self.id, self.dtype, i * step, &x, &decoded));
            }
            sums.add(s, &x, &decoded);
        }
        Ok(sums.error(0))
    }
}

/// Writes `values` as `dtype` and what they become as f32.
#[inline(always)]
fn round(dtype: Dtype, values: &[f32], bytes: &mut [u8], decoded: &mut [f32]) {
    match dtype {
        Dtype::F16 => {
            for ((b, &v), d) in bytes.as_chunks_mut::<2>().0.iter_mut().zip(values).zip(decoded) {
                let bits = f16_bits(v);
                *b = bits.to_le_bytes();
                *d = f16_to_f32(bits);
            }
        }
        Dtype::BF16 => {
            for ((b, &v), d) in bytes.as_chunks_mut::<2>().0.iter_mut().zip(values).zip(decoded) {
                let bits = bf16_bits(v);
                *b = bits.to_le_bytes();
                *d = f32::from_bits(u32::from(bits) << 16);
            }
        }
        _ => {
            for ((b, &v), d) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(values).zip(decoded) {
                *b = v.to_le_bytes();
                *d = v;
            }
        }
    }
}

impl Tile<'_> {
    /// Names the first value, from `start` on, that is not finite or does not stay so.
    #[cold]
    fn refuse(&self, id: &'static str, dtype: Dtype, start: usize, x: &[V], decoded: &[V]) -> FormatError {
        let pairs = x.as_flattened().iter().zip(decoded.as_flattened());
        let bad = pairs.enumerate().find(|(_, (x, d))| !x.is_finite() || !d.is_finite());
        let (at, value) = bad.map_or((start, f32::NAN), |(i, (&x, _))| (start + i, x));
        let (row, column) = (self.first_row + at / self.k, at % self.k);
        if !value.is_finite() {
            return FormatError::NotFinite { row, column, value };
        }
        let limit = if dtype == Dtype::F16 { ScaleType::F16.max() } else { ScaleType::BF16.max() };
        FormatError::TooLarge { id, row, column, value, limit }
    }
}

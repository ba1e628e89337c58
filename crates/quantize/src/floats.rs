//! Rounds tiles to a float type: nearest, ties to even.

use crate::{Tile, TileError};
use ashlar_formats::scale::{bf16_bits, f16_bits, f16_to_f32};
use ashlar_formats::{FormatError, ScaleType};
use ashlar_tensor::Dtype;

/// Writes the tile as `dtype`.
pub fn quantize(
    dtype: Dtype,
    id: &'static str,
    tile: Tile<'_>,
    out: &mut [&mut [u8]],
) -> Result<TileError, FormatError> {
    let bytes: &mut [u8] = out.first_mut().map(|o| &mut **o).unwrap_or_default();
    let (rounded, limit): (fn(f32) -> f32, f32) = match dtype {
        Dtype::F16 => {
            for (b, &v) in bytes.as_chunks_mut::<2>().0.iter_mut().zip(tile.values) {
                *b = f16_bits(v).to_le_bytes();
            }
            (|v| f16_to_f32(f16_bits(v)), ScaleType::F16.max())
        }
        Dtype::BF16 => {
            for (b, &v) in bytes.as_chunks_mut::<2>().0.iter_mut().zip(tile.values) {
                *b = bf16_bits(v).to_le_bytes();
            }
            (|v| f32::from_bits(u32::from(bf16_bits(v)) << 16), ScaleType::BF16.max())
        }
        _ => {
            for (b, &v) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(tile.values) {
                *b = v.to_le_bytes();
            }
            (|v| v, f32::MAX)
        }
    };
    measure(id, tile, rounded, limit)
}

fn measure(id: &'static str, tile: Tile<'_>, rounded: fn(f32) -> f32, limit: f32) -> Result<TileError, FormatError> {
    let mut error = TileError::default();
    for (at, &value) in tile.values.iter().enumerate() {
        let (row, column) = (tile.first_row + at / tile.k, at % tile.k);
        if !value.is_finite() {
            return Err(FormatError::NotFinite { row, column, value });
        }
        let decoded = rounded(value);
        if !decoded.is_finite() {
            return Err(FormatError::TooLarge { id, row, column, value, limit });
        }
        let d = (value - decoded).abs();
        error.squared_error += f64::from(d) * f64::from(d);
        error.squared_norm += f64::from(value) * f64::from(value);
        error.max_abs = error.max_abs.max(d);
    }
    Ok(error)
}

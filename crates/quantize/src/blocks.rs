//! Rounds tiles to E4M3 with one scale per 128 × 128 block that just reaches the block's largest magnitude.

use crate::lanes::{V, splat};
use crate::outliers::Outliers;
use crate::panel::{Sums, load, not_finite, peaks};
use crate::{Target, Tile, TileError};
use ashlar_formats::fp8::BLOCK;
use ashlar_formats::scale::{e8m0_floor, e8m0_to_f32};
use ashlar_formats::x16::{COLUMNS, ROWS, Width};
use ashlar_formats::{FormatError, ScaleType, e4m3};
use ashlar_simd::{Isa, Kernel, Simd};

/// Writes the tile as E4M3 codes and block scales of type `scale`.
pub fn quantize(
    scale: ScaleType,
    target: Target<'_>,
    tile: Tile<'_>,
    isa: Isa,
    out: &mut [&mut [u8]],
) -> Result<TileError, FormatError> {
    isa.run(Job { scale, target, tile, out, table: e4m3::table() })
}

struct Job<'a, 'b> {
    scale: ScaleType,
    target: Target<'a>,
    tile: Tile<'a>,
    out: &'a mut [&'b mut [u8]],
    table: [f32; 256],
}

impl Kernel for Job<'_, '_> {
    type Output = Result<TileError, FormatError>;

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) -> Self::Output {
        let mut error = TileError::default();
        for block in 0..self.tile.rows().div_ceil(BLOCK) {
            error += self.block_row(s, block)?;
        }
        Ok(error)
    }
}

impl<'a> Job<'a, '_> {
    /// Row block `index` of 16 rows of the tile.
    fn rows(&self, index: usize) -> &'a [f32] {
        let size = ROWS * self.tile.k;
        self.tile.values.chunks(size.max(1)).nth(index).unwrap_or_default()
    }

    /// One row of blocks: 128 rows, or what is left of the tile.
    #[inline(always)]
    fn block_row<S: Simd>(&mut self, s: S, block: usize) -> Result<TileError, FormatError> {
        let first = block * (BLOCK / ROWS);
        let last = (first + BLOCK / ROWS).min(self.tile.rows().div_ceil(ROWS));
        let (slots, sigma) = (self.target.spec.outlier_slots, self.target.outlier_sigma);
        let choose = |index| Outliers::choose(self.rows(index), self.tile.k, slots, sigma);
        let mut outliers: Vec<Outliers> = (first..last).map(choose).collect();
        let scales = self.scales(s, block, &outliers)?;
        let mut error = TileError::default();
        for (index, outliers) in (first..last).zip(&mut outliers) {
            error += self.row_block(s, index, &scales, outliers)?;
        }
        Ok(error)
    }

    /// Scales of one row of blocks from what outliers leave, stored: max |w| / 448, rounded to what can be stored; up
    /// to a power of two for e8m0.
    #[inline(always)]
    fn scales<S: Simd>(&mut self, s: S, block: usize, outliers: &[Outliers]) -> Result<Vec<f32>, FormatError> {
        let k = self.tile.k;
        let mut peak = vec![0.0f32; k.div_ceil(BLOCK)];
        let mut x = [splat(0.0); COLUMNS];
        for (i, outliers) in outliers.iter().enumerate() {
            let index = block * (BLOCK / ROWS) + i;
            let rows = self.rows(index);
            let mut outliers = outliers.clone();
            for column in (0..k).step_by(COLUMNS) {
                load(s, rows, k, column, &mut x);
                outliers.take(column, &mut x, &mut [splat(0.0); COLUMNS]);
                let Some(peaks) = peaks(s, &x) else {
                    return Err(not_finite(rows, k, self.tile.first_row + index * ROWS));
                };
                if let Some(peak) = peak.get_mut(column / BLOCK) {
                    *peak = peaks.iter().fold(*peak, |a, &b| a.max(b));
                }
            }
        }
        let columns = peak.len();
        for (i, scale) in peak.iter_mut().enumerate() {
            let wanted = *scale / e4m3::MAX;
            *scale = match self.scale {
                ScaleType::E8M0 => {
                    let byte = e8m0_floor(wanted);
                    e8m0_to_f32(if e8m0_to_f32(byte) < wanted { byte + 1 } else { byte })
                }
                other => other.round(wanted),
            };
            if let Some(plane) = self.out.get_mut(1) {
                self.scale.store(*scale, plane, block * columns + i);
            }
        }
        Ok(peak)
    }

    #[inline(always)]
    fn row_block<S: Simd>(
        &mut self,
        s: S,
        index: usize,
        scales: &[f32],
        outliers: &mut Outliers,
    ) -> Result<TileError, FormatError> {
        let (k, rows) = (self.tile.k, self.rows(index));
        let mut sums = Sums::default();
        let mut x = [splat(0.0); COLUMNS];
        let mut decoded = [splat(0.0); COLUMNS];
        let mut codes = [[0; ROWS]; COLUMNS];
        for column in (0..k).step_by(COLUMNS) {
            load(s, rows, k, column, &mut x);
            outliers.take(column, &mut x, &mut decoded);
            let scale = scales.get(column / BLOCK).copied().unwrap_or(0.0);
            encode(scale, &self.table, &x, &mut decoded, &mut codes);
            let (id, first_row) = (self.target.spec.id, self.tile.first_row + index * ROWS);
            outliers.finish(id, first_row, column..column + COLUMNS, &mut x, &mut decoded)?;
            sums.add(s, &x, &decoded);
            let size = Width::Eight.panel_bytes();
            let at = (index * (k / COLUMNS) + column / COLUMNS) * size;
            if let Some(panel) = self.out.get_mut(0).and_then(|p| p.get_mut(at..at + size)) {
                Width::Eight.pack(s, &codes, panel);
            }
        }
        let slots = self.target.spec.outlier_slots;
        if slots > 0
            && let Some(plane) = self.out.last_mut()
        {
            outliers.store(plane, slots, index * ROWS);
        }
        Ok(sums.error(outliers.overflow))
    }
}

/// Codes and decoded values of a panel; a padding row is all zeros and gets zero codes.
#[inline(always)]
fn encode(scale: f32, table: &[f32; 256], x: &[V], decoded: &mut [V], codes: &mut [[i32; ROWS]]) {
    // A division, not a reciprocal: f32 scales may be too small to have one.
    let divisor = if scale == 0.0 { f32::INFINITY } else { scale };
    for ((x, decoded), codes) in x.iter().zip(decoded).zip(codes) {
        for i in 0..ROWS {
            let code = e4m3::from_f32(x[i] / divisor);
            codes[i] = i32::from(code);
            decoded[i] = table[usize::from(code)] * scale;
        }
    }
}

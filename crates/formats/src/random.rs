//! Random weights of any format, for benchmarks: legal bits in every plane, values of a chosen size.
//!
//! Speed does not depend on values, so codes are uniform and scales are all alike. Not for tests of quality.

use crate::{Grid, ScaleType, Spec};
use ashlar_tensor::{Dtype, PlaneKind};

/// xorshift64*, the same on every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Uniform in ±√3 · `size`: a root mean square of `size`.
    fn value(&mut self, size: f32) -> f32 {
        let unit = (self.next() >> 40) as f32 / (1u64 << 24) as f32;
        (2.0 * unit - 1.0) * 3.0f32.sqrt() * size
    }
}

/// Fills a whole plane of a weight of `spec` such that its values are about `size` (root mean square). The same `seed`
/// gives the same bytes. Outlier planes stay zero, which costs a kernel as much as any other delta.
pub fn fill_plane(spec: &Spec, kind: PlaneKind, seed: u64, size: f32, bytes: &mut [u8]) {
    let Ok(grid) = spec.grid() else { return };
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    match kind {
        PlaneKind::Values => {
            let element = match grid {
                Grid::Float(Dtype::F16) => ScaleType::F16,
                Grid::Float(Dtype::BF16) => ScaleType::BF16,
                _ => ScaleType::F32,
            };
            for i in 0..bytes.len() / element.size() {
                element.store(element.round(random.value(size)), bytes, i);
            }
        }
        // E4M3 without bit 6 is below 2 and never NaN.
        PlaneKind::Codes if matches!(grid, Grid::Blocks(_)) => fill(bytes, &mut random, 0xbfbf_bfbf_bfbf_bfbf),
        PlaneKind::Scales if matches!(grid, Grid::TwoLevel(_)) => fill(bytes, &mut random, u64::MAX),
        PlaneKind::Codes | PlaneKind::HighCodes => fill(bytes, &mut random, u64::MAX),
        PlaneKind::Scales | PlaneKind::OuterScales => {
            let stored = spec.scale.unwrap_or(ScaleType::F32);
            let scale = stored.round(size / spread(&grid));
            (0..bytes.len() / stored.size()).for_each(|i| stored.store(scale, bytes, i));
        }
        PlaneKind::Zeros => fill(bytes, &mut random, 0x0f0f_0f0f_0f0f_0f0f),
        PlaneKind::Outliers => bytes.fill(0),
    }
}

fn fill(bytes: &mut [u8], random: &mut Random, mask: u64) {
    for chunk in bytes.chunks_mut(8) {
        let word = (random.next() & mask).to_le_bytes();
        chunk.copy_from_slice(&word[..chunk.len()]);
    }
}

/// Root mean square of what random codes stand for before the float scale.
fn spread(grid: &Grid) -> f32 {
    let rms = |levels: &[f32]| (levels.iter().map(|l| l * l).sum::<f32>() / levels.len().max(1) as f32).sqrt();
    match grid {
        Grid::Groups(groups) => rms(&groups.table()).max(f32::MIN_POSITIVE),
        Grid::TwoLevel(two) => {
            let codes = 1usize << two.code_bits();
            let (low, high) = two.inner.bounds();
            let inner = (high - low) as f32 / 12.0f32.sqrt();
            rms(&two.tables()[0][..codes.min(64)]) * inner
        }
        Grid::Float(_) | Grid::Blocks(_) | Grid::Opaque => 0.5,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Planes;
    use ashlar_tensor::Order;

    #[test]
    fn every_format_decodes_and_has_the_size_asked_for() -> Result<(), crate::FormatError> {
        let (n, k, size) = (128, 256, 0.02);
        for id in crate::ids() {
            let spec = Spec::resolve(id, &crate::Options::default(), n, k)?;
            let layout = spec.layout(Order::X16, n, k)?;
            let planes: Vec<Vec<u8>> = (0..)
                .zip(&layout.planes)
                .map(|(seed, plane)| {
                    let mut bytes = vec![0; plane.bytes as usize];
                    fill_plane(&spec, plane.kind, seed, size, &mut bytes);
                    bytes
                })
                .collect();
            let data: Vec<&[u8]> = planes.iter().map(Vec::as_slice).collect();
            let planes = Planes { order: Order::X16, n, k, first_row: 0, data: &data };
            let mut values = vec![0.0; n * k];
            spec.format()?.decode(&spec, &planes, 0..n, &mut values)?;
            let rms = (values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32).sqrt();
            assert!((0.4 * size..2.5 * size).contains(&rms), "{spec}: {rms}");
        }
        Ok(())
    }
}

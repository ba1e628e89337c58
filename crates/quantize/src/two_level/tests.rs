//! What holds for formats with inner and outer scales beyond what holds for all.

use crate::tests::{roundtrip, values};
use crate::*;
use ashlar_formats::TwoLevel;

const IDS: [&str; 5] = ["k4", "k3", "k2", "k2h", "q6"];

fn grid(id: &str) -> (Spec, TwoLevel) {
    let spec: Spec = id.parse().unwrap();
    let Ok(Grid::TwoLevel(grid)) = spec.grid() else { panic!("{id}") };
    (spec, grid)
}

/// Weights that are levels of grid 0 times inner times outer scales; every group holds its lowest level, and every span
/// its smallest inner scale.
fn on_the_grid(id: &str, n: usize, k: usize) -> Vec<f32> {
    let grid = grid(id).1;
    let noise = values(n * k, 21);
    let pick = |i: usize, count: usize| (noise[i].to_bits() >> 3) as usize % count;
    let (low, high) = grid.inner.bounds();
    let table = grid.tables()[0];
    (0..n * k)
        .map(|i| {
            let (row, column) = (i / k, i % k);
            let group = column / grid.group;
            let first_of_span = grid.span.map_or(group == 0, |span| column % span < grid.group);
            let steps = ((high - low) / grid.inner.step()) as usize + 1;
            let inner = if first_of_span { low } else { low + grid.inner.step() * pick(row * k + group, steps) as i32 };
            let level = if column % grid.group == 3 { table[0] } else { table[pick(i, 1 << grid.code_bits())] };
            let sign = if row % 3 == 1 { -1.0 } else { 1.0 };
            level * (sign * 2f32.powi((row % 5) as i32 - 4) * inner as f32)
        })
        .collect()
}

#[test]
fn rtn_gives_back_what_the_first_grid_holds() -> Result<(), FormatError> {
    for id in IDS {
        let (n, k) = (20, 544);
        let w = on_the_grid(id, n, k);
        let (_, decoded, error) = roundtrip("rtn", &grid(id).0, &w, k, Stats::default(), Isa::Portable)?;
        let wrong = w.iter().zip(&decoded).position(|(a, b)| a != b);
        assert!(wrong.is_none(), "{id}: {wrong:?}: {:?}", wrong.map(|i| (w[i], decoded[i])));
        assert_eq!(error.squared_error, 0.0, "{id}");
    }
    Ok(())
}

#[test]
fn columns_need_not_fill_the_last_span() -> Result<(), FormatError> {
    for id in ["k2h", "q6"] {
        let spec = grid(id).0;
        for k in [32, 288, 992] {
            let w = values(16 * k, 22);
            let (planes, decoded, _) = roundtrip("rtn", &spec, &w, k, Stats::default(), Isa::Portable)?;
            assert_eq!(planes.last().map(Vec::len), Some(k.div_ceil(256) * 32));
            // The columns of the last span alone give the same values.
            let start = (k - 1) / 256 * 256;
            let tail: Vec<f32> = w.chunks(k).flat_map(|row| &row[start..]).copied().collect();
            let alone = roundtrip("rtn", &spec, &tail, k - start, Stats::default(), Isa::Portable)?.1;
            let within: Vec<f32> = decoded.chunks(k).flat_map(|row| &row[start..]).copied().collect();
            assert_eq!(alone, within, "{id} {k}");
        }
    }
    Ok(())
}

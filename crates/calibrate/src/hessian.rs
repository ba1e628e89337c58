//! Sums of outer products, Σ (g·x)(g·x)ᵀ: the lower triangle in square tiles, each summed by one thread.
//!
//! Sums are f32. A block of [`BLOCK_ROWS`] rows is summed in registers and then added to the total, so that n tokens cost
//! about √(n / 128) roundings of the total and √128 of a block: for 10⁶ tokens a relative error near 1e-5 of √(H_ii H_jj), a
//! ten-thousandth of the damping (10 % of the diagonal) that is added before factoring. f64 would double what matters most
//! here, the memory of a layer's Hessians.

use crate::parallel;
use ashlar_backend::MatmulInput;
use ashlar_simd::{Isa, Kernel, Simd};

/// Columns of a tile.
const TILE: usize = 64;
const TILE_VALUES: usize = TILE * TILE;
/// Rows summed before they are added to the total.
const BLOCK_ROWS: usize = 128;

/// Σ (g·x)(g·x)ᵀ of inputs of `k` columns and, where wanted, Σ δ(g·x)ᵀ, δ being what they lack of their reference.
#[derive(Debug)]
pub struct Hessian {
    k: usize,
    rows: u64,
    /// Tiles (i, j ≤ i), i ascending, then j.
    tiles: Vec<f32>,
    /// All tiles (i, j) of the drift, row by row; empty where it is not wanted.
    drift: Vec<f32>,
}

/// Rows of an input times their gates, cut into columns of [`TILE`]: what tiles read one after the other. `k` columns,
/// padded with zeros.
pub struct Columns {
    rows: usize,
    values: Vec<[f32; TILE]>,
}

impl Columns {
    /// The rows that `input` names, with `threads` threads.
    pub fn gather(input: &MatmulInput<'_>, threads: usize) -> Self {
        let rows: Vec<(&[f32], f32)> = input.rows().collect();
        let mut values = vec![[0.0; TILE]; rows.len() * input.k.div_ceil(TILE)];
        parallel::chunks(threads, rows.len() * input.k, &mut values, rows.len(), |block, out| {
            for (out, (row, gate)) in out.iter_mut().zip(&rows) {
                let part = row.get(block * TILE..).unwrap_or_default();
                out.iter_mut().zip(part).for_each(|(out, x)| *out = x * gate);
            }
        });
        Self { rows: rows.len(), values }
    }

    /// What these rows lack of `reference`, row by row. `None` unless both have as many.
    pub fn lack(&self, reference: &Self, threads: usize) -> Option<Self> {
        if self.rows != reference.rows || self.values.len() != reference.values.len() {
            return None;
        }
        let mut values = vec![[0.0; TILE]; self.values.len()];
        parallel::chunks(threads, self.values.len() * TILE, &mut values, self.rows, |block, out| {
            for (out, (theirs, ours)) in out.iter_mut().zip(reference.block(block).iter().zip(self.block(block))) {
                out.iter_mut().zip(theirs.iter().zip(ours)).for_each(|(out, (theirs, ours))| *out = theirs - ours);
            }
        });
        Some(Self { rows: self.rows, values })
    }

    fn block(&self, index: usize) -> &[[f32; TILE]] {
        self.values.get(index * self.rows..(index + 1) * self.rows).unwrap_or_default()
    }
}

impl Hessian {
    /// Nothing summed yet. `None` if there is no memory for it.
    pub fn new(k: usize, drift: bool) -> Option<Self> {
        let zeros = |values: usize| {
            let mut all = Vec::new();
            all.try_reserve_exact(values).ok()?;
            all.resize(values, 0.0);
            Some(all)
        };
        let blocks = k.div_ceil(TILE);
        let tiles = zeros(blocks * (blocks + 1) / 2 * TILE_VALUES)?;
        Some(Self { k, rows: 0, tiles, drift: if drift { zeros(blocks * blocks * TILE_VALUES)? } else { Vec::new() } })
    }

    /// Bytes of a sum over inputs of `k` columns.
    pub fn bytes(k: usize, drift: bool) -> u64 {
        let blocks = k.div_ceil(TILE) as u64;
        let tiles = blocks * (blocks + 1) / 2 + if drift { blocks * blocks } else { 0 };
        tiles * (4 * TILE_VALUES as u64)
    }

    /// Adds rows. The result depends on how rows come in calls, not on `threads` or `isa`.
    pub fn add(&mut self, columns: &Columns, isa: Isa, threads: usize) {
        let operations = columns.rows * self.k * self.k / 2;
        self.rows += columns.rows as u64;
        parallel::chunks(threads, operations, &mut self.tiles, TILE_VALUES, |index, out| {
            let (i, j) = place(index);
            let (a, b) = (columns.block(i), columns.block(j));
            for (a, b) in a.chunks(BLOCK_ROWS).zip(b.chunks(BLOCK_ROWS)) {
                isa.run(AddTile { a, b, out });
            }
        });
    }

    /// Adds rows to the drift, where it is wanted: `lack` is what `columns` lack of their reference.
    pub fn add_drift(&mut self, lack: &Columns, columns: &Columns, isa: Isa, threads: usize) {
        let (operations, blocks) = (columns.rows * self.k * self.k, self.k.div_ceil(TILE).max(1));
        parallel::chunks(threads, operations, &mut self.drift, TILE_VALUES, |index, out| {
            let (a, b) = (lack.block(index / blocks), columns.block(index % blocks));
            for (a, b) in a.chunks(BLOCK_ROWS).zip(b.chunks(BLOCK_ROWS)) {
                isa.run(AddTile { a, b, out });
            }
        });
    }

    /// Adds `factor` times the drift to a k × k matrix, a row per component of δ. Does nothing where there is none.
    pub fn spread_drift(&self, factor: f64, out: &mut [f32]) {
        let blocks = self.k.div_ceil(TILE).max(1);
        for (index, tile) in self.drift.chunks_exact(TILE_VALUES).enumerate() {
            let (i, j) = (index / blocks, index % blocks);
            for (row, values) in (i * TILE..self.k).zip(tile.chunks_exact(TILE)) {
                let end = ((j + 1) * TILE).min(self.k);
                let out = out.get_mut(row * self.k + j * TILE..row * self.k + end).unwrap_or_default();
                out.iter_mut().zip(values).for_each(|(out, v)| *out += (f64::from(*v) * factor) as f32);
            }
        }
    }

    /// Whether the drift is summed.
    pub fn drifts(&self) -> bool {
        !self.drift.is_empty()
    }

    /// Rows added so far.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Columns.
    pub fn columns(&self) -> usize {
        self.k
    }

    /// The upper triangle, row by row.
    pub fn upper(&self) -> Vec<f32> {
        let mut out = Vec::with_capacity(self.k * (self.k + 1) / 2);
        for row in 0..self.k {
            for column in row..self.k {
                let (i, j) = (column / TILE, row / TILE);
                let at = (i * (i + 1) / 2 + j) * TILE_VALUES + column % TILE * TILE + row % TILE;
                out.push(self.tiles.get(at).copied().unwrap_or(0.0));
            }
        }
        out
    }

    /// Adds `factor` times the sum to the lower triangle of a k × k matrix.
    pub fn spread(&self, factor: f64, lower: &mut [f32]) {
        for (index, tile) in self.tiles.chunks_exact(TILE_VALUES).enumerate() {
            let (i, j) = place(index);
            for (r, values) in tile.chunks_exact(TILE).enumerate() {
                let row = i * TILE + r;
                if row >= self.k {
                    break;
                }
                let end = if i == j { row + 1 } else { (j + 1) * TILE };
                let out = lower.get_mut(row * self.k + j * TILE..row * self.k + end).unwrap_or_default();
                out.iter_mut().zip(values).for_each(|(out, v)| *out += (f64::from(*v) * factor) as f32);
            }
        }
    }
}

/// Row and column of tile number `index`.
fn place(index: usize) -> (usize, usize) {
    let mut i = (2 * index).isqrt();
    while i * (i + 1) / 2 > index {
        i -= 1;
    }
    (i, index - i * (i + 1) / 2)
}

/// out[i, j] += Σ over rows of a[i] · b[j].
struct AddTile<'a> {
    a: &'a [[f32; TILE]],
    b: &'a [[f32; TILE]],
    out: &'a mut [f32],
}

impl Kernel for AddTile<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // As many sums as registers hold: 32 of 16 lanes, or 16 of 8.
        if S::ISA == Isa::Avx512Vnni { self.add::<S, 8, 2>(s) } else { self.add::<S, 4, 1>(s) }
    }
}

impl AddTile<'_> {
    #[inline(always)]
    fn add<S: Simd, const DOWN: usize, const ACROSS: usize>(self, s: S) {
        let (out, _) = self.out.as_chunks_mut::<16>();
        for i in (0..TILE).step_by(DOWN) {
            for v in (0..TILE / 16).step_by(ACROSS) {
                let mut sums = [[s.splat(0.0); ACROSS]; DOWN];
                for (a, b) in self.a.iter().zip(self.b) {
                    let (b, _) = b.as_chunks::<16>();
                    let b: [S::F32; ACROSS] = std::array::from_fn(|n| s.load(&b[v + n]));
                    for (m, sums) in sums.iter_mut().enumerate() {
                        let a = s.splat(a[i + m]);
                        for (sum, b) in sums.iter_mut().zip(b) {
                            *sum = s.fma(a, b, *sum);
                        }
                    }
                }
                for (m, sums) in sums.iter().enumerate() {
                    for (n, sum) in sums.iter().enumerate() {
                        if let Some(out) = out.get_mut((i + m) * (TILE / 16) + v + n) {
                            s.store(s.add(s.load(out), *sum), out);
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(rows: usize, k: usize) -> Vec<f32> {
        (0..rows * k).map(|i| ((i * 2_654_435_761) % 1999) as f32 / 1000.0 - 1.0).collect()
    }

    /// Σ g² x xᵀ in f64, straight from the definition.
    fn plain(input: &MatmulInput<'_>) -> Vec<f64> {
        let k = input.k;
        let mut sums = vec![0.0; k * k];
        for (row, gate) in input.rows() {
            for i in 0..k {
                for j in 0..=i {
                    sums[i * k + j] += f64::from(row[i]) * f64::from(row[j]) * f64::from(gate).powi(2);
                }
            }
        }
        sums
    }

    #[test]
    fn it_is_the_sum_of_gated_outer_products_in_both_forms() {
        for (rows, k) in [(1, 8), (300, 72), (129, 200)] {
            let x = input(rows, k);
            let chosen: Vec<u32> = (0..rows as u32).rev().step_by(2).collect();
            let gates: Vec<f32> = chosen.iter().map(|r| (r % 5) as f32 / 4.0).collect();
            let (rows, gates) = (Some(chosen.as_slice()), Some(gates.as_slice()));
            let input = MatmulInput { rows, gates, ..MatmulInput::whole(&["w"], &x, k) };
            let mut h = Hessian::new(k, false).unwrap();
            let want = plain(&input);
            h.add(&Columns::gather(&input, 1), Isa::detect().unwrap(), 1);
            let (mut lower, upper) = (vec![0.0; k * k], h.upper());
            h.spread(0.5, &mut lower);
            let mut at = upper.iter();
            for j in 0..k {
                for i in j..k {
                    // 300 products below 1, in blocks of 128: f32 leaves some ulps of the sum of their sizes.
                    let close = |got: f32, want: f64| (f64::from(got) - want).abs() < 300.0 * 1e-6;
                    assert!(close(*at.next().unwrap(), want[i * k + j]), "{i} {j}");
                    assert!(close(lower[i * k + j] * 2.0, want[i * k + j]), "{i} {j}");
                }
            }
            assert!(at.next().is_none());
        }
    }

    #[test]
    fn neither_threads_nor_isa_change_a_bit() {
        let (rows, k) = (520, 136);
        let x = input(rows, k);
        let sum = |isa: Isa, threads: usize| {
            let input = MatmulInput::whole(&["w"], &x, k);
            let mut h = Hessian::new(k, false).unwrap();
            h.add(&Columns::gather(&input, threads), isa, threads);
            h.tiles
        };
        let want = sum(Isa::Portable, 1);
        for isa in Isa::available() {
            assert!(sum(isa, 1) == want && sum(isa, 3) == want, "{isa}");
        }
    }

    #[test]
    fn drift_is_what_rows_lack_of_the_reference_times_the_rows() {
        let (k, rows, isa) = (72, 5, Isa::detect().unwrap());
        let (ours, theirs) = (input(rows, k), input(rows, k).iter().map(|x| x * 0.5 + 0.1).collect::<Vec<_>>());
        let columns = |x: &[f32]| Columns::gather(&MatmulInput::whole(&["w"], x, k), 1);
        let (x, reference) = (columns(&ours), columns(&theirs));
        let mut h = Hessian::new(k, true).unwrap();
        h.add_drift(&x.lack(&reference, 2).unwrap(), &x, isa, 2);
        let mut got = vec![0.0; k * k];
        h.spread_drift(2.0, &mut got);
        for i in 0..k {
            for j in 0..k {
                let pair = |r: usize| (theirs[r * k + i] - ours[r * k + i]) * ours[r * k + j];
                let want: f32 = 2.0 * (0..rows).map(pair).sum::<f32>();
                assert!((got[i * k + j] - want).abs() < 1e-5, "{i} {j}");
            }
        }
        assert!(h.drifts() && !Hessian::new(k, false).unwrap().drifts());
    }

    #[test]
    fn tiles_follow_one_another() {
        let mut index = 0;
        for i in 0..200 {
            for j in 0..=i {
                assert_eq!(place(index), (i, j));
                index += 1;
            }
        }
    }
}

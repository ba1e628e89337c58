//! What kernels cost on a device, beside what copying costs there. For `cargo xtask gpu`.
//!
//! Times are of many calls started one after another and waited for once, the best of a few such runs, so that
//! starting them is not measured unless it takes longer than they do. Weights that are smaller than a cache are there several times and
//! used in turns.

mod ops;
mod slots;

use crate::cuda::Cuda;
pub use ashlar_backend::KvFormat;
use ashlar_backend::{
    AttentionOptions, Backend, BackendError, Batch, BufferId, CacheShape, KvHeads, Op, Projection, Stored, Weight,
    WeightId,
};
use ashlar_formats::{Spec, random};
use ashlar_tensor::{AlignedBytes, Order};
pub use ops::{Measured, Sizes, mixture, rows};
pub use slots::{Shared, shared};
use std::time::Instant;

/// Root mean square of random weights.
const SIZE: f32 = 0.02;
/// Runs of which the best counts.
const RUNS: usize = 5;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// A run takes so long at least.
    pub seconds: f64,
    /// Bytes that are copied, and that weights used in turns have together at least: several times the largest cache.
    pub bytes: u64,
}

impl Effort {
    /// For a GPU.
    pub const GPU: Self = Self { seconds: 0.05, bytes: 512 << 20 };
    /// For the host shim, to see that everything runs.
    pub const SHIM: Self = Self { seconds: 0.0, bytes: 1 << 16 };
}

/// Bytes per second that device memory reads and writes while it is copied, both counted.
///
/// # Errors
/// [`BackendError`].
pub fn copy_rate(cuda: &mut Cuda, effort: Effort) -> Result<f64, BackendError> {
    let what = || "what is copied".to_owned();
    let (from, to) = (cuda.core.take(effort.bytes, what)?, cuda.core.take(effort.bytes, what)?);
    let seconds = time(cuda, effort.seconds, &mut |cuda, _| cuda.core.copy(to, from, effort.bytes));
    cuda.core.give(from);
    cuda.core.give(to);
    Ok(2.0 * effort.bytes as f64 / seconds?)
}

/// A product y\[rows, n\] = x\[rows, k\] · W\[n, k\]ᵀ that was measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Product {
    /// The weight's format.
    pub format: String,
    /// Rows of x.
    pub rows: usize,
    /// Outputs.
    pub n: usize,
    /// Inputs.
    pub k: usize,
    /// Bytes of the weight.
    pub bytes: u64,
    /// Of one call.
    pub seconds: f64,
}

impl Product {
    /// Bytes of the weight per second.
    #[must_use]
    pub fn read_rate(&self) -> f64 {
        self.bytes as f64 / self.seconds
    }

    /// Operations per second, a multiplication and an addition each.
    #[must_use]
    pub fn flops(&self) -> f64 {
        2.0 * self.rows as f64 * self.n as f64 * self.k as f64 / self.seconds
    }
}

/// Products of a weight of that format and shape with each of these numbers of rows.
///
/// # Errors
/// [`BackendError`], also for a format that cannot take the shape.
pub fn products(
    cuda: &mut Cuda,
    format: &str,
    [n, k]: [usize; 2],
    rows: &[usize],
    effort: Effort,
) -> Result<Vec<Product>, BackendError> {
    let (weights, bytes) = weights(cuda, format, [n, k], effort.bytes)?;
    let mut measured = Vec::new();
    for &rows in rows {
        let (x, out) = (input(cuda, rows, k)?, cuda.alloc(rows, n)?);
        let batch = Batch::of(0, 0, &vec![0; rows]);
        let op = |i: usize| {
            let weight = weights.get(i % weights.len().max(1)).copied().unwrap_or(WeightId(0));
            Op::Linear { x, parts: vec![Projection { weight, bias: None, out }], accumulate: false }
        };
        let seconds = time(cuda, effort.seconds, &mut |cuda, i| cuda.run(&op(i), &batch, None))?;
        measured.push(Product { format: format.to_owned(), rows, n, k, bytes, seconds });
    }
    Ok(measured)
}

/// Attention that was measured: 8 query heads per key head of 128, as in Llama's larger models.
#[derive(Clone, Debug, PartialEq)]
pub struct Attended {
    /// How keys and values are stored.
    pub kv: KvFormat,
    /// Key heads.
    pub heads: usize,
    /// Rows of the batch.
    pub rows: usize,
    /// Positions before its end, itself included.
    pub depth: usize,
    /// Bytes of keys and values that the last row sees.
    pub bytes: u64,
    /// Of one call.
    pub seconds: f64,
}

/// Query heads per key head, width of a head.
const GROUP: usize = 8;
const DIM: usize = 128;

/// One row at the end of `depth` positions, then the last `rows` of them at once.
///
/// # Errors
/// [`BackendError`].
pub fn attention(
    cuda: &mut Cuda,
    kv: KvFormat,
    [heads, depth, rows]: [usize; 3],
    effort: Effort,
) -> Result<Vec<Attended>, BackendError> {
    let shape = KvHeads { count: heads, dim: DIM, values_in_keys: false, window: None, native: None };
    let cache = CacheShape { sequences: 1, capacity: depth, rows, stored: Stored::Heads(shape, kv) };
    let bytes = cache.bytes(depth, rows);
    let id = cuda.alloc_cache(&cache)?;
    let mut measured = Vec::new();
    for (rows, last) in [(rows, false), (1, true)] {
        let (width, queries) = (heads * DIM, heads * GROUP * DIM);
        let [q, k, v] = [input(cuda, rows, queries)?, input(cuda, rows, width)?, input(cuda, rows, width)?];
        let out = cuda.alloc(rows, queries)?;
        let op = Op::Attention {
            q,
            k,
            v,
            cache: id,
            num_heads: heads * GROUP,
            num_kv_heads: heads,
            head_dim: DIM,
            scale: (DIM as f32).powf(-0.5),
            window: None,
            options: AttentionOptions::default(),
            out,
        };
        let step = |position: usize| Batch::of(0, position, &vec![0; rows]);
        if !last {
            for position in (0..depth.saturating_sub(rows)).step_by(rows) {
                cuda.run(&op, &step(position), None)?;
            }
        }
        let batch = step(depth - rows);
        let seconds = time(cuda, effort.seconds, &mut |cuda, _| {
            cuda.truncate(0, depth - rows);
            cuda.run(&op, &batch, None)
        })?;
        measured.push(Attended { kv, heads, rows, depth, bytes, seconds });
    }
    Ok(measured)
}

/// As many weights as have `least` bytes together, and the bytes of one.
fn weights(
    cuda: &mut Cuda,
    format: &str,
    [n, k]: [usize; 2],
    least: u64,
) -> Result<(Vec<WeightId>, u64), BackendError> {
    let wrong = |source| BackendError::Format { tensor: "random weights".into(), source };
    let spec: Spec = format.parse().map_err(wrong)?;
    // Floats know no panels.
    let order = if spec.scale.is_some() { Order::X16 } else { Order::Rows };
    let layout = spec.layout(order, n, k).map_err(wrong)?;
    let bytes: u64 = layout.planes.iter().map(|p| p.bytes).sum();
    let mut planes = Vec::new();
    for (i, plane) in layout.planes.iter().enumerate() {
        let memory = || BackendError::Operand { op: "bench", what: format!("{} bytes of random weights", plane.bytes) };
        let mut filled = AlignedBytes::zeroed(plane.bytes as usize).ok_or_else(memory)?;
        random::fill_plane(&spec, plane.kind, i as u64, SIZE, &mut filled);
        planes.push(filled.into());
    }
    let weight = Weight { name: "random weights".into(), spec, order, n, k, planes };
    let count = least.div_ceil(bytes.max(1)).clamp(1, 64);
    let loaded = (0..count).map(|_| cuda.load(weight.clone())).collect::<Result<_, _>>()?;
    Ok((loaded, bytes))
}

/// A buffer of so many rows that look like activations.
fn input(cuda: &mut Cuda, rows: usize, width: usize) -> Result<BufferId, BackendError> {
    let buffer = cuda.alloc(rows, width)?;
    let values: Vec<f32> = (0..rows * width).map(|i| ((i as f32) * 0.37).sin()).collect();
    cuda.write(buffer, &values)?;
    Ok(buffer)
}

type Call<'c> = dyn FnMut(&mut Cuda, usize) -> Result<(), BackendError> + 'c;

/// Seconds of one call.
fn time(cuda: &mut Cuda, least: f64, call: &mut Call<'_>) -> Result<f64, BackendError> {
    let mut run = |cuda: &mut Cuda, count: usize| -> Result<f64, BackendError> {
        let started = Instant::now();
        (0..count).try_for_each(|i| call(cuda, i))?;
        cuda.core.wait()?;
        Ok(started.elapsed().as_secs_f64())
    };
    // The first one loads kernels.
    run(cuda, 1)?;
    let mut count = 1;
    while run(cuda, count)? < least && count < 1 << 20 {
        count *= 2;
    }
    let mut best = f64::MAX;
    for _ in 0..RUNS {
        best = best.min(run(cuda, count)? / count as f64);
    }
    Ok(best.max(f64::MIN_POSITIVE))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ActivationMode, open_host};

    #[test]
    fn everything_that_is_measured_runs_on_the_shim() {
        let mut cuda = match open_host(ActivationMode::Int8, false) {
            Ok(cuda) => cuda,
            Err(why) => {
                assert!(matches!(why, crate::Error::Compiler { .. }), "{why}");
                return;
            }
        };
        assert!(copy_rate(&mut cuda, Effort::SHIM).unwrap() > 0.0);
        for format in ["k4", "q8", "fp8:128x128,f32", "bf16"] {
            let measured = products(&mut cuda, format, [64, 256], &[1, 40], Effort::SHIM).unwrap();
            assert_eq!(measured.iter().map(|p| p.rows).collect::<Vec<_>>(), [1, 40], "{format}");
            assert!(
                measured.iter().all(|p| p.bytes > 64 * 64 && p.read_rate() > 0.0 && p.flops() > 0.0),
                "{measured:?}"
            );
        }
        for kv in [KvFormat::F16, KvFormat::Q8] {
            let measured = attention(&mut cuda, kv, [1, 96, 32], Effort::SHIM).unwrap();
            assert_eq!(measured.iter().map(|a| (a.rows, a.depth)).collect::<Vec<_>>(), [(32, 96), (1, 96)]);
        }
        assert!(products(&mut cuda, "k4", [64, 100], &[1], Effort::SHIM).is_err());
        let sizes = Sizes { hidden: 64, heads: [2, 1], middle: 96, vocab: 500, mixture: [64, 8, 2, 32] };
        let of_rows = rows(&mut cuda, sizes, 3, Effort::SHIM).unwrap();
        assert_eq!(of_rows.len(), 5);
        let mixed = mixture(&mut cuda, "k4", sizes.mixture, &[1, 20], Effort::SHIM).unwrap();
        assert_eq!(mixed.iter().map(|m| m.what).filter(|w| *w == "router").count(), 2);
        assert_eq!([mixed[0].what, mixed[2].what], ["experts, pair by pair", "experts, grouped"]);
        let ways = shared(&mut cuda, "k4", sizes.mixture, Effort::SHIM).unwrap();
        assert_eq!(ways.iter().map(|w| w.copied > 0.0).collect::<Vec<_>>(), [false, false, true]);
        assert!(of_rows.iter().chain(&mixed).all(|m| m.bytes > 0.0 && m.seconds > 0.0));
    }
}

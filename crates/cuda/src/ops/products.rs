//! Products of inputs and weights: which kernel for which kind and how many rows.

use crate::args::{LinearArgs, OutlierArgs, Part, RoundArgs};
use crate::buffers::Buffer;
use crate::cuda::{Cuda, Use};
use crate::modules::ROWS;
use crate::table::Kind;
use ashlar_backend::{BackendError, BufferId, WeightId};

/// Rows of inputs up to which every stored byte is read once.
const SMALL: usize = 8;
/// Outputs and rows of a tile of the integer tensor cores' kernel.
pub const LARGE_TILE: [usize; 2] = [128, 64];
/// The same of the kernel with f32 inputs.
pub const EXACT_TILE: [usize; 2] = [64, 64];
/// Weights that one launch takes.
const MOST_PARTS: usize = 6;

/// Inputs on the device.
#[derive(Clone, Copy, Debug, Default)]
pub struct Inputs {
    /// f32, rows × k.
    pub x: u64,
    /// Rounded, or 0.
    pub codes: u64,
    /// Their scales.
    pub scales: u64,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub k: usize,
}

/// One output of a product.
#[derive(Clone, Copy, Debug)]
pub struct Product {
    /// Which weight.
    pub weight: WeightId,
    /// Address of the output, rows × n.
    pub out: u64,
    /// Address of the bias, or 0.
    pub bias: u64,
}

/// The rows of a buffer, rounded if `rounded`; they are rounded once for all ops that read them.
///
/// # Errors
/// [`BackendError::Memory`].
pub fn inputs(cuda: &mut Cuda, id: BufferId, buffer: Buffer, rounded: bool) -> Result<Inputs, BackendError> {
    let Buffer { address: x, width: k, rows, version, .. } = buffer;
    let mut inputs = Inputs { x, codes: 0, scales: 0, rows, k };
    if rounded {
        (inputs.codes, inputs.scales) = rounded_places(cuda, rows, k)?;
        if cuda.rounded != Some((id, version)) {
            round(cuda, x, inputs.codes, inputs.scales, rows * k)?;
            cuda.rounded = Some((id, version));
        }
    }
    Ok(inputs)
}

/// Where rounded inputs lie. Growing them forgets what they hold.
pub fn rounded_places(cuda: &mut Cuda, rows: usize, k: usize) -> Result<(u64, u64), BackendError> {
    let codes = cuda.core.scratch(Use::Codes, (rows * k) as u64)?;
    let scales = cuda.core.scratch(Use::Scales, (rows * k / 32 * 4) as u64)?;
    if cuda.rounded_at != (codes, scales) {
        cuda.rounded = None;
        cuda.rounded_at = (codes, scales);
    }
    Ok((codes, scales))
}

/// Rounds `count` values, a multiple of 32.
fn round(cuda: &mut Cuda, x: u64, codes: u64, scales: u64, count: usize) -> Result<(), BackendError> {
    let args = RoundArgs { x, codes, scales, count: count as u64 };
    cuda.core.run(ROWS, "round_rows", [count.div_ceil(256), 1, 1], 256, &args)
}

/// out = x · Wᵀ + bias for every product, or out += …, inputs rounded where the kind says so.
///
/// # Errors
/// [`BackendError`].
pub fn run(cuda: &mut Cuda, inputs: Inputs, products: &[Product], accumulate: bool) -> Result<(), BackendError> {
    for kind in Kind::ALL {
        let of = |p: &&Product| cuda.weights.get(p.weight, "linear").is_ok_and(|w| w.kind == kind);
        let mine: Vec<Product> = products.iter().filter(of).copied().collect();
        for chunk in mine.chunks(MOST_PARTS) {
            let (args, n) = arguments(cuda, inputs, chunk, accumulate)?;
            let (parts, rows, rounds) = (chunk.len(), inputs.rows, cuda.rounds(kind));
            if kind.rounds() && !rounds {
                cuda.core.run_kind(kind, "exact_4", [n.div_ceil(16), parts, rows.div_ceil(4)], &args)?;
            } else if rows <= SMALL {
                let width = [1, 4, 8].into_iter().find(|w| rows <= *w).unwrap_or(SMALL);
                let name = match (rounds, width) {
                    (true, _) => format!("small_{width}"),
                    (false, 1) => "exact_1".to_owned(),
                    (false, 4) => "exact_4".to_owned(),
                    (false, _) => "exact_8".to_owned(),
                };
                cuda.core.run_kind(kind, &name, [n.div_ceil(16), parts, 1], &args)?;
            } else {
                let [outputs, tile] = if rounds { LARGE_TILE } else { EXACT_TILE };
                let grid = [n.div_ceil(outputs), rows.div_ceil(tile), parts];
                cuda.core.run_kind(kind, "large_64", grid, &args)?;
            }
        }
    }
    for product in products {
        outliers(cuda, inputs, product)?;
    }
    Ok(())
}

/// out = x · Wᵀ + bias with f32 inputs whatever the kind.
///
/// # Errors
/// [`BackendError`].
pub fn exact(cuda: &mut Cuda, inputs: Inputs, product: Product) -> Result<(), BackendError> {
    let inputs = Inputs { codes: 0, scales: 0, ..inputs };
    let kind = cuda.weights.get(product.weight, "linear")?.kind;
    if !kind.rounds() {
        return run(cuda, inputs, &[product], false);
    }
    let (args, n) = arguments(cuda, inputs, &[product], false)?;
    cuda.core.run_kind(kind, "exact_4", [n.div_ceil(16), 1, inputs.rows.div_ceil(4)], &args)?;
    outliers(cuda, inputs, &product)
}

/// The arguments of a launch, and the widest of its outputs.
fn arguments(
    cuda: &mut Cuda,
    inputs: Inputs,
    products: &[Product],
    accumulate: bool,
) -> Result<(LinearArgs, usize), BackendError> {
    let weights = cuda.weights.table(&mut cuda.core)?;
    let mut part = [Part { out: 0, bias: 0, weight: 0, reserved: 0 }; MOST_PARTS];
    let mut widest = 0;
    for (to, product) in part.iter_mut().zip(products) {
        *to = Part { out: product.out, bias: product.bias, weight: product.weight.0, reserved: 0 };
        widest = widest.max(cuda.weights.get(product.weight, "linear")?.weight.n);
    }
    let Inputs { x, codes, scales, rows, k } = inputs;
    let (m, k, accumulate, parts) = (rows as u32, k as u32, u32::from(accumulate), products.len() as u32);
    Ok((LinearArgs { weights, codes, scales, x, m, k, accumulate, parts, part }, widest))
}

/// Adds what the outliers of a weight contribute.
fn outliers(cuda: &mut Cuda, inputs: Inputs, product: &Product) -> Result<(), BackendError> {
    let loaded = cuda.weights.get(product.weight, "linear")?;
    if loaded.slots == 0 {
        return Ok(());
    }
    let n = loaded.weight.n;
    let Inputs { x, codes, scales, rows, k } = inputs;
    let args = OutlierArgs {
        weights: cuda.weights.table(&mut cuda.core)?,
        codes,
        scales,
        x,
        out: product.out,
        chosen: 0,
        ids: 0,
        which: 0,
        weight: product.weight.0,
        m: rows as u32,
        k: k as u32,
        n: n as u32,
        per_row: 1,
        reserved: 0,
    };
    cuda.core.run(ROWS, "add_outliers", [n.div_ceil(8), rows, 1], 256, &args)
}

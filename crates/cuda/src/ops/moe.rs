//! Mixtures of experts. Routing happens on the device and nothing is read back: few pairs are multiplied one by one,
//! many are grouped by expert, so that an expert's weights are read once per tile of its tokens.

use super::linear::{Gates, combine};
use super::products::{EXACT_TILE, Inputs, LARGE_TILE, Product, exact, inputs};
use crate::args::{CombineArgs, GroupArgs, OutlierArgs, PairArgs, RouteArgs, SortArgs};
use crate::cuda::{Cuda, Use};
use crate::modules::{MOE, ROWS};
use crate::table::Kind;
use ashlar_arch::{Activation, Routing, Scores};
use ashlar_backend::{
    ActivationMode, BackendError, Batch, BufferId, ExpertWeights, MoeOptions, WeightId, check_routing,
};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

const OP: &str = "moe";

/// Experts that the routing kernel counts.
const MOST_EXPERTS: usize = 1024;
/// Pairs up to which each is multiplied by itself.
const FEW_PAIRS: usize = 32;
/// Pairs per expert from which on wide tiles are filled.
const WIDE_TILE: usize = 24;

/// The router and what it decides by.
pub struct Router {
    pub weight: WeightId,
    pub routing: Routing,
    pub options: MoeOptions,
}

/// Layers that were seen, by the address of their list of experts, which they keep alive.
#[derive(Default)]
pub struct Layers(HashMap<usize, Layer>);

/// The experts of a layer on the device.
#[derive(Clone)]
struct Layer {
    _experts: Arc<[ExpertWeights]>,
    /// Ids of the weights gate, up and down by expert.
    ids: [u64; 3],
    /// Addresses of the biases of gate, up and down by expert; 0 for none.
    biases: [u64; 3],
    /// Which kernels read gate and up, and down.
    kinds: [Arc<[Kind]>; 2],
    /// Whether any of gate and up, or of down, has outliers.
    outliers: [bool; 2],
    intermediate: usize,
}

/// What is known of pairs.
#[derive(Clone, Copy)]
struct Pairs {
    count: usize,
    top_k: usize,
    chosen: u64,
    /// Order, tiles, number of tiles, and the most tiles that there can be; `None` where pairs are multiplied one by one.
    grouped: Option<([u64; 3], usize, usize)>,
}

pub fn run(
    cuda: &mut Cuda,
    [x, out]: [BufferId; 2],
    router: &Router,
    experts: &Arc<[ExpertWeights]>,
    activation: Activation,
    batch: &Batch,
) -> Result<(), BackendError> {
    let input = cuda.buffers.get(x, OP)?;
    let (rows, hidden) = (input.rows, input.width);
    if experts.len() > MOST_EXPERTS {
        let what = format!("{} experts, of which there may be {MOST_EXPERTS}", experts.len());
        return Err(BackendError::Operand { op: OP, what });
    }
    cuda.weights.matrix(router.weight, Some(experts.len()), hidden, OP)?;
    check_routing(&router.routing, experts.len(), OP)?;
    let layer = layer(cuda, experts, hidden)?;
    let to = cuda.buffers.output(out, [rows, hidden], Some(x), OP)?;
    cuda.buffers.input(out, hidden, Some(rows), OP)?;
    if rows == 0 {
        return Ok(());
    }
    let mode = cuda.mode();
    let rounds = |kind: &Kind| kind.rounds() && mode != ActivationMode::F32;
    let inputs = inputs(cuda, x, input, layer.kinds[0].iter().any(rounds))?;
    let (chosen, weights) = route(cuda, inputs, router, experts.len(), batch)?;
    let pairs = group(cuda, chosen, rows, router.routing.top_k, experts.len())?;
    let n = layer.intermediate;
    let bytes = 4 * (pairs.count * n) as u64;
    let halves = [cuda.core.scratch(Use::Gate, bytes)?, cuda.core.scratch(Use::Up, bytes)?];
    multiply(cuda, &layer, inputs, pairs, [0, 2], halves, [n, pairs.top_k])?;

    let rounded = layer.kinds[1].iter().any(rounds);
    let (mut codes, mut scales) = (0, 0);
    if rounded {
        codes = cuda.core.scratch(Use::MiddleCodes, (pairs.count * n) as u64)?;
        scales = cuda.core.scratch(Use::MiddleScales, (pairs.count * n / 8) as u64)?;
    }
    let wanted = layer.kinds[1].iter().any(|k| !rounds(k));
    let middle = if wanted { cuda.core.scratch(Use::Middle, bytes)? } else { 0 };
    let biased = layer.biases[0] != 0;
    let of_pairs = biased.then_some([chosen, layer.biases[0], layer.biases[1]]);
    let gates = Gates { halves, out: middle, codes, scales, pairs: of_pairs };
    combine(cuda, &gates, [pairs.count, n], activation)?;

    let products = cuda.core.scratch(Use::Products, 4 * (pairs.count * hidden) as u64)?;
    let middle = Inputs { x: middle, codes, scales, rows: pairs.count, k: n };
    multiply(cuda, &layer, middle, pairs, [2, 3], [products, products], [hidden, 1])?;
    let args = CombineArgs {
        products,
        weights,
        chosen,
        bias: layer.biases[2],
        out: to.address,
        top_k: pairs.top_k as u32,
        width: hidden as u32,
    };
    cuda.core.run(MOE, "combine", [hidden.div_ceil(256), rows, 1], 256, &args)?;
    cuda.buffers.wrote(out, rows);
    Ok(())
}

/// Checks every shape of a layer, once, and brings its lists to the device.
fn layer(cuda: &mut Cuda, experts: &Arc<[ExpertWeights]>, hidden: usize) -> Result<Layer, BackendError> {
    let key = experts.as_ptr() as usize;
    if let Some(layer) = cuda.layers.0.get(&key) {
        return Ok(layer.clone());
    }
    let mut intermediate = None;
    let (mut ids, mut biases) = ([const { Vec::<u32>::new() }; 3], [const { Vec::<u64>::new() }; 3]);
    let (mut kinds, mut outliers) = ([BTreeSet::new(), BTreeSet::new()], [false; 2]);
    for expert in experts.iter() {
        let n = cuda.weights.matrix(expert.gate, intermediate, hidden, OP)?.weight.n;
        intermediate = Some(n);
        let shapes = [(expert.gate, n, hidden), (expert.up, n, hidden), (expert.down, hidden, n)];
        for (i, (id, n, k)) in shapes.into_iter().enumerate() {
            let loaded = cuda.weights.matrix(id, Some(n), k, OP)?;
            kinds[i / 2].insert(loaded.kind);
            outliers[i / 2] |= loaded.slots > 0;
            ids[i].push(id.0);
            if let Some(bias) = expert.biases {
                biases[i].push(cuda.weights.vector(&mut cuda.core, bias[i], n, OP)?);
            }
        }
    }
    if biases[0].len() % experts.len().max(1) != 0 {
        return Err(BackendError::Operand { op: OP, what: "some experts have biases and others none".into() });
    }
    let mut layer = Layer {
        _experts: Arc::clone(experts),
        ids: [0; 3],
        biases: [0; 3],
        kinds: kinds.map(|k| k.into_iter().collect()),
        outliers,
        intermediate: intermediate.unwrap_or(0),
    };
    for i in 0..3 {
        layer.ids[i] = cuda.core.take(4 * ids[i].len().max(1) as u64, || "a list of experts".into())?;
        cuda.core.upload(layer.ids[i], bytemuck::cast_slice(&ids[i]))?;
        if !biases[i].is_empty() {
            layer.biases[i] = cuda.core.take(8 * biases[i].len() as u64, || "a list of biases".into())?;
            cuda.core.upload(layer.biases[i], bytemuck::cast_slice(&biases[i]))?;
        }
    }
    cuda.layers.0.insert(key, layer.clone());
    Ok(layer)
}

/// Only the routing of rows, to be measured.
pub fn router(
    cuda: &mut Cuda,
    x: BufferId,
    router: &Router,
    experts: usize,
    batch: &Batch,
) -> Result<(), BackendError> {
    let input = cuda.buffers.get(x, OP)?;
    cuda.weights.matrix(router.weight, Some(experts), input.width, OP)?;
    cuda.step.set(&mut cuda.core, batch)?;
    let inputs = inputs(cuda, x, input, false)?;
    route(cuda, inputs, router, experts, batch).map(drop)
}

/// Who goes where: addresses of the experts and of the weights of all pairs.
fn route(
    cuda: &mut Cuda,
    inputs: Inputs,
    router: &Router,
    experts: usize,
    batch: &Batch,
) -> Result<(u64, u64), BackendError> {
    let (rows, routing, options) = (inputs.rows, router.routing, router.options);
    let mut vector = |id: Option<WeightId>| {
        id.map(|id| cuda.weights.vector(&mut cuda.core, id, experts, OP)).transpose().map(Option::unwrap_or_default)
    };
    let (bias, choice_bias) = (vector(options.router_bias)?, vector(options.choice_bias)?);
    let table = options.table.map(|id| named(cuda, id, routing.top_k, experts, batch)).transpose()?.unwrap_or(0);
    let logits = cuda.core.scratch(Use::Logits, 4 * (rows * experts) as u64)?;
    exact(cuda, inputs, Product { weight: router.weight, out: logits, bias })?;
    let pairs = (rows * routing.top_k) as u64;
    let (chosen, weights) = (cuda.core.scratch(Use::Chosen, 4 * pairs)?, cuda.core.scratch(Use::Weights, 4 * pairs)?);
    let groups = routing.groups.unwrap_or(ashlar_arch::Groups { count: 1, kept: 1, ranked_by: 1 });
    let args = RouteArgs {
        logits,
        bias: choice_bias,
        table,
        ids: cuda.step.ids(),
        chosen,
        weights,
        experts: experts as u32,
        top_k: routing.top_k as u32,
        normalize: u32::from(routing.normalize),
        scores: match routing.scores {
            Scores::Softmax => 0,
            Scores::Sigmoid => 1,
            Scores::SqrtSoftplus => 2,
        },
        groups: groups.count as u32,
        kept: groups.kept as u32,
        ranked_by: groups.ranked_by as u32,
        scale: routing.scale,
    };
    cuda.core.run(MOE, "route", [rows, 1, 1], 32, &args)?;
    Ok((chosen, weights))
}

/// The table that names experts by token id, after checking what it says of the batch's ids.
fn named(cuda: &mut Cuda, id: WeightId, top_k: usize, experts: usize, batch: &Batch) -> Result<u64, BackendError> {
    let table = &cuda.weights.matrix(id, None, top_k, OP)?.weight;
    let mut names = vec![0.0f32; top_k];
    for id in batch.ids() {
        let row = *id as usize;
        if row >= table.n {
            let what = format!("`{}` has {} rows, there is a token {id}", table.name, table.n);
            return Err(BackendError::Operand { op: OP, what });
        }
        table.decode(row..row + 1, &mut names)?;
        if names.iter().any(|e| !(0.0..experts as f32).contains(e)) {
            let what = format!("`{}` names an expert beyond {experts} for token {id}", table.name);
            return Err(BackendError::Operand { op: OP, what });
        }
    }
    let len = table.n * top_k;
    cuda.weights.vector(&mut cuda.core, id, len, OP)
}

/// Groups pairs by expert where they are many.
fn group(cuda: &mut Cuda, chosen: u64, rows: usize, top_k: usize, experts: usize) -> Result<Pairs, BackendError> {
    let count = rows * top_k;
    if count <= FEW_PAIRS {
        return Ok(Pairs { count, top_k, chosen, grouped: None });
    }
    let tile = if count / experts.max(1) >= WIDE_TILE { 64 } else { 16 };
    let most = count.min(count / tile + experts);
    let order = cuda.core.scratch(Use::Order, 4 * count as u64)?;
    let tiles = cuda.core.scratch(Use::Tiles, 12 * most as u64 + 256)?;
    let number = tiles;
    let tiles = tiles + 256;
    let args = SortArgs {
        chosen,
        order,
        tiles,
        count: number,
        pairs: count as u32,
        experts: experts as u32,
        rows: tile as u32,
        reserved: 0,
    };
    cuda.core.run(MOE, "group_pairs", [1, 1, 1], 256, &args)?;
    Ok(Pairs { count, top_k, chosen, grouped: Some(([order, tiles, number], most, tile)) })
}

/// The products of all pairs with the weights `of.0 .. of.1` of gate, up, down; `out` are their places, pairs × n. The row of a
/// pair is pair / per_row.
fn multiply(
    cuda: &mut Cuda,
    layer: &Layer,
    inputs: Inputs,
    pairs: Pairs,
    [first, end]: [usize; 2],
    out: [u64; 2],
    [n, per_row]: [usize; 2],
) -> Result<(), BackendError> {
    let weights = cuda.weights.table(&mut cuda.core)?;
    let Inputs { x, codes, scales, k, .. } = inputs;
    let (count, which) = (pairs.count, end - first);
    let ids = [layer.ids[first], layer.ids[end - 1]];
    let (half, per_row, k32, n32) = (first / 2, per_row as u32, k as u32, n as u32);
    for &kind in &*layer.kinds[half] {
        let number = kind as u32;
        let rounds = cuda.rounds(kind);
        match pairs.grouped.filter(|_| rounds || !kind.rounds()) {
            None => {
                let (chosen, pairs) = (pairs.chosen, count as u32);
                let (k, n, kind32, reserved) = (k32, n32, number, 0);
                let args = PairArgs {
                    weights,
                    ids,
                    out,
                    chosen,
                    codes,
                    scales,
                    x,
                    pairs,
                    per_row,
                    k,
                    n,
                    kind: kind32,
                    reserved,
                };
                let name = if kind.rounds() && !rounds { "pairs_exact" } else { "pairs" };
                cuda.core.run_kind(kind, name, [(n as usize).div_ceil(16), count, which], &args)?;
            }
            Some(([order, tiles, number_of], most, tile)) => {
                let (k, n, kind32) = (k32, n32, number);
                let args = GroupArgs {
                    weights,
                    ids,
                    out,
                    order,
                    tiles,
                    count: number_of,
                    codes,
                    scales,
                    x,
                    per_row,
                    k,
                    n,
                    kind: kind32,
                };
                let (outputs, name) = match (rounds, tile) {
                    (true, 16) => (LARGE_TILE[0], "groups_16"),
                    (true, _) => (LARGE_TILE[0], "groups_64"),
                    (false, _) => (EXACT_TILE[0], "groups_64"),
                };
                cuda.core.run_kind(kind, name, [(n as usize).div_ceil(outputs), most, which], &args)?;
            }
        }
    }
    if layer.outliers[half] {
        for (ids, out) in ids.into_iter().zip(out).take(which) {
            let (chosen, m) = (pairs.chosen, count as u32);
            let (k, n) = (k32, n32);
            let args =
                OutlierArgs { weights, codes, scales, x, out, chosen, ids, weight: 0, m, k, n, per_row, reserved: 0 };
            cuda.core.run(ROWS, "add_outliers", [(n as usize).div_ceil(8), count, 1], 256, &args)?;
        }
    }
    Ok(())
}

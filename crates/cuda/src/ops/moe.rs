//! Mixtures of experts. Routing happens on the device and nothing is read back: few pairs are multiplied one by one,
//! many are grouped by expert, so that an expert's weights are read once per tile of its tokens. `slots` does the same in steps, with
//! the host.

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
#[derive(Clone, Copy)]
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

/// In a list of pairs: none.
pub const NOBODY: u32 = u32::MAX;

/// What is known of pairs.
#[derive(Clone, Copy)]
struct Pairs {
    /// How many are computed, places of the list for none included.
    count: usize,
    top_k: usize,
    chosen: u64,
    /// Which; 0 for all.
    which: u64,
    /// Order, tiles, number of tiles, and the most tiles that there can be; `None` where pairs are multiplied one by one.
    grouped: Option<([u64; 3], usize, usize)>,
}

/// Where the host is told who goes where: addresses in its own memory.
#[derive(Clone, Copy, Debug)]
pub struct Told {
    /// Experts of all pairs, their weights, a flag for every row.
    pub chosen: u64,
    pub weights: u64,
    pub flags: u64,
    /// The rows themselves, or 0.
    pub inputs: u64,
}

/// A mixture of which the routing was started.
pub struct Begun {
    layer: Layer,
    inputs: Inputs,
    pairs: Pairs,
    weights: u64,
    halves: [u64; 2],
    middle: Inputs,
    products: u64,
    activation: Activation,
    /// Rows, and the width of their inputs and outputs.
    pub rows: usize,
    pub hidden: usize,
    out: (BufferId, u64),
}

impl Begun {
    /// Where the rows lie that experts read.
    pub fn inputs(&self) -> u64 {
        self.inputs.x
    }
}

/// A mixture as ops name it.
#[derive(Clone, Copy)]
pub struct Mixture<'a> {
    pub x: BufferId,
    pub out: BufferId,
    pub router: Router,
    pub experts: &'a Arc<[ExpertWeights]>,
    pub activation: Activation,
}

pub fn run(cuda: &mut Cuda, mixture: &Mixture<'_>, batch: &Batch) -> Result<(), BackendError> {
    for id in mixture.experts.iter().flat_map(|e| [e.gate, e.up, e.down]) {
        cuda.weights.get(id, OP)?;
    }
    let Some(mut begun) = begin(cuda, mixture, batch, None)? else { return Ok(()) };
    let (rows, top_k) = (begun.rows, begun.pairs.top_k);
    begun.pairs = group(cuda, begun.pairs.chosen, rows, top_k, mixture.experts.len())?;
    let (pairs, ids) = (begun.pairs, begun.layer.ids);
    multiply_pairs(cuda, &begun, pairs, ids)?;
    finish(cuda, &begun, [0, 0])
}

/// Some pairs of a mixture, and where they are listed on the device.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// Weights by expert, of gate, up and down.
    pub ids: [u64; 3],
    /// The pairs, expert by expert; [`NOBODY`] for none, if `tiles` is `None`.
    pub which: u64,
    /// How many there are.
    pub count: usize,
    /// Tiles of (expert, first, pairs), behind their number and 255 more bytes; how many; rows of one.
    pub tiles: Option<(u64, usize, usize)>,
}

/// The products of some pairs.
pub fn multiply_some(cuda: &mut Cuda, begun: &Begun, of: Part) -> Result<(), BackendError> {
    let grouped = of.tiles.map(|(at, count, rows)| ([of.which, at + 256, at], count, rows));
    let pairs = Pairs { count: of.count, which: of.which, grouped, ..begun.pairs };
    multiply_pairs(cuda, begun, pairs, of.ids)
}

/// Rows of a tile of pairs, if so many are worth tiles.
pub fn tile_of(pairs: usize, experts: usize) -> Option<usize> {
    (pairs > FEW_PAIRS).then_some(if pairs / experts.max(1) >= WIDE_TILE { 64 } else { 16 })
}

/// Checks everything and starts the routing; `None` if there are no rows.
pub fn begin(
    cuda: &mut Cuda,
    mixture: &Mixture<'_>,
    batch: &Batch,
    told: Option<Told>,
) -> Result<Option<Begun>, BackendError> {
    let Mixture { x, out, router, experts, activation } = *mixture;
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
        return Ok(None);
    }
    let mode = cuda.mode();
    let rounds = |kind: &Kind| kind.rounds() && mode != ActivationMode::F32;
    let inputs = inputs(cuda, x, input, layer.kinds[0].iter().any(rounds))?;
    if let Some(Told { inputs: to @ 1.., .. }) = told {
        super::rows::copy_out(cuda, input.address, to, [rows, hidden])?;
    }
    let (chosen, weights) = route(cuda, inputs, &router, experts.len(), batch, told)?;
    let top_k = router.routing.top_k;
    let pairs = Pairs { count: rows * top_k, top_k, chosen, which: 0, grouped: None };
    let n = layer.intermediate;
    let bytes = 4 * (pairs.count * n) as u64;
    let halves = [cuda.core.scratch(Use::Gate, bytes)?, cuda.core.scratch(Use::Up, bytes)?];
    let rounded = layer.kinds[1].iter().any(rounds);
    let (mut codes, mut scales) = (0, 0);
    if rounded {
        codes = cuda.core.scratch(Use::MiddleCodes, (pairs.count * n) as u64)?;
        scales = cuda.core.scratch(Use::MiddleScales, (pairs.count * n / 8) as u64)?;
    }
    let wanted = layer.kinds[1].iter().any(|k| !rounds(k));
    let middle = if wanted { cuda.core.scratch(Use::Middle, bytes)? } else { 0 };
    let middle = Inputs { x: middle, codes, scales, rows: pairs.count, k: n };
    let products = cuda.core.scratch(Use::Products, 4 * (pairs.count * hidden) as u64)?;
    let out = (out, to.address);
    Ok(Some(Begun { layer, inputs, pairs, weights, halves, middle, products, activation, rows, hidden, out }))
}

/// The products of pairs; `ids` list weights by expert, of gate, up and down.
fn multiply_pairs(cuda: &mut Cuda, begun: &Begun, pairs: Pairs, ids: [u64; 3]) -> Result<(), BackendError> {
    let Begun { layer, halves, middle, products, hidden, .. } = begun;
    let n = layer.intermediate;
    multiply(cuda, layer, begun.inputs, pairs, &ids[..2], *halves, [n, pairs.top_k])?;
    let biased = layer.biases[0] != 0;
    let of_pairs = biased.then_some([pairs.chosen, layer.biases[0], layer.biases[1]]);
    let Inputs { x, codes, scales, .. } = *middle;
    let gates = Gates { halves: *halves, out: x, codes, scales, pairs: of_pairs, which: pairs.which };
    combine(cuda, &gates, [pairs.count, n], begun.activation)?;
    multiply(cuda, layer, *middle, pairs, &ids[2..], [*products; 2], [*hidden, 1])
}

/// Adds the products to the output; `given`: products that came from elsewhere, and of every pair its row there, or zeros.
pub fn finish(cuda: &mut Cuda, begun: &Begun, [given, places]: [u64; 2]) -> Result<(), BackendError> {
    let Begun { layer, pairs, weights, products, rows, hidden, out, .. } = begun;
    let args = CombineArgs {
        products: *products,
        weights: *weights,
        chosen: pairs.chosen,
        bias: layer.biases[2],
        out: out.1,
        given,
        places,
        top_k: pairs.top_k as u32,
        width: *hidden as u32,
    };
    cuda.core.run(MOE, "combine", [hidden.div_ceil(256), *rows, 1], 256, &args)?;
    cuda.buffers.wrote(out.0, *rows);
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
        let gate = cuda.weights.any(expert.gate, OP)?;
        gate.check(intermediate, hidden, OP)?;
        let n = gate.weight.n;
        intermediate = Some(n);
        let shapes = [(expert.gate, n, hidden), (expert.up, n, hidden), (expert.down, hidden, n)];
        for (i, (id, n, k)) in shapes.into_iter().enumerate() {
            let loaded = cuda.weights.any(id, OP)?;
            loaded.check(Some(n), k, OP)?;
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
    route(cuda, inputs, router, experts, batch, None).map(drop)
}

/// Who goes where: addresses of the experts and of the weights of all pairs.
fn route(
    cuda: &mut Cuda,
    inputs: Inputs,
    router: &Router,
    experts: usize,
    batch: &Batch,
    told: Option<Told>,
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
        told: told.map_or(0, |t| t.chosen),
        told_weights: told.map_or(0, |t| t.weights),
        flags: told.map_or(0, |t| t.flags),
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
    let Some(tile) = tile_of(count, experts) else {
        return Ok(Pairs { count, top_k, chosen, which: 0, grouped: None });
    };
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
    Ok(Pairs { count, top_k, chosen, which: 0, grouped: Some(([order, tiles, number], most, tile)) })
}

/// The products of all pairs with the weights that `of` lists by expert: gate and up, or down; `out` are their places, pairs × n. The
/// row of a pair is pair / per_row.
fn multiply(
    cuda: &mut Cuda,
    layer: &Layer,
    inputs: Inputs,
    pairs: Pairs,
    of: &[u64],
    out: [u64; 2],
    [n, per_row]: [usize; 2],
) -> Result<(), BackendError> {
    let weights = cuda.weights.table(&mut cuda.core)?;
    let Inputs { x, codes, scales, k, .. } = inputs;
    let (count, which) = (pairs.count, of.len());
    let ids = [of.first(), of.last()].map(|ids| ids.copied().unwrap_or(0));
    let (half, per_row, k32, n32) = (2 - which, per_row as u32, k as u32, n as u32);
    for &kind in &*layer.kinds[half] {
        let number = kind as u32;
        let rounds = cuda.rounds(kind);
        match pairs.grouped.filter(|_| rounds || !kind.rounds()) {
            None => {
                let (chosen, which_pairs, pairs) = (pairs.chosen, pairs.which, count as u32);
                let (k, n, kind32, reserved) = (k32, n32, number, 0);
                let args = PairArgs {
                    weights,
                    ids,
                    out,
                    chosen,
                    codes,
                    scales,
                    x,
                    which: which_pairs,
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
            let (chosen, which, m) = (pairs.chosen, pairs.which, count as u32);
            let (k, n, weight, reserved) = (k32, n32, 0, 0);
            let args =
                OutlierArgs { weights, codes, scales, x, out, chosen, ids, which, weight, m, k, n, per_row, reserved };
            cuda.core.run(ROWS, "add_outliers", [(n as usize).div_ceil(8), count, 1], 256, &args)?;
        }
    }
    Ok(())
}

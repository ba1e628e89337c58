//! Mixtures of experts that the device and the host share: what telling each other costs per layer, and what it costs to copy an
//! expert when it is wanted instead.

use super::ops::turned;
use super::{Effort, SIZE, time};
use crate::cuda::Cuda;
use ashlar_arch::{Activation, Routing};
use ashlar_backend::{
    Backend, BackendError, Batch, ExpertSlots, ExpertWeights, MoeOptions, Op, SLOT_ALIGN, Slotted, Weight, WeightId,
};
use ashlar_formats::{Spec, random};
use ashlar_tensor::{AlignedBytes, Bytes, Order};
use std::ops::Range;
use std::sync::Arc;

/// A way to compute a layer, and what it costs.
#[derive(Clone, Debug, PartialEq)]
pub struct Shared {
    /// Which.
    pub what: &'static str,
    /// Sizes and format.
    pub shape: String,
    /// Bytes that are copied to the device for it.
    pub copied: f64,
    /// Of one layer.
    pub seconds: f64,
}

/// Inputs that take turns.
const TURNS: usize = 16;

struct Layer {
    parts: Vec<Vec<(usize, Bytes)>>,
    ops: Vec<Op>,
    hidden: usize,
    top_k: usize,
}

/// A layer for one row: the handshake alone (the host gives zeros for all pairs), all experts in slots, and slots that are filled when their
/// experts are wanted.
///
/// # Errors
/// [`BackendError`].
pub fn shared(cuda: &mut Cuda, format: &str, sizes: [usize; 4], effort: Effort) -> Result<Vec<Shared>, BackendError> {
    let [hidden, experts, top_k, middle] = sizes;
    let (layer, record) = layer(cuda, format, sizes)?;
    let slots = experts;
    cuda.reserve(slots, 0, record)?;
    for (expert, parts) in layer.parts.iter().enumerate() {
        cuda.fill(expert, expert as u32, parts)?;
    }
    let batch = Batch::of(0, 0, &[0]);
    let op = |i: usize| &layer.ops[i % layer.ops.len()];
    let shape = format!("{format}, {top_k} of {experts} of {hidden} × {middle}");
    let mut all = Vec::new();
    let mut add = |what, copied: f64, seconds| all.push(Shared { what, shape: shape.clone(), copied, seconds });
    let nothing = vec![0.0; layer.top_k * layer.hidden];
    let every: Vec<usize> = (0..layer.top_k).collect();
    let told = time(cuda, effort.seconds, &mut |cuda, i| {
        cuda.begin(op(i), &batch)?;
        cuda.inputs()?;
        cuda.end(&every, &nothing)
    })?;
    add("handshake alone", 0.0, told);
    let distinct = |chosen: &[(usize, f32)]| {
        let mut experts: Vec<usize> = chosen.iter().map(|c| c.0).collect();
        experts.sort_unstable();
        experts.dedup();
        experts
    };
    let here = time(cuda, effort.seconds, &mut |cuda, i| {
        let chosen = cuda.begin(op(i), &batch)?;
        cuda.compute(&distinct(&chosen))?;
        cuda.end(&[], &[])
    })?;
    add("all in slots", 0.0, here);
    let mut next = 0;
    let copied = time(cuda, effort.seconds, &mut |cuda, i| {
        let chosen = cuda.begin(op(i), &batch)?;
        let wanted = distinct(&chosen);
        for &expert in &wanted {
            cuda.fill(next % slots, expert as u32, &layer.parts[expert])?;
            next += 1;
        }
        cuda.compute(&wanted)?;
        cuda.end(&[], &[])
    })?;
    add("copied when wanted", (layer.top_k * record) as f64, copied);
    Ok(all)
}

/// A layer of random experts on the host, described on the device; bytes of the largest record.
fn layer(
    cuda: &mut Cuda,
    format: &str,
    [hidden, experts, top_k, middle]: [usize; 4],
) -> Result<(Layer, usize), BackendError> {
    let (mut parts, mut list, mut record) = (Vec::new(), Vec::new(), 0);
    for expert in 0..experts {
        let (mut own, mut end, mut ids) = (Vec::new(), 0, Vec::new());
        for [n, k] in [[middle, hidden], [middle, hidden], [hidden, middle]] {
            let (weight, planes) = planes(format, [n, k], expert as u64)?;
            let place = |plane: &Bytes| {
                let start = end;
                end = (start + plane.len()).next_multiple_of(SLOT_ALIGN);
                start..start + plane.len()
            };
            let places: Vec<Range<usize>> = planes.iter().map(place).collect();
            own.extend(places.iter().map(|at| at.start).zip(planes));
            ids.push(cuda.describe(Slotted { weight, record: expert as u32, planes: places })?);
        }
        record = record.max(end);
        parts.push(own);
        if let [gate, up, down] = *ids {
            list.push(ExpertWeights { gate, up, down, biases: None });
        }
    }
    let router = super::weights(cuda, "f32", [experts, hidden], 1)?.0.first().copied().unwrap_or(WeightId(0));
    let experts: Arc<[ExpertWeights]> = list.into();
    let out = cuda.alloc(1, hidden)?;
    cuda.write(out, &vec![0.0; hidden])?;
    let op = |x| Op::Moe {
        x,
        router,
        routing: Routing { top_k, normalize: true, ..Routing::default() },
        options: MoeOptions::default(),
        experts: Arc::clone(&experts),
        activation: Activation::Silu,
        out,
    };
    let ops = (0..TURNS).map(|turn| turned(cuda, [1, hidden], turn).map(op)).collect::<Result<_, _>>()?;
    Ok((Layer { parts, ops, hidden, top_k }, record))
}

/// A random weight, its planes apart.
fn planes(format: &str, [n, k]: [usize; 2], seed: u64) -> Result<(Weight, Vec<Bytes>), BackendError> {
    let wrong = |source| BackendError::Format { tensor: "random experts".into(), source };
    let spec: Spec = format.parse().map_err(wrong)?;
    let order = if spec.scale.is_some() { Order::X16 } else { Order::Rows };
    let layout = spec.layout(order, n, k).map_err(wrong)?;
    let mut planes = Vec::new();
    for plane in &layout.planes {
        let what = || format!("{} bytes of random weights", plane.bytes);
        let filled = AlignedBytes::zeroed(plane.bytes as usize);
        let mut filled = filled.ok_or_else(|| BackendError::Operand { op: "bench", what: what() })?;
        random::fill_plane(&spec, plane.kind, seed, SIZE, &mut filled);
        planes.push(filled.into());
    }
    Ok((Weight { name: "random expert".into(), spec, order, n, k, planes: Vec::new() }, planes))
}

//! Mixtures that a device computes in part, from slots that experts take turns in, while the reference plays the host.

use super::bench::Bench;
use super::weights::{self, Stored};
use super::{Stop, Suite};
use crate::{
    Backend, BackendError, Batch, BufferId, ExpertSlots, ExpertWeights, Experts, MoeOptions, Op, Reference, SLOT_ALIGN,
    Slotted, Weight, WeightId,
};
use ashlar_arch::{Activation, Routing};
use ashlar_tensor::{Bytes, Order};
use std::ops::Range;
use std::sync::Arc;

const EXPERTS: usize = 6;
const SLOTS: usize = 3;

pub fn cases(suite: &mut Suite<'_>) {
    // A device without slots says so, and nobody asks it.
    if (suite.make)().slots().is_none() {
        return;
    }
    for id in ["bf16", "q8", "i4:g32", "k4", "mxfp4"] {
        let order = if id == "bf16" { Order::Rows } else { Order::X16 };
        let Ok(stored) = id.parse().map(|spec| Stored { spec, order }) else { continue };
        for m in [1, 3, 40] {
            for biased in [false, true] {
                let name = format!("moe in slots {} m={m}{}", stored.name(), if biased { " biases" } else { "" });
                suite.case(name, |b| shared(b, &stored, m, biased));
            }
        }
    }
}

/// One expert's bytes as they lie in a slot.
struct Record {
    parts: Vec<(usize, Bytes)>,
}

/// A layer on both sides.
struct Layer {
    records: Vec<Record>,
    /// By side.
    experts: [Arc<[ExpertWeights]>; 2],
    router: [WeightId; 2],
    x: [BufferId; 2],
    out: [BufferId; 2],
    slot: usize,
}

impl Layer {
    fn op(&self, side: usize) -> Op {
        Op::Moe {
            x: self.x[side],
            router: self.router[side],
            routing: Routing { top_k: 2, normalize: true, ..Routing::default() },
            options: MoeOptions::default(),
            experts: Arc::clone(&self.experts[side]),
            activation: Activation::Silu,
            out: self.out[side],
        }
    }
}

fn slots(b: &mut Bench) -> Result<&mut dyn ExpertSlots, Stop> {
    b.device.slots().ok_or_else(|| Stop::Fail("the slots are gone".into()))
}

fn shared(b: &mut Bench, stored: &Stored, m: usize, biased: bool) -> Result<(), Stop> {
    let layer = layer(b, stored, m, biased)?;
    let bytes = layer.slot;
    slots(b)?.reserve(SLOTS, 1, bytes)?;
    let batch = Batch::of(0, 0, &vec![0; m]);
    // Nobody is in a slot; then some are; then others in their place, some of them computed after the rest.
    turn(b, &layer, &batch, &[], &[])?;
    fill(b, &layer, [(0, 1), (1, 4), (2, 0)])?;
    turn(b, &layer, &batch, &[0, 1, 4], &[])?;
    fill(b, &layer, [(1, 5), (0, 2), (2, 3)])?;
    turn(b, &layer, &batch, &[2, 5], &[3])?;
    released(b, &layer, &batch)?;
    refused(b, &layer, &batch)
}

/// Both compute the layer: the device those of `first`, then of `second`, the reference the others for it, and all for itself.
fn turn(b: &mut Bench, layer: &Layer, batch: &Batch, first: &[usize], second: &[usize]) -> Result<(), Stop> {
    let chosen = slots(b)?.begin(&layer.op(0), batch)?;
    let own = |e: &usize| first.contains(e) || second.contains(e);
    let others: Vec<usize> = (0..chosen.len()).filter(|p| chosen.get(*p).is_some_and(|(e, _)| !own(e))).collect();
    slots(b)?.compute(first)?;
    let inputs = slots(b)?.inputs()?;
    let products = on_host(&mut b.reference, layer, &inputs, &chosen, &others)?;
    slots(b)?.compute(second)?;
    slots(b)?.end(&others, &products)?;
    b.reference.run(&layer.op(1), batch, None)?;
    let width = inputs.len() / batch.rows().max(1);
    b.compare(layer.out, width)
}

fn on_host(
    host: &mut Reference,
    layer: &Layer,
    inputs: &[f32],
    chosen: &[(usize, f32)],
    others: &[usize],
) -> Result<Vec<f32>, BackendError> {
    host.write(layer.x[1], inputs)?;
    let experts = Experts { list: &layer.experts[1], activation: Activation::Silu };
    let pairs: Vec<_> = others.iter().filter_map(|p| Some((p / 2, chosen.get(*p)?.0))).collect();
    host.experts(layer.x[1], experts, &pairs)
}

fn fill(b: &mut Bench, layer: &Layer, who: [(usize, usize); SLOTS]) -> Result<(), Stop> {
    for (slot, expert) in who {
        let record = layer.records.get(expert).map(|r| r.parts.as_slice()).unwrap_or_default();
        slots(b)?.fill(slot, expert as u32, record)?;
    }
    Ok(())
}

/// A slot gives its memory up and gets it back; the others keep what they hold.
fn released(b: &mut Bench, layer: &Layer, batch: &Batch) -> Result<(), Stop> {
    slots(b)?.release(1)?;
    turn(b, layer, batch, &[2, 3], &[])?;
    let record = layer.records.get(5).map(|r| r.parts.as_slice()).unwrap_or_default();
    if slots(b)?.fill(1, 5, record).is_ok() {
        return Err(Stop::Fail("a slot that was released was filled".into()));
    }
    if !slots(b)?.take_back(1)? || !slots(b)?.take_back(1)? {
        return Err(Stop::Fail("there is no memory for a slot that was released".into()));
    }
    turn(b, layer, batch, &[2, 3], &[])?;
    slots(b)?.fill(1, 5, record)?;
    turn(b, layer, batch, &[2, 3, 5], &[])
}

/// What must not pass: an expert in no slot, a pair that nobody computed or two did, a slot or a place that is not there.
fn refused(b: &mut Bench, layer: &Layer, batch: &Batch) -> Result<(), Stop> {
    let expect = |result: Result<(), BackendError>, what: &str| match result {
        Err(_) => Ok(()),
        Ok(()) => Err(Stop::Fail(format!("{what} was accepted"))),
    };
    let chosen = slots(b)?.begin(&layer.op(0), batch)?;
    expect(slots(b)?.begin(&layer.op(0), batch).map(|_| ()), "a mixture inside a mixture")?;
    let absent: Vec<usize> = chosen.iter().map(|(e, _)| *e).filter(|e| [0, 1, 4].contains(e)).collect();
    if !absent.is_empty() {
        expect(slots(b)?.compute(&absent), "an expert that left its slot")?;
    }
    expect(slots(b)?.end(&[], &[]), "pairs without products")?;
    expect(slots(b)?.end(&[], &[]), "an end without a begin")?;
    slots(b)?.begin(&layer.op(0), batch)?;
    let all: Vec<usize> = (0..chosen.len()).collect();
    slots(b)?.compute(&[2, 3, 5])?;
    let hidden = slots(b)?.inputs()?.len() / batch.rows().max(1);
    let twice = chosen.iter().any(|(e, _)| [2, 3, 5].contains(e));
    let result = slots(b)?.end(&all, &vec![0.0; all.len() * hidden]);
    if twice {
        expect(result, "a product of a pair that the device had computed")?;
    }
    let part = layer.records.first().and_then(|r| r.parts.first()).map(|p| p.1.clone());
    let part = part.ok_or_else(|| Stop::Fail("a record without planes".into()))?;
    expect(slots(b)?.fill(SLOTS, 0, &[(0, part.clone())]), "a slot too many")?;
    expect(slots(b)?.fill(0, 0, &[(layer.slot, part)]), "bytes beyond a slot")
}

fn layer(b: &mut Bench, stored: &Stored, m: usize, biased: bool) -> Result<Layer, Stop> {
    let (hidden, intermediate) = (256, 128);
    let f32 = Stored::plain("f32").ok_or_else(|| Stop::Fail("no f32".into()))?;
    let router = b.weight(&f32, EXPERTS, hidden)?;
    let (mut records, mut experts, mut slot) = (Vec::new(), [Vec::new(), Vec::new()], 0);
    for expert in 0..EXPERTS {
        let (mut parts, mut ids) = (Vec::new(), [const { Vec::new() }; 2]);
        let mut end = 0;
        for [n, k] in [[intermediate, hidden], [intermediate, hidden], [hidden, intermediate]] {
            let weight = weights::random(stored, n, k, "w", &mut b.random);
            let weight = weight.ok_or_else(|| Stop::Fail(format!("cannot make a weight of {}", stored.name())))?;
            let planes = places(&weight, &mut end);
            parts.extend(planes.iter().map(|range| range.start).zip(weight.planes.iter().cloned()));
            b.reference.set_mode(b.device.activations(&weight.spec));
            let described = Weight { planes: Vec::new(), ..weight.clone() };
            ids[0].push(slots(b)?.describe(Slotted { weight: described, record: expert as u32, planes })?);
            ids[1].push(b.reference.load(weight)?);
        }
        slot = slot.max(end);
        let biases = match biased {
            true => Some([b.vector(intermediate, 0.1)?, b.vector(intermediate, 0.1)?, b.vector(hidden, 0.1)?]),
            false => None,
        };
        for (side, list) in experts.iter_mut().enumerate() {
            let biases = biases.map(|all| all.map(|pair| pair[side]));
            if let [gate, up, down] = *ids[side] {
                list.push(ExpertWeights { gate, up, down, biases });
            }
        }
        records.push(Record { parts });
    }
    let (x, out) = (b.input(m, hidden)?, b.input(m, hidden)?);
    Ok(Layer { records, experts: experts.map(Into::into), router, x, out, slot })
}

/// Where the planes of a weight lie behind those before.
fn places(weight: &Weight, end: &mut usize) -> Vec<Range<usize>> {
    let place = |plane: &Bytes| {
        let start = end.next_multiple_of(SLOT_ALIGN);
        *end = start + plane.len();
        start..*end
    };
    weight.planes.iter().map(place).collect()
}

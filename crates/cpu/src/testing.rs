//! Weights with random bits, for the tests of this crate.

use ashlar_backend::{Backend, Batch, BufferId, Weight, WeightId};
use ashlar_formats::{ScaleType, Spec};
use ashlar_simd::Isa;
use ashlar_tensor::{AlignedBytes, Bytes, Order, PlaneKind};
use half::{bf16, f16};

/// xorshift64*: enough randomness, the same on every run.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as u32
    }

    /// Roughly normal, σ = 1.
    pub fn float(&mut self) -> f32 {
        let sum: u32 = (0..12).map(|_| self.next() >> 8).sum();
        sum as f32 / (1u32 << 24) as f32 - 6.0
    }
}

/// Every legal form of every format, and some with outliers.
pub fn specs() -> Vec<Spec> {
    let mut all = Vec::new();
    for id in ashlar_formats::ids() {
        for variant in ashlar_formats::format(id).unwrap().variants() {
            let text = if variant.text.is_empty() { id.to_owned() } else { format!("{id}:{}", variant.text) };
            let spec: Spec = text.parse().unwrap();
            if spec.scale.is_some() {
                all.push(Spec { outlier_slots: 5, ..spec.clone() });
            }
            all.push(spec);
        }
    }
    all
}

/// A weight of n × k with random bits in every plane.
pub fn weight(spec: &Spec, order: Order, n: usize, k: usize, seed: u64) -> Weight {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let layout = spec.layout(order, n, k).unwrap();
    let planes = layout.planes.iter().map(|plane| {
        let mut bytes = AlignedBytes::zeroed(plane.bytes as usize).unwrap();
        match plane.kind {
            PlaneKind::Values => floats(spec.id, &mut bytes, &mut random),
            PlaneKind::Codes => bytes.iter_mut().for_each(|b| *b = code(spec.id, &mut random)),
            PlaneKind::HighCodes => bytes.iter_mut().for_each(|b| *b = (random.next() >> 24) as u8),
            PlaneKind::Scales | PlaneKind::OuterScales => scales(spec.scale.unwrap(), &mut bytes, &mut random),
            PlaneKind::Zeros => bytes.iter_mut().for_each(|b| *b = (random.next() % 16) as u8),
            PlaneKind::Outliers => outliers(spec.outlier_slots, k, &mut bytes, &mut random),
        }
        Bytes::from(bytes)
    });
    Weight { name: format!("{spec} {n} × {k}"), spec: spec.clone(), order, n, k, planes: planes.collect() }
}

/// A weight of `n × k` (n = 1: a vector) with these f32 values.
pub fn floats_of(n: usize, k: usize, values: &[f32]) -> Weight {
    let mut bytes = AlignedBytes::zeroed(4 * values.len()).unwrap();
    bytes.copy_from_slice(bytemuck::cast_slice(values));
    Weight { name: "f32".into(), spec: Spec::plain("f32"), order: Order::Rows, n, k, planes: vec![bytes.into()] }
}

fn floats(id: &str, bytes: &mut [u8], random: &mut Random) {
    match id {
        "f16" => bytes.as_chunks_mut().0.iter_mut().for_each(|b| *b = f16::from_f32(random.float()).to_le_bytes()),
        "bf16" => bytes.as_chunks_mut().0.iter_mut().for_each(|b| *b = bf16::from_f32(random.float()).to_le_bytes()),
        _ => bytes.as_chunks_mut().0.iter_mut().for_each(|b| *b = random.float().to_le_bytes()),
    }
}

/// Any code but the NaNs of fp8.
fn code(id: &str, random: &mut Random) -> u8 {
    let code = (random.next() >> 24) as u8;
    if id == "fp8" && code & 0x7f == 0x7f { code & 0x80 } else { code }
}

fn scales(kind: ScaleType, bytes: &mut [u8], random: &mut Random) {
    let count = bytes.len() / kind.size();
    for i in 0..count {
        let scale = random.float() * 0.02 + 0.05;
        kind.store(kind.round(scale), bytes, i);
    }
}

fn outliers(slots: usize, k: usize, bytes: &mut [u8], random: &mut Random) {
    for row in 0..bytes.len() / (4 * slots) {
        let mut columns: Vec<u16> = (0..slots).map(|_| (random.next() as usize % k) as u16).collect();
        columns.sort_unstable();
        columns.dedup();
        let pairs: Vec<(u16, f32)> = columns.iter().map(|c| (*c, random.float() * 3.0)).collect();
        ashlar_formats::outliers::store(bytes, slots, row, pairs.into_iter());
    }
}

/// Puts rows of `k` values into a new buffer, by embedding rows of a table that holds them.
pub fn fill(backend: &mut dyn Backend, values: &[f32], k: usize) -> BufferId {
    let rows = values.len() / k;
    let table = backend.load(floats_of(rows, k, values)).unwrap();
    let buffer = backend.alloc(rows, k).unwrap();
    let tokens: Vec<u32> = (0..rows as u32).collect();
    backend.run(&ashlar_backend::Op::Embed { table, out: buffer }, &Batch::of(0, 0, &tokens), None).unwrap();
    buffer
}

/// x · Wᵀ on a backend, m × n.
pub fn linear(backend: &mut dyn Backend, weight: WeightId, n: usize, x: &[f32], k: usize) -> Vec<f32> {
    let m = x.len() / k;
    let input = fill(backend, x, k);
    let out = backend.alloc(m, n).unwrap();
    let parts = vec![ashlar_backend::Projection { weight, bias: None, out }];
    let op = ashlar_backend::Op::Linear { x: input, parts, accumulate: false };
    backend.run(&op, &Batch::of(0, 0, &vec![0; m]), None).unwrap();
    backend.read(out).unwrap()
}

/// The ISAs of this machine; the others are printed as skipped.
pub fn isas(what: &str) -> Vec<Isa> {
    let available = Isa::available();
    let missing: Vec<Isa> = Isa::known().into_iter().filter(|isa| !available.contains(isa)).collect();
    for isa in &missing {
        println!("SKIPPED {what} {isa}: not on this CPU");
    }
    if !missing.is_empty() {
        println!("{what}: {} of {} ISAs skipped", missing.len(), missing.len() + available.len());
    }
    available
}

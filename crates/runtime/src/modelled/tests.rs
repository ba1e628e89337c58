//! A mixture on a modelled accelerator and its host takes the time of the slower side, and results are those of the wrapped devices.

use super::device::Modelled;
use super::ledger::Shared;
use ashlar_arch::{Activation, Routing};
use ashlar_backend::{
    Backend, Batch, BufferId, Engine, ExpertWeights, MoeOptions, Op, Reference, Speeds, Weight, WeightId,
};
use ashlar_formats::Spec;
use ashlar_tensor::{AlignedBytes, Bytes, Order};
use std::sync::Arc;

fn speeds() -> Speeds {
    Speeds {
        vram: 1e6,
        ram: 1e5,
        link: 5e4,
        disk: 1e4,
        device_multiply: 1e12,
        host_multiply: 1e12,
        launch: 0.0,
        handshake: 0.25,
        unified: false,
    }
}

/// A bf16 weight of ones.
fn weight(name: &str, n: usize, k: usize) -> Weight {
    let mut plane = AlignedBytes::zeroed(n * k * 2).unwrap();
    plane.chunks_exact_mut(2).for_each(|v| v.copy_from_slice(&[0x80, 0x3f]));
    let spec: Spec = "bf16".parse().unwrap();
    Weight { name: name.into(), spec, order: Order::Rows, n, k, planes: vec![Bytes::from(plane)] }
}

struct Small {
    device: Modelled,
    ledger: Shared,
    ops: Vec<Op>,
    out: BufferId,
}

/// An embedding of 8 tokens, a mixture of 4 experts of 64 × 32, one per token.
fn small(engine: Engine) -> Small {
    let ledger = Shared::new(speeds(), "test");
    let mut device = Modelled::new(Box::<Reference>::default(), engine, ledger.clone());
    let [hidden, width] = [32, 64];
    let table = device.load(weight("table", 8, hidden)).unwrap();
    let router = device.load(weight("router", 4, hidden)).unwrap();
    let mut one = |name: &str, n, k| -> WeightId { device.load(weight(name, n, k)).unwrap() };
    let experts: Vec<ExpertWeights> = (0..4)
        .map(|_| ExpertWeights {
            gate: one("gate", width, hidden),
            up: one("up", width, hidden),
            down: one("down", hidden, width),
            biases: None,
        })
        .collect();
    let (x, out) = (device.alloc(4, hidden).unwrap(), device.alloc(4, hidden).unwrap());
    let routing = Routing { top_k: 1, ..Routing::default() };
    let options = MoeOptions::default();
    let experts: Arc<[ExpertWeights]> = experts.into();
    let moe = Op::Moe { x, router, routing, options, experts, activation: Activation::Silu, out };
    let ops = vec![Op::Embed { table, out: x }, Op::Embed { table, out }, moe];
    Small { device, ledger, ops, out }
}

fn run(small: &mut Small, batch: &Batch) -> f64 {
    let begun = small.ledger.lock().wait();
    small.ops.clone().iter().for_each(|op| small.device.run(op, batch, None).unwrap());
    small.ledger.lock().book(begun, batch.rows(), batch.rows() > 1);
    small.ledger.lock().wait() - begun
}

#[test]
fn an_op_takes_the_bytes_of_its_weights_at_the_rate_of_its_engine() {
    let batch = Batch::of(0, 0, &[1]);
    // Two rows of the table, the router, one expert of three matrices, all of 2 bytes per value.
    let bytes = (2 * 32 + 4 * 32 + 3 * 64 * 32) as f64 * 2.0;
    for (engine, rate) in [(Engine::Device, 1e6), (Engine::Host, 1e5)] {
        let mut small = small(engine);
        let seconds = run(&mut small, &batch);
        assert!((seconds - bytes / rate).abs() < 1e-9, "{engine:?}: {seconds}");
        let used = small.ledger.lock().used();
        assert_eq!((used.decode.0, used.prompt.0), (1, 0));
        assert!((used.tokens_per_s().unwrap() * seconds - 1.0).abs() < 1e-9);
    }
    // Of 4 rows, each with one of 4 experts: 4 · (1 - 0.75^4) different ones on average.
    let mut prompt = small(Engine::Device);
    let seconds = run(&mut prompt, &Batch::of(0, 0, &[1, 2, 3, 4]));
    let expected = (8.0 * 32.0 + 4.0 * 32.0 + 4.0 * (1.0 - 0.75f64.powi(4)) * 3.0 * 64.0 * 32.0) * 2.0 / 1e6;
    assert!((seconds - expected).abs() < 1e-9, "{seconds} {expected}");
}

#[test]
fn what_a_device_computes_is_not_touched() {
    let mut small = small(Engine::Device);
    let batch = Batch::of(0, 0, &[1, 2]);
    run(&mut small, &batch);
    let booked = small.device.read(small.out).unwrap();
    let mut plain: Box<dyn Backend> = Box::<Reference>::default();
    // The same operands in the same order have the same names.
    let [hidden, width] = [32, 64];
    plain.load(weight("table", 8, hidden)).unwrap();
    plain.load(weight("router", 4, hidden)).unwrap();
    for _ in 0..4 {
        for (n, k) in [(width, hidden), (width, hidden), (hidden, width)] {
            plain.load(weight("w", n, k)).unwrap();
        }
    }
    plain.alloc(4, hidden).unwrap();
    plain.alloc(4, hidden).unwrap();
    small.ops.iter().for_each(|op| plain.run(op, &batch, None).unwrap());
    assert_eq!(plain.read(small.out).unwrap(), booked);
}

#[test]
fn parts_of_a_mixture_go_on_beside_each_other_and_copies_to_slots_behind_them() {
    let ledger = Shared::new(speeds(), "test");
    let mut l = ledger.lock();
    let job = |bytes: f64| ashlar_backend::Job::bytes(bytes);
    // Router 0.1 s; card 0.5 s beside handshake 0.25 s and host 0.5 s; a copy of 1 s behind it.
    l.op(Engine::Device, job(1e5));
    l.begin();
    l.in_slots(job(5e5), &[0]);
    l.on_host(job(5e4));
    l.end();
    l.fill(1, 5e4);
    assert!((l.wait() - 0.85).abs() < 1e-9);
    // The next one's slot 0 is there; slot 1 is still on its way until 1.85.
    l.op(Engine::Device, job(1e5));
    l.begin();
    l.in_slots(job(1e5), &[0]);
    l.end();
    assert!((l.wait() - 1.05).abs() < 1e-9);
    l.begin();
    l.in_slots(job(1e5), &[1]);
    l.end();
    assert!((l.wait() - 1.95).abs() < 1e-9);
}

//! Every op against the reference backend, on every ISA of the machine.

use crate::Cpu;
use crate::testing::{Random, fill, floats_of, isas, weight};
use ashlar_arch::{Activation, Rope, RopeScaling, Routing};
use ashlar_backend::{
    ActivationMode, AttentionOptions, Backend, Batch, BufferId, CacheShape, ExpertWeights, KvFormat, KvHeads,
    MoeOptions, Op, Projection, Reference, SequenceRows, Stored,
};
use ashlar_formats::Spec;
use ashlar_simd::Isa;
use ashlar_tensor::Order;
use std::sync::Arc;

fn random(len: usize, seed: u64) -> Vec<f32> {
    let mut random = Random(seed);
    (0..len).map(|_| random.float()).collect()
}

fn norm_weights(len: usize) -> Vec<f32> {
    random(len, 99).iter().map(|v| 1.0 + 0.2 * v).collect()
}

/// Runs `program` on the reference and on the CPU with every ISA and 1, 2 and 3 threads, and compares what it returns:
/// within `tolerance` of the largest value, and the same bits whatever ISA and threads.
fn compare(name: &str, mode: ActivationMode, tolerance: f32, program: impl Fn(&mut dyn Backend) -> Vec<f32>) {
    let want = program(&mut Reference::new(mode));
    let max = want.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let mut first: Option<Vec<f32>> = None;
    for isa in isas(name) {
        for threads in [1, 2, 3] {
            let got = program(&mut Cpu::with_mode(Some(threads), isa, mode));
            assert_eq!(got.len(), want.len(), "{name}");
            for (i, (g, w)) in got.iter().zip(&want).enumerate() {
                assert!(
                    (g - w).abs() <= tolerance * max,
                    "{name} {isa}: value {i} is {g}, expected {w}, maximum {max}"
                );
            }
            let first = first.get_or_insert_with(|| got.clone());
            let same = got.iter().zip(&*first).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same, "{name} {isa} {threads} threads: other bits");
        }
    }
}

#[test]
fn rms_norm_matches_for_any_width() {
    for width in [1, 7, 16, 64, 100] {
        compare("rms_norm", ActivationMode::F32, 2e-6, |b| {
            let x = fill(b, &random(5 * width, 3), width);
            let weight = b.load(floats_of(1, width, &norm_weights(width))).unwrap();
            let out = b.alloc(5, width).unwrap();
            b.run(&Op::RmsNorm { x, weight, eps: 1e-5, out }, &Batch::of(0, 0, &[0; 5]), None).unwrap();
            b.read(out).unwrap()
        });
    }
}

#[test]
fn qk_norm_and_rope_match_with_and_without_norm() {
    for (head_dim, with_norm) in [(64, true), (8, true), (2, false), (48, false)] {
        compare("qk_norm_rope", ActivationMode::F32, 4e-6, |b| {
            let q = fill(b, &random(3 * 4 * head_dim, 1), 4 * head_dim);
            let k = fill(b, &random(3 * 2 * head_dim, 2), 2 * head_dim);
            let norm = b.load(floats_of(1, head_dim, &norm_weights(head_dim))).unwrap();
            let norm = with_norm.then_some(norm);
            let rope = Arc::new(Rope { theta: 1e4, scaling: RopeScaling::Linear { factor: 2.0 } });
            let op = Op::QkNormRope { q, k, q_norm: norm, k_norm: norm, eps: 1e-6, head_dim, rope };
            b.run(&op, &Batch::of(0, 700, &[0; 3]), None).unwrap();
            let mut all = b.read(q).unwrap();
            all.extend(b.read(k).unwrap());
            all
        });
    }
}

#[test]
fn linear_with_bias_and_residual_matches() {
    for mode in [ActivationMode::F32, ActivationMode::Int8, ActivationMode::Bf16] {
        compare("linear", mode, 1e-5, |b| {
            let x = fill(b, &random(4 * 96, 1), 96);
            let parts: Vec<Projection> = [("q8", 40), ("f16", 7), ("i4", 16)]
                .into_iter()
                .map(|(id, n)| {
                    let spec: Spec = id.parse().unwrap();
                    let order = if spec.scale.is_some() { Order::X16 } else { Order::Rows };
                    let bias = Some(b.load(floats_of(1, n, &random(n, 8))).unwrap());
                    let weight = b.load(weight(&spec, order, n, 96, 4)).unwrap();
                    Projection { weight, bias, out: fill(b, &random(4 * n, 6), n) }
                })
                .collect();
            let outs: Vec<BufferId> = parts.iter().map(|p| p.out).collect();
            b.run(&Op::Linear { x, parts, accumulate: true }, &Batch::of(0, 0, &[0; 4]), None).unwrap();
            outs.into_iter().flat_map(|out| b.read(out).unwrap()).collect()
        });
    }
}

#[test]
fn gated_linear_matches_whatever_the_formats_of_its_halves() {
    for mode in [ActivationMode::F32, ActivationMode::Int8, ActivationMode::Bf16] {
        for (gate, up) in [("q8", "q8"), ("nf4:g64", "bf16"), ("iq4nl", "fp8")] {
            compare("gated_linear", mode, 1e-5, |b| {
                // The reference rounds for every quantized weight, the kernels of fp8 never: compare in f32 there.
                let x = fill(b, &random(9 * 128, 1), 128);
                let [gate, up] = [gate, up].map(|id| load(b, id, 40, 128, mode));
                let out = b.alloc(9, 40).unwrap();
                let op = Op::GatedLinear { x, gate, up, activation: Activation::Silu, out };
                b.run(&op, &Batch::of(0, 0, &[0; 9]), None).unwrap();
                b.read(out).unwrap()
            });
        }
    }
}

/// A random weight; the reference stands in for a format that the CPU does not round with an f32 copy.
fn load(b: &mut dyn Backend, id: &str, n: usize, k: usize, mode: ActivationMode) -> ashlar_backend::WeightId {
    let spec: Spec = id.parse().unwrap();
    let order = if spec.scale.is_some() { Order::X16 } else { Order::Rows };
    let w = weight(&spec, order, n, k, 4);
    let rounded = Cpu::with_mode(Some(1), Isa::Portable, mode).activations(&spec);
    if b.describe().starts_with("reference") && rounded == ActivationMode::F32 && spec.scale.is_some() {
        let mut values = vec![0.0; n * k];
        w.decode(0..n, &mut values).unwrap();
        return b.load(floats_of(n, k, &values)).unwrap();
    }
    b.load(w).unwrap()
}

/// Two sequences, a prompt each and then one token each.
fn attention(b: &mut dyn Backend, [queries, keys, dim]: [usize; 3], window: Option<usize>, chunk: usize) -> Vec<f32> {
    let heads = KvHeads { count: keys, dim, values_in_keys: false, window, native: None };
    let stored = Stored::Heads(heads, KvFormat::F16);
    let cache = b.alloc_cache(&CacheShape { sequences: 2, capacity: 128, rows: 128, stored }).unwrap();
    let mut all = Vec::new();
    let mut step = |first: usize, rows: usize, seed: u64| {
        let half = rows / 2;
        let batch = Batch {
            tokens: vec![0; rows],
            sequences: vec![
                SequenceRows { slot: 1, rows: 0..half, position: first },
                SequenceRows { slot: 0, rows: half..rows, position: first },
            ],
            ..Batch::default()
        };
        let q = fill(b, &random(rows * queries * dim, seed), queries * dim);
        let [k, v] = [2, 3].map(|i| fill(b, &random(rows * keys * dim, seed + i), keys * dim));
        let out = b.alloc(rows, queries * dim).unwrap();
        let scale = 1.0 / (dim as f32).sqrt();
        let (num_heads, num_kv_heads, head_dim, options) = (queries, keys, dim, AttentionOptions::default());
        let op = Op::Attention { q, k, v, cache, num_heads, num_kv_heads, head_dim, scale, window, options, out };
        b.run(&op, &batch, None).unwrap();
        all.extend(b.read(out).unwrap());
    };
    step(0, 2 * chunk, 10);
    step(chunk, 2 * chunk, 20);
    step(2 * chunk, 2, 30);
    step(chunk / 2, 2, 40);
    all
}

#[test]
fn attention_matches_over_blocks_groups_windows_and_rewinds() {
    for (heads, window) in [([8, 2, 64], None), ([4, 4, 8], Some(5)), ([6, 1, 20], Some(40)), ([2, 2, 128], None)] {
        compare("attention", ActivationMode::F32, 1e-5, |b| attention(b, heads, window, 45));
    }
}

#[test]
fn moe_matches_with_experts_of_different_formats() {
    for mode in [ActivationMode::F32, ActivationMode::Int8, ActivationMode::Bf16] {
        for normalize in [true, false] {
            // In int8 mode an intermediate value within f32 noise of a rounding tie could take the other code; none of
            // these does.
            compare("moe", mode, 1e-5, |b| {
                let (hidden, middle) = (64, 96);
                let x = fill(b, &random(11 * hidden, 1), hidden);
                let out = fill(b, &random(11 * hidden, 2), hidden);
                let router = b.load(floats_of(5, hidden, &random(5 * hidden, 3))).unwrap();
                let experts: Vec<ExpertWeights> = ["q8", "i4", "mxfp4", "bf16", "iq4nl"]
                    .into_iter()
                    .map(|id| ExpertWeights {
                        gate: load(b, id, middle, hidden, mode),
                        up: load(b, "q8", middle, hidden, mode),
                        down: load(b, id, hidden, middle, mode),
                        biases: None,
                    })
                    .collect();
                let routing = Routing { top_k: 2, normalize, ..Routing::default() };
                let (experts, activation, options) = (experts.into(), Activation::Silu, MoeOptions::default());
                let op = Op::Moe { x, router, routing, options, experts, activation, out };
                b.run(&op, &Batch::of(0, 0, &[0; 11]), None).unwrap();
                b.read(out).unwrap()
            });
        }
    }
}

#[test]
fn wrong_operands_are_errors_and_leave_the_backend_usable() {
    let mut cpu = Cpu::new(Some(2), Isa::Portable);
    let x = fill(&mut cpu, &random(2 * 64, 1), 64);
    let weight = cpu.load(weight(&"q8".parse().unwrap(), Order::X16, 48, 32, 1)).unwrap();
    let out = cpu.alloc(1, 48).unwrap();
    let batch = Batch::of(0, 0, &[0; 2]);
    let part = |weight, out| Op::Linear { x, parts: vec![Projection { weight, bias: None, out }], accumulate: false };
    let text = |r: Result<(), ashlar_backend::BackendError>| r.unwrap_err().to_string();
    assert!(text(cpu.run(&part(weight, out), &batch, None)).contains("48 × 32, expected any × 64"));
    let wide = cpu.load(floats_of(48, 64, &random(48 * 64, 1))).unwrap();
    assert!(text(cpu.run(&part(wide, out), &batch, None)).contains("exceeds the capacity 1"));
    assert!(text(cpu.run(&part(wide, BufferId(77)), &batch, None)).contains("no buffer 77"));
    assert!(text(cpu.run(&Op::SelectRows { x, out: x }, &batch, None)).contains("also the input"));
    let narrow = fill(&mut cpu, &random(64, 1), 64);
    let rows = Op::RmsNorm { x: narrow, weight, eps: 0.0, out: x };
    assert!(text(cpu.run(&rows, &batch, None)).contains("expected a vector of 64"));
    let good = cpu.alloc(2, 48).unwrap();
    cpu.run(&part(wide, good), &batch, None).unwrap();
    assert_eq!(cpu.read(good).unwrap().len(), 96);
}

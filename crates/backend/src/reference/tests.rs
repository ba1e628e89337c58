//! Small cases against numbers from a numpy transcription of the formulas, made apart from this code.
#![expect(clippy::excessive_precision, reason = "expected values as numpy prints them")]

use super::*;
use crate::{
    AttentionOptions, Batch, Blocks, ExpertWeights, HeadNorm, HeadRope, KvFormat, KvHeads, MoeOptions, Projection,
    Stored,
};
use ashlar_arch::{Activation, Rope, RopeScaling, Routing};
use ashlar_formats::Spec;
use ashlar_tensor::{AlignedBytes, Order};
use std::sync::Arc;

fn weight(r: &mut Reference, n: usize, k: usize, values: &[f32]) -> WeightId {
    let mut bytes = AlignedBytes::zeroed(values.len() * 4).unwrap();
    for (to, v) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(values) {
        *to = v.to_le_bytes();
    }
    let (spec, planes) = (Spec::plain("f32"), vec![bytes.into()]);
    r.load(Weight { name: "w".into(), spec, order: Order::Rows, n, k, planes }).unwrap()
}

/// A buffer holding these rows.
fn input(r: &mut Reference, width: usize, values: &[f32]) -> BufferId {
    let rows = values.len() / width;
    let table = weight(r, rows, width, values);
    let out = r.alloc(rows, width).unwrap();
    r.run(&Op::Embed { table, out }, &Batch::of(0, 0, &(0..rows as u32).collect::<Vec<_>>()), None).unwrap();
    out
}

fn close(got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len());
    for (g, w) in got.iter().zip(want) {
        assert!((g - w).abs() < 2e-6, "{got:?} {want:?}");
    }
}

/// A cache of one sequence of 3 positions and one head.
fn heads(dim: usize) -> CacheShape {
    let heads = KvHeads { count: 1, dim, values_in_keys: false, window: None, native: None };
    CacheShape { sequences: 1, capacity: 3, rows: 3, stored: Stored::Heads(heads, KvFormat::F32) }
}

#[test]
fn attention_shares_heads_grows_and_respects_the_window() {
    let unbounded = [
        1.0,
        -1.0,
        1.0,
        -1.0,
        1.7773,
        -0.2227,
        1.2689414,
        -0.7310586,
        0.111116689,
        0.313672928,
        -0.033776432,
        0.950659381,
    ];
    let windowed = [-1.655292893, 2.924234315, -0.656046867, 2.124837493];
    for window in [None, Some(2)] {
        let mut r = Reference::default();
        let q = input(&mut r, 4, &[1.0, 0.0, 0.0, 1.0, 0.5, -1.0, 2.0, 0.0, 1.0, 1.0, -1.0, 0.5]);
        let k = input(&mut r, 2, &[1.0, 2.0, 0.0, -1.0, 0.5, 0.5]);
        let v = input(&mut r, 2, &[1.0, -1.0, 2.0, 0.0, -3.0, 4.0]);
        let (cache, out) = (r.alloc_cache(&heads(2)).unwrap(), r.alloc(3, 4).unwrap());
        let (num_heads, num_kv_heads, head_dim, scale) = (2, 1, 2, 0.5);
        let options = AttentionOptions::default();
        let op = Op::Attention { q, k, v, cache, num_heads, num_kv_heads, head_dim, scale, window, options, out };
        r.run(&op, &Batch::of(0, 0, &[0; 3]), None).unwrap();
        let mut want = unbounded;
        want[4] = 1.777299861;
        want[5] = -0.222700139;
        if window.is_some() {
            want[8..].copy_from_slice(&windowed);
        }
        close(&r.read(out).unwrap(), &want);
    }
}

#[test]
fn heads_are_normalised_then_turned_at_their_position() {
    let mut r = Reference::default();
    let x = [1.0, -2.0, 3.0, 0.5];
    let (q, k) = (input(&mut r, 4, &x), input(&mut r, 4, &x));
    let norm = Some(weight(&mut r, 1, 4, &[1.0, 0.5, 2.0, 1.0]));
    let rope = Arc::new(Rope { theta: 100.0, scaling: RopeScaling::Plain });
    let op = Op::QkNormRope { q, k, q_norm: norm, k_norm: norm, eps: 1e-6, head_dim: 4, rope };
    r.run(&op, &Batch::of(0, 3, &[0]), None).unwrap();
    let want = [-0.973113942, -0.584434770, -3.072297390, 0.096504374];
    close(&r.read(q).unwrap(), &want);
    close(&r.read(k).unwrap(), &want);
}

#[test]
fn a_mixture_adds_the_weighted_experts_to_its_output() {
    let mut r = Reference::default();
    let x = input(&mut r, 1, &[1.0]);
    let router = weight(&mut r, 2, 1, &[2.0, 2.0]);
    let mut expert = |gate: f32, up: f32, down: f32| {
        let [gate, up, down] = [gate, up, down].map(|v| weight(&mut r, 1, 1, &[v]));
        ExpertWeights { gate, up, down, biases: None }
    };
    let experts: Arc<[ExpertWeights]> = [expert(1.5, 2.0, 1.0), expert(-2.0, 3.0, 10.0)].into();
    let out = input(&mut r, 1, &[100.0]);
    let (routing, activation) = (Routing { top_k: 2, normalize: true, ..Routing::default() }, Activation::Silu);
    let options = MoeOptions::default();
    r.run(&Op::Moe { x, router, routing, options, experts, activation, out }, &Batch::of(0, 0, &[0]), None).unwrap();
    // silu(1.5)·2 = 2.452723429, silu(−2)·3 = −0.715217532
    close(&r.read(out).unwrap(), &[100.0 + 0.5 * 2.452_723_4 - 5.0 * 0.715_217_53]);
}

#[test]
fn biases_and_residuals_are_added_and_float_weights_see_f32_in_every_mode() {
    let mut r = Reference::new(ActivationMode::Int8);
    let x = input(&mut r, 3, &[1.0, 0.3, -0.7]);
    let (w, bias) = (weight(&mut r, 1, 3, &[2.0, 1.0, 1.0]), weight(&mut r, 1, 1, &[0.5]));
    let out = input(&mut r, 1, &[10.0]);
    let parts = vec![Projection { weight: w, bias: Some(bias), out }];
    r.run(&Op::Linear { x, parts, accumulate: true }, &Batch::of(0, 0, &[0]), None).unwrap();
    close(&r.read(out).unwrap(), &[12.1]);
}

#[test]
fn quantized_weights_see_inputs_rounded_to_int8() {
    let w = Matrix { name: "w".into(), n: 1, k: 3, values: vec![2.0, 1.0, 1.0], mode: ActivationMode::Int8 };
    // 1/127 rounds up to 9/1024: 114, 34 and −80 of these
    close(&linear::matvec(&[1.0, 0.3, -0.7], &w), &[182.0 * 9.0 / 1024.0]);
}

#[test]
fn operands_that_do_not_fit_are_errors() {
    let mut r = Reference::default();
    let x = input(&mut r, 4, &[1.0; 8]);
    let wrong = weight(&mut r, 1, 3, &[1.0; 3]);
    let out = r.alloc(2, 4).unwrap();
    let batch = Batch::of(0, 0, &[0; 2]);
    assert!(r.run(&Op::RmsNorm { x, weight: wrong, eps: 1e-5, out }, &batch, None).is_err());
    assert!(r.run(&Op::RmsNorm { x: BufferId(99), weight: wrong, eps: 1e-5, out }, &batch, None).is_err());
    let short = r.alloc(1, 4).unwrap();
    assert!(matches!(
        r.run(&Op::SelectRows { x, out: short }, &Batch { outputs: vec![0, 1], ..batch }, None),
        Err(BackendError::Capacity { .. })
    ));
}

/// A sink of score ln 3 beside one key of score 0 leaves the key a quarter.
#[test]
fn a_sink_takes_its_share_of_the_softmax() {
    let mut r = Reference::default();
    let (q, k, v) = (input(&mut r, 1, &[0.0]), input(&mut r, 1, &[1.0]), input(&mut r, 1, &[8.0]));
    let sinks = Some(weight(&mut r, 1, 1, &[3f32.ln()]));
    let (cache, out) = (r.alloc_cache(&heads(1)).unwrap(), r.alloc(1, 1).unwrap());
    let (num_heads, num_kv_heads, head_dim, scale) = (1, 1, 1, 1.0);
    let options = AttentionOptions { sinks, ..AttentionOptions::default() };
    let op = Op::Attention { q, k, v, cache, num_heads, num_kv_heads, head_dim, scale, window: None, options, out };
    r.run(&op, &Batch::of(0, 0, &[0]), None).unwrap();
    close(&r.read(out).unwrap(), &[2.0]);
}

#[test]
fn biases_of_router_and_experts_count() {
    let mut r = Reference::default();
    let x = input(&mut r, 1, &[1.0]);
    let router = weight(&mut r, 2, 1, &[0.0, 0.0]);
    let router_bias = Some(weight(&mut r, 1, 2, &[0.0, 1.0]));
    let [zero, one, two] = [0.0, 1.0, 2.0].map(|v| weight(&mut r, 1, 1, &[v]));
    let biases = Some([one, two, one]);
    let experts: Arc<[ExpertWeights]> = [ExpertWeights { gate: zero, up: zero, down: two, biases }; 2].into();
    let out = input(&mut r, 1, &[0.0]);
    let routing = Routing { top_k: 1, ..Routing::default() };
    let options = MoeOptions { router_bias, ..MoeOptions::default() };
    let activation = Activation::Silu;
    r.run(&Op::Moe { x, router, routing, options, experts, activation, out }, &Batch::of(0, 0, &[0]), None).unwrap();
    // p(second) = 0.731058579, silu(1) · 2 = 1.462117157, · 2 + 1
    close(&r.read(out).unwrap(), &[0.731_058_58 * (2.0 * 1.462_117_2 + 1.0)]);
}

#[test]
fn a_sigmoid_gate_multiplies_whole_rows() {
    let mut r = Reference::default();
    let (x, y) = (input(&mut r, 2, &[1.0, 2.0, 0.0, 0.0]), input(&mut r, 1, &[10.0, 10.0]));
    let w = weight(&mut r, 1, 2, &[1.0, -1.0]);
    r.run(&Op::SigmoidGate { x, weight: w, y }, &Batch::of(0, 0, &[0; 2]), None).unwrap();
    close(&r.read(y).unwrap(), &[2.689_414_2, 5.0]);
}

/// Values from numpy: norm over the first two of four, then the last two turned back by 3 radians.
#[test]
fn heads_are_normalised_in_front_and_turned_behind() {
    let mut r = Reference::default();
    let x = input(&mut r, 4, &[1.0, -2.0, 3.0, 0.5]);
    let weight = Some(weight(&mut r, 1, 2, &[1.0, 0.5]));
    let rope = Arc::new(Rope { theta: 100.0, scaling: RopeScaling::Plain });
    let op = Op::HeadNormRope {
        x,
        head_dim: 4,
        norm: Some(HeadNorm { weight, width: 2, eps: 0.0 }),
        rope: Some(HeadRope { rope, width: 2, inverse: true }),
    };
    r.run(&op, &Batch::of(0, 3, &[0]), None).unwrap();
    close(&r.read(x).unwrap(), &[0.632_455_53, -0.632_455_53, -2.899_417_5, -0.918_356_3]);
}

/// Two blocks of three rows, of which the last two count.
#[test]
fn blocks_multiply_their_own_inputs() {
    let mut r = Reference::default();
    let w = weight(&mut r, 6, 2, &[9.0, 9.0, 1.0, 2.0, 3.0, 4.0, 9.0, 9.0, 5.0, 6.0, 7.0, 8.0]);
    let x = input(&mut r, 4, &[1.0, 1.0, 1.0, -1.0]);
    let out = r.alloc(1, 4).unwrap();
    let blocks = Blocks { count: 2, stride: 3, first: 1, rows: 2 };
    r.run(&Op::BlockLinear { x, weight: w, blocks, out }, &Batch::of(0, 0, &[0]), None).unwrap();
    close(&r.read(out).unwrap(), &[3.0, 7.0, -1.0, -1.0]);
    // What stands behind the two inputs of a block goes through.
    let x = input(&mut r, 6, &[1.0, 1.0, 50.0, 1.0, -1.0, 60.0]);
    let out = r.alloc(1, 6).unwrap();
    let op = Op::BlockLinearTransposed { x, weight: w, blocks, meets: x, out };
    r.run(&op, &Batch::of(0, 0, &[0]), None).unwrap();
    close(&r.read(out).unwrap(), &[4.0, 6.0, 50.0, -2.0, -2.0, 60.0]);
}

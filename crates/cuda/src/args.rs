//! What kernels are told: the twins of the structs in `kernels/`. A test compares every size with the compiled kernels'.

use bytemuck::{Pod, Zeroable};

/// Arguments of a kernel.
pub trait Args: Pod {}

macro_rules! args {
    ($($(#[$doc:meta])* struct $name:ident { $($field:ident: $type:ty,)* })*) => {$(
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Pod, Zeroable)]
        #[allow(missing_docs, reason = "the kernels' headers say what each field is")]
        pub struct $name { $(pub $field: $type,)* }
        impl Args for $name {}
    )*};
}

args! {
    /// `kernels/weight.cuh`
    struct Weight {
        codes: u64, high: u64, scales: u64, outer: u64, zeros: u64, outliers: u64, floats: u64,
        levels: [i8; 16],
        unit: f32, moved: i32, step: i32, zero: i32,
        n: u32, k: u32, kind: u32, slots: u32,
        group_shift: u32, span: u32, scale_type: u32, rounded: u32,
    }
    /// `kernels/args.cuh`
    struct Part { out: u64, bias: u64, weight: u32, reserved: u32, }
    /// `kernels/args.cuh`
    struct LinearArgs {
        weights: u64, codes: u64, scales: u64, x: u64,
        m: u32, k: u32, accumulate: u32, parts: u32,
        part: [Part; 6],
    }
    /// `kernels/args.cuh`
    struct PairArgs {
        weights: u64, ids: [u64; 2], out: [u64; 2], chosen: u64, codes: u64, scales: u64, x: u64, which: u64,
        pairs: u32, per_row: u32, k: u32, n: u32, kind: u32, reserved: u32,
    }
    /// `kernels/args.cuh`
    struct GroupArgs {
        weights: u64, ids: [u64; 2], out: [u64; 2], order: u64, tiles: u64, count: u64, codes: u64, scales: u64, x: u64,
        per_row: u32, k: u32, n: u32, kind: u32,
    }
    /// `kernels/args.cuh`
    struct BlockArgs {
        weights: u64, x: u64, out: u64,
        weight: u32, m: u32, count: u32, stride: u32, first: u32, rows: u32, k: u32, width: u32,
    }
    /// `kernels/args.cuh`
    struct EmbedArgs { weights: u64, tokens: u64, out: u64, weight: u32, m: u32, }
    /// `kernels/args.cuh`
    struct OutlierArgs {
        weights: u64, codes: u64, scales: u64, x: u64, out: u64, chosen: u64, ids: u64, which: u64,
        weight: u32, m: u32, k: u32, n: u32, per_row: u32, reserved: u32,
    }
    /// `kernels/rows.cu`
    struct RoundArgs { x: u64, codes: u64, scales: u64, count: u64, }
    /// `kernels/rows.cu`
    struct NormArgs { x: u64, weight: u64, out: u64, codes: u64, scales: u64, width: u32, eps: f32, }
    /// `kernels/rows.cu`
    struct AnglesArgs { frequencies: u64, positions: u64, out: u64, multiplier: f64, pairs: u32, reserved: u32, }
    /// `kernels/rows.cu`
    struct HeadsArgs {
        x: u64, weight: u64, angles: u64,
        rows: u32, heads: u32, dim: u32, normed: u32, turned: u32, halves: u32, inverse: u32, eps: f32,
    }
    /// `kernels/rows.cu`
    struct GatedArgs {
        gate: u64, up: u64, out: u64, codes: u64, scales: u64, chosen: u64, gate_bias: u64, up_bias: u64, which: u64,
        n: u32, activation: u32, limit: f32, alpha: f32,
    }
    /// `kernels/rows.cu`
    struct RowsArgs { x: u64, index: u64, out: u64, width: u32, times: u32, }
    /// `kernels/rows.cu`
    struct SigmoidArgs { x: u64, weight: u64, y: u64, k: u32, n: u32, }
    /// `kernels/rows.cu`
    struct HyperMixArgs {
        x: u64, products: u64, base: u64, scale: u64, coefficients: u64, out: u64,
        lanes: u32, width: u32, count: u32, iterations: u32, norm_eps: f32, eps: f32,
    }
    /// `kernels/rows.cu`
    struct HyperAddArgs { x: u64, z: u64, coefficients: u64, lanes: u32, width: u32, }
    /// `kernels/moe.cu`
    struct RouteArgs {
        logits: u64, bias: u64, table: u64, ids: u64, chosen: u64, weights: u64, told: u64, told_weights: u64, flags: u64,
        experts: u32, top_k: u32, normalize: u32, scores: u32, groups: u32, kept: u32, ranked_by: u32, scale: f32,
    }
    /// `kernels/moe.cu`
    struct SortArgs { chosen: u64, order: u64, tiles: u64, count: u64, pairs: u32, experts: u32, rows: u32, reserved: u32, }
    /// `kernels/moe.cu`
    struct CombineArgs {
        products: u64, weights: u64, chosen: u64, bias: u64, out: u64, given: u64, places: u64, top_k: u32, width: u32,
    }
    /// `kernels/cache.cuh`
    struct Cache { table: u64, pages: u32, heads: u32, dim: u32, key_width: u32, value_width: u32, format: u32, region: u32, entries: u32, }
    /// `kernels/attention.cu`
    struct StoreArgs { cache: Cache, k: u64, v: u64, positions: u64, slots: u64, rows: u32, values_in_keys: u32, }
    /// `kernels/attention.cu`
    struct AttentionArgs {
        cache: Cache, entries: Cache, q: u64, out: u64, sinks: u64, positions: u64, slots: u64,
        tiles: u64, selected: u64, parts: u64, sums: u64,
        group: u32, value_dim: u32, window: u32, split: u32, splits: u32, ratio: u32, listed: u32, values_in_keys: u32,
        scale: f32, reserved: u32,
    }
    /// `kernels/pooled.cu`
    struct PoolArgs {
        tokens: Cache, entries: Cache,
        kv: u64, gate: u64, place: u64, norm: u64, frequencies: u64, positions: u64, slots: u64, windows: u64,
        ratio: u32, overlap: u32, turned: u32, inverse: u32, multiplier: f64, eps: f32,
        format: u32, plain: u32, reserved: u32,
    }
    /// `kernels/pooled.cu`
    struct NativeArgs { x: u64, out: u64, width: u32, format: u32, plain: u32, reserved: u32, }
    /// `kernels/survey.cu`
    struct SurveyAsk { temperature: f64, row: u32, count: u32, first: u32, named: u32, }
    /// `kernels/survey.cu`
    struct SurveySpan { greatest: u64, sum: f64, broken: u32, finite: u32, }
    /// `kernels/survey.cu`
    struct SurveyArgs {
        logits: u64, asks: u64, ids: u64, named: u64, spans: u64, from: u64, to: u64,
        width: u32, lists: u32, most: u32, reserved: u32,
    }
    /// `kernels/pooled.cu`
    struct SelectArgs {
        entries: Cache, q: u64, weights: u64, positions: u64, slots: u64, scores: u64, out: u64,
        heads: u32, ratio: u32, listed: u32, most: u32,
    }
}

const fn bytes<A>() -> u32 {
    size_of::<A>() as u32
}

/// A kernel of every argument struct, and how large it is here.
pub const ARGUMENTS: &[(&str, u32)] = &[
    ("small_1_q8", bytes::<LinearArgs>()),
    ("pairs_q8", bytes::<PairArgs>()),
    ("groups_64_q8", bytes::<GroupArgs>()),
    ("blocks_q8", bytes::<BlockArgs>()),
    ("embed_q8", bytes::<EmbedArgs>()),
    ("add_outliers", bytes::<OutlierArgs>()),
    ("round_rows", bytes::<RoundArgs>()),
    ("rms_norm", bytes::<NormArgs>()),
    ("angles", bytes::<AnglesArgs>()),
    ("heads", bytes::<HeadsArgs>()),
    ("gated", bytes::<GatedArgs>()),
    ("copy_rows", bytes::<RowsArgs>()),
    ("sigmoid_gate", bytes::<SigmoidArgs>()),
    ("hyper_mix", bytes::<HyperMixArgs>()),
    ("hyper_add", bytes::<HyperAddArgs>()),
    ("route", bytes::<RouteArgs>()),
    ("group_pairs", bytes::<SortArgs>()),
    ("combine", bytes::<CombineArgs>()),
    ("store_kv", bytes::<StoreArgs>()),
    ("merge_splits", bytes::<AttentionArgs>()),
    ("pool_windows", bytes::<PoolArgs>()),
    ("round_native", bytes::<NativeArgs>()),
    ("choose_entries", bytes::<SelectArgs>()),
    ("survey_spans", bytes::<SurveyArgs>()),
];

//! Weights per second of every method and format on one core: `cargo run --release -p ashlar-quantize --example
//! throughput [-- FILTER]`. Best of 9 runs over a 512 × 4096 weight, error measurement included.
#![allow(clippy::print_stdout, clippy::expect_used, reason = "a program for people at a terminal")]

use ashlar_formats::Spec;
use ashlar_quantize::{Factor, Stats, Target, Tile, ids, quantizer};
use ashlar_simd::Isa;
use ashlar_tensor::Order;
use std::time::Instant;

const ROWS: usize = 512;
const COLUMNS: usize = 4096;
const FORMATS: [&str; 15] = [
    "q8",
    "i4:g32",
    "i4:g128",
    "i4:g32,zp",
    "nf4:g64",
    "nf4:g64+o21",
    "iq4nl",
    "mxfp4",
    "fp8",
    "bf16",
    "k4",
    "k3",
    "k2",
    "k2h",
    "q6",
];

fn main() {
    let filter = std::env::args().nth(1).unwrap_or_default();
    let values: Vec<f32> = (0..ROWS * COLUMNS).map(pseudo_normal).collect();
    let importance: Vec<f32> = (0..COLUMNS).map(|i| pseudo_normal(i).abs() + 0.1).collect();
    let isa = Isa::detect().expect("ASHLAR_ISA names an ISA of this machine");
    // Neighbouring columns correlate.
    let hessian: Vec<f32> =
        (0..COLUMNS * COLUMNS).map(|i| 0.9f32.powi((i / COLUMNS).abs_diff(i % COLUMNS).min(200) as i32)).collect();
    let factor = |threads| {
        let start = Instant::now();
        let factor = Factor::with_threads(&hessian, COLUMNS, Factor::DAMPING, isa, threads).expect("positive definite");
        println!("{COLUMNS} × {COLUMNS} Hessian factored, {threads} threads: {:.2} s", start.elapsed().as_secs_f64());
        factor
    };
    factor(2);
    let factor = factor(1);
    println!("{isa}, one thread, {ROWS} × {COLUMNS}, M weights/s (weighted: with importance)");
    for method in ids() {
        let method = quantizer(method).expect("listed");
        for text in FORMATS {
            let spec: Spec = text.parse().expect("a legal spec");
            if method.supports(&spec).is_err() || !format!("{} {text}", method.id()).contains(&filter) {
                continue;
            }
            let layout = spec.layout(Order::X16, ROWS, COLUMNS).expect("fits");
            let mut planes: Vec<Vec<u8>> = layout.planes.iter().map(|p| vec![0; p.bytes as usize]).collect();
            let tile = Tile { values: &values, k: COLUMNS, first_row: 0 };
            let mut rate = |stats: Stats<'_>| {
                let mut seconds: Vec<f64> = (0..9)
                    .map(|_| {
                        let mut out: Vec<&mut [u8]> = planes.iter_mut().map(|p| &mut p[..]).collect();
                        let start = Instant::now();
                        method.quantize(Target::new(&spec), tile, stats, isa, &mut out).expect("finite values");
                        start.elapsed().as_secs_f64()
                    })
                    .collect();
                seconds.sort_by(f64::total_cmp);
                values.len() as f64 / seconds[0] / 1e6
            };
            let factor = method.needs_hessian().then_some(&factor);
            let plain = rate(Stats { factor, ..Stats::default() });
            let weighted = rate(Stats { importance: Some(&importance), factor });
            println!("{:8} {text:12} {plain:7.0}   weighted {weighted:7.0}", method.id());
        }
    }
}

/// A sum of four hashed uniforms: close enough to normal for timing.
fn pseudo_normal(i: usize) -> f32 {
    let uniform = |j: u64| {
        let h = (i as u64 * 4 + j).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        ((h ^ (h >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 40) as f32 / (1u64 << 24) as f32
    };
    (0..4).map(uniform).sum::<f32>() - 2.0
}

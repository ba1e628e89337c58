//! Decode GEMV against the machine's read bandwidth, and prefill GEMM against its int8 rate, per format.
//!
//! `cargo run --release -p ashlar-cpu --example gemv_bandwidth -- [threads] [formats…]`
//!
//! Every figure is the median of rounds that alternate with the ceilings, because shared machines change from one
//! minute to the next. Weights are random bits, larger together than any cache.
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a tool that prints")]

use ashlar_backend::{Backend, Batch, BufferId, Op, Projection, Weight, WeightId};
use ashlar_cpu::Cpu;
use ashlar_formats::{Grid, Spec};
use ashlar_simd::{Isa, Kernel, Simd};
use ashlar_tensor::{AlignedBytes, Bytes, Order, PlaneKind};
use std::hint::black_box;
use std::time::Instant;

const N: usize = 4096;
const K: usize = 4096;
/// Bytes of weights per format.
const SET: usize = 256 << 20;
const ROUNDS: usize = 9;
const FORMATS: &[&str] = &[
    "q8",
    "i4:g32",
    "i4:g64,zp",
    "i4:g128",
    "iq4nl",
    "k4",
    "k3",
    "k2",
    "k2h",
    "q6",
    "mxfp4",
    "nf4:g64",
    "nf4:g64+o13",
    "fp8:128x128,f32",
    "bf16",
    "f32",
];

fn main() {
    let mut args = std::env::args().skip(1);
    let threads = args.next().and_then(|a| a.parse().ok()).unwrap_or(2);
    let asked: Vec<String> = args.collect();
    let isa = Isa::detect().unwrap();
    let stream: Vec<u8> = vec![1; SET];
    println!("{isa}, {threads} threads, {N} × {K}");
    println!("{:16} {:>8} {:>8} {:>7}   prefill G multiply-adds/s at m =", "format", "GB/s", "reads", "share");
    println!("{:42}{:>9}{:>9}{:>9}{:>9}{:>9}", "", 4, 16, 64, 128, 512);
    for format in FORMATS.iter().filter(|f| asked.is_empty() || asked.iter().any(|a| f.starts_with(a.as_str()))) {
        let spec: Spec = format.parse().unwrap();
        let mut bench = Bench::new(&spec, threads, isa);
        let (mut gemv, mut read) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            read.push(SET as f64 / time(|| read_all(isa, threads, &stream)) / 1e9);
            gemv.push(bench.bytes as f64 / time(|| bench.pass(1, usize::MAX)) / 1e9);
        }
        let (gemv, read) = (median(gemv), median(read));
        print!("{format:16} {gemv:8.1} {read:8.1} {:6.0} %", 100.0 * gemv / read);
        for m in [4, 16, 64, 128, 512] {
            let rates = (0..3).map(|_| {
                let used = bench.weights.len().min(2);
                (m * used * N * K) as f64 / time(|| bench.pass(m, used)) / 1e9
            });
            print!("{:9.0}", median(rates.collect()));
        }
        println!();
    }
    let rate = median((0..ROUNDS).map(|_| dot_rate(isa, threads)).collect());
    println!("int8 ceiling (dot products in registers): {rate:.0} G multiply-adds/s");
}

fn time<R>(body: impl FnOnce() -> R) -> f64 {
    let start = Instant::now();
    black_box(body());
    start.elapsed().as_secs_f64()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Runs `body` on every thread at once.
fn on_threads<R: Send>(threads: usize, body: impl Fn(usize) -> R + Sync) -> Vec<R> {
    std::thread::scope(|scope| {
        let body = &body;
        let handles: Vec<_> = (0..threads).map(|i| scope.spawn(move || body(i))).collect();
        handles.into_iter().map(|h| h.join().unwrap()).collect()
    })
}

/// Reads every byte once.
fn read_all(isa: Isa, threads: usize, bytes: &[u8]) -> i32 {
    let part = bytes.len() / threads;
    on_threads(threads, |i| isa.run(ReadPart(&bytes[i * part..(i + 1) * part]))).into_iter().fold(0, i32::wrapping_add)
}

struct ReadPart<'a>(&'a [u8]);

impl Kernel for ReadPart<'_> {
    type Output = i32;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> i32 {
        let mut sums = [s.splat_i32(0); 4];
        for block in self.0.as_chunks::<64>().0.chunks_exact(4) {
            for (sum, vector) in sums.iter_mut().zip(block) {
                *sum = s.add_i32(*sum, s.lanes(s.bytes(vector)));
            }
        }
        let mut out = [0; 16];
        s.store_i32(s.add_i32(s.add_i32(sums[0], sums[1]), s.add_i32(sums[2], sums[3])), &mut out);
        out.iter().fold(0, |a, b| a.wrapping_add(*b))
    }
}

/// Integer dot products without any memory traffic.
fn dot_rate(isa: Isa, threads: usize) -> f64 {
    const STEPS: usize = 4_000_000;
    struct Dots(i32);
    impl Kernel for Dots {
        type Output = i32;
        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> i32 {
            let w = s.weights(s.bytes(&[3; 64]));
            let mut acc = [s.splat_i32(0); 16];
            for _ in 0..STEPS {
                for a in &mut acc {
                    *a = s.dot(*a, w, self.0);
                }
            }
            let mut out = [0; 16];
            acc.iter().for_each(|a| s.store_i32(*a, black_box(&mut out)));
            out[0]
        }
    }
    let seconds = time(|| on_threads(threads, |_| isa.run(Dots(black_box(0x0102_0304)))));
    (threads * STEPS * 16 * 64) as f64 / seconds / 1e9
}

struct Bench {
    cpu: Cpu,
    weights: Vec<WeightId>,
    bytes: usize,
    x: BufferId,
    out: BufferId,
    input: BufferId,
    norm: WeightId,
}

impl Bench {
    fn new(spec: &Spec, threads: usize, isa: Isa) -> Self {
        let mut cpu = Cpu::new(Some(threads), isa);
        let layout = spec.layout(Order::X16, N, K).unwrap();
        let bytes = layout.bytes() as usize;
        let count = SET.div_ceil(bytes);
        let weights = (0..count).map(|i| cpu.load(random(spec, i as u32)).unwrap()).collect();
        let table = cpu.load(random(&Spec::plain("f32"), 7)).unwrap();
        let ones = cpu.load(vector(1.0)).unwrap();
        let [x, out, input] = [(); 3].map(|()| cpu.alloc(512, N.max(K)).unwrap());
        let tokens: Vec<u32> = (0..512).collect();
        cpu.run(&Op::Embed { table, out: input }, &Batch::of(0, 0, &tokens), None).unwrap();
        Self { cpu, weights, bytes: count * bytes, x, out, input, norm: ones }
    }

    /// Multiplies m rows with the first `count` weights.
    fn pass(&mut self, m: usize, count: usize) {
        let batch = Batch { outputs: (0..m).collect(), ..Batch::of(0, 0, &vec![0; 512]) };
        self.cpu
            .run(&Op::RmsNorm { x: self.input, weight: self.norm, eps: 1e-5, out: self.out }, &batch, None)
            .unwrap();
        self.cpu.run(&Op::SelectRows { x: self.out, out: self.x }, &batch, None).unwrap();
        for &weight in self.weights.iter().take(count) {
            let parts = vec![Projection { weight, bias: None, out: self.out }];
            self.cpu.run(&Op::Linear { x: self.x, parts, accumulate: false }, &batch, None).unwrap();
        }
    }
}

/// An N × K weight of random codes with tame scales.
fn random(spec: &Spec, seed: u32) -> Weight {
    let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state
    };
    let layout = spec.layout(Order::X16, N, K).unwrap();
    let planes = layout.planes.iter().map(|plane| {
        let mut bytes = AlignedBytes::zeroed(plane.bytes as usize).unwrap();
        match plane.kind {
            PlaneKind::Scales if matches!(spec.grid(), Ok(Grid::TwoLevel(_))) => {
                bytes.as_chunks_mut::<4>().0.iter_mut().for_each(|b| *b = next().to_le_bytes());
            }
            PlaneKind::Scales | PlaneKind::OuterScales => {
                let kind = spec.scale.unwrap();
                (0..bytes.len() / kind.size()).for_each(|i| kind.store(0.015_625, &mut bytes, i));
            }
            // Outliers stay zeros: as much work as any.
            PlaneKind::Outliers => {}
            PlaneKind::Values if spec.id == "f32" => {
                let value = |word: u32| (word >> 8) as f32 / (1u32 << 24) as f32 - 0.5;
                bytes.as_chunks_mut::<4>().0.iter_mut().for_each(|b| *b = value(next()).to_le_bytes());
            }
            // Bits 6 and 14 clear: neither NaN nor infinity in any format.
            _ => bytes.as_chunks_mut::<4>().0.iter_mut().for_each(|b| *b = (next() & 0xbfbf_bfbf).to_le_bytes()),
        }
        Bytes::from(bytes)
    });
    let planes = planes.collect();
    Weight { name: "random".into(), spec: spec.clone(), order: Order::X16, n: N, k: K, planes }
}

fn vector(value: f32) -> Weight {
    let mut bytes = AlignedBytes::zeroed(4 * K).unwrap();
    bytes.as_chunks_mut::<4>().0.iter_mut().for_each(|b| *b = value.to_le_bytes());
    Weight { name: "ones".into(), spec: Spec::plain("f32"), order: Order::Rows, n: 1, k: K, planes: vec![bytes.into()] }
}

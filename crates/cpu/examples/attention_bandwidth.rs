//! How fast attention decodes behind a long context, beside streaming reads: the share of the bandwidth that its keys
//! and values demand. Also the multiply-adds per second of attention over a prompt's last chunk.
//!
//! `cargo run --release -p ashlar-cpu --example attention_bandwidth -- [context] [threads] [query heads/key heads/width]
//! [formats of keys and values, with commas] [rounds]`
//!
//! The cache is filled by a prompt whose tokens see only themselves, which takes seconds instead of minutes: decoding
//! reads the same bytes, whatever the prompt saw.

#![allow(clippy::print_stdout, reason = "a program for people at a terminal")]

use ashlar_backend::{
    AttentionOptions, Backend, Batch, BufferId, CacheId, CacheShape, KvFormat, KvHeads, Op, Stored, Weight,
};
use ashlar_cpu::{Cpu, Meter};
use ashlar_formats::Spec;
use ashlar_simd::Isa;
use ashlar_tensor::{AlignedBytes, Order};
use std::error::Error;
use std::time::Instant;

/// Layers, so that what they hold does not stay in a cache of the processor.
const LAYERS: usize = 4;
/// Rows of a prompt's chunk.
const CHUNK: usize = 512;

struct Bench {
    cpu: Cpu,
    heads: [usize; 3],
    q: BufferId,
    kv: BufferId,
    out: BufferId,
    caches: Vec<CacheId>,
}

impl Bench {
    fn new(
        threads: Option<usize>,
        heads: [usize; 3],
        format: KvFormat,
        context: usize,
    ) -> Result<Self, Box<dyn Error>> {
        let [queries, count, dim] = heads;
        let mut cpu = Cpu::new(threads, Isa::detect()?);
        let kept = KvHeads { count, dim, values_in_keys: false, window: None, native: None };
        let shape =
            CacheShape { sequences: 1, capacity: context + CHUNK, rows: CHUNK, stored: Stored::Heads(kept, format) };
        let caches = (0..LAYERS).map(|_| cpu.alloc_cache(&shape)).collect::<Result<_, _>>()?;
        let (q, kv) = (fill(&mut cpu, queries * dim)?, fill(&mut cpu, count * dim)?);
        let out = cpu.alloc(CHUNK, queries * dim)?;
        Ok(Self { cpu, heads, q, kv, out, caches })
    }

    /// One batch through all layers; seconds.
    fn run(&mut self, position: usize, rows: usize, window: Option<usize>) -> Result<f64, Box<dyn Error>> {
        let batch = Batch::of(0, position, &vec![0; rows]);
        let [num_heads, num_kv_heads, head_dim] = self.heads;
        for (buffer, width) in [(self.q, num_heads * head_dim), (self.kv, num_kv_heads * head_dim)] {
            refill(&mut self.cpu, buffer, width, rows)?;
        }
        let begin = Instant::now();
        for &cache in &self.caches {
            let op = Op::Attention {
                q: self.q,
                k: self.kv,
                v: self.kv,
                cache,
                num_heads,
                num_kv_heads,
                head_dim,
                scale: 0.1,
                window,
                options: AttentionOptions::default(),
                out: self.out,
            };
            self.cpu.run(&op, &batch, None)?;
        }
        Ok(begin.elapsed().as_secs_f64())
    }
}

/// A buffer of `CHUNK` rows, and the table it is filled from.
fn fill(cpu: &mut Cpu, width: usize) -> Result<BufferId, Box<dyn Error>> {
    Ok(cpu.alloc(CHUNK, width)?)
}

fn refill(cpu: &mut Cpu, out: BufferId, width: usize, rows: usize) -> Result<(), Box<dyn Error>> {
    let mut bytes = AlignedBytes::zeroed(4 * width * rows).ok_or("no memory")?;
    for (i, to) in bytes.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        *to = ((i as f32 * 0.37).sin()).to_le_bytes();
    }
    let planes = vec![bytes.into()];
    let spec = Spec::plain("f32");
    let table = cpu.load(Weight { name: "table".into(), spec, order: Order::Rows, n: rows, k: width, planes })?;
    let tokens: Vec<u32> = (0..rows as u32).collect();
    cpu.run(&Op::Embed { table, out }, &Batch::of(0, 0, &tokens), None)?;
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let context: usize = args.next().map_or(Ok(32 * 1024), |a| a.parse())?;
    let threads: Option<usize> = args.next().map(|a| a.parse()).transpose()?;
    let heads = args.next().unwrap_or_else(|| "32/8/128".into());
    let heads: Vec<usize> = heads.split('/').map(str::parse).collect::<Result<_, _>>()?;
    let heads: [usize; 3] = heads.try_into().map_err(|_| "heads are QUERIES/KEYS/WIDTH")?;
    let formats: Vec<String> = args.next().map(|f| f.split(',').map(str::to_owned).collect()).unwrap_or_default();
    let rounds: usize = args.next().map_or(Ok(15), |a| a.parse())?;
    let meter = Meter::new(threads, Isa::detect()?).ok_or("no memory to measure reads with")?;
    println!("{context} positions, {heads:?} (query heads, key heads, width), {LAYERS} layers");
    for format in KvFormat::ALL.into_iter().filter(|f| formats.is_empty() || formats.iter().any(|n| n == f.name())) {
        let mut bench = Bench::new(threads, heads, format, context)?;
        let mut prefill = 0.0;
        for position in (0..context).step_by(CHUNK) {
            let rows = CHUNK.min(context - position);
            let window = (position + rows < context).then_some(1);
            prefill = bench.run(position, rows, window)?;
        }
        let scales: usize = format.scales(heads[2]).iter().sum();
        let per_position = heads[1] * 2 * (heads[2] * format.code_bytes() + scales);
        let bytes = (context * per_position * LAYERS) as f64;
        let mut measured: Vec<[f64; 2]> = Vec::new();
        for _ in 0..rounds {
            let ceiling = meter.read();
            measured.push([bench.run(context, 1, None)?, ceiling]);
        }
        let best = measured.iter().map(|r| r[0]).fold(f64::INFINITY, f64::min);
        let ceiling = measured.iter().map(|r| r[1]).fold(0.0, f64::max);
        let mut shares: Vec<f64> = measured.iter().map(|[time, ceiling]| bytes / time / ceiling).collect();
        shares.sort_by(f64::total_cmp);
        let last = CHUNK.min(context);
        let pairs = last as f64 * (context as f64 - (last as f64 - 1.0) / 2.0);
        let macs = pairs * 2.0 * (heads[0] * heads[2] * LAYERS) as f64;
        println!(
            "{:>4}: decode {:.2} ms, {:.1} GB/s at best, reads {:.1} GB/s at best, share {:.0} % (median of rounds), \
             {:.0} % (best of each); prefill {:.0} G multiply-adds/s",
            format.name(),
            best * 1e3,
            bytes / best / 1e9,
            ceiling / 1e9,
            shares[shares.len() / 2] * 100.0,
            bytes / best / ceiling * 100.0,
            macs / prefill / 1e9
        );
    }
    Ok(())
}

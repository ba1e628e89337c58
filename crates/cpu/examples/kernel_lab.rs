#![allow(clippy::print_stdout, clippy::unwrap_used, missing_docs)]
use ashlar_cpu::Meter;
use ashlar_cpu::bench::*;
use ashlar_simd::Isa;
fn main() {
    let mut args = std::env::args().skip(1);
    let threads: usize = args.next().unwrap().parse().unwrap();
    let rows: Vec<usize> = args.next().unwrap().split(',').map(|r| r.parse().unwrap()).collect();
    let isa = Isa::detect().unwrap();
    let meter = Meter::new(Some(threads), isa).unwrap();
    let int8 = (0..5).map(|_| meter.int8()).fold(0.0, f64::max);
    let read = (0..5).map(|_| meter.read()).fold(0.0, f64::max);
    println!("{isa} int8 {:.0} G/s, read {:.1} GB/s", int8 / 1e9, read / 1e9);
    for format in args {
        let most = *rows.iter().max().unwrap();
        let bytes = if most == 1 { 256 << 20 } else { 1 };
        let mut b = KernelBench::new(&format.parse().unwrap(), [2048, 2048], most, bytes, Some(threads), isa).unwrap();
        for &m in &rows {
            for &scheme in b.schemes() {
                let reps = if m == 1 { b.weights() * 5 } else { 12.max(400 / m) };
                let mut t: Vec<f64> = (0..reps).map(|_| b.time(scheme, m).unwrap().as_secs_f64()).collect();
                t.sort_by(f64::total_cmp);
                let t = if m == 1 { t[t.len() / 4] } else { t[0] };
                let macs = (m * b.multiply_adds()) as f64 / t;
                println!(
                    "{format:10} m {m:4} {:7} {:8.1} us {:7.1} G/s {:5.1} % {:6.1} GB/s {:4.0} %",
                    scheme.name(),
                    t * 1e6,
                    macs / 1e9,
                    100.0 * macs / int8,
                    b.weight_bytes() as f64 / t / 1e9,
                    100.0 * b.weight_bytes() as f64 / t / read
                );
            }
        }
    }
}

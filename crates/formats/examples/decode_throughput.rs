//! Weights per second of decoding and reordering on one core: `cargo run --release -p ashlar-formats --example
//! decode_throughput`. Best of 9 runs over a 512 × 4096 weight.
#![allow(clippy::print_stdout, reason = "a program for people at a terminal")]

use ashlar_formats::{FormatError, Planes, Spec, reorder};
use ashlar_tensor::Order;
use std::time::Instant;

const ROWS: usize = 512;
const COLUMNS: usize = 4096;

fn main() -> Result<(), FormatError> {
    println!("one thread, {ROWS} × {COLUMNS}, M weights/s");
    for text in ["q8", "i4:g32", "i4:g32,zp", "nf4:g64", "mxfp4", "fp8", "bf16", "f16", "f32"] {
        let spec: Spec = text.parse()?;
        let [rows, x16] = [zeros(&spec, Order::Rows)?, zeros(&spec, Order::X16)?];
        let decode = |order, planes: &[Vec<u8>]| {
            let data: Vec<&[u8]> = planes.iter().map(|p| &p[..]).collect();
            let view = Planes { order, n: ROWS, k: COLUMNS, first_row: 0, data: &data };
            let mut out = vec![0.0; ROWS * COLUMNS];
            rate(|| spec.format()?.decode(&spec, &view, 0..ROWS, &mut out))
        };
        let data: Vec<&[u8]> = rows.iter().map(|p| &p[..]).collect();
        let view = Planes { order: Order::Rows, n: ROWS, k: COLUMNS, first_row: 0, data: &data };
        let mut target = x16.clone();
        let reordered = rate(|| {
            let mut out: Vec<&mut [u8]> = target.iter_mut().map(|p| &mut p[..]).collect();
            reorder(&spec, &view, 0..ROWS, Order::X16, &mut out)
        })?;
        let (from_rows, from_x16) = (decode(Order::Rows, &rows)?, decode(Order::X16, &x16)?);
        println!("{text:10} decode rows {from_rows:6.0}  x16 {from_x16:6.0}   reorder to x16 {reordered:6.0}");
    }
    Ok(())
}

fn zeros(spec: &Spec, order: Order) -> Result<Vec<Vec<u8>>, FormatError> {
    Ok(spec.layout(order, ROWS, COLUMNS)?.planes.iter().map(|p| vec![0; p.bytes as usize]).collect())
}

fn rate(mut work: impl FnMut() -> Result<(), FormatError>) -> Result<f64, FormatError> {
    let mut best = f64::INFINITY;
    for _ in 0..9 {
        let start = Instant::now();
        work()?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok((ROWS * COLUMNS) as f64 / best / 1e6)
}

//! NMSE (Σ (w − ŵ)² / Σ w²) of every 4-bit format on the expert weights of a checkpoint of one BF16 safetensors file:
//! `cargo run --release -p ashlar-quantize --example quality -- tests/fixtures/demo-moe/model.safetensors [NAME-PART]`.
#![allow(clippy::print_stdout, reason = "a program for people at a terminal")]

use ashlar_formats::Spec;
use ashlar_quantize::{Stats, Target, Tile, TileError, ids, quantizer};
use ashlar_simd::Isa;
use ashlar_tensor::Order;
use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let file = std::fs::read(arguments.next().ok_or("which .safetensors file?")?)?;
    let part = arguments.next().unwrap_or_else(|| ".experts.".into());
    let weights = weights(&file, &part)?;
    println!("{} weights in {} tensors", weights.iter().map(|w| w.0.len()).sum::<usize>(), weights.len());
    for text in ["q8", "i4:g32", "i4:g64", "i4:g32,zp", "nf4:g64", "nf4:g32", "nf4:g64+o2", "iq4nl", "mxfp4"] {
        let spec: Spec = text.parse()?;
        let mut nmse = Vec::new();
        for method in ids() {
            let mut total = TileError::default();
            for (values, k) in &weights {
                let layout = spec.layout(Order::X16, values.len() / k, *k)?;
                let mut planes: Vec<Vec<u8>> = layout.planes.iter().map(|p| vec![0; p.bytes as usize]).collect();
                let mut out: Vec<&mut [u8]> = planes.iter_mut().map(|p| &mut p[..]).collect();
                let tile = Tile { values, k: *k, first_row: 0 };
                total += quantizer(method)?.quantize(
                    Target::new(&spec),
                    tile,
                    Stats::default(),
                    Isa::detect()?,
                    &mut out,
                )?;
            }
            nmse.push(total.squared_error / total.squared_norm);
        }
        println!("{text:12} rtn {:.6}  search {:.6}  ratio {:.4}", nmse[0], nmse[1], nmse[1] / nmse[0]);
    }
    Ok(())
}

/// Values, row-major, and inputs.
type Matrix = (Vec<f32>, usize);

/// Each matrix whose name contains `part`.
fn weights(file: &[u8], part: &str) -> Result<Vec<Matrix>, Box<dyn Error>> {
    let length = usize::try_from(u64::from_le_bytes(*file.first_chunk().ok_or("too short")?))?;
    let header: serde_json::Value = serde_json::from_slice(file.get(8..8 + length).ok_or("truncated")?)?;
    let mut weights = Vec::new();
    for (name, entry) in header.as_object().ok_or("no header")? {
        if !name.contains(part) || entry["dtype"] != "BF16" {
            continue;
        }
        let number = |v: &serde_json::Value| v.as_u64().map(|v| v as usize).ok_or("bad header");
        let (start, end) = (number(&entry["data_offsets"][0])?, number(&entry["data_offsets"][1])?);
        let bytes = file.get(8 + length + start..8 + length + end).ok_or("truncated")?;
        let values = bytes.as_chunks::<2>().0.iter();
        let values = values.map(|b| f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16)).collect();
        if let Ok(k) = number(&entry["shape"][1]) {
            weights.push((values, k));
        }
    }
    Ok(weights)
}

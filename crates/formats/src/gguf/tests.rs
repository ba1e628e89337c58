//! Against the vectors that the `gguf` Python package decoded (`golden/gguf/make_golden.py`).

use crate::*;
use ashlar_tensor::Order;
use std::path::Path;

fn unhex(text: &serde_json::Value) -> Vec<u8> {
    let digit = |d: u8| (d as char).to_digit(16).unwrap() as u8;
    text.as_str().unwrap().as_bytes().as_chunks::<2>().0.iter().map(|d| digit(d[0]) << 4 | digit(d[1])).collect()
}

struct Case {
    n: usize,
    k: usize,
    blocks: Vec<u8>,
    values: Vec<u32>,
}

fn golden(id: &str) -> Case {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/gguf/blocks.json");
    let all: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let case = &all[id];
    let size = |key: &str| case[key].as_u64().unwrap_or_else(|| panic!("{id} has no golden vectors")) as usize;
    let values = unhex(&case["values"]).as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
    Case { n: size("n"), k: size("k"), blocks: unhex(&case["blocks"]), values }
}

fn block_ids() -> impl Iterator<Item = &'static str> {
    kept_ids().filter(|id| id.contains("q") && !id.contains("wide"))
}

#[test]
fn every_block_type_decodes_as_the_reference_does() -> Result<(), FormatError> {
    assert_eq!(block_ids().count(), 11);
    for id in block_ids() {
        let Case { n, k, blocks, values } = golden(id);
        let spec: Spec = id.parse()?;
        for order in [Order::Rows, Order::X16] {
            assert_eq!(spec.layout(order, n, k)?.bytes(), blocks.len() as u64, "{id}");
            let view = Planes { order, n, k, first_row: 0, data: &[&blocks] };
            let mut got = vec![0.0; n * k];
            spec.format()?.decode(&spec, &view, 0..n, &mut got)?;
            for (i, (got, want)) in got.iter().zip(&values).enumerate() {
                // Signs of zeros are no part of a format's promise.
                let same = got.to_bits() == *want || (*got == 0.0 && f32::from_bits(*want) == 0.0);
                assert!(
                    same,
                    "{id} {order:?} row {} column {}: {got}, expected {}",
                    i / k,
                    i % k,
                    f32::from_bits(*want)
                );
            }
        }
    }
    Ok(())
}

#[test]
fn a_row_is_decoded_alone_and_orders_are_the_same_bytes() -> Result<(), FormatError> {
    for id in block_ids() {
        let Case { n, k, blocks, values } = golden(id);
        let spec: Spec = id.parse()?;
        let row = blocks.len() / n;
        let view = Planes { order: Order::X16, n, k, first_row: 1, data: &[&blocks[row..]] };
        let mut got = vec![0.0; k];
        spec.format()?.decode(&spec, &view, 2..3, &mut got)?;
        let want: Vec<f32> = values[2 * k..].iter().map(|v| f32::from_bits(*v)).collect();
        assert_eq!(got, want, "{id}");
        let mut moved = vec![0xa5; blocks.len()];
        let whole = Planes { order: Order::Rows, n, k, first_row: 0, data: &[&blocks] };
        reorder(&spec, &whole, 0..n, Order::X16, &mut [&mut moved])?;
        assert_eq!(moved, blocks, "{id}");
    }
    Ok(())
}

#[test]
fn scales_that_are_no_numbers_short_planes_and_ragged_rows_are_errors() -> Result<(), FormatError> {
    for id in block_ids() {
        let Case { n, k, mut blocks, .. } = golden(id);
        let spec: Spec = id.parse()?;
        assert!(matches!(spec.layout(Order::Rows, n, k + 16), Err(FormatError::Shape { .. })), "{id}");
        assert!(matches!(spec.layout(Order::Rows, usize::MAX, k), Err(FormatError::Shape { .. })), "{id}");
        let mut out = vec![0.0; n * k];
        let short = Planes { order: Order::Rows, n, k, first_row: 0, data: &[&blocks[1..]] };
        assert!(matches!(spec.format()?.decode(&spec, &short, 0..n, &mut out), Err(FormatError::Short { .. })), "{id}");
        let row = blocks.len() / n;
        blocks[row..2 * row].fill(0xff);
        let view = Planes { order: Order::Rows, n, k, first_row: 0, data: &[&blocks] };
        let got = spec.format()?.decode(&spec, &view, 0..n, &mut out);
        assert!(matches!(got, Err(FormatError::NotFinite { row: 1, column: 0, .. })), "{id} {got:?}");
    }
    Ok(())
}

#[test]
fn no_recipe_can_ask_for_a_block_type() {
    assert!(block_ids().all(|id| !ids().any(|other| other == id)));
}

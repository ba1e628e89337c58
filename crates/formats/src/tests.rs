//! What holds for every format: golden vectors, documentation, orders, hostile bytes.

use crate::*;
use ashlar_tensor::PlaneKind;
use proptest::prelude::*;
use std::path::Path;

fn here() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every legal spec, without and with outliers.
fn specs() -> Vec<Spec> {
    let text = |id: &str, v: &Variant| if v.text.is_empty() { id.to_owned() } else { format!("{id}:{}", v.text) };
    let bare = ids().flat_map(|id| format(id).unwrap().variants().iter().map(move |v| text(id, v)));
    bare.flat_map(|t| [t.parse(), format!("{t}+o3").parse()]).flatten().collect()
}

fn golden() -> Vec<serde_json::Value> {
    let mut files: Vec<_> = std::fs::read_dir(here().join("golden")).unwrap().map(|f| f.unwrap().path()).collect();
    files.retain(|f| f.extension().is_some_and(|e| e == "json"));
    files.sort();
    files.iter().map(|f| serde_json::from_slice(&std::fs::read(f).unwrap()).unwrap()).collect()
}

fn unhex(text: &serde_json::Value) -> Vec<u8> {
    let digits = text.as_str().unwrap().as_bytes();
    let digit = |d: u8| (d as char).to_digit(16).unwrap() as u8;
    digits.as_chunks::<2>().0.iter().map(|d| digit(d[0]) << 4 | digit(d[1])).collect()
}

fn unhex_all(planes: &serde_json::Value) -> Vec<Vec<u8>> {
    planes.as_array().unwrap().iter().map(unhex).collect()
}

fn views(planes: &[Vec<u8>]) -> Vec<&[u8]> {
    planes.iter().map(|p| &p[..]).collect()
}

fn reordered(spec: &Spec, from: &Planes<'_>, rows: Range<usize>, to: Order) -> Result<Vec<Vec<u8>>, FormatError> {
    let layout = spec.layout(to, from.n, from.k)?;
    let span = |i| layout.span(i, &rows);
    // Rubbish beforehand, so that bytes left unwritten show.
    let mut out: Vec<Vec<u8>> =
        (0..layout.planes.len()).map(|i| vec![0xa5; (span(i).end - span(i).start) as usize]).collect();
    let mut slices: Vec<&mut [u8]> = out.iter_mut().map(|p| &mut p[..]).collect();
    reorder(spec, from, rows, to, &mut slices)?;
    Ok(out)
}

#[test]
fn every_format_has_golden_vectors_for_every_variant_and_a_page() {
    let golden: Vec<Spec> = golden().iter().map(|g| g["spec"].as_str().unwrap().parse().unwrap()).collect();
    for spec in specs().into_iter().filter(|s| s.outlier_slots == 0) {
        assert!(golden.contains(&spec), "{spec}: no golden vectors; see crates/formats/golden/make_golden.py");
    }
    for page in ids().chain(["outliers"]) {
        let text = std::fs::read_to_string(here().join(format!("../../docs/formats/{page}.md"))).unwrap_or_default();
        for part in ["Bits per weight", "## Planes", "## Bound", "## Lossless from", "Source"] {
            assert!(text.contains(part), "docs/formats/{page}.md has no `{part}`");
        }
    }
}

#[test]
fn golden_planes_decode_exactly_from_both_orders() -> Result<(), FormatError> {
    for golden in golden() {
        let spec: Spec = golden["spec"].as_str().unwrap().parse()?;
        let case = &golden["decode"];
        let (n, k) = (case["n"].as_u64().unwrap() as usize, case["k"].as_u64().unwrap() as usize);
        let want = unhex(&case["values"]);
        let want: Vec<u32> = want.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
        for (order, planes) in [(Order::X16, unhex_all(&case["x16"])), (Order::Rows, unhex_all(&case["rows"]))] {
            let sizes: Vec<u64> = planes.iter().map(|p| p.len() as u64).collect();
            let layout = spec.layout(order, n, k)?;
            assert_eq!(layout.planes.iter().map(|p| p.bytes).collect::<Vec<_>>(), sizes, "{spec} {order:?}");
            let mut got = vec![0.0; n * k];
            let view = Planes { order, n, k, first_row: 0, data: &views(&planes) };
            spec.format()?.decode(&spec, &view, 0..n, &mut got)?;
            // Signs of zeros are no part of a format's promise.
            let bits = |x: u32| if x == 0x8000_0000 { 0 } else { x };
            for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                assert_eq!(bits(got.to_bits()), bits(*want), "{spec} {order:?} row {} column {}", i / k, i % k);
            }
        }
    }
    Ok(())
}

#[test]
fn golden_planes_of_one_order_become_those_of_the_other() -> Result<(), FormatError> {
    for golden in golden() {
        let spec: Spec = golden["spec"].as_str().unwrap().parse()?;
        let case = &golden["decode"];
        let (n, k) = (case["n"].as_u64().unwrap() as usize, case["k"].as_u64().unwrap() as usize);
        let (x16, rows) = (unhex_all(&case["x16"]), unhex_all(&case["rows"]));
        let view = Planes { order: Order::X16, n, k, first_row: 0, data: &views(&x16) };
        assert_eq!(reordered(&spec, &view, 0..n, Order::Rows)?, rows, "{spec}");
        let view = Planes { order: Order::Rows, n, k, first_row: 0, data: &views(&rows) };
        assert_eq!(reordered(&spec, &view, 0..n, Order::X16)?, x16, "{spec}");
    }
    Ok(())
}

#[test]
fn one_row_of_a_later_tile_decodes_as_within_the_whole() -> Result<(), FormatError> {
    for spec in specs() {
        let (n, k) = (290, 128);
        for order in [Order::X16, Order::Rows] {
            let planes = tame_planes(&spec, order, n, k, 3)?;
            let view = Planes { order, n, k, first_row: 0, data: &views(&planes) };
            let mut all = vec![0.0; n * k];
            spec.format()?.decode(&spec, &view, 0..n, &mut all)?;
            let layout = spec.layout(order, n, k)?;
            let row = 261;
            let first_row = row / layout.row_block * layout.row_block;
            let tail: Vec<&[u8]> =
                (0..planes.len()).map(|i| &planes[i][layout.span(i, &(first_row..n)).start as usize..]).collect();
            let view = Planes { order, n, k, first_row, data: &tail };
            let mut one = vec![0.0; k];
            spec.format()?.decode(&spec, &view, row..row + 1, &mut one)?;
            assert_eq!(one, all[row * k..(row + 1) * k], "{spec} {order:?}");
            // A tile is reordered alone, too.
            let other = if order == Order::X16 { Order::Rows } else { Order::X16 };
            let whole = reordered(&spec, &Planes { first_row: 0, data: &views(&planes), ..view }, 0..n, other)?;
            let target = spec.layout(other, n, k)?;
            for (i, part) in reordered(&spec, &view, first_row..n, other)?.iter().enumerate() {
                let span = target.span(i, &(first_row..n));
                assert_eq!(part[..], whole[i][span.start as usize..span.end as usize], "{spec} to {other:?}");
            }
        }
    }
    Ok(())
}

#[test]
fn nan_codes_of_fp8_and_scales_that_are_no_numbers_are_errors() -> Result<(), FormatError> {
    let spec: Spec = "fp8".parse()?;
    let mut planes = tame_planes(&spec, Order::Rows, 16, 128, 1)?;
    planes[0][5 * 128 + 7] = 0xff;
    let mut out = vec![0.0; 16 * 128];
    let view = Planes { order: Order::Rows, n: 16, k: 128, first_row: 0, data: &views(&planes) };
    let got = spec.format()?.decode(&spec, &view, 0..16, &mut out);
    assert!(matches!(got, Err(FormatError::NotFinite { row: 5, column: 7, .. })), "{got:?}");
    for text in ["q8", "i4", "mxfp4"] {
        let spec: Spec = text.parse()?;
        let mut planes = tame_planes(&spec, Order::Rows, 16, 128, 1)?;
        planes[1].fill(0xff);
        let view = Planes { order: Order::Rows, n: 16, k: 128, first_row: 0, data: &views(&planes) };
        let got = spec.format()?.decode(&spec, &view, 3..4, &mut out[..128]);
        assert!(matches!(got, Err(FormatError::NotFinite { row: 3, column: 0, .. })), "{text} {got:?}");
    }
    Ok(())
}

#[test]
fn a_scale_that_makes_infinity_is_an_error_and_smaller_codes_are_not() -> Result<(), FormatError> {
    let spec: Spec = "mxfp4".parse()?;
    // The scale is 2^127: 1.5 still fits an f32, 6 does not.
    for (code, legal) in [(0x33, true), (0x77, false)] {
        let planes = [vec![code; 16], vec![254]];
        let view = Planes { order: Order::Rows, n: 1, k: 32, first_row: 0, data: &views(&planes) };
        let got = spec.format()?.decode(&spec, &view, 0..1, &mut [0.0; 32]);
        assert_eq!(got.is_ok(), legal, "{got:?}");
    }
    Ok(())
}

#[test]
fn an_outlier_beyond_the_columns_is_an_error() -> Result<(), FormatError> {
    let spec: Spec = "nf4:g64+o3".parse()?;
    let mut planes = tame_planes(&spec, Order::X16, 16, 128, 1)?;
    planes[2][..2].copy_from_slice(&128u16.to_le_bytes());
    let view = Planes { order: Order::X16, n: 16, k: 128, first_row: 0, data: &views(&planes) };
    let got = spec.format()?.decode(&spec, &view, 0..1, &mut [0.0; 128]);
    assert!(matches!(got, Err(FormatError::Corrupt { .. })), "{got:?}");
    Ok(())
}

#[test]
fn rows_and_slices_that_do_not_fit_are_refused() -> Result<(), FormatError> {
    for spec in specs() {
        let (n, k) = (40, 128);
        let planes = tame_planes(&spec, Order::X16, n, k, 2)?;
        let mut out = vec![0.0; n * k];
        let format = spec.format()?;
        let whole = views(&planes);
        let view = Planes { order: Order::X16, n, k, first_row: 0, data: &whole };
        assert!(format.decode(&spec, &view, 0..n + 1, &mut vec![0.0; (n + 1) * k]).is_err(), "{spec}");
        assert!(format.decode(&spec, &view, 0..n, &mut out[1..]).is_err(), "{spec}");
        #[expect(clippy::reversed_empty_ranges, reason = "that is the point")]
        let reversed = 9..3;
        assert!(format.decode(&spec, &view, reversed, &mut []).is_err(), "{spec}");
        for plane in 0..planes.len() {
            let mut short = whole.clone();
            short[plane] = &short[plane][..short[plane].len() - 1];
            let view = Planes { data: &short, ..view };
            let got = format.decode(&spec, &view, 0..n, &mut out);
            assert!(matches!(got, Err(FormatError::Short { plane: p, .. }) if p == plane), "{spec} {got:?}");
            assert!(reordered(&spec, &view, 0..n, Order::Rows).is_err(), "{spec}");
        }
        let view = Planes { data: &whole[..planes.len() - 1], ..view };
        assert!(matches!(format.decode(&spec, &view, 0..n, &mut out), Err(FormatError::Rows { .. })), "{spec}");
    }
    Ok(())
}

#[test]
fn sizes_match_the_bits_per_weight_of_the_pages() -> Result<(), FormatError> {
    let (n, k) = (4096u64, 4096u64);
    for (text, bits) in [
        ("q8", 8.5),
        ("i4:g32", 4.5),
        ("i4:g64", 4.25),
        ("i4:g128", 4.125),
        ("i4:g128,zp", 4.1875),
        ("nf4:g64", 4.25),
        ("iq4nl", 4.5),
        ("mxfp4", 4.25),
        ("fp8", 8.0 + 32.0 / 16384.0),
        ("k4", 4.25 + 32.0 / 4096.0),
        ("k3", 3.1875 + 16.0 / 4096.0),
        ("k2", 2.1875 + 16.0 / 4096.0),
        ("k2h", 2.375),
        ("q6", 6.5625),
        ("nf4:g64+o16", 4.25 + 16.0 * 32.0 / 4096.0),
    ] {
        let bytes = text.parse::<Spec>()?.layout(Order::X16, n as usize, k as usize)?.bytes();
        assert_eq!((bytes * 8) as f64 / (n * k) as f64, bits, "{text}");
    }
    Ok(())
}

/// Planes of random bytes whose scales, codes and outliers are all legal.
fn tame_planes(spec: &Spec, order: Order, n: usize, k: usize, seed: u64) -> Result<Vec<Vec<u8>>, FormatError> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    let layout = spec.layout(order, n, k)?;
    let mut planes = Vec::new();
    for plane in &layout.planes {
        let mut bytes: Vec<u8> = (0..plane.bytes).map(|_| random()).collect();
        match plane.kind {
            // Below 0x70 in the high byte: finite in every type; e4m3 NaN has all low bits set.
            PlaneKind::Scales if order == Order::Rows && matches!(spec.grid()?, Grid::TwoLevel(_)) => {
                let Grid::TwoLevel(grid) = spec.grid()? else { unreachable!() };
                bytes.iter_mut().for_each(|b| *b &= u8::MAX >> (8 - grid.inner.bits()));
            }
            PlaneKind::Scales if matches!(spec.grid()?, Grid::TwoLevel(_)) => {}
            PlaneKind::Values | PlaneKind::Scales | PlaneKind::OuterScales => {
                bytes.iter_mut().for_each(|b| *b = (*b & 0x3f).min(0x3e))
            }
            PlaneKind::Codes if spec.id == "fp8" => bytes.iter_mut().for_each(|b| *b &= 0xfe),
            PlaneKind::Outliers => {
                for slot in bytes.as_chunks_mut::<4>().0 {
                    *slot = [slot[0] % k.min(255) as u8, 0, slot[2], slot[3] & 0x3f];
                }
            }
            _ => {}
        }
        planes.push(bytes);
    }
    if order == Order::X16 {
        // Padding rows are zero: a round trip through row order makes them so.
        let view = Planes { order, n, k, first_row: 0, data: &views(&planes) };
        let rows = reordered(spec, &view, 0..n, Order::Rows)?;
        let view = Planes { order: Order::Rows, n, k, first_row: 0, data: &views(&rows) };
        planes = reordered(spec, &view, 0..n, Order::X16)?;
    }
    Ok(planes)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Any bytes decode to values or to an error, never to a panic, and what decodes is finite in formats with scales.
    #[test]
    fn every_bit_pattern_is_accepted(
        index in 0usize..1000, bytes in proptest::collection::vec(any::<u8>(), 256..4096), n in 1usize..40, blocks in 1usize..3,
        rows_order in any::<bool>(),
    ) {
        let all = specs();
        let spec = &all[index % all.len()];
        let order = if rows_order { Order::Rows } else { Order::X16 };
        let k = blocks * 128;
        let layout = spec.layout(order, n, k).unwrap();
        let planes: Vec<Vec<u8>> = layout.planes.iter()
            .map(|p| bytes.iter().copied().cycle().take(p.bytes as usize).collect()).collect();
        let view = Planes { order, n, k, first_row: 0, data: &views(&planes) };
        let mut out = vec![0.0; n * k];
        let result = spec.format().unwrap().decode(spec, &view, 0..n, &mut out);
        if result.is_ok() && spec.scale.is_some() {
            prop_assert!(out.iter().all(|v| v.is_finite()));
        }
    }

    /// Reordering is a bijection between row order and x16 with zero padding.
    #[test]
    fn reordering_there_and_back_changes_nothing(index in 0usize..1000, seed in 1u64..1000, n in 1usize..300, blocks in 1usize..3) {
        let all = specs();
        let spec = &all[index % all.len()];
        let k = blocks * 128;
        for (from, to) in [(Order::Rows, Order::X16), (Order::X16, Order::Rows)] {
            let planes = tame_planes(spec, from, n, k, seed).unwrap();
            let there = reordered(spec, &Planes { order: from, n, k, first_row: 0, data: &views(&planes) }, 0..n, to).unwrap();
            let back = reordered(spec, &Planes { order: to, n, k, first_row: 0, data: &views(&there) }, 0..n, from).unwrap();
            prop_assert_eq!(&back, &planes, "{}", spec);
        }
    }

    /// No text makes the parser panic, and what it accepts it prints back.
    #[test]
    fn text_that_parses_prints_as_itself_or_as_its_canonical_form(text in "(q8|i4|nf4|fp8|mxfp4|bf16|x)?(:[a-z0-9,x]{0,12})?(\\+o[0-9]{0,6})?") {
        if let Ok(spec) = text.parse::<Spec>() {
            prop_assert_eq!(spec.to_string().parse::<Spec>().unwrap(), spec);
        }
    }
}

//! What every method must do for every format, whatever its bits.

use crate::*;
use ashlar_formats::{Layout, Planes};

/// Deterministic values, roughly normal with heavy tails.
pub fn values(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut unit = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32
    };
    (0..count)
        .map(|_| {
            let normal = (0..6).map(|_| unit()).sum::<f32>() - 3.0;
            if unit() < 0.01 { normal * 6.0 } else { normal }
        })
        .collect()
}

/// Every legal spec, with and without outliers.
pub fn specs() -> Vec<Spec> {
    let mut all = Vec::new();
    for id in ashlar_formats::ids() {
        for variant in ashlar_formats::format(id).unwrap().variants() {
            let text = if variant.text.is_empty() { id.to_owned() } else { format!("{id}:{}", variant.text) };
            all.push(text.parse().unwrap());
            all.extend(format!("{text}+o3").parse::<Spec>());
        }
    }
    all
}

/// Planes of a tile, filled with rubbish so that unwritten bytes show.
pub fn buffers(layout: &Layout) -> Vec<Vec<u8>> {
    layout.planes.iter().map(|p| vec![0xa5; p.bytes as usize]).collect()
}

/// Planes, decoded values, error.
type Roundtrip = (Vec<Vec<u8>>, Vec<f32>, TileError);

/// Quantizes whole weights; returns planes, decoded values, error.
pub fn roundtrip(
    method: &str,
    spec: &Spec,
    w: &[f32],
    k: usize,
    stats: Stats<'_>,
    isa: Isa,
) -> Result<Roundtrip, FormatError> {
    let n = w.len() / k;
    let mut planes = buffers(&spec.layout(Order::X16, n, k)?);
    let mut slices: Vec<&mut [u8]> = planes.iter_mut().map(|p| &mut p[..]).collect();
    let target = Target { spec, outlier_sigma: 2.0 };
    let tile = Tile { values: w, k, first_row: 0 };
    let error = quantizer(method).unwrap().quantize(target, tile, stats, isa, &mut slices)?;
    let data: Vec<&[u8]> = planes.iter().map(|p| &p[..]).collect();
    let mut decoded = vec![0.0; w.len()];
    let view = Planes { order: Order::X16, n, k, first_row: 0, data: &data };
    spec.format()?.decode(spec, &view, 0..n, &mut decoded)?;
    Ok((planes, decoded, error))
}

/// Every (method, spec) that go together.
pub fn pairs() -> impl Iterator<Item = (&'static str, Spec)> {
    ids().flat_map(|m| {
        specs().into_iter().filter(move |s| quantizer(m).unwrap().supports(s).is_ok()).map(move |s| (m, s))
    })
}

#[test]
fn the_reported_error_is_that_of_the_decoded_planes() -> Result<(), FormatError> {
    for (method, spec) in pairs() {
        let (n, k) = (37, 256);
        let w = values(n * k, 1);
        let (_, decoded, error) = roundtrip(method, &spec, &w, k, Stats::default(), Isa::Portable)?;
        let squared: f64 = w.iter().zip(&decoded).map(|(a, b)| f64::from(a - b).powi(2)).sum();
        let norm: f64 = w.iter().map(|a| f64::from(*a).powi(2)).sum();
        let max = w.iter().zip(&decoded).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(
            (error.squared_error - squared).abs() <= 1e-5 * squared,
            "{method} {spec}: {error:?}, measured {squared}"
        );
        assert!((error.squared_norm - norm).abs() <= 1e-5 * norm, "{method} {spec}");
        assert_eq!(error.max_abs, max, "{method} {spec}");
    }
    Ok(())
}

#[test]
fn every_isa_gives_the_bytes_of_the_portable_one() -> Result<(), FormatError> {
    let (n, k) = (21, 128);
    let w = values(n * k, 2);
    let importance: Vec<f32> = values(k, 3).iter().map(|v| v * v).collect();
    for isa in Isa::known() {
        if !Isa::available().contains(&isa) {
            println!("SKIPPED quantize {isa}: not on this CPU");
            continue;
        }
        for (method, spec) in pairs() {
            for stats in [Stats::default(), Stats { importance: Some(&importance) }] {
                let want = roundtrip(method, &spec, &w, k, stats, Isa::Portable)?;
                let got = roundtrip(method, &spec, &w, k, stats, isa)?;
                assert!(want.0 == got.0 && want.2 == got.2, "{method} {spec} on {isa}");
            }
        }
    }
    Ok(())
}

#[test]
fn a_tile_gives_the_same_bytes_alone_as_within_the_weight() -> Result<(), FormatError> {
    let (n, k) = (300, 128);
    let w = values(n * k, 4);
    for (method, spec) in pairs() {
        let (whole, ..) = roundtrip(method, &spec, &w, k, Stats::default(), Isa::Portable)?;
        let layout = spec.layout(Order::X16, n, k)?;
        let rows = 128..256;
        let (tile, ..) =
            roundtrip(method, &spec, &w[rows.start * k..rows.end * k], k, Stats::default(), Isa::Portable)?;
        for (i, plane) in tile.iter().enumerate() {
            let span = layout.span(i, &rows);
            assert_eq!(plane[..], whole[i][span.start as usize..span.end as usize], "{method} {spec} plane {i}");
        }
    }
    Ok(())
}

#[test]
fn padding_rows_are_zero_bytes() -> Result<(), FormatError> {
    for (method, spec) in pairs() {
        let (n, k) = (3, 128);
        let (planes, ..) = roundtrip(method, &spec, &values(n * k, 5), k, Stats::default(), Isa::Portable)?;
        let data: Vec<&[u8]> = planes.iter().map(|p| &p[..]).collect();
        let view = Planes { order: Order::X16, n, k, first_row: 0, data: &data };
        // Rows hold no padding, so that a round trip through row order leaves zeros there.
        let mut rows = buffers(&spec.layout(Order::Rows, n, k)?);
        let mut slices: Vec<&mut [u8]> = rows.iter_mut().map(|p| &mut p[..]).collect();
        ashlar_formats::reorder(&spec, &view, 0..n, Order::Rows, &mut slices)?;
        let data: Vec<&[u8]> = rows.iter().map(|p| &p[..]).collect();
        let view = Planes { order: Order::Rows, n, k, first_row: 0, data: &data };
        let mut back = buffers(&spec.layout(Order::X16, n, k)?);
        let mut slices: Vec<&mut [u8]> = back.iter_mut().map(|p| &mut p[..]).collect();
        ashlar_formats::reorder(&spec, &view, 0..n, Order::X16, &mut slices)?;
        assert_eq!(back, planes, "{method} {spec}");
    }
    Ok(())
}

#[test]
fn values_that_are_not_finite_are_named_by_row_and_column() {
    for (method, spec) in pairs() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let k = 128;
            let mut w = values(40 * k, 6);
            w[19 * k + 77] = bad;
            let got = roundtrip(method, &spec, &w, k, Stats::default(), Isa::Portable).unwrap_err();
            assert!(matches!(got, FormatError::NotFinite { row: 19, column: 77, .. }), "{method} {spec}: {got}");
        }
    }
}

#[test]
fn values_too_large_for_the_scale_are_named_or_kept() {
    for (method, spec) in pairs() {
        let k = 128;
        let mut w = values(16 * k, 7);
        w[3 * k + 70] = 3e38;
        match roundtrip(method, &spec, &w, k, Stats::default(), Isa::Portable) {
            Err(FormatError::TooLarge { row: 3, column: 70, .. }) => {}
            Ok((_, decoded, _)) => assert!((decoded[3 * k + 70] / 3e38 - 1.0).abs() < 0.3, "{method} {spec}"),
            Err(e) => panic!("{method} {spec}: {e}"),
        }
    }
}

#[test]
fn all_zero_weights_become_zeros() -> Result<(), FormatError> {
    for (method, spec) in pairs() {
        let (_, decoded, error) = roundtrip(method, &spec, &[0.0; 16 * 128], 128, Stats::default(), Isa::Portable)?;
        assert!(decoded.iter().all(|&v| v == 0.0) && error == TileError::default(), "{method} {spec}");
    }
    Ok(())
}

#[test]
fn outputs_of_the_wrong_size_are_refused() {
    let spec: Spec = "q8".parse().unwrap();
    let (mut a, mut b) = (vec![0u8; 16 * 64 - 1], vec![0u8; 64]);
    let w = values(16 * 64, 8);
    let tile = Tile { values: &w, k: 64, first_row: 0 };
    let got = Rtn.quantize(Target::new(&spec), tile, Stats::default(), Isa::Portable, &mut [&mut a, &mut b]);
    assert!(matches!(got, Err(FormatError::Short { plane: 0, .. })), "{got:?}");
    let got = Rtn.quantize(Target::new(&spec), tile, Stats::default(), Isa::Portable, &mut []);
    assert!(matches!(got, Err(FormatError::Rows { .. })), "{got:?}");
}

#[test]
fn methods_are_found_by_name_and_unknown_ones_refused_with_the_list() {
    assert_eq!(ids().collect::<Vec<_>>(), ["rtn", "search"]);
    let message = quantizer("serch").err().unwrap().to_string();
    assert!(message.contains("auto, rtn, search"), "{message}");
    let of = |text: &str| auto(&text.parse().unwrap());
    assert_eq!((of("q8"), of("i4"), of("fp8"), of("bf16"), of("mxfp4")), ("rtn", "search", "rtn", "rtn", "search"));
}

//! What every method must do for every format, whatever its bits.

use crate::*;
use ashlar_formats::{Layout, Planes};
use proptest::prelude::*;

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

/// Xᵀ X / m of correlated inputs.
pub fn hessian(k: usize, samples: usize, seed: u64) -> Vec<f32> {
    let noise = values(samples * k, seed);
    let mut h = vec![0.0f64; k * k];
    for x in noise.chunks(k) {
        let x: Vec<f64> = (0..k).map(|j| f64::from(x[j]) + 0.8 * f64::from(x[j / 4]) + 0.3).collect();
        for i in 0..k {
            for j in 0..k {
                h[i * k + j] += x[i] * x[j] / samples as f64;
            }
        }
    }
    h.iter().map(|v| *v as f32).collect()
}

/// Normal deviates by Box and Muller.
pub fn normal(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut unit = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        ((state >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    };
    (0..count).map(|_| ((-2.0 * unit().ln()).sqrt() * (std::f64::consts::TAU * unit()).cos()) as f32).collect()
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
    let quantizer = quantizer(method).unwrap();
    let factor = (quantizer.needs_hessian() && stats.factor.is_none())
        .then(|| Factor::new(&hessian(k, 2 * k, 41), k, Factor::DAMPING, isa).unwrap());
    let stats = Stats { factor: stats.factor.or(factor.as_ref()), ..stats };
    let error = quantizer.quantize(target, tile, stats, isa, &mut slices)?;
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
            for stats in [Stats::default(), Stats { importance: Some(&importance), ..Stats::default() }] {
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
    assert_eq!(ids().collect::<Vec<_>>(), ["gptq", "rtn", "search"]);
    let message = quantizer("serch").err().unwrap().to_string();
    assert!(message.contains("auto, gptq, rtn, search"), "{message}");
    let of = |text: &str| auto(&text.parse().unwrap());
    assert_eq!((of("q8"), of("i4"), of("fp8"), of("bf16"), of("mxfp4")), ("rtn", "search", "rtn", "rtn", "search"));
    assert!(["k4", "k3", "k2", "k2h", "q6"].map(of).iter().all(|m| *m == "search"));
    let with = |text: &str| auto_with(&text.parse().unwrap(), true);
    assert_eq!((with("k2"), with("k3"), with("k4"), with("i4"), with("q8")), ("gptq", "gptq", "gptq", "gptq", "rtn"));
}

#[test]
fn rtn_gives_the_golden_planes() -> Result<(), FormatError> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../formats/golden");
    let mut count = 0;
    for file in std::fs::read_dir(folder).unwrap().map(|f| f.unwrap().path()) {
        if file.extension().is_none_or(|e| e != "json") {
            continue;
        }
        let golden: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        let spec: Spec = golden["spec"].as_str().unwrap().parse()?;
        let case = &golden["rtn"];
        let k = case["k"].as_u64().unwrap() as usize;
        let bits = unhex(&case["weights_bf16"]);
        let bits = bits.as_chunks::<2>().0.iter();
        let w: Vec<f32> = bits.map(|b| f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16)).collect();
        for isa in Isa::available() {
            let (planes, ..) = roundtrip("rtn", &spec, &w, k, Stats::default(), isa)?;
            for (i, (got, want)) in planes.iter().zip(case["x16"].as_array().unwrap()).enumerate() {
                let want = unhex(want);
                let at = got.iter().zip(&want).position(|(a, b)| a != b);
                assert!(got.len() == want.len() && at.is_none(), "{spec} {isa} plane {i} differs at byte {at:?}");
            }
        }
        count += 1;
    }
    assert!(count >= 20, "{count} golden files");
    Ok(())
}

fn unhex(text: &serde_json::Value) -> Vec<u8> {
    let digits = text.as_str().unwrap().as_bytes();
    let digit = |d: u8| (d as char).to_digit(16).unwrap() as u8;
    digits.as_chunks::<2>().0.iter().map(|d| digit(d[0]) << 4 | digit(d[1])).collect()
}

/// Σ importance · (w − ŵ)² of each group of `group` columns.
fn group_errors(w: &[f32], decoded: &[f32], k: usize, group: usize, importance: Option<&[f32]>) -> Vec<f64> {
    let weight = |column: usize| f64::from(importance.map_or(1.0, |i| i[column]));
    let squares = w.iter().zip(decoded).enumerate().map(|(i, (a, b))| weight(i % k) * f64::from(a - b).powi(2));
    squares.collect::<Vec<_>>().chunks(group).map(|c| c.iter().sum()).collect()
}

#[test]
fn search_is_never_worse_than_rtn_in_any_group() -> Result<(), FormatError> {
    let (n, k) = (64, 512);
    let importance: Vec<f32> = values(k, 11).iter().map(|v| v * v).collect();
    for spec in specs().into_iter().filter(|s| Search.supports(s).is_ok() && s.outlier_slots == 0) {
        for stats in [Stats::default(), Stats { importance: Some(&importance), ..Stats::default() }] {
            let w = values(n * k, 12);
            let rtn = roundtrip("rtn", &spec, &w, k, stats, Isa::Portable)?.1;
            let search = roundtrip("search", &spec, &w, k, stats, Isa::Portable)?.1;
            // Where groups share an outer scale, one may lose for the good of the others.
            let width = if matches!(spec.grid()?, Grid::TwoLevel(_)) { k } else { spec.group };
            let rtn = group_errors(&w, &rtn, k, width, stats.importance);
            let search = group_errors(&w, &search, k, width, stats.importance);
            for (i, (r, s)) in rtn.iter().zip(&search).enumerate() {
                // The comparison itself runs in f32.
                assert!(*s <= r * 1.00001, "{spec} group {i}: rtn {r:e}, search {s:e}");
            }
            let (r, s): (f64, f64) = (rtn.iter().sum(), search.iter().sum());
            assert!(s < 0.97 * r, "{spec}: search {s:e} hardly improves on rtn {r:e}");
        }
    }
    Ok(())
}

#[test]
fn search_beats_max_over_seven_by_a_fifth_on_normal_weights() -> Result<(), FormatError> {
    let (w, k) = (values(256 * 1024, 13), 1024);
    let spec: Spec = "i4".parse()?;
    let error = |method| Ok(roundtrip(method, &spec, &w, k, Stats::default(), Isa::Portable)?.2.squared_error);
    let (rtn, search): (f64, f64) = (error("rtn")?, error("search")?);
    assert!(search < 0.8 * rtn, "rtn {rtn:e}, search {search:e}");
    Ok(())
}

#[test]
fn search_comes_within_one_percent_of_trying_every_scale() -> Result<(), FormatError> {
    // i4 without zero points, one row: every f16 scale up to the peak, both signs, by brute force.
    let spec: Spec = "i4".parse()?;
    let w = values(64 * 32, 14);
    let decoded = roundtrip("search", &spec, &w, 32, Stats::default(), Isa::Portable)?.1;
    let (mut best_sum, mut search_sum) = (0.0, 0.0);
    for (x, got) in w.chunks(32).zip(decoded.chunks(32)) {
        let error = |s: f32| {
            let one = |v: &f32| f64::from(v - (v / s).round_ties_even().clamp(-8.0, 7.0) * s).powi(2);
            x.iter().map(one).sum::<f64>()
        };
        let scales = (1..0x7c00).map(ashlar_formats::scale::f16_to_f32);
        let peak = x.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        let near = scales.filter(|s| (peak / 16.0..peak / 4.0).contains(s));
        best_sum += near.flat_map(|s| [error(s), error(-s)]).fold(f64::INFINITY, f64::min);
        search_sum += x.iter().zip(got).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
    }
    assert!(search_sum <= 1.01 * best_sum, "search {search_sum:e}, best {best_sum:e}");
    Ok(())
}

#[test]
fn importance_moves_error_to_columns_that_matter_less() -> Result<(), FormatError> {
    let (n, k) = (64, 256);
    let w = values(n * k, 15);
    let importance: Vec<f32> = (0..k).map(|c| if c % 4 == 0 { 100.0 } else { 0.1 }).collect();
    for spec in ["i4", "i4:g32,zp", "nf4", "iq4nl"].map(|t| t.parse::<Spec>().unwrap()) {
        let plain = roundtrip("search", &spec, &w, k, Stats::default(), Isa::Portable)?.1;
        let stats = Stats { importance: Some(&importance), ..Stats::default() };
        let weighted = roundtrip("search", &spec, &w, k, stats, Isa::Portable)?.1;
        let error = |d: &[f32]| group_errors(&w, d, k, k, Some(&importance)).iter().sum::<f64>();
        assert!(error(&weighted) < 0.9 * error(&plain), "{spec}: {} {}", error(&weighted), error(&plain));
    }
    Ok(())
}

/// What rounding inner scales adds, as a share of the largest |w| of the columns with one outer scale.
fn inner_bound(spec: &Spec) -> f32 {
    match spec.grid() {
        Ok(Grid::TwoLevel(g)) => 0.501 * g.inner.step() as f32 / g.inner.bounds().0.unsigned_abs() as f32,
        _ => 0.0,
    }
}

/// Largest |w − ŵ| that the pages promise of rtn, as a share of the largest |w| of the group (or block).
fn bound(spec: &Spec) -> f32 {
    match (spec.id, spec.zero_point) {
        ("q8", _) => 0.502 / 127.0,
        ("i4", false) => 0.502 / 7.0,
        ("i4", true) => 0.51 * 2.0 / 15.0,
        ("nf4", _) => 0.153,
        ("iq4nl", _) => 14.1 / 127.0,
        ("mxfp4", _) => 0.25,
        ("k4", _) => 14.05 / 127.0,
        ("k3", _) => 16.05 / 63.0,
        ("k2" | "k2h", _) => 14.05 / 31.0,
        ("q6", _) => 1.05 / 32.0,
        ("fp8", _) => 1.0 / 16.0,
        ("bf16", _) => 1.0 / 256.0,
        ("f16", _) => 1.0 / 2048.0,
        _ => 0.0,
    }
}

#[test]
fn rtn_errors_stay_within_the_stated_bounds() -> Result<(), FormatError> {
    let (n, k) = (48, 256);
    let w = values(n * k, 16);
    for spec in specs().into_iter().filter(|s| s.outlier_slots == 0) {
        let decoded = roundtrip("rtn", &spec, &w, k, Stats::default(), Isa::Portable)?.1;
        let (group, rows) = if spec.id == "fp8" { (128, n) } else { (spec.group.max(1), 1) };
        for (i, (a, b)) in w.iter().zip(&decoded).enumerate() {
            let (row, first) = (i / k, i % k / group * group);
            let block = (0..rows).map(|r| if rows == 1 { row } else { r }).flat_map(|r| &w[r * k + first..][..group]);
            let peak = block.fold(0.0f32, |m, v| m.max(v.abs()));
            // With k = 256 every outer scale serves a row.
            let extreme = w[row * k..(row + 1) * k].iter().fold(0.0f32, |m, v| m.max(v.abs()));
            let allowed = bound(&spec) * peak + inner_bound(&spec) * extreme;
            assert!((a - b).abs() <= allowed, "{spec} row {row}: {a} became {b}, peak {peak}");
        }
    }
    Ok(())
}

#[test]
fn what_a_format_holds_exactly_survives() -> Result<(), FormatError> {
    for (method, spec) in pairs().filter(|(_, s)| s.outlier_slots == 0) {
        let grid = spec.grid()?;
        if matches!(grid, Grid::TwoLevel(_)) {
            continue; // two_level/tests.rs
        }
        let (n, k) = (32, 256);
        let noise = values(n * k, 17);
        // Codes at random, the outermost ones in every group, scales of many sizes and (for search) both signs.
        let level = |i: usize| -> f32 {
            let pick = (noise[i].to_bits() >> 3) as usize;
            match grid {
                Grid::Groups(g) => {
                    let table = g.table();
                    let code = match (i % g.group, g.width.bits()) {
                        (0, 8) => 127,
                        (0, _) => 15,
                        (1, 4) if g.zero_point => 0,
                        (_, 8) => pick % 255 + 129,
                        _ => pick % 16,
                    };
                    let level = table[code % 256];
                    // rtn meets the outermost level only on the side it scales by.
                    let rtn_i4 = method == "rtn" && spec.id == "i4" && !spec.zero_point;
                    let rtn_iq = method == "rtn" && spec.id == "iq4nl";
                    match (rtn_i4, rtn_iq, i % g.group) {
                        (true, _, _) => level.max(-7.0),
                        (_, true, 0) => -127.0,
                        (_, _, _) if g.zero_point => level - 5.0,
                        _ => level,
                    }
                }
                Grid::Blocks(_) => {
                    let table = ashlar_formats::e4m3::table();
                    if i.is_multiple_of(128) { 448.0 } else { table[pick % 127] }
                }
                _ => noise[i],
            }
        };
        let scale = |i: usize| -> f32 {
            let group = match grid {
                Grid::Blocks(_) => 0,
                _ => i / spec.group.max(1),
            };
            let sign =
                if method == "search" && group % 2 == 1 && spec.id != "mxfp4" && !spec.zero_point { -1.0 } else { 1.0 };
            sign * 2f32.powi((group % 7) as i32 - 5)
        };
        let w: Vec<f32> = match grid {
            Grid::Float(_) => noise.iter().map(|v| (v * 16.0).round()).collect(),
            _ => (0..n * k).map(|i| level(i) * scale(i)).collect(),
        };
        let (_, decoded, error) = roundtrip(method, &spec, &w, k, Stats::default(), Isa::Portable)?;
        let wrong = w.iter().zip(&decoded).position(|(a, b)| a != b);
        assert!(wrong.is_none(), "{method} {spec}: {wrong:?}: {:?}", wrong.map(|i| (w[i], decoded[i])));
        assert_eq!(error.squared_error, 0.0, "{method} {spec}");
    }
    Ok(())
}

#[test]
fn the_largest_values_beyond_sigma_are_kept_and_the_rest_counted() -> Result<(), FormatError> {
    let k = 256;
    let mut w: Vec<f32> = (0..16 * k).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
    for (column, value) in [(3, 90.0), (70, -80.0), (128, 60.0), (200, -70.0)] {
        w[5 * k + column] = value;
    }
    let spec: Spec = "nf4:g64+o3".parse()?;
    let (planes, decoded, error) = roundtrip("search", &spec, &w, k, Stats::default(), Isa::Portable)?;
    assert_eq!(error.outlier_overflow, 1);
    let slots: Vec<u16> =
        planes[2][5 * 3 * 4..6 * 3 * 4].as_chunks::<4>().0.iter().map(|s| u16::from_le_bytes([s[0], s[1]])).collect();
    assert_eq!(slots, [3, 70, 200]);
    for column in [3, 70, 200] {
        assert!((decoded[5 * k + column] / w[5 * k + column] - 1.0).abs() < 1e-3);
    }
    // The base of that row is encoded as if the outliers were not there.
    assert!((0..64).filter(|c| *c != 3).all(|c| (decoded[5 * k + c] - w[5 * k + c]).abs() < 0.16));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Any bits as weights give planes that decode, or an error that names a value of the tile; never a panic.
    #[test]
    fn any_weights_give_finite_planes_or_an_error(
        index in 0usize..1000, bits in proptest::collection::vec(any::<u32>(), 128..512), tame in any::<bool>(),
    ) {
        let all: Vec<_> = pairs().collect();
        let (method, spec) = &all[index % all.len()];
        // Tamed: below 2 in magnitude, down to subnormals.
        let value = |b: u32| f32::from_bits(if tame { b & 0xbfff_ffff } else { b });
        let w: Vec<f32> = bits.iter().cycle().take(3 * 128).map(|&b| value(b)).collect();
        match roundtrip(method, spec, &w, 128, Stats::default(), Isa::available().pop().unwrap()) {
            Ok((_, decoded, _)) => prop_assert!(decoded.iter().all(|v| v.is_finite()), "{} {}", method, spec),
            Err(FormatError::NotFinite { row, column, .. } | FormatError::TooLarge { row, column, .. }) => {
                prop_assert!(row < 3 && column < 128);
                prop_assert!(!tame, "{} {} refused tame values", method, spec);
            }
            Err(e) => prop_assert!(false, "{} {}: {}", method, spec, e),
        }
    }
}

//! Every kernel against the reference backend in the same activation mode, on random bits.

use crate::Cpu;
use crate::testing::{Random, isas, linear, specs, weight};
use ashlar_backend::{ActivationMode, Backend, Reference};
use ashlar_formats::Spec;
use ashlar_simd::Isa;
use ashlar_tensor::Order;

const MODES: [ActivationMode; 3] = [ActivationMode::F32, ActivationMode::Int8, ActivationMode::Bf16];

fn inputs(m: usize, k: usize) -> Vec<f32> {
    let mut random = Random(77);
    (0..m * k).map(|_| random.float()).collect()
}

/// |got − want| against the largest output of the row: DESIGN §10 allows 1e-5 in the same activation mode.
fn assert_close(got: &[f32], want: &[f32], n: usize, what: &str) {
    assert_eq!(got.len(), want.len());
    for (got, want) in got.chunks(n).zip(want.chunks(n)) {
        let max = want.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        for (g, w) in got.iter().zip(want) {
            assert!((g - w).abs() <= 1e-5 * max, "{what}: {g} instead of {w}, row maximum {max}");
        }
    }
}

fn cpu_linear(spec: &Spec, order: Order, shape: [usize; 2], x: &[f32], cpu: &mut Cpu) -> Vec<f32> {
    let id = cpu.load(weight(spec, order, shape[0], shape[1], 5)).unwrap();
    linear(cpu, id, shape[0], x, shape[1])
}

#[test]
fn every_format_on_every_isa_matches_the_reference_in_the_same_mode() {
    for spec in specs() {
        for [n, k] in [[40, 256], [16, 128], [7, 384]] {
            let x = inputs(9, k);
            for mode in MODES {
                let mut reference = Reference::new(Cpu::with_mode(Some(1), Isa::Portable, mode).activations(&spec));
                let id = reference.load(weight(&spec, Order::X16, n, k, 5)).unwrap();
                let want = linear(&mut reference, id, n, &x, k);
                let mut first: Option<Vec<f32>> = None;
                for isa in Isa::available() {
                    let got = cpu_linear(&spec, Order::X16, [n, k], &x, &mut Cpu::with_mode(Some(2), isa, mode));
                    assert_close(&got, &want, n, &format!("{spec} {n} × {k} {isa} {mode:?}"));
                    let first = first.get_or_insert_with(|| got.clone());
                    assert!(
                        got.iter().zip(&*first).all(|(a, b)| a.to_bits() == b.to_bits()),
                        "{spec} {isa}: other bits"
                    );
                }
            }
        }
    }
    isas("gemv");
}

#[test]
fn a_row_gives_the_same_bits_alone_and_in_any_batch() {
    let (n, k) = (33, 256);
    let x = inputs(21, k);
    for (spec, mode) in specs().into_iter().flat_map(|spec| MODES.map(|mode| (spec.clone(), mode))) {
        for isa in Isa::available() {
            let mut cpu = Cpu::with_mode(Some(1), isa, mode);
            let id = cpu.load(weight(&spec, Order::X16, n, k, 5)).unwrap();
            let all = linear(&mut cpu, id, n, &x, k);
            for m in [1, 2, 3, 5, 8] {
                let some = linear(&mut cpu, id, n, &x[..m * k], k);
                assert_eq!(some, all[..m * n], "{spec} {isa} {mode:?} {m} rows");
            }
        }
    }
}

#[test]
fn output_does_not_depend_on_the_number_of_threads() {
    let (n, k) = (200, 256);
    let x = inputs(5, k);
    for spec in specs() {
        let of = |threads| {
            let isa = Isa::detect().unwrap();
            cpu_linear(&spec, Order::X16, [n, k], &x, &mut Cpu::new(Some(threads), isa))
        };
        let one = of(1);
        for threads in [2, 3, 7] {
            assert_eq!(of(threads), one, "{spec} {threads} threads");
        }
    }
}

#[test]
fn checkpoint_order_works_by_decoding_and_says_so() {
    let (n, k) = (40, 256);
    let x = inputs(3, k);
    for spec in specs() {
        for mode in MODES {
            let mut cpu = Cpu::with_mode(Some(2), Isa::detect().unwrap(), mode);
            let mut reference = Reference::new(cpu.activations(&spec));
            let id = reference.load(weight(&spec, Order::Rows, n, k, 5)).unwrap();
            let want = linear(&mut reference, id, n, &x, k);
            let got = cpu_linear(&spec, Order::Rows, [n, k], &x, &mut cpu);
            assert_close(&got, &want, n, &format!("{spec} rows {mode:?}"));
            assert_eq!(cpu.notes().len(), usize::from(spec.scale.is_some()), "{spec}: {:?}", cpu.notes());
        }
    }
}

#[test]
fn float_weights_of_any_width_match_the_reference() {
    for (id, k) in [("f32", 1), ("f16", 31), ("bf16", 100), ("f32", 17), ("bf16", 64)] {
        let spec = Spec::plain(id);
        let x = inputs(6, k);
        for mode in MODES {
            let mut reference = Reference::new(mode);
            let loaded = reference.load(weight(&spec, Order::Rows, 19, k, 5)).unwrap();
            let want = linear(&mut reference, loaded, 19, &x, k);
            for isa in Isa::available() {
                let got = cpu_linear(&spec, Order::Rows, [19, k], &x, &mut Cpu::with_mode(Some(2), isa, mode));
                assert_close(&got, &want, 19, &format!("{id} {k} {isa} {mode:?}"));
            }
        }
    }
}

#[test]
fn an_outlier_beyond_the_columns_is_an_error() {
    let spec: Spec = "q8+o1".parse().unwrap();
    let mut bad = weight(&spec, Order::X16, 16, 32, 5);
    let mut plane = ashlar_tensor::AlignedBytes::zeroed(16 * 4).unwrap();
    ashlar_formats::outliers::store(&mut plane, 1, 3, [(32u16, 1.0f32)].into_iter());
    *bad.planes.last_mut().unwrap() = plane.into();
    let mut cpu = Cpu::new(Some(1), Isa::Portable);
    let id = cpu.load(bad).unwrap();
    let x = crate::testing::fill(&mut cpu, &[1.0; 32], 32);
    let out = cpu.alloc(1, 16).unwrap();
    let parts = vec![ashlar_backend::Projection { weight: id, bias: None, out }];
    let op = ashlar_backend::Op::Linear { x, parts, accumulate: false };
    let error = cpu.run(&op, &ashlar_backend::Batch::of(0, 0, &[0]), None).unwrap_err().to_string();
    assert!(error.contains("row 3 has an outlier in column 32 of 32"), "{error}");
}

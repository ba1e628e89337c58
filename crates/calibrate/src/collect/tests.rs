use super::*;
use ashlar_convert::stats::{StatsError, merge, merge_origins};
use ashlar_tensor::Silent;

#[test]
fn two_halves_merged_are_what_is_collected_at_once_to_rounding() -> Result<(), Box<dyn std::error::Error>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/demo-moe");
    let (model, dir) = (open(&path, &Silent)?, tempfile::tempdir()?);
    let windows: Vec<Vec<u32>> = (0..6).map(|w| (0..32).map(|i| (w * 977 + i * i * 31) % 2048).collect()).collect();
    let options = Options { ctx: 32, threads: Some(2), hessians: true, ..Options::default() };
    let run = |name: &str, windows: &[Vec<u32>]| -> Result<StatsFile, CalibrateError> {
        let out = dir.path().join(name);
        gather(&model, windows, Vec::new(), &out, &options, &Silent)?;
        Ok(StatsFile::open(&out)?)
    };
    let halves = [run("a", &windows[..3])?, run("b", &windows[3..])?];
    let at_once = run("all", &windows)?;
    merge(&halves, &merge_origins(&halves)?, &dir.path().join("merged"))?;
    let merged = StatsFile::open(&dir.path().join("merged"))?;
    assert_eq!(merged.origin(), at_once.origin());
    assert_eq!(merged.arrays(), at_once.arrays(), "names, types and shapes");
    for layer in 0..model.spec.layers.len() {
        assert_eq!(merged.coactivation(layer)?, at_once.coactivation(layer)?);
        assert_eq!(merged.routing(layer)?.map(|r| r.tokens), at_once.routing(layer)?.map(|r| r.tokens));
    }
    for tensor in at_once.arrays().iter().filter_map(|a| a.name.strip_prefix("moments.")) {
        let (Some((a, n)), Some((b, m))) = (merged.moments(tensor)?, at_once.moments(tensor)?) else { panic!() };
        assert_eq!(n, m, "{tensor}");
        // Each half is rounded to f32 once, and so is their sum.
        assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() <= 2.0 * f32::EPSILON * b), "{tensor}");
    }
    assert_eq!(merged.shares(), at_once.shares());
    let mut hessians = 0;
    for tensor in at_once.arrays().iter().filter_map(|a| a.name.strip_prefix("hessian.")) {
        let (Some((a, n)), Some((b, m))) = (merged.hessian(tensor)?, at_once.hessian(tensor)?) else { panic!() };
        assert_eq!(n, m, "{tensor}");
        // Blocks of rows are summed in f32, and no product exceeds the largest sum of squares.
        let largest = b.iter().fold(0.0f32, |most, b| most.max(b.abs()));
        assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() <= 1e-5 * largest), "{tensor}");
        hessians += 1;
    }
    let experts = |layer| Ok::<_, StatsError>(at_once.experts_hessian(layer)?.is_some());
    assert!(hessians > 20 && (0..model.spec.layers.len()).all(|l| experts(l).is_ok_and(|there| there)));
    assert_eq!(
        at_once.shares().get("model.layers.0.self_attn.k_proj.weight").map(String::as_str),
        Some("model.layers.0.self_attn.q_proj.weight")
    );
    Ok(())
}

#[test]
fn hessians_beyond_the_memory_that_may_be_used_are_refused_with_what_they_need()
-> Result<(), Box<dyn std::error::Error>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/demo-moe");
    let (model, dir) = (open(&path, &Silent)?, tempfile::tempdir()?);
    let options = Options { ctx: 32, hessians: true, memory: 1000, ..Options::default() };
    let error = gather(&model, &[vec![1; 32]], Vec::new(), &dir.path().join("s"), &options, &Silent).unwrap_err();
    assert!(matches!(error, CalibrateError::HessianSize { given: 1000, needed } if needed > 100_000), "{error}");
    Ok(())
}

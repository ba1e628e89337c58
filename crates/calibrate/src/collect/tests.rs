use super::*;
use ashlar_convert::stats::{merge, merge_origins};

#[test]
fn two_halves_merged_are_what_is_collected_at_once_to_rounding() -> Result<(), Box<dyn std::error::Error>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/demo-moe");
    let (model, dir) = (open(&path, &Silent)?, tempfile::tempdir()?);
    let windows: Vec<Vec<u32>> = (0..6).map(|w| (0..32).map(|i| (w * 977 + i * i * 31) % 2048).collect()).collect();
    let options = Options { ctx: 32, threads: Some(2), ..Options::default() };
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
    Ok(())
}

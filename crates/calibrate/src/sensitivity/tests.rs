use super::*;
use ashlar_convert::stats::Sensitivity;
use ashlar_tensor::Silent;
use std::collections::BTreeMap;

fn model() -> Result<Opened, Box<dyn std::error::Error>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/demo-moe");
    Ok(open(&path, &Silent)?)
}

fn tokens() -> Vec<Vec<u32>> {
    (0..4).map(|w| (0..32).map(|i| (w * 977 + i * i * 31) % 2048).collect()).collect()
}

/// Statistics of the model without sensitivities.
fn stats(dir: &Path, name: &str) -> Result<PathBuf, Box<dyn std::error::Error>> {
    let path = dir.join(name);
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/demo-moe");
    let text = Input { name: "t".into(), text: "It is a truth universally acknowledged. ".repeat(40) };
    let options = crate::Options { ctx: 32, tokens: Some(256), threads: Some(2), ..crate::Options::default() };
    crate::calibrate(&fixture, &[text], &path, &options, &Silent)?;
    Ok(path)
}

#[test]
fn every_group_is_measured_and_coarser_trials_cost_more() -> Result<(), Box<dyn std::error::Error>> {
    let (model, dir) = (model()?, tempfile::tempdir()?);
    let path = stats(dir.path(), "s")?;
    let before = StatsFile::open(&path)?.arrays().len();
    let options = SensitivityOptions { threads: Some(2), ..SensitivityOptions::default() };
    let summary = measure(&model, &tokens(), &path, &options, &Silent)?;
    assert_eq!(summary.tokens, 128);
    assert!(summary.unmeasured.is_empty(), "{:?}", summary.unmeasured);
    let file = StatsFile::open(&path)?;
    let found = file.sensitivities()?.ok_or("sensitivities")?;
    // q, k, v, o, gate_up and down of each layer, embedding, head.
    let layers = model.spec.layers.len();
    assert_eq!(found.groups.len(), 6 * layers + 1 + usize::from(model.spec.lm_head.is_some()));
    assert_eq!((found.fine.len(), found.coarse.len()), (6 * layers, 6 * layers));
    assert_eq!(file.arrays().len(), before + found.groups.len() + 12 * layers + found.joint.len());
    for (name, fine) in &found.groups {
        assert!(fine.kl > 0.0 && (0.001..0.2).contains(&fine.error), "{name}: {fine:?}");
        assert!(found.coarse.get(name).is_none_or(|c| c.error > fine.error), "{name}");
        assert!(found.fine.get(name).is_none_or(|f| f.error < fine.error), "{name}");
    }
    let total = |list: &BTreeMap<String, Sensitivity>| list.values().map(|s| s.kl).sum::<f64>();
    assert!(total(&found.coarse) > 2.0 * total(&found.groups));
    let joint: Vec<f64> = ["k4", "k3", "k2"].iter().map(|f| found.joint[*f].kl).collect();
    assert!(joint[0] < joint[1] && joint[1] < joint[2], "{joint:?}");
    // Groups add up to what their classes cost.
    let layered = |list: &BTreeMap<String, Sensitivity>| {
        list.iter().filter(|(name, _)| name.contains('.')).map(|(_, s)| s.kl).sum::<f64>()
    };
    for (format, list) in [("k4", &found.fine), ("k3", &found.groups), ("k2", &found.coarse)] {
        let sum = found.joint[format].error;
        assert!((layered(list) / sum - 1.0).abs() < 1e-9, "{format}");
        assert!((0.5..1.5).contains(&(found.joint[format].kl / sum)), "{format}");
    }
    assert!(!dir.path().join("s.sensitivity").exists());
    Ok(())
}

#[test]
fn a_killed_run_goes_on_and_ends_the_same() -> Result<(), Box<dyn std::error::Error>> {
    let (model, dir) = (model()?, tempfile::tempdir()?);
    let [whole, killed] = ["whole", "killed"].map(|name| stats(dir.path(), name));
    let (whole, killed) = (whole?, killed?);
    let options = |threads| SensitivityOptions { threads: Some(threads), ..SensitivityOptions::default() };
    measure(&model, &tokens(), &whole, &options(2), &Silent)?;
    // What a run leaves that dies within the second layer.
    let importance = Importance::open(&killed, &model.spec, &model.identity)?;
    let weights = Weights::new(Some(&importance), model.spec.tensors())?;
    let trials = Trials { store: &*model.store, weights: &weights, isa: Isa::detect()?, threads: Some(1) };
    let copies = Copies::of(&model.spec);
    let mut journal = Journal::open(&killed, fingerprint(&model, &importance, &tokens()), false)?;
    let (windows, one) = (tokens(), options(1));
    let run = Run { model: &model, windows: &windows, options: &one, dir: journal.dir().to_owned(), report: &Silent };
    begin(&run, &copies, &trials, &mut journal)?;
    layer(&run, &copies, &trials, &mut journal, 0)?;
    journal.keep(1)?;
    layer(&run, &copies, &trials, &mut journal, 1)?;
    drop(journal);
    let summary = measure(&model, &tokens(), &killed, &options(1), &Silent)?;
    assert_eq!(summary.resumed_layers, 1);
    assert_eq!(StatsFile::open(&killed)?.sensitivities()?, StatsFile::open(&whole)?.sensitivities()?);
    // Another text is another run.
    let mut journal = Journal::open(&whole, "another".into(), false)?;
    journal.keep(1)?;
    let error = measure(&model, &tokens(), &whole, &options(2), &Silent).expect_err("another run");
    assert!(matches!(error, CalibrateError::OtherRun { .. }), "{error}");
    Ok(())
}

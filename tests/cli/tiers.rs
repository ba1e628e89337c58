//! `plan --hardware` and `--all-tiers`.

use crate::support::{Test, ashlar, fixture};
use serde_json::Value;

fn rows(args: &[&str]) -> Vec<Value> {
    let mut command = ashlar();
    command.arg("plan").args(args).arg("--json");
    let ran = crate::support::finish(&mut command);
    assert!(ran.code == 0 || ran.code == 3, "{}", ran.stderr);
    ran.json()["tiers"].as_array().cloned().unwrap_or_default()
}

fn row<'a>(rows: &'a [Value], tier: &str) -> &'a Value {
    rows.iter().find(|r| r["tier"] == tier).unwrap_or_else(|| panic!("no {tier}"))
}

#[test]
fn every_machine_gets_a_verdict_a_build_and_what_to_do_where_it_does_not_fit() -> Test {
    let rows = rows(&["deepseek-v4-flash", "--all-tiers"]);
    assert!(rows.len() >= 15, "{}", rows.len());
    for r in &rows {
        let fits = r["fits"].as_bool().ok_or("fits")?;
        assert_eq!(fits, r["fit"]["lacks"] == 0, "{r}");
        assert_eq!(fits, r["fit"]["tokens_per_s"].is_array(), "{r}");
        assert!(r["pack_bytes"].as_u64() > Some(80_000_000_000) && r["convert_seconds"].as_f64() > Some(10.0), "{r}");
        // Something smaller is named where memory does not hold this model.
        let held = fits && r["fit"]["nvme"] == 0;
        assert_eq!(held, r["instead"].is_null(), "{r}");
    }
    // The whole of the largest build on one card; the smallest with the disk's help; nothing at all.
    assert_eq!(row(&rows, "dual-96gb-512gb-nvme")["build"], "keep");
    let small = row(&rows, "cpu-64gb-nvme");
    assert_eq!((&small["build"], &small["fit"]["verdict"]), (&"v4-flash-2bit-experts".into(), &"nvme".into()));
    let none = row(&rows, "cpu-32gb");
    assert_eq!((&none["fits"], &none["fit"]["verdict"]), (&false.into(), &"no".into()));
    assert!(none["instead"]["model"].is_string());
    Ok(())
}

#[test]
fn the_table_says_the_same_to_people() {
    let text = ashlar!["plan", "qwen3-30b-a3b", "--all-tiers", "--context", "8192"].expect(0).stdout;
    for part in
        ["rtx4060-8gb-32gb", "unified-256gb", "fits on the card", "context 8,192 tokens", "nothing was measured"]
    {
        assert!(text.contains(part), "no `{part}` in:\n{text}");
    }
}

#[test]
fn one_machine_and_one_recipe_end_with_the_verdict_as_exit_code() -> Test {
    let one = |hardware: &str| ashlar!["plan", "llama-3.1-8b", "--recipe", "8bit", "--hardware", hardware, "--json"];
    let fits = one("ram=16GiB").expect(0).json();
    assert_eq!(fits["tiers"][0]["build"], "8bit");
    let lacks = one("ram=12GiB").expect(3).json()["tiers"][0]["fit"]["lacks"].as_u64().ok_or("lacks")?;
    // So much more, and it fits.
    let enough = (12u64 << 30) + lacks;
    one(&format!("ram={enough}")).expect(0);
    one(&format!("ram={}", enough - (64 << 20))).expect(3);
    Ok(())
}

#[test]
fn a_model_of_ones_own_is_planned_on_this_machine() {
    let text = ashlar!["plan", fixture("tiny/qwen3_moe"), "--hardware", "this"].expect(0).stdout;
    assert!(text.contains("8bit") && text.contains("fits"), "{text}");
}

#[test]
fn what_cannot_be_understood_is_wrong_usage() {
    ashlar!["plan", "llama-3.1-8b", "--hardware", "gpu24"].expect(2).says(&["--hardware gpu24", "vram=24GiB"]);
    ashlar!["plan", "llama-3.1-8b", "--all-tiers", "--context", "999999999"].expect(2).says(&["131072"]);
    ashlar!["plan", "llama-3.1-8b", "--all-tiers", "--target-size", "4GB"].expect(2);
}

//! `--target-size`, `--target-bpw`, `calibrate --sensitivity`: what a user sees.

use crate::support::{Test, fixture};

#[test]
fn a_target_alone_converts_to_at_most_that_size_and_the_plan_says_what_it_is_worth() -> Test {
    let dir = tempfile::tempdir()?;
    let (model, out, frozen) = (fixture("demo-moe"), dir.path().join("out"), dir.path().join("frozen.yaml"));
    let plan = ashlar!["plan", model, "--target-bpw", "3.2", "--json", "--emit", frozen].expect(0).json();
    let allocation = &plan["allocation"];
    let (target, total) = (allocation["target_bytes"].as_u64().unwrap(), plan["total_bytes"].as_u64().unwrap());
    assert!(total <= target && total as f64 > 0.995 * target as f64, "{total} of {target}");
    assert_eq!((allocation["total_bytes"].as_u64(), &allocation["basis"]), (Some(total), &"prior".into()));
    let predicted = |v: &serde_json::Value| v["kl"].as_f64().unwrap();
    let marginal = &allocation["marginal"];
    assert!(predicted(&marginal["more"]) < predicted(&allocation["predicted"]));
    assert!(predicted(&marginal["fewer"]) > predicted(&allocation["predicted"]));
    let text = ashlar!["plan", model, "--target-bpw", "3.2"].expect(0).stdout;
    for part in [
        "predicted mean KL",
        "a guess from other models",
        "more: predicted KL",
        "less: predicted KL",
        "tried formats on",
    ] {
        assert!(text.contains(part), "no `{part}` in:\n{text}");
    }
    // The frozen recipe needs no solver and gives the same pack.
    let again = ashlar!["plan", model, "--recipe", frozen, "--json"].expect(0).json();
    assert_eq!((&again["total_bytes"], &again["classes"]), (&plan["total_bytes"], &plan["classes"]));
    let done = ashlar!["convert", model, "-o", out, "--target-bpw", "3.2", "--json"].expect(0).json();
    assert_eq!(done["total_bytes"].as_u64(), Some(total));
    assert_eq!(std::fs::metadata(out.join("ashlar-00001-of-00001.safetensors"))?.len(), total);
    ashlar!["verify", out].expect(0);
    Ok(())
}

#[test]
fn a_target_out_of_reach_is_found_wanting_and_names_the_floor() -> Test {
    let model = fixture("demo-moe");
    ashlar!["plan", model, "--target-size", "1MB"].expect(3).says(&["smallest mix", "embed", "min_format"]);
    ashlar!["plan", model, "--target-size", "1GB"].expect(3).says(&["largest mix"]);
    ashlar!["plan", model, "--target-size", "4G"].expect(2).says(&["no unit of bytes"]);
    ashlar!["plan", model, "--target-size", "4MB", "--target-bpw", "3"].expect(2);
    ashlar!["plan", model].expect(2).says(&["--recipe"]);
    Ok(())
}

#[test]
fn a_budget_in_a_recipe_is_solved_and_explained() -> Test {
    let dir = tempfile::tempdir()?;
    let recipe = dir.path().join("r.yaml");
    let yaml = "version: 1\nbudget: {bpw: 4, solve: exp}\nrules:\n  - {id: all, match: {name: '*'}, set: {format: q8}}\n  - {id: exp, match: {class: experts}, set: {format: k3, allow: [k2, k3, k4]}}\n";
    std::fs::write(&recipe, yaml)?;
    let model = fixture("demo-moe");
    let tensor = "model.layers.0.mlp.experts.3.down_proj.weight";
    let text = ashlar!["plan", model, "--recipe", recipe, "--explain", tensor].expect(0).stdout;
    assert!(text.contains("rule `exp`") && text.contains("solver, group 0.experts.down: k"), "{text}");
    let plan = ashlar!["plan", model, "--recipe", recipe, "--json"].expect(0).json();
    assert!(plan["bpw"].as_f64().is_some_and(|b| b <= 4.0 && b > 3.98), "{plan}");
    let coarse = "version: 1\nrules: [{match: {class: attn}, set: {format: k4}}]\n";
    std::fs::write(&recipe, coarse)?;
    let text = ashlar!["plan", model, "--recipe", recipe].expect(0).stdout;
    assert!(text.contains("known to fall into loops"), "{text}");
    Ok(())
}

#[test]
fn measured_sensitivities_are_added_to_statistics_and_predict() -> Test {
    let dir = tempfile::tempdir()?;
    let (model, stats) = (fixture("demo-moe"), dir.path().join("s"));
    ashlar!["calibrate", model, "-o", stats, "--ctx", "32", "--tokens", "512"].expect(0);
    ashlar!["calibrate", model, "-o", stats, "--ctx", "32", "--sensitivity", "--sensitivity-tokens", "128"].expect(0);
    let plan = ashlar!["plan", model, "--target-bpw", "3.2", "--stats", stats, "--json"].expect(0).json();
    assert_eq!(plan["allocation"]["basis"], "measured");
    let buckets =
        plan["allocation"]["parts"].as_array().unwrap().iter().filter(|p| p["experts"] == "most used quarter").count();
    assert_eq!(buckets, 8, "gate_up and down of 4 layers");
    let text = ashlar!["plan", model, "--recipe", "4bit", "--stats", stats].expect(0).stdout;
    assert!(text.contains("from sensitivities measured on this model"), "{text}");
    ashlar!["convert", model, "-o", dir.path().join("p"), "--target-bpw", "3.2", "--stats", stats].expect(0);
    Ok(())
}

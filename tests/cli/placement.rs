//! `--placement`, `--device`, `plan --placement --emit`: what is told, what is refused, and that a resolved placement repeats.

use crate::cli::convert::convert;
use crate::support::{Test, ashlar, finish, fixture, logits, tensor_i64, write_ids};
use ashlar_formats::Spec;
use ashlar_recipe::{Recipe, Release, catalogue, catalogued, stays_float, tier, tiers};
use ashlar_runtime::placement::{PlaceError, PlacementText, Planned, Tier, plan};
use ashlar_runtime::{OpenOptions, RuntimeError};
use ashlar_tensor::{Order, TensorStore};
use std::collections::HashMap;
use std::path::Path;

const RULES: &str = "version: 1
rules:
  - {id: core, match: {class: [attn, norm, lm_head, router]}, set: {tier: vram}}
  - {id: experts, match: {class: experts}, set: {device: cpu}}
  - {id: first, match: {class: experts, layers: 0}, set: {device: 'virtual:0'}}
";

/// Bits of the golden input's logits.
fn bits(model: &Path, options: &[&str]) -> Result<Vec<u32>, Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let (input, output) = (dir.path().join("ids.safetensors"), dir.path().join("logits.safetensors"));
    write_ids(&input, &tensor_i64(&fixture("demo-moe").join("golden.safetensors"), "input_ids"));
    let mut command = ashlar();
    command.arg("logits").arg(model).args(options).arg("--input").arg(&input).arg("--output").arg(&output);
    finish(&mut command).expect(0);
    Ok(logits(&output).iter().flatten().map(|v| v.to_bits()).collect())
}

#[test]
fn a_placed_run_has_the_logits_of_the_processor_and_says_what_lies_where() -> Test {
    let dir = tempfile::tempdir()?;
    let rules = dir.path().join("rules.yaml");
    std::fs::write(&rules, RULES)?;
    let rules = rules.to_str().ok_or("path")?;
    let model = fixture("demo-moe");
    let expected = bits(&model, &["--device", "cpu"])?;
    assert!(bits(&model, &["--device", "virtual:0", "--placement", rules])? == expected);
    let run = ashlar!["run", model, "--raw", "-p", "a", "--max-tokens", "2", "-v", "--placement", rules];
    run.expect(0).says(&["placement: cpu ", "virtual:0 ", "virtual device on cpu", "small tensors of class router"]);
    Ok(())
}

#[test]
fn a_resolved_placement_runs_as_planned_or_is_refused() -> Test {
    let dir = tempfile::tempdir()?;
    let (pack, lock) = (dir.path().join("pack"), dir.path().join("lock.yaml"));
    convert(&fixture("demo-moe"), &pack, Path::new("4bit"), &[]);
    let planned = ashlar![
        "plan",
        pack,
        "--placement",
        "rtx3080-10gb-64gb",
        "--device",
        "virtual:0",
        "--vram-limit",
        "3MiB",
        "--context",
        "512",
        "--emit",
        lock,
        "--json"
    ];
    let devices = planned.expect(0).json()["placement"]["devices"].clone();
    let of = |i: usize, key: &str| devices[i][key].as_u64().unwrap_or_default();
    assert_eq!((devices[0]["device"].as_str(), devices[1]["device"].as_str()), (Some("cpu"), Some("virtual:0")));
    let held = of(1, "weights") + of(1, "caches") + of(1, "activations");
    assert!((1 << 20..=3 << 20).contains(&held), "{devices}");
    let emitted = std::fs::read_to_string(&lock)?;
    assert!(emitted.contains(&format!("weights: {}, caches: {}", of(1, "weights"), of(1, "caches"))), "{emitted}");
    let lock = lock.to_str().ok_or("path")?;
    let common = ["--raw", "-p", "And it came", "--temperature", "0", "--max-tokens", "12"];
    let run = |more: &[&str]| finish(ashlar().arg("run").arg(&pack).args(common).args(more));
    let text = run(&[]).expect(0).stdout;
    let placed = run(&["--placement", lock, "-v"]).expect(0).says(&["virtual:0", "context 512"]);
    assert_eq!(placed.stdout, text);
    run(&["--placement", lock, "--context", "256"]).expect(2).says(&["resolved for another model or other options"]);
    Ok(())
}

#[test]
fn what_is_wrong_with_a_device_or_a_placement_is_told_before_loading_with_the_right_exit_code() -> Test {
    let dir = tempfile::tempdir()?;
    let model = fixture("demo-moe");
    let write = |name: &str, text: &str| -> Result<String, Box<dyn std::error::Error>> {
        let path = dir.path().join(name);
        std::fs::write(&path, text)?;
        Ok(path.to_str().ok_or("path")?.to_owned())
    };
    let run = |more: &[&str]| finish(ashlar().arg("run").arg(&model).args(["--raw", "-p", "a"]).args(more));
    run(&["--device", "cudo:0"]).expect(2).says(&["cudo:0", "cuda:0", "virtual:0"]);
    run(&["--placement", "rtx3080-10gb-46gb"]).expect(2).says(&["did you mean `rtx3080-10gb-64gb`?", "--list-tiers"]);
    let none = write("none.yaml", "version: 1\nrules:\n  - {id: x, match: {layers: 77}, set: {device: cpu}}\n")?;
    run(&["--placement", &none]).expect(2).says(&["none.yaml:3:", "rule `x`", "matches no tensor", "layers 0-"]);
    let typo = write("typo.yaml", "version: 1\nrules:\n  - {match: {class: atn}, set: {device: cpu}}\n")?;
    run(&["--placement", &typo]).expect(2).says(&["typo.yaml:3:", "no class `atn`", "did you mean `attn`?"]);
    let small = ["--device", "virtual:0", "--vram-limit", "1MiB"];
    run(&small).expect(3).says(&["virtual:0 would have to hold", "bytes are missing", "what would help", "leave "]);
    Ok(())
}

#[test]
fn a_placement_that_does_not_fit_emits_the_nearest_that_does() -> Test {
    let dir = tempfile::tempdir()?;
    let (rules, lock) = (dir.path().join("short.yaml"), dir.path().join("lock.yaml"));
    std::fs::write(
        &rules,
        "optimization_rules:\n  - {match: \"model\", device: \"virtual:0\", precision: \"int8\"}\n",
    )?;
    let model = fixture("demo-moe");
    let planned =
        ashlar!["plan", model, "--recipe", rules, "--placement", rules, "--vram-limit", "4MiB", "--emit", lock];
    assert!(planned.expect(3).stdout.contains("does not fit: virtual:0 would have to hold"));
    let pack = dir.path().join("pack");
    convert(&model, &pack, &lock, &[]);
    // The pack carries the placement that the recipe came to.
    let text = |more: &[&str]| {
        let common = ["--raw", "-p", "And it came", "--temperature", "0", "--max-tokens", "8", "-v"];
        finish(ashlar().arg("run").arg(&pack).args(common).args(more)).expect(0)
    };
    let (placed, plain) = (text(&[]), text(&["--device", "cpu"]));
    assert!(placed.stderr.contains("virtual device on cpu") && !plain.stderr.contains("virtual"), "{}", placed.stderr);
    assert_eq!(placed.stdout, plain.stdout);
    Ok(())
}

#[test]
fn machines_are_listed_with_what_they_are() {
    let list = ashlar!["plan", "--list-tiers"].expect(0).stdout;
    assert!(list.contains("rtx3080-10gb-64gb") && list.contains("A 10 GB card"), "{list}");
    assert_eq!(list.lines().count(), tiers().count());
}

/// Bytes of a release's weights at about four bits, experts at about two.
fn packed(release: &Release) -> HashMap<String, u64> {
    let bytes = |leaf: &ashlar_arch::Leaf| {
        let entry = release.entry(&leaf.name).expect("an entry");
        let [n, k] = match *entry.shape.as_slice() {
            [n, k] => [n, k],
            _ => return entry.bytes(),
        };
        let format = if leaf.role.expert.is_some() { "k2" } else { "k4" };
        let spec = format.parse::<Spec>().and_then(|spec| spec.layout(Order::X16, n, k));
        if stays_float(leaf.role) { entry.bytes() } else { spec.map_or(entry.bytes(), |l| l.bytes()) }
    };
    release.spec.loaded().map(|leaf| (leaf.name.clone(), bytes(leaf))).collect()
}

/// Everything lies somewhere, nowhere more than there may be.
fn check(planned: &Planned, bytes: &HashMap<String, u64>, name: &str) {
    let Planned { placement, draft, .. } = planned;
    for share in &placement.devices {
        assert!(share.offer.budget.is_none_or(|b| share.in_memory() <= b), "{name}: {share:?}");
    }
    let mut sums = vec![(0, 0); placement.devices.len()];
    for (leaf, (device, tier)) in draft.leaves.iter().zip(&placement.weights) {
        sums[*device].0 += bytes[&leaf.name].next_multiple_of(256);
        sums[*device].1 += if *tier == Tier::Nvme { bytes[&leaf.name] } else { 0 };
    }
    let told: Vec<_> = placement.devices.iter().map(|s| (s.bytes.weights, s.on_disk)).collect();
    assert_eq!(sums, told, "{name}");
}

#[test]
fn machines_are_planned_for_the_models_of_the_catalogue() -> Test {
    let (mut fit, mut not) = (0, Vec::new());
    for (i, model) in catalogue().enumerate() {
        let release = catalogued(model).ok_or("a release")??;
        let bytes = packed(&release);
        let total: u64 = bytes.values().sum();
        let routed = release.spec.loaded().any(|leaf| leaf.role.expert.is_some());
        // A third of all pairs: every machine and every model, in a few seconds.
        for machine in tiers().skip(i % 3).step_by(3) {
            let text = tier(machine).ok_or("a tier")?;
            let hardware = Recipe::parse(text, machine)?.hardware().ok_or("hardware")?;
            let options = OpenOptions {
                placement: Some(PlacementText { name: machine.into(), text: text.into() }),
                ..OpenOptions::default()
            };
            let name = format!("{model} on {machine}");
            match plan(&release.spec, &|tensor| bytes.get(tensor).copied(), &options) {
                Ok(planned) => {
                    assert!(planned.misfit.is_none(), "{name}: nothing is required");
                    check(&planned, &bytes, &name);
                    fit += 1;
                }
                Err(RuntimeError::Place(PlaceError::Misfit(misfit))) => {
                    // Only experts may stay on the disk of a machine without accelerators.
                    let disk = if routed { hardware.nvme } else { 0 };
                    let has = hardware.ram + hardware.vram * hardware.gpus as u64 + disk;
                    assert!(total > has / 4 * 3, "{name}: {misfit}");
                    assert!(misfit.missing() > 0, "{name}: {misfit}");
                    not.push(name);
                }
                Err(error) => panic!("{name}: {error}"),
            }
        }
    }
    assert!(fit > 130 && not.len() > 15, "{fit} fit, {not:?}");
    Ok(())
}

//! `doctor`, and what `plan` makes of a machine that was measured.

use crate::support::{Test, ashlar, fixture, root};

#[test]
fn a_machine_is_measured_and_its_file_is_planned_for() -> Test {
    let dir = tempfile::tempdir()?;
    let (disk, file) = (dir.path().join("disk"), dir.path().join("mine.yaml"));
    std::fs::write(&disk, vec![7; 9 << 20])?;
    let found = ashlar!["doctor", "--threads", "1", "--disk", disk, "-o", file, "--json"].expect(0).json();
    assert_eq!(found["threads"], 1);
    for path in
        ["/read/one", "/read/all", "/multiply_adds/int8", "/disk/bytes_per_s", "/kernels/0/multiply_adds_per_s", "/ram"]
    {
        assert!(found.pointer(path).and_then(serde_json::Value::as_f64).is_some_and(|v| v > 0.0), "{path}: {found}");
    }
    assert!(!found["cards"].as_array().ok_or("cards")?.is_empty() || found["no_cards"].is_string(), "{found}");
    let planned = ashlar!["plan", fixture("demo-moe"), "--recipe", "8bit", "--hardware", file].expect(0).stdout;
    assert!(planned.contains("mine, as measured: "), "{planned}");
    ashlar!["doctor", "--disk", dir.path().join("none")].expect(1).says(&["none"]);
    Ok(())
}

/// Two threads that read q8 at 8 GB/s, and a disk of 2 GB/s.
const MACHINE: &str = "version: 1
hardware: {ram: 64GiB, ram_bandwidth: 9GB/s, nvme: 1TB, nvme_bandwidth: 2GB/s}
measured: {threads: 2, kernels: [\"q8 8GB/s 100G/s\", \"k4 7GB/s 90G/s\", \"k2 6GB/s 80G/s\", \"bf16 8GB/s 50G/s\"]}
";

#[test]
fn a_speed_that_is_asked_for_decides_about_the_build_and_its_lack_about_the_exit_code() -> Test {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("machine.yaml");
    std::fs::write(&file, MACHINE)?;
    let plan = |more: &[&str]| {
        let mut args = vec!["plan", "qwen3-30b-a3b", "--json", "--hardware", file.to_str().unwrap_or_default()];
        args.extend(more);
        crate::support::finish(ashlar().args(args))
    };
    let any = plan(&[]).expect(0).json()["tiers"][0].clone();
    let speed = |row: &serde_json::Value| row["prediction"]["full_context"][0].as_f64().unwrap_or_default();
    let asked = format!("{}", speed(&any) * 1.2);
    let faster = plan(&["--min-tps", &asked]).expect(0).json()["tiers"][0].clone();
    assert!(speed(&faster) >= speed(&any) * 1.2 && faster["build"] != any["build"], "{any} {faster}");
    plan(&["--min-tps", "100000"]).expect(3);
    // Less memory, more from the disk, slower.
    let less = plan(&["--recipe", "8bit", "--ram-limit", "8GiB"]).expect(0).json()["tiers"][0].clone();
    assert_eq!(less["fit"]["verdict"], "nvme");
    assert!(
        speed(&less) < speed(&any) && less["prediction"]["bottleneck"].as_str().is_some_and(|b| b.contains("disk")),
        "{less}"
    );
    let routes = root().join("tests/fixtures/routes/qwen3-30b.route.csv");
    let known =
        plan(&["--recipe", "8bit", "--ram-limit", "12GiB", "--routes", routes.to_str().ok_or("path")?]).expect(0);
    let hits = known.json()["tiers"][0]["prediction"]["hits"].clone();
    assert_eq!(hits[0], hits[1]);
    Ok(())
}

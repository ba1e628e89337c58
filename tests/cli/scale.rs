//! Releases at their real size, in sparse files: what headers of 69,187 tensors cost, and one part of a conversion.

use crate::support::{Test, ashlar, peak_of, write_release};
use ashlar_recipe::catalogued;
use std::time::Instant;

// Tensors and bytes: what the releases' indexes count, and sums over the shapes in their papers.

/// Peak memory of what reads headers alone.
const MEMORY: u64 = 500_000_000;
/// Processor time of one run, on one thread: what it takes where nothing else runs.
const SECONDS: f64 = 2.0;

#[test]
fn releases_at_their_real_size_are_inspected_and_planned_within_2_s_and_500_mb() -> Test {
    for (name, recipe, tensors, bytes) in [
        ("deepseek-v4-flash", "v4-flash-2bit-experts", 69_187, 159_609_485_896_u64),
        ("deepseek-v3", "deepseek-v3-2bit-experts", 91_991, 688_574_839_360),
    ] {
        let dir = tempfile::tempdir()?;
        let release = catalogued(name).ok_or("no such model")??;
        assert_eq!(write_release(dir.path(), &release)?, (tensors, bytes), "{name}");
        let inspected = ashlar!["inspect", dir.path(), "--json"].expect(0).json();
        assert_eq!(inspected["bytes"].as_u64(), Some(bytes), "{name}");
        // From files as from the catalogue.
        let planned = ashlar!["plan", dir.path(), "--recipe", recipe, "--json"].expect(0).json();
        let predicted = ashlar!["plan", name, "--recipe", recipe, "--json"].expect(0).json();
        assert_eq!(planned["total_bytes"], predicted["total_bytes"], "{name}");
        assert_eq!(planned["classes"], predicted["classes"], "{name}");
        for command in ["inspect", "plan"] {
            let mut best = f64::MAX;
            for _ in 0..3 {
                let mut run = ashlar();
                run.arg(command).arg(dir.path());
                if command == "plan" {
                    run.args(["--recipe", recipe]);
                }
                let started = Instant::now();
                let peak = peak_of(&mut run)?;
                let seconds = started.elapsed().as_secs_f64();
                println!(
                    "{command} {name}, {tensors} tensors: {seconds:.2} s, of the processor {:.2} s, {} MB",
                    peak.processor.unwrap_or(0.0),
                    peak.resident.unwrap_or(0) / 1_000_000
                );
                assert!(peak.status.success());
                assert!(peak.resident.is_none_or(|r| r < MEMORY), "{name} {command}: {peak:?}");
                best = best.min(peak.processor.unwrap_or(seconds));
            }
            assert!(best <= SECONDS, "{name} {command}: {best} s");
        }
    }
    Ok(())
}

#[test]
fn one_part_of_a_release_at_its_real_size_has_exactly_the_planned_bytes() -> Test {
    let dir = tempfile::tempdir()?;
    let (src, out) = (dir.path().join("src"), dir.path().join("out"));
    std::fs::create_dir(&src)?;
    write_release(&src, &catalogued("deepseek-v4-flash").ok_or("no such model")??)?;
    let recipe = ["--recipe", "v4-flash-2bit-experts", "--shard-size", "16MiB", "--drop", "mtp"];
    let plan = ashlar!["plan", src, "--json", recipe[0], recipe[1], recipe[2], recipe[3], recipe[4], recipe[5]];
    let plan = plan.expect(0).json();
    let shards = plan["shards"].as_array().ok_or("shards")?;
    // The last quarter holds experts alone.
    let (index, part) = (3 * shards.len() / 4, format!("{}/{}", 3 * shards.len() / 4 + 1, shards.len()));
    let mut convert = ashlar();
    convert.arg("convert").arg(&src).arg("-o").arg(&out).args(recipe).args(["--part", &part, "--json"]);
    let done = crate::support::finish(&mut convert).expect(0).json();
    let folder = std::path::PathBuf::from(done["output"].as_str().ok_or("output")?);
    let (file, bytes) = (shards[index][0].as_str().ok_or("file")?, shards[index][1].as_u64());
    assert_eq!(Some(std::fs::metadata(folder.join(file))?.len()), bytes);
    assert_eq!(done["total_bytes"].as_u64(), bytes);
    assert_eq!(std::fs::read_dir(&folder)?.count(), 2, "one shard and the part's manifest");
    Ok(())
}

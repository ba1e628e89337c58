//! Models of the catalogue: planned from their shapes alone.

use crate::support::Test;

const GIB: u64 = 1 << 30;

#[test]
fn a_release_is_planned_without_a_download_with_and_without_next_token_layers() -> Test {
    let plan = ashlar!["plan", "deepseek-v4-flash", "--recipe", "v4-flash-2bit-experts", "--json"].expect(0).json();
    let (with, without) = (plan["total_bytes"].as_u64(), plan["total_bytes_without_mtp"].as_u64());
    let (with, without) = (with.ok_or("total_bytes")?, without.ok_or("total_bytes_without_mtp")?);
    assert!(without <= 81 * GIB, "{without}");
    // The next-token layer as released, and its share of headers.
    assert!((3_593_787_756..3_598_000_000).contains(&(with - without)), "{with} {without}");
    assert_eq!(plan["source_bytes"].as_u64(), Some(159_609_485_896));
    let text = ashlar!["plan", "deepseek-v4-flash", "--recipe", "v4-flash-2bit-experts"].expect(0).stdout;
    assert!(text.contains("without next-token layers"), "{text}");
    Ok(())
}

#[test]
fn other_presets_of_a_release_have_the_sizes_in_their_names() -> Test {
    for (preset, gb) in [("v4-flash-103gb", 103.0), ("v4-flash-136gb", 136.0)] {
        let plan = ashlar!["plan", "deepseek-v4-flash", "--recipe", preset, "--json"].expect(0).json();
        let bytes = plan["total_bytes_without_mtp"].as_f64().ok_or("total_bytes_without_mtp")?;
        assert!((bytes / 1e9 - gb).abs() < 0.5, "{preset}: {bytes}");
    }
    Ok(())
}

#[test]
fn a_target_below_what_the_formats_reach_names_the_floor_and_what_takes_it() -> Test {
    let plan = ashlar!["plan", "deepseek-v4-flash", "--target-size", "60GB"].expect(3);
    plan.says(&["60000000000", "smallest mix", "experts", "in k2", "allow"]);
    // Above the floor weights are needed, to try formats on.
    let plan = ashlar!["plan", "deepseek-v4-flash", "--target-size", "100GB"].expect(2);
    plan.says(&["only shapes", "reach from"]);
    Ok(())
}

#[test]
fn the_catalogue_is_listed_and_inspected_and_its_names_are_suggested() -> Test {
    let list = ashlar!["plan", "--list-models"].expect(0).stdout;
    assert!(list.contains("deepseek-v4-flash") && list.contains("openai/gpt-oss-20b"), "{list}");
    let facts = ashlar!["inspect", "deepseek-v4-flash", "--json"].expect(0).json();
    assert_eq!((&facts["kind"], &facts["license"]), (&"catalogue".into(), &"mit".into()));
    assert_eq!(facts["bytes"].as_u64(), Some(159_609_485_896));
    ashlar!["plan", "deepseek-v4-flahs", "--recipe", "keep"].expect(2).says(&["`deepseek-v4-flash`"]);
    Ok(())
}

#[test]
fn a_model_of_the_catalogue_has_no_weights_to_convert() -> Test {
    let dir = tempfile::tempdir()?;
    let out = dir.path().join("out");
    let refused = ashlar!["convert", "deepseek-v4-flash", "-o", out, "--recipe", "keep"].expect(2);
    refused.says(&["no weights", "deepseek-ai/DeepSeek-V4-Flash"]);
    assert!(!out.exists());
    Ok(())
}

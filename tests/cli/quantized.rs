//! Checkpoints that other programs quantized: kept bit for bit, or requantized, by `convert`.

use crate::support::{Test, root};
use std::path::PathBuf;

fn source(name: &str) -> PathBuf {
    root().join("tests/fixtures/quantized").join(name)
}

/// The fixtures hold one weight and no architecture: names alone say what it is.
#[test]
fn every_layout_is_kept_bit_for_bit_and_can_be_requantized() -> Test {
    let dir = tempfile::tempdir()?;
    for (name, format) in [
        ("awq-g64", "i4:g64,zp"),
        ("awq-row", "i4:g32,zp"),
        ("gptq-v1-g32", "i4:g32,zp"),
        ("gptq-v2-g128", "i4:g128,zp"),
        ("ct-int4-g32-bf16", "i4_bf16:g32"),
        ("ct-int4-g128-zp", "i4:g128,zp"),
        ("ct-int8-channel-bf16", "q8_wide:bf16"),
        ("ct-fp8-channel", "fp8_row:bf16"),
        ("ct-fp8-tensor", "fp8:128x128,f32"),
        ("ct-fp8-block", "fp8:128x128,bf16"),
        ("ct-nvfp4", "nvfp4_div"),
        ("modelopt-nvfp4", "nvfp4"),
        ("ct-mxfp4", "mxfp4"),
    ] {
        let (kept, again) = (dir.path().join(format!("{name}-kept")), dir.path().join(format!("{name}-8bit")));
        ashlar!["convert", source(name), "-o", kept, "--recipe", "keep", "--generic"].expect(0);
        let report = ashlar!["verify", kept, "--against", source(name), "--generic", "--json"].expect(0).json();
        let tensor = &report["tensors"][0];
        assert_eq!(
            (&report["ok"], tensor["format"].as_str(), &tensor["exact"]),
            (&true.into(), Some(format), &true.into()),
            "{name}: {report}"
        );
        ashlar!["convert", source(name), "-o", again, "--recipe", "8bit", "--generic"].expect(0);
        let report = ashlar!["verify", again, "--against", source(name), "--generic", "--json"].expect(0).json();
        let nmse = report["tensors"][0]["nmse"].as_f64().ok_or("nmse")?;
        assert!(report["ok"] == true && nmse < 1e-3, "{name}: {report}");
    }
    Ok(())
}

#[test]
fn act_order_is_refused_before_anything_is_written() -> Test {
    let dir = tempfile::tempdir()?;
    let out = dir.path().join("out");
    ashlar!["convert", source("gptq-act-order"), "-o", out, "--recipe", "keep", "--generic"].expect(1).says(&[
        "g_idx",
        "act-order",
        "take a release without act-order",
    ]);
    assert!(!out.exists());
    Ok(())
}

//! Packs of earlier versions stay readable. `tests/fixtures/packs/vN-…` was written once by the version that introduced
//! format version N and is never regenerated: a change that breaks one of these tests needs a new format version.

use crate::support::{Test, logits, max_error_of_range, root};
use std::path::PathBuf;

/// Every pack fixture: `pack/`, `ids.safetensors`, and the `logits.safetensors` that the version which wrote it got on
/// its reference device.
fn fixtures() -> std::io::Result<Vec<PathBuf>> {
    let mut all: Vec<PathBuf> = std::fs::read_dir(root().join("tests/fixtures/packs"))?
        .map(|e| Ok(e?.path()))
        .collect::<std::io::Result<_>>()?;
    all.sort();
    Ok(all)
}

#[test]
fn packs_of_every_version_verify_and_give_their_logits() -> Test {
    let fixtures = fixtures()?;
    assert!(!fixtures.is_empty());
    for fixture in fixtures {
        let pack = fixture.join("pack");
        ashlar!["verify", pack].expect(0);
        let (dir, want) = (tempfile::tempdir()?, logits(&fixture.join("logits.safetensors")));
        let got = |device: &str| {
            let output = dir.path().join(device);
            ashlar!["logits", pack, "--device", device, "--input", fixture.join("ids.safetensors"), "--output", output]
                .expect(0);
            logits(&output)
        };
        let error = max_error_of_range(&got("reference"), &want);
        assert!(error <= 1e-5, "{}: {error} of the logit range", fixture.display());
        // With int8 activations a token near a tie is sent to another expert, and this model's experts are random: single
        // rows are off by a tenth of the range. The median row is off by 0.008.
        let mut rows: Vec<f32> = got("cpu")
            .iter()
            .zip(&want)
            .map(|(g, w)| max_error_of_range(std::slice::from_ref(g), std::slice::from_ref(w)))
            .collect();
        rows.sort_by(f32::total_cmp);
        let median = rows[rows.len() / 2];
        assert!(median <= 0.03, "{}: {median} of a row's range on cpu", fixture.display());
    }
    Ok(())
}

#[test]
fn the_first_version_has_a_fixture_with_every_format_of_its_time() -> Test {
    let pack = root().join("tests/fixtures/packs/v1-qwen3_moe/pack");
    let facts = ashlar!["inspect", pack, "--json"].expect(0).json();
    let mut seen = String::new();
    for class in facts["classes"].as_array().ok_or("classes")? {
        for format in class["formats"].as_object().ok_or("formats")?.keys() {
            seen.push_str(&format!(" {format}"));
        }
    }
    for format in ["bf16", "f32", "q8", "i4:g32", ",zp", "nf4:g64", "+o", "iq4nl", "mxfp4", "fp8"] {
        assert!(seen.contains(format), "no {format} in{seen}");
    }
    Ok(())
}

#[test]
fn a_pack_of_a_later_version_is_refused_with_the_remedy() -> Test {
    let dir = tempfile::tempdir()?;
    let from = root().join("tests/fixtures/packs/v1-qwen3_moe/pack");
    for entry in std::fs::read_dir(from)? {
        let path = entry?.path();
        std::fs::copy(&path, dir.path().join(path.file_name().ok_or("a name")?))?;
    }
    let manifest = dir.path().join("ashlar.json");
    let text = std::fs::read_to_string(&manifest)?;
    let later = text.replacen("\"format_version\": 1", "\"format_version\": 99", 1);
    assert_ne!(text, later);
    std::fs::write(&manifest, later)?;
    ashlar!["inspect", dir.path()].expect(1).says(&["99", "newer ashlar"]);
    Ok(())
}

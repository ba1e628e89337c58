//! Against weights that an independent script packed (`tests/fixtures/quantized/make_quantized.py`).

use crate::testing::{Result, directory, expect, refusal};
use crate::{Checkpoint, TensorFile};
use ashlar_formats::{Planes, Spec};
use ashlar_tensor::{Order, TensorStore};
use std::path::{Path, PathBuf};

const NAME: &str = "model.layers.0.mlp.down_proj.weight";

/// Every layout and the format it is listed as; the codes and scales of none are changed.
const CASES: &[(&str, &str)] = &[
    ("awq-g64", "i4:g64,zp"),
    ("awq-row", "i4:g32,zp"),
    ("gptq-v1-g32", "i4:g32,zp"),
    ("gptq-v2-g128", "i4:g128,zp"),
    ("ct-int4-g32-bf16", "i4_bf16:g32"),
    ("ct-int4-g128-zp", "i4:g128,zp"),
    ("ct-int4-row", "i4_bf16:g64"),
    ("ct-int8-channel-bf16", "q8_wide:bf16"),
    ("ct-int8-group-f32", "q8_wide:f32"),
    ("ct-fp8-channel", "fp8_row:bf16"),
    ("ct-fp8-tensor", "fp8:128x128,f32"),
    ("ct-fp8-block", "fp8:128x128,bf16"),
    ("ct-nvfp4", "nvfp4_div"),
    ("modelopt-nvfp4", "nvfp4"),
    ("ct-mxfp4", "mxfp4"),
];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/quantized").join(name)
}

#[test]
fn every_layout_has_the_values_of_the_script() -> Result {
    for (name, format) in CASES {
        let checkpoint = Checkpoint::open(&fixture(name))?;
        let [entry] = checkpoint.entries() else { return Err(format!("{name}: {:?}", checkpoint.entries()).into()) };
        assert_eq!((entry.name.as_str(), entry.format.as_str()), (NAME, *format), "{name}");
        let &[n, k] = entry.shape.as_slice() else { return Err("no matrix".into()) };
        let spec: Spec = entry.format.parse()?;
        let layout = spec.layout(Order::Rows, n, k)?;
        let sizes: Vec<_> = layout.planes.iter().map(|p| (p.kind, p.bytes)).collect();
        assert_eq!(sizes, entry.planes.iter().map(|p| (p.kind, p.bytes)).collect::<Vec<_>>(), "{name}");
        let planes = (0..sizes.len()).map(|p| checkpoint.map(entry, p)).collect::<std::result::Result<Vec<_>, _>>()?;
        let data: Vec<&[u8]> = planes.iter().map(|p| &**p).collect();
        let mut got = vec![0.0; n * k];
        spec.format()?.decode(
            &spec,
            &Planes { order: Order::Rows, n, k, first_row: 0, data: &data },
            0..n,
            &mut got,
        )?;
        let expected = TensorFile::open(&fixture(name).join("expected.safetensors"))?;
        let info = expected.tensor("expected").ok_or("expected")?;
        assert_eq!(info.shape, [n, k], "{name}");
        let want = expected.read(info)?;
        for (i, (got, want)) in got.iter().zip(want.as_chunks::<4>().0).enumerate() {
            let want = f32::from_le_bytes(*want);
            assert!(*got == want, "{name} row {} column {}: {got}, expected {want}", i / k, i % k);
        }
        // Reads of parts agree with the whole.
        for (plane, whole) in data.iter().enumerate() {
            let mut part = vec![0; whole.len() / 2];
            checkpoint.read(entry, plane, (whole.len() / 3) as u64, &mut part)?;
            assert_eq!(part, whole[whole.len() / 3..whole.len() / 3 + part.len()], "{name} plane {plane}");
        }
    }
    Ok(())
}

#[test]
fn scattered_groups_are_refused_with_what_to_do() -> Result {
    let message = refusal(&fixture("gptq-act-order"))?;
    expect(&message, &["down_proj.g_idx", "act-order", "desc_act", "take a release without act-order"])
}

/// The fixture with a change to its config and to its header, which keeps the header's length.
fn changed(name: &str, config: (&str, &str), header: (&str, &str)) -> Result<tempfile::TempDir> {
    assert_eq!(header.0.len(), header.1.len());
    let text = std::fs::read_to_string(fixture(name).join("config.json"))?;
    assert!(text.contains(config.0), "{text}");
    let mut bytes = std::fs::read(fixture(name).join("model.safetensors"))?;
    if !header.0.is_empty() {
        let at = bytes.windows(header.0.len()).position(|w| w == header.0.as_bytes()).ok_or(header.0)?;
        bytes[at..at + header.0.len()].copy_from_slice(header.1.as_bytes());
    }
    directory(&[("config.json", text.replace(config.0, config.1).as_bytes()), ("model.safetensors", &bytes)])
}

#[test]
fn what_does_not_fit_or_cannot_be_kept_is_refused() -> Result {
    let same = ("", "");
    for (name, config, header, says) in [
        ("awq-g64", ("\"bits\": 4", "\"bits\": 8"), same, "quantization_config.bits is 8, expected 4"),
        ("awq-g64", ("\"gemm\"", "\"gemv\""), same, "expected `gemm`"),
        ("awq-g64", ("\"group_size\": 64", "\"group_size\": 48"), same, "a multiple of 32"),
        ("awq-g64", ("\"group_size\": 64", "\"group_size\": 96"), same, "expected a multiple of the group size, 96"),
        (
            "awq-g64",
            ("\"group_size\": 64", "\"group_size\": 128"),
            same,
            "down_proj.scales`: is F16 of shape [2, 24], expected",
        ),
        ("awq-g64", same, ("\"shape\":[128,3]", "\"shape\":[3,128]"), "has 3 inputs"),
        ("awq-g64", same, (".scales", ".scalez"), "expected `model.layers.0.mlp.down_proj.scales` beside it"),
        ("gptq-v1-g32", ("\"bits\": 4", "\"bits\": 3"), same, "quantization_config.bits is 3"),
        (
            "gptq-v1-g32",
            ("\"sym\"", "\"checkpoint_format\": \"marlin\", \"sym\""),
            same,
            "expected `gptq` or `gptq_v2`",
        ),
        ("gptq-v1-g32", same, (".qzeros", ".qzeroz"), "expected `model.layers.0.mlp.down_proj.qzeros` beside it"),
        ("ct-int4-g32-bf16", same, ("\"shape\":[18,12]", "\"shape\":[12,18]"), "down_proj.weight_"),
        ("ct-int8-channel-bf16", same, ("\"shape\":[18,1]", "\"shape\":[1,18]"), "expected [18, 3], [18, 1] or [1]"),
        ("ct-fp8-block", same, ("\"shape\":[2,2]", "\"shape\":[4,1]"), "expected [2, 2], [130, 1] or [1]"),
        ("ct-nvfp4", same, ("\"shape\":[18,6]", "\"shape\":[6,18]"), "expected F8_E4M3 of shape [18, 6]"),
        ("ct-mxfp4", same, ("\"shape\":[18,3]", "\"shape\":[3,18]"), "expected U8 or F8_E8M0 of shape [18, 3]"),
    ] {
        let dir = changed(name, config, header)?;
        expect(&refusal(dir.path()).map_err(|e| format!("{name}: {e}"))?, &[says])
            .map_err(|e| format!("{name}: {e}"))?;
    }
    Ok(())
}

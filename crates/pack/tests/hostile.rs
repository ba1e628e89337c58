//! Packs that lie: each gets an error, none a panic.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod common;

use ashlar_pack::{Content, Manifest, Pack, PackError, RecordSpec, SealedRecord, TensorSpec, plan_layout};
use ashlar_tensor::{Plane, PlaneKind, Silent, TensorStore};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

fn pack() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    common::publish(dir.path());
    let out = dir.path().join("out");
    (dir, out)
}

fn edit(path: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.contains(from), "{from}");
    fs::write(path, text.replacen(from, to, 1)).unwrap();
}

fn error_after(from: &str, to: &str) -> String {
    let (_dir, out) = pack();
    edit(&out.join("ashlar.json"), from, to);
    Pack::open(&out).unwrap_err().to_string()
}

#[test]
fn a_directory_without_a_manifest_is_not_a_pack() {
    let dir = tempfile::tempdir().unwrap();
    assert!(!Pack::is_pack(dir.path()));
    assert!(matches!(Pack::open(dir.path()), Err(PackError::NotAPack { .. })));
}

#[test]
fn another_major_version_is_named_whatever_else_the_file_holds() {
    let (_dir, out) = pack();
    fs::write(out.join("ashlar.json"), r#"{"format_version": 2, "records": "elsewhere"}"#).unwrap();
    let error = Pack::open(&out).unwrap_err().to_string();
    assert!(error.contains("version 2") && error.contains("version 1"), "{error}");
}

#[test]
fn lies_of_the_manifest_are_found() {
    assert!(error_after("\"shard\":0", "\"shard\":7").contains("shard 7"));
    assert!(error_after("ashlar-00001-of", "../../etc/passwd").contains("expected `ashlar-00001"));
    assert!(error_after("\"order\":\"x16\"", "\"order\":\"x17\"").contains("unknown order `x17`"));
    assert!(error_after("\"name\":\"norm\"", "\"name\":\"embed\"").contains("embed"));
    assert!(error_after("\"dtype\":\"BF16\"", "\"dtype\":\"F16\"").contains("norm"));
    assert!(error_after("\"shape\":[33]", "\"shape\":[34]").contains("does not fill"));
    assert!(error_after("\"shape\":[33]", "\"shape\":[18446744073709551615]").contains("overflows"));
    assert!(
        error_after("{\"kind\":\"scales\",\"offset\":1024", "{\"kind\":\"scales\",\"offset\":960").contains("overlaps")
    );
    assert!(
        error_after("{\"kind\":\"scales\",\"offset\":1024", "{\"kind\":\"scales\",\"offset\":18446744073709551552")
            .contains("leaves")
    );
    assert!(error_after("\"bytes\":", "\"bytes\":-").contains("no ashlar manifest"));
}

#[test]
fn a_truncated_or_longer_shard_is_found_at_open() {
    let (_dir, out) = pack();
    let shard = out.join("ashlar-00001-of-00002.safetensors");
    let bytes = fs::read(&shard).unwrap();
    fs::write(&shard, &bytes[..bytes.len() - 1]).unwrap();
    assert!(Pack::open(&out).unwrap_err().to_string().contains("the manifest says"));
    fs::write(&shard, [bytes.as_slice(), b"x"].concat()).unwrap();
    assert!(Pack::open(&out).unwrap_err().to_string().contains("the manifest says"));
}

#[test]
fn a_pipe_in_the_place_of_a_file_is_refused_instead_of_waited_for() {
    for file in ["ashlar-00001-of-00002.safetensors", "ashlar.json"] {
        let (_dir, out) = pack();
        let path = out.join(file);
        fs::remove_file(&path).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RUSR).unwrap();
        assert!(Pack::open(&out).unwrap_err().to_string().contains("not a regular file"));
    }
}

#[test]
fn a_flipped_bit_is_found_by_verify_and_located() {
    let (_dir, out) = pack();
    let shard = out.join("ashlar-00002-of-00002.safetensors");
    let mut bytes = fs::read(&shard).unwrap();
    let at = bytes.len() - 70;
    bytes[at] ^= 4;
    fs::write(&shard, bytes).unwrap();
    let damage = Pack::open(&out).unwrap().verify(2, &Silent).unwrap();
    assert_eq!(damage.len(), 1);
    assert_eq!(
        (damage[0].file.as_str(), damage[0].tensors.join(",")),
        ("ashlar-00002-of-00002.safetensors", "e1.gate,e1.up".into())
    );
}

#[test]
fn a_sparse_pack_beyond_4_gib_is_read_at_the_right_offsets() {
    // It takes no room on the disk.
    let tensor = |name: &str, bytes| TensorSpec {
        name: name.into(),
        shape: vec![16, 32],
        format: "q8".into(),
        content: Content::Planes(vec![Plane { kind: PlaneKind::Codes, bytes }]),
    };
    let record = |t| RecordSpec { layer: None, expert: None, tensors: vec![t] };
    let layout = plan_layout(vec![record(tensor("a", 5 << 30)), record(tensor("b", 300 << 10))], 1 << 40).unwrap();
    assert!(layout.shards.len() == 1 && layout.records[1].offset > 5 << 30);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(&layout.shards[0].file);
    fs::write(&path, &layout.shards[0].header).unwrap();
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.set_len(layout.shards[0].bytes).unwrap();
    file.write_all_at(b"here", layout.records[1].offset).unwrap();
    let seal = |r: &ashlar_pack::Record| SealedRecord {
        record: r.clone(),
        blake3: blake3::hash(b""),
        source_blake3: BTreeMap::default(),
    };
    let manifest = Manifest {
        records: layout.records.iter().map(seal).collect(),
        shards: Manifest::shards_of(&layout),
        ..common::manifest(&common::layout())
    };
    fs::write(dir.path().join("ashlar.json"), manifest.to_json()).unwrap();
    let pack = Pack::open(dir.path()).unwrap();
    let (entry, mut bytes) = (pack.entry("b").unwrap(), [0; 4]);
    pack.read(entry, 0, 0, &mut bytes).unwrap();
    assert_eq!((&bytes, &pack.map(entry, 0).unwrap()[..4]), (b"here", &b"here"[..]));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_changed_manifest_or_header_never_panics(shard in any::<bool>(), at in any::<prop::sample::Index>(), to in any::<u8>(), cut in any::<bool>()) {
        thread_local!(static PACK: (tempfile::TempDir, PathBuf) = pack());
        PACK.with(|(_, out)| {
            let file = out.join(if shard { "ashlar-00001-of-00002.safetensors" } else { "ashlar.json" });
            let original = fs::read(&file).unwrap();
            let mut bytes = original.clone();
            let at = at.index(if shard { 700 } else { bytes.len() });
            bytes[at] = to;
            if cut {
                bytes.truncate(at);
            }
            fs::write(&file, &bytes).unwrap();
            let _ = Pack::open(out);
            fs::write(&file, &original).unwrap();
        });
    }

    #[test]
    fn any_bytes_as_a_manifest_are_safe(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = Manifest::parse(&bytes, Path::new("ashlar.json"));
    }
}

//! Natively quantized checkpoints: kept bit by bit.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use ashlar_arch::Class;
use ashlar_convert::{Origin, plan, verify};
use ashlar_pack::{DEFAULT_SHARD_BYTES, Pack};
use ashlar_recipe::Action;
use ashlar_source::Checkpoint;
use ashlar_tensor::{Order, Silent, TensorStore};
use common::{Poisoned, fixture, options, planned, run};
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use std::fs;
use std::path::Path;

const KEEP: &str = "version: 1\ndefaults: {format: keep}\n";

/// tiny/llama with FP8 codes and 128 × 128 block scales in place of its MLP weights.
fn fp8_checkpoint(dir: &Path) -> Checkpoint {
    let source = fixture("tiny/llama");
    let mut config = source.config().clone();
    config["quantization_config"] = serde_json::json!({"quant_method": "fp8", "weight_block_size": [128, 128]});
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let mut tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
    for entry in source.entries() {
        let mut bytes = vec![0; entry.bytes() as usize];
        source.read(entry, 0, 0, &mut bytes).unwrap();
        let dtype = if entry.format == "bf16" { Dtype::BF16 } else { Dtype::F32 };
        if entry.name.contains(".mlp.") {
            let (n, k) = (entry.shape[0], entry.shape[1]);
            // Any codes but 0x7f and 0xff, which are NaN.
            let codes =
                (0..n * k).map(|i| (i * 37 % 251) as u8).map(|c| if c & 0x7f == 0x7f { 0 } else { c }).collect();
            let blocks = [n.div_ceil(128), k.div_ceil(128)];
            let scales = (0..blocks[0] * blocks[1]).flat_map(|i| (0.001 + i as f32 * 0.0005).to_le_bytes()).collect();
            tensors.push((entry.name.clone(), Dtype::F8_E4M3, entry.shape.clone(), codes));
            tensors.push((format!("{}_scale_inv", entry.name), Dtype::F32, blocks.to_vec(), scales));
        } else {
            tensors.push((entry.name.clone(), dtype, entry.shape.clone(), bytes));
        }
    }
    let views = tensors.iter().map(|(n, d, s, b)| (n, TensorView::new(*d, s.clone(), b).unwrap()));
    serialize_to_file(views, None, &dir.join("model.safetensors")).unwrap();
    Checkpoint::open(dir).unwrap()
}

#[test]
fn fp8_is_kept_bit_by_bit_and_the_manifest_can_prove_it() {
    let (dir, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let checkpoint = fp8_checkpoint(dir.path());
    let out = out.path().join("pack");
    run(&planned(&checkpoint, KEEP, DEFAULT_SHARD_BYTES), &checkpoint, &out, 3);
    let pack = Pack::open(&out).unwrap();
    let name = "model.layers.0.mlp.down_proj.weight";
    assert_eq!(pack.entry(name).unwrap().order, Order::X16);
    assert_eq!(pack.entry(name).unwrap().format, checkpoint.entry(name).unwrap().format);
    let report = verify(&pack, Some(&checkpoint), Some(2), &Silent).unwrap();
    assert!(report.ok() && report.compared.iter().all(|c| c.exact && c.must_be_exact), "{report:?}");
    // The hash of the manifest is that of the source's planes, as anybody can compute it.
    let entry = checkpoint.entry(name).unwrap();
    let mut hasher = blake3::Hasher::new();
    for (plane, p) in entry.planes.iter().enumerate() {
        let mut bytes = vec![0; p.bytes as usize];
        checkpoint.read(entry, plane, 0, &mut bytes).unwrap();
        hasher.update(&bytes);
    }
    let sealed = pack.records().iter().find(|r| r.source_blake3.contains_key(name)).unwrap();
    assert_eq!(sealed.source_blake3[name], hasher.finalize());
}

#[test]
fn one_changed_code_of_a_kept_tensor_is_found() {
    let (dir, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let checkpoint = fp8_checkpoint(dir.path());
    let out = out.path().join("pack");
    run(&planned(&checkpoint, KEEP, DEFAULT_SHARD_BYTES), &checkpoint, &out, 1);
    let other = Poisoned { inner: &checkpoint, tensor: "model.layers.1.mlp.up_proj.weight", at: 77, bytes: vec![0x11] };
    let report = verify(&Pack::open(&out).unwrap(), Some(&other), None, &Silent).unwrap();
    assert!(!report.ok());
    let differ: Vec<&str> = report.compared.iter().filter(|c| !c.exact).map(|c| c.name.as_str()).collect();
    assert_eq!(differ, ["model.layers.1.mlp.up_proj.weight"]);
}

#[test]
fn a_nan_code_of_a_kept_tensor_is_an_error() {
    let (dir, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let checkpoint = fp8_checkpoint(dir.path());
    let tensor = "model.layers.1.mlp.up_proj.weight";
    let poisoned = Poisoned { inner: &checkpoint, tensor, at: 70, bytes: vec![0x7f] };
    let plan = planned(&checkpoint, KEEP, DEFAULT_SHARD_BYTES);
    let error = ashlar_convert::convert(&plan, &poisoned, &out.path().join("pack"), &options(2), &Silent).unwrap_err();
    assert!(error.to_string().contains(tensor), "{error}");
    assert_eq!(fs::read_dir(out.path()).unwrap().count(), 0);
}

#[test]
fn fp8_can_be_encoded_anew() {
    let (dir, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let checkpoint = fp8_checkpoint(dir.path());
    let out = out.path().join("pack");
    run(&planned(&checkpoint, common::Q8, DEFAULT_SHARD_BYTES), &checkpoint, &out, 2);
    let report = verify(&Pack::open(&out).unwrap(), Some(&checkpoint), None, &Silent).unwrap();
    assert!(report.ok());
    for c in report.compared.iter().filter(|c| c.source_format.starts_with("fp8")) {
        assert!(c.format.starts_with("q8") && c.nmse > 0.0 && c.nmse < 1e-3, "{c:?}");
    }
}

#[test]
fn padding_rows_that_are_not_zero_are_found() {
    // No recipe quantizes a router, whose rows are as many as experts: 8. By hand it can be done.
    let (checkpoint, dir) = (fixture("tiny/qwen3_moe"), tempfile::tempdir().unwrap());
    let (model, mut choices) = common::choose(&checkpoint, checkpoint.config(), KEEP);
    let router = choices.list.iter_mut().find(|c| c.leaf.role.class == Class::Router).unwrap();
    router.action = Action::Encode { spec: "q8".parse().unwrap(), method: "rtn" };
    let plan = plan(&model, &checkpoint, &choices, Origin::checkpoint(&checkpoint, String::new()), DEFAULT_SHARD_BYTES);
    let out = dir.path().join("pack");
    run(&plan.unwrap(), &checkpoint, &out, 2);
    let pack = Pack::open(&out).unwrap();
    assert!(verify(&pack, None, None, &Silent).unwrap().ok());
    let mut all = pack.records().iter().flat_map(|r| r.record.tensors.iter().map(move |t| (&r.record, t)));
    let (record, t) = all.find(|(_, t)| t.order == Order::X16 && t.shape[0] % 16 != 0).unwrap();
    let shard = out.join(&pack.manifest().shards[record.shard].0);
    let mut bytes = fs::read(&shard).unwrap();
    bytes[(t.offset + t.planes[0].offset + t.planes[0].bytes - 1) as usize] = 1;
    fs::write(&shard, bytes).unwrap();
    assert_eq!(verify(&Pack::open(&out).unwrap(), None, None, &Silent).unwrap().padding, std::slice::from_ref(&t.name));
}

/// The pack of an FP8 checkpoint with one code of `tensor` overwritten, its checksum put right: what a bad tool makes.
fn forged(dir: &Path, tensor: &str, at: u64, code: u8) -> Pack {
    let out = dir.join("forged");
    let source = tempfile::tempdir().unwrap();
    let checkpoint = fp8_checkpoint(source.path());
    run(&planned(&checkpoint, KEEP, DEFAULT_SHARD_BYTES), &checkpoint, &out, 2);
    let pack = Pack::open(&out).unwrap();
    let sealed = pack.records().iter().find(|r| r.record.tensors.iter().any(|t| t.name == tensor)).unwrap();
    let (record, t) = (&sealed.record, sealed.record.tensors.iter().find(|t| t.name == tensor).unwrap());
    let shard = out.join(&pack.manifest().shards[record.shard].0);
    let mut bytes = fs::read(&shard).unwrap();
    bytes[(t.offset + at) as usize] = code;
    let hash = blake3::hash(&bytes[record.offset as usize..(record.offset + record.bytes) as usize]);
    fs::write(&shard, bytes).unwrap();
    let (old, new) = (sealed.blake3.to_hex(), hash.to_hex());
    // One line per record, several of which may have equal bytes.
    let seal =
        |line: &str| if line.contains(tensor) { line.replace(old.as_str(), new.as_str()) } else { line.to_owned() };
    let manifest = fs::read_to_string(out.join("ashlar.json")).unwrap();
    fs::write(out.join("ashlar.json"), manifest.split('\n').map(seal).collect::<Vec<_>>().join("\n")).unwrap();
    Pack::open(&out).unwrap()
}

#[test]
fn a_nan_code_in_a_pack_is_reported_by_verify_and_refused_by_convert() {
    let dir = tempfile::tempdir().unwrap();
    let tensor = "model.layers.1.mlp.up_proj.weight";
    // Byte 77 of the panel: vector 1, lane 3, byte 1, that is row 3, column 5.
    let pack = forged(dir.path(), tensor, 77, 0xff);
    let report = verify(&pack, None, Some(2), &Silent).unwrap();
    assert!(!report.ok() && report.damage.is_empty(), "{report:?}");
    assert_eq!(report.not_finite, [(tensor.to_owned(), "row 3, column 5 is NaN".to_owned())]);
    for recipe in [KEEP, common::Q8] {
        let (model, choices) = common::choose(&pack, pack.config(), recipe);
        let origin = Origin::pack(&pack, String::new());
        let plan = plan(&model, &pack, &choices, origin, DEFAULT_SHARD_BYTES).unwrap();
        let error = ashlar_convert::convert(&plan, &pack, &dir.path().join("out"), &options(2), &Silent).unwrap_err();
        let error = error.to_string();
        assert!(error.contains(tensor) && error.contains("row 3, column 5 is NaN"), "{error}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}

#[test]
fn a_pack_of_a_pack_still_proves_the_bits_of_the_first_source() {
    let (dir, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let checkpoint = fp8_checkpoint(dir.path());
    let (first, second) = (out.path().join("first"), out.path().join("second"));
    run(&planned(&checkpoint, KEEP, DEFAULT_SHARD_BYTES), &checkpoint, &first, 2);
    let source = Pack::open(&first).unwrap();
    let (model, choices) = common::choose(&source, source.config(), KEEP);
    let plan = plan(&model, &source, &choices, Origin::pack(&source, String::new()), DEFAULT_SHARD_BYTES).unwrap();
    run(&plan, &source, &second, 2);
    let pack = Pack::open(&second).unwrap();
    let hashes = |p: &Pack| p.records().iter().flat_map(|r| r.source_blake3.clone()).collect::<Vec<_>>();
    assert!(!hashes(&pack).is_empty());
    assert_eq!(hashes(&pack), hashes(&source));
    assert!(verify(&pack, Some(&checkpoint), Some(2), &Silent).unwrap().compared.iter().all(|c| c.must_be_exact));
}

#[test]
fn a_pack_whose_planes_do_not_fit_its_shapes_is_refused_before_anything_is_allocated() {
    let dir = tempfile::tempdir().unwrap();
    let pack = forged(dir.path(), "model.layers.1.mlp.up_proj.weight", 0, 0);
    let entry = pack.entry("model.layers.1.mlp.up_proj.weight").unwrap();
    let shape = format!("\"name\":\"{}\",\"shape\":[{},{}]", entry.name, entry.shape[0], entry.shape[1]);
    let huge = format!("\"name\":\"{}\",\"shape\":[{},32]", entry.name, 1u64 << 50);
    let path = pack.dir().join("ashlar.json");
    let manifest = fs::read_to_string(&path).unwrap();
    assert!(manifest.contains(&shape));
    fs::write(&path, manifest.replace(&shape, &huge)).unwrap();
    let error = verify(&Pack::open(pack.dir()).unwrap(), None, Some(2), &Silent).unwrap_err().to_string();
    assert!(error.contains("up_proj") && error.contains("needs"), "{error}");
}

/// Released naming and precision: FP8 blocks with ragged edges, MXFP4 blocks and scales of fused experts, packed FP4, integer
/// tables, next-token layers.
#[test]
fn native_checkpoints_are_kept_bit_by_bit() {
    for (name, format, count) in
        [("tiny/deepseek_v3", "fp8:128x128,f32", 140), ("tiny/gpt_oss", "mxfp4", 96), ("tiny/deepseek_v4", "mxfp4", 96)]
    {
        let (checkpoint, dir) = (fixture(name), tempfile::tempdir().unwrap());
        let out = dir.path().join("pack");
        run(&planned(&checkpoint, KEEP, DEFAULT_SHARD_BYTES), &checkpoint, &out, 2);
        let pack = Pack::open(&out).unwrap();
        assert_eq!(pack.entries().len(), checkpoint.entries().len(), "{name}");
        assert_eq!(pack.entries().iter().filter(|e| e.format == format).count(), count, "{name}");
        let report = verify(&pack, Some(&checkpoint), Some(2), &Silent).unwrap();
        assert!(report.ok() && report.compared.iter().all(|c| c.exact && c.must_be_exact), "{name}: {report:?}");
    }
}

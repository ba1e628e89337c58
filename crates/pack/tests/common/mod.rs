//! A small pack with every kind of record, written by hand.
#![allow(dead_code, reason = "each test file uses its own part")]

use ashlar_pack::{
    Content, Direct, Done, Fingerprint, Layout, Manifest, PackError, Piece, Record, RecordSpec, SealedRecord, Target,
    TensorSpec, TreeHash, Writer, plan_layout,
};
use ashlar_tensor::{Dtype, Plane, PlaneKind, Silent};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

pub fn layout() -> Layout {
    let quantized = |name: &str, codes: u64| TensorSpec {
        name: name.into(),
        shape: vec![16, codes as usize / 16],
        format: "q8".into(),
        content: Content::Planes(vec![
            Plane { kind: PlaneKind::Codes, bytes: codes },
            Plane { kind: PlaneKind::Scales, bytes: codes / 16 },
        ]),
    };
    let norm = TensorSpec {
        name: "norm".into(),
        shape: vec![33],
        format: "bf16".into(),
        content: Content::Plain(Dtype::BF16),
    };
    let bias =
        TensorSpec { name: "bias".into(), shape: vec![5], format: "f32".into(), content: Content::Plain(Dtype::F32) };
    let record = |expert, tensors| RecordSpec { layer: Some(0), expert, tensors };
    let specs = vec![
        record(None, vec![quantized("embed", 512 << 10)]),
        record(None, vec![norm, bias]),
        record(Some(0), vec![quantized("e0.gate", 1024), quantized("e0.up", 1040)]),
        record(Some(1), vec![quantized("e1.gate", 300 << 10), quantized("e1.up", 1040)]),
    ];
    plan_layout(specs, 600 << 10).unwrap()
}

/// What a record's bytes are: a pattern in the planes, zeros between them.
pub fn bytes(record: &Record) -> Vec<u8> {
    let mut out: Vec<u8> = (0..record.bytes).map(|i| ((i + record.offset) * 7 % 255) as u8 + 1).collect();
    for (at, len) in record.gaps() {
        out[at as usize..(at + len) as usize].fill(0);
    }
    out
}

pub fn done(layout: &Layout, record: usize) -> Done {
    Done { record, blake3: blake3::hash(&bytes(&layout.records[record])), notes: json!({"note": record}) }
}

pub fn write(writer: &Writer<'_>, layout: &Layout, record: usize) -> Result<(), PackError> {
    let r = &layout.records[record];
    let bytes = bytes(r);
    let mut tree = TreeHash::new(r.bytes);
    for (i, part) in bytes.chunks(100_000).enumerate() {
        writer.write(r.shard, r.offset + i as u64 * 100_000, part)?;
        tree.add(Piece::new(r.bytes, i as u64 * 100_000, part));
    }
    assert_eq!(tree.finish(), Some(done(layout, record).blake3));
    writer.seal(&done(layout, record))
}

pub fn manifest(layout: &Layout) -> Manifest {
    let seal = |(i, r): (usize, &Record)| SealedRecord {
        record: r.clone(),
        blake3: done(layout, i).blake3,
        source_blake3: BTreeMap::from([(r.tensors[0].name.clone(), blake3::hash(b"source"))]),
    };
    Manifest {
        generator: "ashlar test".into(),
        source: "source".into(),
        config: json!({"model_type": "llama", "rms_norm_eps": 1e-5, "quantization_config": {"quant_method": "fp8"}}),
        recipe: "version: 1\n".into(),
        shards: Manifest::shards_of(layout),
        records: layout.records.iter().enumerate().map(seal).collect(),
        measured: Value::Null,
    }
}

pub fn inputs(recipe: &str) -> Fingerprint {
    Fingerprint::from([("recipe".into(), recipe.into()), ("source".into(), "s".into())])
}

pub fn target(dir: &Path) -> Target {
    Target { out: dir.join("out"), force: false, restart: false }
}

/// Writes the sample pack to `dir/out`.
pub fn publish(dir: &Path) -> Layout {
    let layout = layout();
    let writer = Writer::open(&target(dir), &layout, &inputs("r"), 0, &Direct).unwrap();
    assert_eq!(writer.resume(2, &Silent).unwrap(), []);
    (0..layout.records.len()).rev().for_each(|r| write(&writer, &layout, r).unwrap());
    writer.publish(&manifest(&layout), &[], None).unwrap();
    layout
}

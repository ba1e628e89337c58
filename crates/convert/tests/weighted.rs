//! Conversions with activation statistics.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use ashlar_convert::stats::{Array, Data, Importance, StatsOrigin, write};
use ashlar_convert::{ConvertError, Knowledge};
use ashlar_pack::{DEFAULT_SHARD_BYTES, Pack};
use ashlar_source::Checkpoint;
use common::{choose, files, fixture, planned, run};
use std::path::Path;
use std::sync::Arc;

const I4: &str = "version: 1
rules:
  - {id: exp, match: {class: experts}, set: {format: i4}}
";

/// Statistics of every expert: column c counts (c mod 7)².
fn importance(checkpoint: &Checkpoint, path: &Path) -> Importance {
    let (model, choices) = choose(checkpoint, checkpoint.config(), I4);
    let mut arrays = Vec::new();
    for choice in choices.list.iter().filter(|c| c.leaf.role.expert.is_some()) {
        let sums = (0..choice.k).map(|c| ((c % 7) * (c % 7)) as f32).collect();
        let name = |kind: &str| format!("{kind}.{}", choice.leaf.name);
        arrays.push(Array { name: name("moments"), shape: vec![choice.k], data: Data::F32(sums) });
        arrays.push(Array { name: name("tokens"), shape: vec![1], data: Data::I64(vec![100]) });
    }
    let origin = StatsOrigin { source: checkpoint.identity(), tokens: 100, ..StatsOrigin::default() };
    write(path, &origin, &arrays).unwrap();
    Importance::open(path, &model, &checkpoint.identity()).unwrap()
}

#[test]
fn statistics_change_codes_are_recorded_and_leave_no_trace_of_threads() {
    let (checkpoint, dir) = (fixture("demo-moe"), tempfile::tempdir().unwrap());
    let at = |name: &str| dir.path().join(name);
    let plain = planned(&checkpoint, I4, DEFAULT_SHARD_BYTES);
    run(&plain, &checkpoint, &at("plain"), 2);
    let packs = [1, 3].map(|threads| {
        let (plan, notes) = planned(&checkpoint, I4, DEFAULT_SHARD_BYTES)
            .with_knowledge(Arc::new(importance(&checkpoint, &at("s"))))
            .unwrap();
        assert!(notes.is_empty(), "{notes:?}");
        assert_eq!(plan.total_bytes, plain.total_bytes);
        let out = at(&threads.to_string());
        let tight = ashlar_convert::Options { memory: plan.memory.largest_tile_bytes, ..common::options(threads) };
        ashlar_convert::convert(&plan, &checkpoint, &out, &tight, &ashlar_tensor::Silent).unwrap();
        files(&out)
    });
    assert!(packs[0] == packs[1]);
    assert!(packs[0] != files(&at("plain")));
    let pack = Pack::open(&at("1")).unwrap();
    assert_eq!(pack.manifest().measured["statistics"]["tokens"], 100);
    assert!(ashlar_convert::verify(&pack, Some(&checkpoint), Some(2), &ashlar_tensor::Silent).unwrap().ok());
}

const GPTQ: &str = "version: 1
rules:
  - {id: exp, match: {class: experts}, set: {format: k2, method: gptq}}
";

#[test]
fn gptq_without_hessians_is_refused_before_anything_is_written() {
    let (checkpoint, dir) = (fixture("demo-moe"), tempfile::tempdir().unwrap());
    let plain = planned(&checkpoint, GPTQ, DEFAULT_SHARD_BYTES);
    let error = plain.check_methods().unwrap_err().to_string();
    assert!(error.contains("experts.0.gate_proj.weight` and ") && error.contains("--hessians"), "{error}");
    let moments = Arc::new(importance(&checkpoint, &dir.path().join("s")));
    let error = plain.with_knowledge(moments).err().unwrap();
    assert!(matches!(error, ConvertError::NoHessian { .. }), "{error}");
    let plan = planned(&checkpoint, GPTQ, DEFAULT_SHARD_BYTES);
    let error = ashlar_convert::convert(
        &plan,
        &checkpoint,
        &dir.path().join("out"),
        &common::options(1),
        &ashlar_tensor::Silent,
    );
    assert!(matches!(error, Err(ConvertError::NoHessian { .. })));
    assert!(!dir.path().join("out.partial").exists());
}

/// Columns hang together in fours; what [`importance`] knows of single columns it knows, too.
struct Correlated(Importance);

impl Knowledge for Correlated {
    fn identity(&self) -> String {
        "correlated".into()
    }
    fn provenance(&self) -> Result<serde_json::Value, ConvertError> {
        self.0.provenance()
    }
    fn knows(&self, tensor: &str) -> bool {
        self.0.knows(tensor)
    }
    fn importance(&self, tensor: &str) -> Result<Option<Vec<f32>>, ConvertError> {
        self.0.importance(tensor)
    }
    fn hessian_of(&self, tensor: &str) -> Option<String> {
        // Gate and up share their inputs with all experts of the layer, down has its own.
        let layer = tensor.split(".mlp.").next()?;
        Some(if tensor.contains("down") { tensor.to_owned() } else { layer.to_owned() })
    }
    fn hessian(&self, tensor: &str) -> Result<Option<Vec<f32>>, ConvertError> {
        let k = self.importance(tensor)?.map_or(0, |i| i.len());
        let value = |i: usize, j: usize| {
            if i == j {
                1.0
            } else if i / 4 == j / 4 {
                0.7
            } else {
                0.0
            }
        };
        Ok(Some((0..k * k).map(|at| value(at / k, at % k)).collect()))
    }
}

#[test]
fn gptq_uses_the_hessians_and_leaves_no_trace_of_threads_or_memory() {
    let (checkpoint, dir) = (fixture("demo-moe"), tempfile::tempdir().unwrap());
    let at = |name: &str| dir.path().join(name);
    let packs = [1, 3].map(|threads| {
        let known = Correlated(importance(&checkpoint, &at("s")));
        let auto = GPTQ.replace("gptq", "auto");
        let (plan, _) = planned(&checkpoint, &auto, DEFAULT_SHARD_BYTES).with_knowledge(Arc::new(known)).unwrap();
        let experts = plan.classes.iter().find(|c| c.class == "experts").unwrap();
        assert_eq!(
            experts.methods.keys().copied().collect::<Vec<_>>(),
            ["gptq"],
            "auto takes the Hessian that is there"
        );
        let memory = if threads == 1 { plan.memory.largest_tile_bytes } else { 1 << 30 };
        let options = ashlar_convert::Options { memory, ..common::options(threads) };
        ashlar_convert::convert(&plan, &checkpoint, &at(&threads.to_string()), &options, &ashlar_tensor::Silent)
            .unwrap();
        files(&at(&threads.to_string()))
    });
    assert!(packs[0] == packs[1]);
    let search = GPTQ.replace("gptq", "search");
    run(&planned(&checkpoint, &search, DEFAULT_SHARD_BYTES), &checkpoint, &at("search"), 2);
    assert!(packs[0] != files(&at("search")));
}

#[test]
fn tensors_without_statistics_are_told() {
    let (checkpoint, dir) = (fixture("demo-moe"), tempfile::tempdir().unwrap());
    let stats = importance(&checkpoint, &dir.path().join("s"));
    let (_, notes) = planned(&checkpoint, common::Q8, DEFAULT_SHARD_BYTES).with_knowledge(Arc::new(stats)).unwrap();
    assert!(notes.len() == 1 && notes[0].contains("no statistics for `") && notes[0].contains("more"), "{notes:?}");
}

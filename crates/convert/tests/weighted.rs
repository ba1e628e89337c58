//! Conversions with activation statistics.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use ashlar_convert::stats::{Array, Data, Importance, StatsOrigin, write};
use ashlar_pack::{DEFAULT_SHARD_BYTES, Pack};
use ashlar_source::Checkpoint;
use common::{choose, files, fixture, planned, run};
use std::path::Path;

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
        let (plan, notes) = planned(&checkpoint, I4, DEFAULT_SHARD_BYTES).with_stats(importance(&checkpoint, &at("s")));
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

#[test]
fn tensors_without_statistics_are_told() {
    let (checkpoint, dir) = (fixture("demo-moe"), tempfile::tempdir().unwrap());
    let stats = importance(&checkpoint, &dir.path().join("s"));
    let (_, notes) = planned(&checkpoint, common::Q8, DEFAULT_SHARD_BYTES).with_stats(stats);
    assert!(notes.len() == 1 && notes[0].contains("no statistics for `") && notes[0].contains("more"), "{notes:?}");
}

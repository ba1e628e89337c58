//! Properties of the planner, for any records and any shard size.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use ashlar_pack::{Content, Layout, RecordSpec, TensorSpec, plan_layout};
use ashlar_tensor::{Dtype, Plane, PlaneKind};
use proptest::prelude::*;

type Stored = (Content, Vec<usize>);

fn plane(kind: PlaneKind, bytes: u64) -> Plane {
    Plane { kind, bytes }
}

fn tensor(name: String, content: Content, shape: Vec<usize>) -> TensorSpec {
    TensorSpec { name, shape, format: "q8".into(), content }
}

fn content() -> impl Strategy<Value = (Content, Vec<usize>)> {
    let plain = (prop::sample::select(vec![Dtype::BF16, Dtype::F32]), prop::collection::vec(0usize..40, 1..3))
        .prop_map(|(d, shape)| (Content::Plain(d), shape));
    let planes = prop::collection::vec(0u64..200_000, 1..4).prop_map(|sizes| {
        (Content::Planes(sizes.into_iter().map(|b| plane(PlaneKind::Codes, b)).collect()), vec![16, 32])
    });
    prop_oneof![plain, planes]
}

fn records() -> impl Strategy<Value = Vec<RecordSpec>> {
    let record = (any::<bool>(), prop::collection::vec(content(), 1..4));
    prop::collection::vec(record, 0..12).prop_map(|all| {
        let named = |(i, (expert, tensors)): (usize, (bool, Vec<Stored>))| RecordSpec {
            layer: Some(i),
            expert: expert.then_some(i),
            tensors: tensors.into_iter().enumerate().map(|(j, (c, s))| tensor(format!("r{i}.t{j}"), c, s)).collect(),
        };
        all.into_iter().enumerate().map(named).collect()
    })
}

/// The bytes of a shard: its header, then zeros.
fn image(layout: &Layout, shard: usize) -> Vec<u8> {
    let mut bytes = layout.shards[shard].header.clone();
    bytes.resize(layout.shards[shard].bytes as usize, 0);
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn every_shard_is_literally_valid_safetensors(specs in records(), max in 1u64..2_000_000) {
        let layout = plan_layout(specs, max).unwrap();
        for (index, _) in layout.shards.iter().enumerate() {
            let image = image(&layout, index);
            let parsed = safetensors::SafeTensors::deserialize(&image).unwrap();
            let base = image.as_ptr() as usize;
            for t in layout.records.iter().filter(|r| r.shard == index).flat_map(|r| &r.tensors) {
                let view = parsed.tensor(&t.name).unwrap();
                prop_assert_eq!(view.data().len() as u64, t.bytes);
                if t.bytes > 0 {
                    prop_assert_eq!(view.data().as_ptr() as u64 - base as u64, t.offset);
                }
            }
        }
    }

    #[test]
    fn nothing_overlaps_and_everything_is_aligned(specs in records(), max in 1u64..2_000_000) {
        let wanted: usize = specs.iter().map(|r| r.tensors.len()).sum();
        let layout = plan_layout(specs, max).unwrap();
        prop_assert_eq!(layout.records.iter().map(|r| r.tensors.len()).sum::<usize>(), wanted);
        let mut at = vec![0u64; layout.shards.len()];
        for r in &layout.records {
            let header = layout.shards[r.shard].header.len() as u64;
            prop_assert_eq!(header % 4096, 0);
            prop_assert_eq!(r.offset % if r.bytes >= 256 << 10 { 4096 } else { 64 }, 0);
            prop_assert!(r.offset >= at[r.shard].max(header));
            let mut inside = r.offset;
            for t in &r.tensors {
                prop_assert!(t.offset >= inside && t.offset % 64 == 0);
                let mut end = 0;
                for p in &t.planes {
                    prop_assert!(p.offset >= end && p.offset % 64 == 0);
                    end = p.offset + p.bytes;
                }
                prop_assert!(end <= t.bytes);
                inside = t.offset + t.bytes;
            }
            prop_assert_eq!(inside, r.offset + r.bytes);
            at[r.shard] = inside;
            prop_assert!(inside <= layout.shards[r.shard].bytes);
        }
    }

    #[test]
    fn a_shard_exceeds_the_bound_only_with_a_single_record(specs in records(), max in 1u64..500_000) {
        let layout = plan_layout(specs, max).unwrap();
        for (index, shard) in layout.shards.iter().enumerate() {
            let records = layout.records.iter().filter(|r| r.shard == index && r.bytes > 0).count();
            prop_assert!(shard.bytes - shard.header.len() as u64 <= max || records == 1);
        }
    }
}

fn dense(name: &str, bytes: u64) -> RecordSpec {
    let content = Content::Planes(vec![plane(PlaneKind::Codes, bytes)]);
    RecordSpec { layer: None, expert: None, tensors: vec![tensor(name.into(), content, vec![1])] }
}

#[test]
fn small_records_come_first_and_experts_last() {
    let expert = RecordSpec { expert: Some(0), ..dense("expert", 300_000) };
    let layout =
        plan_layout(vec![dense("embed", 300_000), expert, dense("norm", 64), dense("head", 300_000)], 1 << 30).unwrap();
    let names: Vec<&str> = layout.records.iter().map(|r| r.tensors[0].name.as_str()).collect();
    assert_eq!(names, ["norm", "embed", "head", "expert"]);
}

#[test]
fn duplicate_reserved_and_overflowing_tensors_are_refused() {
    let error = |specs| plan_layout(specs, 1 << 30).unwrap_err().to_string();
    assert!(error(vec![dense("a", 1), dense("a", 1)]).contains("occurs twice"));
    assert!(error(vec![dense("ashlar.padding.00000", 1)]).contains("reserved"));
    assert!(error(vec![dense("a", u64::MAX)]).contains("overflows"));
    assert!(
        error(vec![dense("a", u64::MAX / 2 - 64), dense("b", u64::MAX / 2 - 64), dense("c", 1 << 62)])
            .contains("overflows")
    );
}

#[test]
fn no_records_still_make_a_valid_pack() {
    let layout = plan_layout(Vec::new(), 1 << 30).unwrap();
    assert_eq!(layout.shards.len(), 1);
    assert!(safetensors::SafeTensors::deserialize(&image(&layout, 0)).is_ok());
}

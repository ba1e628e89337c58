//! Writing, resuming, refusing, publishing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod common;

use ashlar_pack::{Direct, Pack, PackError, PageBuffer, Target, WriteAt, Writer};
use ashlar_tensor::{Order, Silent, TensorStore};
use common::{bytes, done, inputs, layout, manifest, publish, target, write};
use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut all: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().path())
        .map(|p| (p.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(&p).unwrap()))
        .collect();
    all.sort();
    all
}

#[test]
fn what_was_written_is_read_back_and_verifies() {
    let dir = tempfile::tempdir().unwrap();
    let layout = publish(dir.path());
    let pack = Pack::open(&dir.path().join("out")).unwrap();
    assert_eq!(pack.manifest(), &manifest(&layout));
    assert_eq!(pack.verify(3, &Silent).unwrap(), []);
    let entry = pack.entry("e1.up").unwrap().clone();
    assert_eq!((entry.order, entry.planes.len(), entry.format.as_str()), (Order::X16, 2, "q8"));
    let record = layout.records.iter().find(|r| r.tensors.iter().any(|t| t.name == "e1.up")).unwrap();
    let t = record.tensors.iter().find(|t| t.name == "e1.up").unwrap();
    let at = (t.offset + t.planes[1].offset - record.offset) as usize;
    let want = &bytes(record)[at..at + t.planes[1].bytes as usize];
    assert_eq!(&*pack.map(&entry, 1).unwrap(), want);
    let mut part = vec![0; 10];
    pack.read(&entry, 1, 20, &mut part).unwrap();
    assert_eq!(part, want[20..30]);
    assert!(pack.read(&entry, 1, t.planes[1].bytes - 9, &mut part).unwrap_err().to_string().contains("were asked for"));
    assert!(pack.read(&entry, 2, 0, &mut part).is_err());
    assert_eq!(pack.entry("norm").unwrap().order, Order::Rows);
}

#[test]
fn the_config_is_marked_and_the_original_kept() {
    let dir = tempfile::tempdir().unwrap();
    publish(dir.path());
    let config: serde_json::Value =
        serde_json::from_slice(&fs::read(dir.path().join("out/config.json")).unwrap()).unwrap();
    assert_eq!(config["quantization_config"]["quant_method"], "ashlar");
    assert_eq!(config["rms_norm_eps"], 1e-5);
    assert_eq!(Pack::open(&dir.path().join("out")).unwrap().config()["quantization_config"]["quant_method"], "fp8");
}

#[test]
fn a_resumed_pack_has_the_same_bytes_and_no_leftovers() {
    let (once, twice) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let layout = publish(once.path());
    let target = target(twice.path());
    let writer = Writer::open(&target, &layout, &inputs("r"), 0, &Direct).unwrap();
    write(&writer, &layout, 2).unwrap();
    write(&writer, &layout, 0).unwrap();
    // Half of another record, and a torn journal line.
    writer.write(0, layout.records[1].offset, &bytes(&layout.records[1])[..10]).unwrap();
    drop(writer);
    let journal = target.partial().join("journal");
    fs::write(&journal, [fs::read(&journal).unwrap(), b"0123456789abcdef {\"rec".to_vec()].concat()).unwrap();
    let writer = Writer::open(&target, &layout, &inputs("r"), 0, &Direct).unwrap();
    assert_eq!(writer.resume(2, &Silent).unwrap(), [done(&layout, 0), done(&layout, 2)]);
    write(&writer, &layout, 1).unwrap();
    drop(writer);
    let writer = Writer::open(&target, &layout, &inputs("r"), 0, &Direct).unwrap();
    assert_eq!(writer.resume(1, &Silent).unwrap().len(), 3);
    write(&writer, &layout, 3).unwrap();
    writer.publish(&manifest(&layout), &[]).unwrap();
    assert_eq!(files(&once.path().join("out")), files(&twice.path().join("out")));
    assert!(!target.partial().exists());
}

#[test]
fn a_journal_that_lies_is_not_believed() {
    let dir = tempfile::tempdir().unwrap();
    let (layout, target) = (layout(), target(dir.path()));
    let writer = Writer::open(&target, &layout, &inputs("r"), 0, &Direct).unwrap();
    write(&writer, &layout, 0).unwrap();
    writer.seal(&done(&layout, 1)).unwrap();
    writer.seal(&ashlar_pack::Done { record: 99, ..done(&layout, 1) }).unwrap();
    drop(writer);
    let writer = Writer::open(&target, &layout, &inputs("r"), 0, &Direct).unwrap();
    assert_eq!(writer.resume(2, &Silent).unwrap(), [done(&layout, 0)]);
}

#[test]
fn other_inputs_need_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (layout, target) = (layout(), target(dir.path()));
    let writer = Writer::open(&target, &layout, &inputs("r"), 0, &Direct).unwrap();
    write(&writer, &layout, 0).unwrap();
    drop(writer);
    let error = Writer::open(&target, &layout, &inputs("other"), 0, &Direct).err().unwrap().to_string();
    assert!(
        error.contains("another recipe") && error.contains("--restart") && !error.contains("another source"),
        "{error}"
    );
    let writer = Writer::open(&Target { restart: true, ..target }, &layout, &inputs("other"), 0, &Direct).unwrap();
    assert_eq!(writer.resume(1, &Silent).unwrap(), []);
}

#[test]
fn a_partial_directory_without_a_journal_is_not_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let (layout, target) = (layout(), target(dir.path()));
    fs::create_dir(target.partial()).unwrap();
    fs::write(target.partial().join("thesis.txt"), "years of work").unwrap();
    let error = Writer::open(&target, &layout, &inputs("r"), 0, &Direct).err().unwrap().to_string();
    assert!(error.contains("--restart"), "{error}");
    assert!(target.partial().join("thesis.txt").exists());
}

#[test]
fn two_writers_of_one_pack_do_not_meet() {
    let dir = tempfile::tempdir().unwrap();
    let (layout, target) = (layout(), target(dir.path()));
    let first = Writer::open(&target, &layout, &inputs("r"), 0, &Direct).unwrap();
    let second = Writer::open(&target, &layout, &inputs("r"), 0, &Direct);
    assert!(matches!(second, Err(PackError::Locked { .. })));
    drop(first);
    assert!(Writer::open(&target, &layout, &inputs("r"), 0, &Direct).is_ok());
}

#[test]
fn an_existing_pack_needs_force_and_stays_until_the_new_one_is_complete() {
    let dir = tempfile::tempdir().unwrap();
    let layout = publish(dir.path());
    let target = target(dir.path());
    let error = Writer::open(&target, &layout, &inputs("r"), 0, &Direct).err().unwrap().to_string();
    assert!(error.contains("--force"), "{error}");
    let before = files(&target.out);
    let force = Target { force: true, ..target.clone() };
    let writer = Writer::open(&force, &layout, &inputs("r"), 0, &Direct).unwrap();
    (0..layout.records.len()).for_each(|r| write(&writer, &layout, r).unwrap());
    assert_eq!(files(&target.out), before);
    let new = ashlar_pack::Manifest { recipe: "another".into(), ..manifest(&layout) };
    writer.publish(&new, &[]).unwrap();
    assert_eq!(Pack::open(&target.out).unwrap().manifest().recipe, "another");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn what_is_no_pack_is_never_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let (layout, target) = (layout(), Target { force: true, ..target(dir.path()) });
    fs::create_dir(&target.out).unwrap();
    fs::write(target.out.join("model.safetensors"), "weights").unwrap();
    assert!(matches!(Writer::open(&target, &layout, &inputs("r"), 0, &Direct), Err(PackError::Exists { .. })));
    assert!(!target.partial().exists());
}

#[test]
fn a_manifest_that_does_not_seal_the_plan_is_not_published() {
    let dir = tempfile::tempdir().unwrap();
    let (layout, target) = (layout(), target(dir.path()));
    let writer = Writer::open(&target, &layout, &inputs("r"), 0, &Direct).unwrap();
    let mut short = manifest(&layout);
    short.records.pop();
    assert!(matches!(writer.publish(&short, &[]), Err(PackError::Unsealed { record: 3, .. })));
    assert!(!target.out.exists());
}

/// A disk with room for so many bytes.
struct SmallDisk(AtomicU64);

impl WriteAt for SmallDisk {
    fn write_all_at(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        let enough = |left: u64| left.checked_sub(bytes.len() as u64);
        match self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, enough) {
            Ok(_) => Direct.write_all_at(file, bytes, offset),
            Err(_) => Err(io::ErrorKind::StorageFull.into()),
        }
    }
}

/// Refuses direct writes, as some file systems do only when it comes to it.
struct NotDirect(AtomicU64);

impl WriteAt for NotDirect {
    fn write_all_at(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        if bytes.len() == 512 << 10 && self.0.fetch_add(1, Ordering::SeqCst) == 0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Direct.write_all_at(file, bytes, offset)
    }
}

#[test]
fn large_aligned_parts_are_written_past_the_cache_or_else_through_it() {
    let layout = layout();
    let (index, record) = layout.records.iter().enumerate().find(|(_, r)| r.tensors[0].name == "embed").unwrap();
    let data = bytes(record);
    let mut part = PageBuffer::default();
    part.resize(512 << 10);
    part.copy_from_slice(&data[..512 << 10]);
    for sink in [&Direct as &dyn WriteAt, &NotDirect(AtomicU64::new(0))] {
        let dir = tempfile::tempdir().unwrap();
        let writer = Writer::open(&target(dir.path()), &layout, &inputs("r"), 0, sink).unwrap();
        writer.write(record.shard, record.offset, &part).unwrap();
        writer.write(record.shard, record.offset + (512 << 10), &data[512 << 10..]).unwrap();
        writer.seal(&done(&layout, index)).unwrap();
        drop(writer);
        let writer = Writer::open(&target(dir.path()), &layout, &inputs("r"), 0, &Direct).unwrap();
        assert_eq!(writer.resume(2, &Silent).unwrap(), [done(&layout, index)]);
    }
}

#[test]
fn a_full_disk_publishes_nothing_and_can_be_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let (layout, target) = (layout(), target(dir.path()));
    let disk = SmallDisk(AtomicU64::new(layout.records[0].bytes + layout.records[1].bytes + 9000));
    let writer = Writer::open(&target, &layout, &inputs("r"), 0, &disk).unwrap();
    let failed = (0..layout.records.len()).find_map(|r| write(&writer, &layout, r).err()).unwrap();
    assert!(failed.to_string().contains("the disk is full"), "{failed}");
    drop(writer);
    assert!(!target.out.exists());
    let writer = Writer::open(&target, &layout, &inputs("r"), 0, &Direct).unwrap();
    assert!(!writer.resume(2, &Silent).unwrap().is_empty());
}

#[test]
fn a_disk_too_small_is_refused_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let (layout, target) = (layout(), target(dir.path()));
    match Writer::open(&target, &layout, &inputs("r"), u64::MAX / 4, &Direct) {
        Err(PackError::DiskFull { needed, free, .. }) => assert!(needed > free && free > 0),
        other => panic!("{:?}", other.err()),
    }
    assert_eq!(fs::read_dir(target.partial()).unwrap().count(), 0);
}

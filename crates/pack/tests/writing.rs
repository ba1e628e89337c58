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
    writer.publish(&manifest(&layout), &[], None).unwrap();
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
fn a_partial_directory_that_no_conversion_made_is_neither_overwritten_nor_discarded() {
    let dir = tempfile::tempdir().unwrap();
    let (layout, target) = (layout(), target(dir.path()));
    fs::create_dir(target.partial()).unwrap();
    fs::write(target.partial().join("thesis.txt"), "years of work").unwrap();
    for journal in [None, Some("Dear diary,\n"), Some("Dear diary,")] {
        journal.iter().for_each(|text| fs::write(target.partial().join("journal"), text).unwrap());
        for restart in [false, true] {
            let error = refusal(&Target { restart, ..target.clone() }, &layout);
            assert!(error.contains("`thesis.txt`") || error.contains("`journal`"), "{error}");
            assert_eq!(fs::read_to_string(target.partial().join("thesis.txt")).unwrap(), "years of work");
        }
    }
}

#[test]
fn a_partial_directory_of_another_version_needs_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (layout, target) = (layout(), target(dir.path()));
    let payload = r#"{"journal":2,"anything":"else"}"#;
    let tag = blake3::hash(payload.as_bytes()).to_hex().as_str()[..16].to_owned();
    fs::create_dir(target.partial()).unwrap();
    fs::write(target.partial().join("journal"), format!("{tag} {payload}\n")).unwrap();
    fs::write(target.partial().join("tokenizer.json"), "{}").unwrap();
    assert!(refusal(&target, &layout).contains("--restart"));
    let restart = Target { restart: true, ..target };
    assert!(Writer::open(&restart, &layout, &inputs("r"), 0, &Direct).is_ok());
}

#[test]
fn inputs_that_a_journal_has_beyond_ours_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let (layout, target) = (layout(), target(dir.path()));
    let mut more = inputs("r");
    more.insert("moon".into(), "full".into());
    drop(Writer::open(&target, &layout, &more, 0, &Direct).unwrap());
    assert!(refusal(&target, &layout).contains("another moon"));
}

fn refusal(target: &Target, layout: &ashlar_pack::Layout) -> String {
    Writer::open(target, layout, &inputs("r"), 0, &Direct).err().expect("a refusal").to_string()
}

#[test]
fn what_no_rename_can_replace_is_refused_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let layout = layout();
    let check = |out: &Path| refusal(&Target { out: out.to_owned(), force: true, restart: true }, &layout);
    for nameless in [".", "..", "/", ""] {
        assert!(check(Path::new(nameless)).contains("is no name"), "{nameless}");
    }
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(check(&file).contains("no directory"));
    fs::create_dir(dir.path().join("real")).unwrap();
    std::os::unix::fs::symlink("real", dir.path().join("link")).unwrap();
    for link in ["link", "link/", "link/."] {
        assert!(check(&dir.path().join(link)).contains("symbolic link"), "{link}");
    }
    if cfg!(target_os = "linux") {
        let proc = Target { out: "/proc".into(), force: true, restart: false };
        assert!(proc.check().unwrap_err().to_string().contains("mount point"));
    }
}

#[test]
fn a_pack_beside_other_things_is_not_replaced_even_with_force() {
    let layout = layout();
    for foreign in ["adapters/", "model.safetensors"] {
        let dir = tempfile::tempdir().unwrap();
        publish(dir.path());
        let force = Target { force: true, ..target(dir.path()) };
        let path = force.out.join(foreign);
        if foreign.ends_with('/') {
            fs::create_dir(&path).unwrap()
        } else {
            fs::write(&path, "weights").unwrap()
        }
        assert!(refusal(&force, &layout).contains(foreign.trim_end_matches('/')));
        assert!(path.exists() && Pack::open(&force.out).is_ok());
    }
}

/// A complete `OUT.partial` with another recipe in its manifest, ready to be published.
fn replace(dir: &Path) -> Result<(), PackError> {
    let (layout, force) = (layout(), Target { force: true, ..target(dir) });
    let writer = Writer::open(&force, &layout, &inputs("new"), 0, &Direct)?;
    (0..layout.records.len()).for_each(|r| write(&writer, &layout, r).unwrap());
    writer.publish(&ashlar_pack::Manifest { recipe: "new".into(), ..manifest(&layout) }, &[], None)
}

fn marker() -> String {
    let payload = r#"{"journal":1,"inputs":{"replaced":"by a newer pack"}}"#;
    format!("{} {payload}\n", &blake3::hash(payload.as_bytes()).to_hex().as_str()[..16])
}

fn only_the_new_pack_is_left(dir: &Path) {
    assert_eq!(Pack::open(&dir.join("out")).unwrap().manifest().recipe, "new");
    assert_eq!(fs::read_dir(dir).unwrap().count(), 1);
}

#[test]
fn a_run_killed_while_it_replaced_a_pack_loses_neither_and_the_next_one_cleans_up() {
    // Marked, not yet swapped.
    let dir = tempfile::tempdir().unwrap();
    publish(dir.path());
    let out = dir.path().join("out");
    fs::write(out.join("journal"), marker()).unwrap();
    assert!(Pack::open(&out).is_ok());
    replace(dir.path()).unwrap();
    only_the_new_pack_is_left(dir.path());
    // Swapped: the new pack is at OUT, the old one at OUT.partial, whole or half deleted.
    for deleted in [&[][..], &["ashlar.json", "config.json"], &["ashlar.json", "ashlar-00001-of-00002.safetensors"]] {
        let partial = dir.path().join("out.partial");
        fs::create_dir(&partial).unwrap();
        for (name, bytes) in files(&out) {
            fs::write(partial.join(name), bytes).unwrap();
        }
        fs::write(partial.join("tokenizer.json"), "{}").unwrap();
        deleted.iter().for_each(|name| fs::remove_file(partial.join(name)).unwrap());
        fs::write(partial.join("journal"), marker()).unwrap();
        replace(dir.path()).unwrap();
        only_the_new_pack_is_left(dir.path());
    }
    // Moved aside, where no swap is possible: the old pack comes back before anything else happens.
    let aside = dir.path().join("out.partial.replaced");
    fs::write(out.join("journal"), marker()).unwrap();
    fs::rename(&out, &aside).unwrap();
    let error = refusal(&target(dir.path()), &layout());
    assert!(error.contains("--force") && Pack::open(&out).is_ok() && !aside.exists(), "{error}");
    // Moved aside and the new one in place: the old one is deleted.
    fs::rename(&out, &aside).unwrap();
    fs::remove_dir(dir.path().join("out.partial")).unwrap();
    let other = tempfile::tempdir().unwrap();
    publish(other.path());
    fs::rename(other.path().join("out"), &out).unwrap();
    replace(dir.path()).unwrap();
    only_the_new_pack_is_left(dir.path());
}

#[test]
fn a_pack_that_appears_meanwhile_is_not_replaced_without_force() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (layout, target) = (layout(), target(dir.path()));
    publish(other.path());
    let writer = Writer::open(&target, &layout, &inputs("r"), 0, &Direct).unwrap();
    (0..layout.records.len()).for_each(|r| write(&writer, &layout, r).unwrap());
    fs::rename(other.path().join("out"), &target.out).unwrap();
    assert!(writer.publish(&manifest(&layout), &[], None).unwrap_err().to_string().contains("--force"));
    assert!(Pack::open(&target.out).is_ok() && target.partial().exists());
    // It can be published later, and while it is written again nothing in it looks complete.
    assert!(target.partial().join("ashlar.json").exists());
    fs::remove_dir_all(&target.out).unwrap();
    let writer = Writer::open(&target, &layout, &inputs("r"), 0, &Direct).unwrap();
    assert!(!target.partial().join("ashlar.json").exists());
    assert_eq!(writer.resume(1000, &Silent).unwrap().len(), layout.records.len());
    writer.publish(&manifest(&layout), &[], None).unwrap();
    assert!(Pack::open(&target.out).is_ok());
}

#[test]
fn what_cannot_be_opened_is_not_published() {
    let dir = tempfile::tempdir().unwrap();
    let (layout, target) = (layout(), target(dir.path()));
    let writer = Writer::open(&target, &layout, &inputs("r"), 0, &Direct).unwrap();
    (0..layout.records.len()).for_each(|r| write(&writer, &layout, r).unwrap());
    fs::write(target.partial().join(&layout.shards[0].file), "cut short by someone").unwrap();
    assert!(matches!(writer.publish(&manifest(&layout), &[], None), Err(PackError::Malformed { .. })));
    assert!(!target.out.exists());
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
    writer.publish(&new, &[], None).unwrap();
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
    assert!(matches!(writer.publish(&short, &[], None), Err(PackError::Unsealed { record: 3, .. })));
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

#[test]
fn a_card_takes_the_place_of_the_source_s() {
    let dir = tempfile::tempdir().unwrap();
    let side = dir.path().join("ReadMe.md");
    fs::write(&side, "theirs").unwrap();
    for (card, name) in [(Some("ours"), "README.md"), (None, "ReadMe.md")] {
        let (layout, target) = (layout(), target(dir.path()));
        let writer = Writer::open(&target, &layout, &inputs("r"), 0, &Direct).unwrap();
        (0..layout.records.len()).for_each(|r| write(&writer, &layout, r).unwrap());
        writer.publish(&manifest(&layout), std::slice::from_ref(&side), card).unwrap();
        let names = fs::read_dir(&target.out).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        assert_eq!(names.filter(|n| n.eq_ignore_ascii_case("readme.md")).collect::<Vec<_>>(), [name]);
        assert_eq!(fs::read_to_string(target.out.join(name)).unwrap(), card.unwrap_or("theirs"));
        fs::remove_dir_all(&target.out).unwrap();
    }
}

//! Conversions of whole fixtures.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use ashlar_convert::{ConvertError, Options, Origin, convert, convert_through, plan, verify};
use ashlar_pack::{DEFAULT_SHARD_BYTES, Direct, Pack, PackError, WriteAt};
use ashlar_recipe::emit;
use ashlar_source::Checkpoint;
use ashlar_tensor::{Bytes, Entry, Report, Silent, StoreError, TensorStore};
use common::{MIXED, Poisoned, Q8, choose, files, fixture, options, planned, run};
use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

#[test]
fn every_family_converts_verifies_and_is_as_large_as_planned() {
    let dense = ["tiny/llama", "tiny/qwen2", "tiny/qwen3"];
    let sparse = [
        "tiny/qwen2_moe",
        "tiny/qwen3_moe",
        "tiny/mixtral",
        "tiny/gpt_oss",
        "tiny/deepseek_v2",
        "tiny/deepseek_v4",
        "demo-moe",
    ];
    for name in dense.into_iter().chain(sparse) {
        let (checkpoint, dir) = (fixture(name), tempfile::tempdir().unwrap());
        let recipe = if sparse.contains(&name) { MIXED } else { Q8 };
        let plan = planned(&checkpoint, recipe, DEFAULT_SHARD_BYTES);
        let out = dir.path().join("pack");
        let summary = run(&plan, &checkpoint, &out, 2);
        let pack = Pack::open(&out).unwrap();
        let report = verify(&pack, Some(&checkpoint), Some(2), &Silent).unwrap();
        assert!(report.ok(), "{name}: {report:?}");
        assert_eq!(report.compared.len(), plan.tensors.len());
        let on_disk: u64 =
            files(&out).iter().filter(|(f, _)| f.ends_with(".safetensors")).map(|(_, b)| b.len() as u64).sum();
        assert_eq!((plan.total_bytes, pack.bytes(), summary.bytes), (on_disk, on_disk, on_disk), "{name}");
        assert_eq!(plan.classes.iter().map(|c| c.params).sum::<u64>(), plan.params);
        for (class, loss) in &report.classes {
            let told = summary.classes.iter().find(|c| c.class == *class).unwrap();
            let (got, want) = (told.loss.squared_error, loss.squared_error);
            assert!((got - want).abs() <= 1e-4 * want, "{name} {class}: told {got}, found {want}");
        }
        assert!(out.join("tokenizer.json").exists() && !out.join("journal").exists());
    }
}

#[test]
fn packs_are_byte_identical_for_any_threads_shards_aside() {
    let (checkpoint, dir) = (fixture("demo-moe"), tempfile::tempdir().unwrap());
    let plan = planned(&checkpoint, MIXED, 1 << 20);
    assert!(plan.shards.len() > 1);
    let mut packs = [1, 2, 5].map(|threads| {
        let out = dir.path().join(threads.to_string());
        run(&plan, &checkpoint, &out, threads);
        files(&out)
    });
    let first = std::mem::take(&mut packs[0]);
    assert!(packs[1..].iter().all(|p| *p == first));
}

#[test]
fn a_small_memory_bound_changes_nothing_and_too_small_a_one_is_refused_with_the_need() {
    let (checkpoint, dir) = (fixture("demo-moe"), tempfile::tempdir().unwrap());
    let plan = planned(&checkpoint, MIXED, DEFAULT_SHARD_BYTES);
    let needed = plan.memory.largest_tile_bytes;
    let (small, large) = (dir.path().join("small"), dir.path().join("large"));
    let tight = Options { memory: needed, ..options(4) };
    convert(&plan, &checkpoint, &small, &tight, &Silent).unwrap();
    run(&plan, &checkpoint, &large, 4);
    assert_eq!(files(&small), files(&large));
    let none = dir.path().join("none");
    let error = convert(&plan, &checkpoint, &none, &Options { memory: needed - 1, ..tight }, &Silent).unwrap_err();
    assert!(error.to_string().contains(&format!("--memory {needed}")), "{error}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
}

/// Fails like a killed process: after so many bytes, every write fails.
struct Dying(AtomicU64, io::ErrorKind);

impl WriteAt for Dying {
    fn write_all_at(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        let enough = |left: u64| left.checked_sub(bytes.len() as u64);
        match self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, enough) {
            Ok(_) => Direct.write_all_at(file, bytes, offset),
            Err(_) => Err(self.1.into()),
        }
    }
}

#[test]
fn a_run_that_died_anywhere_resumes_to_the_same_bytes() {
    let (checkpoint, dir) = (fixture("demo-moe"), tempfile::tempdir().unwrap());
    let plan = planned(&checkpoint, MIXED, 2 << 20);
    let whole = dir.path().join("whole");
    run(&plan, &checkpoint, &whole, 2);
    let want = files(&whole);
    for sixth in 0..6 {
        let out = dir.path().join(format!("out{sixth}"));
        let bytes = plan.total_bytes * sixth / 6 + 10_000;
        let dying = Dying(AtomicU64::new(bytes), io::ErrorKind::BrokenPipe);
        let error = convert_through(&plan, &checkpoint, &out, &options(3), &Silent, &dying).unwrap_err();
        assert!(matches!(error, ConvertError::Pack(PackError::Io { .. })), "{error}");
        assert!(!out.exists());
        let summary = run(&plan, &checkpoint, &out, 2);
        assert!(sixth == 0 || summary.resumed_records > 0, "nothing was resumed after {bytes} bytes");
        assert_eq!(files(&out), want);
    }
}

#[test]
fn a_full_disk_is_told_and_publishes_nothing() {
    let (checkpoint, dir) = (fixture("tiny/llama"), tempfile::tempdir().unwrap());
    let plan = planned(&checkpoint, Q8, DEFAULT_SHARD_BYTES);
    let out = dir.path().join("out");
    let full = Dying(AtomicU64::new(plan.total_bytes / 2), io::ErrorKind::StorageFull);
    let error = convert_through(&plan, &checkpoint, &out, &options(2), &Silent, &full).unwrap_err();
    assert!(matches!(error, ConvertError::Pack(PackError::DiskFull { .. })), "{error}");
    assert!(!out.exists() && dir.path().join("out.partial").exists());
}

#[test]
fn another_recipe_does_not_go_on_with_an_interrupted_run() {
    let (checkpoint, dir) = (fixture("tiny/llama"), tempfile::tempdir().unwrap());
    let out = dir.path().join("out");
    let first = planned(&checkpoint, Q8, DEFAULT_SHARD_BYTES);
    let dying = Dying(AtomicU64::new(20_000), io::ErrorKind::BrokenPipe);
    convert_through(&first, &checkpoint, &out, &options(2), &Silent, &dying).unwrap_err();
    let second = planned(&checkpoint, "version: 1\ndefaults: {format: keep}\n", DEFAULT_SHARD_BYTES);
    let error = convert(&second, &checkpoint, &out, &options(2), &Silent).unwrap_err().to_string();
    assert!(error.contains("another") && error.contains("recipe") && error.contains("--restart"), "{error}");
    convert(&second, &checkpoint, &out, &Options { restart: true, ..options(2) }, &Silent).unwrap();
    assert!(
        verify(&Pack::open(&out).unwrap(), Some(&checkpoint), None, &Silent).unwrap().compared.iter().all(|c| c.exact)
    );
}

#[test]
fn nan_and_infinity_are_errors_that_name_the_place_and_leave_nothing() {
    let (checkpoint, dir) = (fixture("tiny/llama"), tempfile::tempdir().unwrap());
    let out = dir.path().join("out");
    let encoded = "model.layers.0.mlp.down_proj.weight";
    let kept = "model.norm.weight";
    for (tensor, recipe) in [(encoded, Q8), (kept, Q8), (encoded, "version: 1\ndefaults: {format: keep}\n")] {
        let entry = checkpoint.entry(tensor).unwrap();
        let (size, k) = ((entry.bytes() / entry.elements()) as usize, *entry.shape.last().unwrap() as u64);
        let (row, column) = if entry.shape.len() == 2 { (3, 5) } else { (0, 5) };
        let nan = if size == 2 { vec![0xc0, 0x7f] } else { f32::NAN.to_le_bytes().to_vec() };
        let at = (row * k + column) * size as u64;
        let poisoned = Poisoned { inner: &checkpoint, tensor, at, bytes: nan };
        let plan = planned(&checkpoint, recipe, DEFAULT_SHARD_BYTES);
        let error = convert(&plan, &poisoned, &out, &options(2), &Silent).unwrap_err().to_string();
        assert!(error.contains(tensor) && error.contains("model.safetensors"), "{error}");
        assert!(error.contains(&format!("row {row}, column {column}")) && error.contains("NaN"), "{error}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}

#[test]
fn a_pack_can_be_converted_again() {
    let (checkpoint, dir) = (fixture("demo-moe"), tempfile::tempdir().unwrap());
    let (first, second) = (dir.path().join("q8"), dir.path().join("mixed"));
    run(&planned(&checkpoint, Q8, DEFAULT_SHARD_BYTES), &checkpoint, &first, 2);
    let source = Pack::open(&first).unwrap();
    let (model, choices) = choose(&source, source.config(), MIXED);
    let again = plan(&model, &source, &choices, Origin::pack(&source, emit(&choices)), DEFAULT_SHARD_BYTES).unwrap();
    run(&again, &source, &second, 2);
    let pack = Pack::open(&second).unwrap();
    assert!(verify(&pack, Some(&source), None, &Silent).unwrap().ok());
    assert!(pack.bytes() < source.bytes() && second.join("tokenizer.json").exists());
    // Kept as it is, a pack gives the same weights.
    let (model, choices) = choose(&source, source.config(), "version: 1\ndefaults: {format: keep}\n");
    let keep = plan(&model, &source, &choices, Origin::pack(&source, emit(&choices)), DEFAULT_SHARD_BYTES).unwrap();
    let third = dir.path().join("kept");
    run(&keep, &source, &third, 2);
    assert!(
        verify(&Pack::open(&third).unwrap(), Some(&source), None, &Silent).unwrap().compared.iter().all(|c| c.exact)
    );
}

#[test]
fn the_plan_names_every_place_of_the_pack() {
    let (checkpoint, dir) = (fixture("demo-moe"), tempfile::tempdir().unwrap());
    let plan = planned(&checkpoint, MIXED, 1 << 20);
    let out = dir.path().join("out");
    run(&plan, &checkpoint, &out, 2);
    let pack = Pack::open(&out).unwrap();
    let mut tensors = plan.tensors.iter();
    for record in pack.records().iter().map(|r| &r.record) {
        for (stored, planned) in record.tensors.iter().zip(&mut tensors) {
            let file = &pack.manifest().shards[record.shard].0;
            assert_eq!(
                (&stored.name, stored.offset, stored.bytes, file),
                (&planned.name, planned.offset, planned.bytes, &planned.file)
            );
        }
        if record.expert.is_some() {
            let ends: Vec<&str> = record.tensors.iter().map(|t| t.name.rsplit('.').nth(1).unwrap()).collect();
            assert_eq!(ends, ["gate_proj", "up_proj", "down_proj"]);
        }
    }
    assert!(serde_json::to_string(&plan).unwrap().contains("\"total_bytes\""));
}

/// A copy of a fixture, to be changed.
fn copy(name: &str, to: &Path) -> Checkpoint {
    fs::create_dir_all(to).unwrap();
    for (file, bytes) in files(fixture(name).dir()) {
        fs::write(to.join(file), bytes).unwrap();
    }
    Checkpoint::open(to).unwrap()
}

#[test]
fn a_source_whose_weights_changed_under_the_same_headers_is_not_gone_on_with() {
    let dir = tempfile::tempdir().unwrap();
    let (src, out) = (dir.path().join("src"), dir.path().join("out"));
    let checkpoint = copy("tiny/llama", &src);
    let plan = planned(&checkpoint, Q8, DEFAULT_SHARD_BYTES);
    let dying = Dying(AtomicU64::new(plan.total_bytes / 2), io::ErrorKind::BrokenPipe);
    convert_through(&plan, &checkpoint, &out, &options(2), &Silent, &dying).unwrap_err();
    let shard = src.join("model.safetensors");
    let mut bytes = fs::read(&shard).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&shard, bytes).unwrap();
    let changed = Checkpoint::open(&src).unwrap();
    assert_eq!(changed.identity(), checkpoint.identity());
    let error = convert(&plan, &changed, &out, &options(2), &Silent).unwrap_err().to_string();
    assert!(error.contains("source's files") && error.contains("--restart"), "{error}");
    assert!(!out.exists());
    convert(&plan, &changed, &out, &Options { restart: true, ..options(2) }, &Silent).unwrap();
    assert!(verify(&Pack::open(&out).unwrap(), Some(&changed), None, &Silent).unwrap().ok());
}

/// Runs something when the second half begins.
struct Meanwhile<F: Fn()>(AtomicU64, F);

impl<F: Fn() + Sync> WriteAt for Meanwhile<F> {
    fn write_all_at(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        if self.0.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.1();
        }
        Direct.write_all_at(file, bytes, offset)
    }
}

#[test]
fn a_source_that_changes_while_it_is_read_is_not_published() {
    let dir = tempfile::tempdir().unwrap();
    let (src, out) = (dir.path().join("src"), dir.path().join("out"));
    let checkpoint = copy("tiny/llama", &src);
    let plan = planned(&checkpoint, Q8, DEFAULT_SHARD_BYTES);
    let touch = Meanwhile(AtomicU64::new(5), || {
        let shard = File::options().write(true).open(src.join("model.safetensors")).unwrap();
        shard.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    });
    let error = convert_through(&plan, &checkpoint, &out, &options(2), &Silent, &touch).unwrap_err();
    assert!(matches!(error, ConvertError::SourceChanged { .. }), "{error}");
    assert!(error.to_string().contains("model.safetensors") && !out.exists());
}

#[test]
fn a_panic_while_writing_is_an_error_and_the_run_can_go_on() {
    let (checkpoint, dir) = (fixture("demo-moe"), tempfile::tempdir().unwrap());
    let plan = planned(&checkpoint, MIXED, DEFAULT_SHARD_BYTES);
    let out = dir.path().join("out");
    for threads in [1, 4] {
        let panics = Meanwhile(AtomicU64::new(9), || panic!("on purpose"));
        let tight = Options { memory: plan.memory.largest_tile_bytes, ..options(threads) };
        let error = convert_through(&plan, &checkpoint, &out, &tight, &Silent, &panics).unwrap_err();
        assert!(matches!(error, ConvertError::Panic { .. }) && error.to_string().contains("on purpose"), "{error}");
        assert!(!out.exists());
    }
    run(&plan, &checkpoint, &out, 1000);
    assert!(verify(&Pack::open(&out).unwrap(), Some(&checkpoint), Some(1000), &Silent).unwrap().ok());
}

#[test]
fn an_output_that_is_in_or_around_the_source_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let src = dir.path().join("models/pack");
    let checkpoint = fixture("tiny/llama");
    run(&planned(&checkpoint, Q8, DEFAULT_SHARD_BYTES), &checkpoint, &src, 2);
    std::os::unix::fs::symlink(&src, dir.path().join("link")).unwrap();
    let before = files(&src);
    let pack = Pack::open(&src).unwrap();
    let (model, choices) = choose(&pack, pack.config(), "version: 1\ndefaults: {format: keep}\n");
    let plan = plan(&model, &pack, &choices, Origin::pack(&pack, emit(&choices)), DEFAULT_SHARD_BYTES).unwrap();
    let force = Options { force: true, restart: true, ..options(2) };
    for out in ["models/pack", "models/../models/pack/", "models/pack/inside", "link/inside/deep", "models", "link"] {
        let error = convert(&plan, &pack, &dir.path().join(out), &force, &Silent).unwrap_err();
        assert!(matches!(error, ConvertError::Pack(PackError::Exists { .. })), "{out}: {error}");
        assert!(error.to_string().contains("the source"), "{out}: {error}");
    }
    assert_eq!(files(&src), before);
    // Nor may the source lie where the pack would grow.
    let partial = dir.path().join("x.partial");
    fs::rename(&src, &partial).unwrap();
    let pack = Pack::open(&partial).unwrap();
    let plan = ashlar_convert::plan(&model, &pack, &choices, Origin::pack(&pack, emit(&choices)), DEFAULT_SHARD_BYTES);
    let error = convert(&plan.unwrap(), &pack, &dir.path().join("x"), &force, &Silent).unwrap_err().to_string();
    assert!(error.contains("the source"), "{error}");
    assert_eq!(files(&partial), before);
}

#[test]
fn a_file_that_cannot_be_copied_is_told_before_the_work() {
    let (checkpoint, dir) = (fixture("tiny/llama"), tempfile::tempdir().unwrap());
    let src = dir.path().join("src");
    let copied = copy("tiny/llama", &src);
    let plan = planned(&copied, Q8, DEFAULT_SHARD_BYTES);
    fs::remove_file(src.join("tokenizer.json")).unwrap();
    let error = convert(&plan, &checkpoint, &dir.path().join("out"), &options(2), &Silent).unwrap_err().to_string();
    assert!(error.contains("tokenizer.json") && error.contains("copy"), "{error}");
    assert!(!dir.path().join("out.partial").exists());
}

/// A store one of whose tensors claims to have rows, but none with a value in it.
struct Hollow<'a>(&'a Checkpoint, Vec<Entry>);

impl TensorStore for Hollow<'_> {
    fn entries(&self) -> &[Entry] {
        &self.1
    }
    fn read(&self, entry: &Entry, plane: usize, offset: u64, out: &mut [u8]) -> Result<(), StoreError> {
        self.0.read(entry, plane, offset, out)
    }
    fn map(&self, entry: &Entry, plane: usize) -> Result<Bytes, StoreError> {
        self.0.map(entry, plane)
    }
}

#[test]
fn a_tensor_without_values_is_refused_by_the_plan() {
    let checkpoint = fixture("tiny/llama");
    let (model, mut choices) = choose(&checkpoint, checkpoint.config(), Q8);
    for (n, k) in [(0, 64), (1 << 40, 0)] {
        let mut entries = checkpoint.entries().to_vec();
        let choice = choices.list.iter_mut().find(|c| c.leaf.name.contains("down_proj")).unwrap();
        (choice.n, choice.k) = (n, k);
        let entry = entries.iter_mut().find(|e| e.name == choice.leaf.name).unwrap();
        (entry.shape, entry.planes[0].bytes) = (vec![n, k], 0);
        let store = Hollow(&checkpoint, entries);
        let origin = Origin::checkpoint(&checkpoint, String::new());
        let error = plan(&model, &store, &choices, origin, DEFAULT_SHARD_BYTES).err().unwrap().to_string();
        assert!(error.contains("down_proj") && error.contains("holds no values"), "{error}");
    }
}

/// Adds up what it is told.
#[derive(Default)]
struct Count {
    total: AtomicU64,
    done: AtomicU64,
    open: AtomicUsize,
}

impl Report for Count {
    fn begin(&self, stage: &str, total: u64) {
        if stage == "converting" {
            self.total.store(total, Ordering::SeqCst);
        }
        self.open.fetch_add(1, Ordering::SeqCst);
    }
    fn advance(&self, amount: u64, _current: &str) {
        self.done.fetch_add(amount, Ordering::SeqCst);
    }
    fn note(&self, text: &str) {
        panic!("{text}");
    }
    fn end(&self) {
        self.open.fetch_sub(1, Ordering::SeqCst);
    }
}

#[test]
fn progress_adds_up() {
    let (checkpoint, dir) = (fixture("tiny/qwen3"), tempfile::tempdir().unwrap());
    let plan = planned(&checkpoint, Q8, DEFAULT_SHARD_BYTES);
    let count = Count::default();
    convert(&plan, &checkpoint, &dir.path().join("out"), &options(2), &count).unwrap();
    assert_eq!(count.done.load(Ordering::SeqCst), plan.source_bytes);
    assert_eq!(count.total.load(Ordering::SeqCst), plan.source_bytes);
    assert_eq!(count.open.load(Ordering::SeqCst), 0);
}

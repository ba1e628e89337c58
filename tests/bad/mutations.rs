//! The fuzz targets over mutated real files, with fixed seeds: whatever a file says, nothing panics and nothing that is
//! accepted breaks its promises. `fuzz/` runs the same functions for hours.

#[path = "../../fuzz/src/lib.rs"]
mod targets;

use super::files::{header, index, tensor};
use crate::support::{FIXTURES, ashlar, finish, fixture, root};
use std::io::Write;
use std::path::PathBuf;

/// Mutants per target.
const ROUNDS: u64 = 3000;

/// What numbers, names and brackets are replaced by.
const TOKENS: &[&str] = &[
    "0",
    "1",
    "-1",
    "7",
    "1e9",
    "0.5",
    "4294967296",
    "9223372036854775807",
    "18446744073709551615",
    "1e400",
    "null",
    "true",
    "\"\"",
    "[]",
    "{}",
    "[",
    "]",
    "{",
    "}",
    "\"",
    ",",
    ":",
    "\\u0000",
    "..",
    "NaN",
    "-",
    "*",
    "&a",
    "\n",
    "\t",
    "é",
    "\u{feff}",
];

/// splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

/// One change somewhere in the first `reach` bytes.
fn mutate(bytes: &mut Vec<u8>, reach: usize, other: &[u8], random: &mut Random) {
    let reach = reach.min(bytes.len());
    let at = random.below(reach);
    let span = at..(at + 1 + random.below(24)).min(bytes.len());
    let part = |random: &mut Random| {
        let start = random.below(other.len());
        other[start..(start + 1 + random.below(64)).min(other.len())].to_vec()
    };
    match random.below(7) {
        _ if bytes.is_empty() => bytes.extend(part(random)),
        0 => bytes[at] ^= 1 << random.below(8),
        1 => bytes.truncate(at),
        2 => drop(bytes.drain(span)),
        3 => drop(bytes.splice(at..at, part(random))),
        4 => {
            let token = TOKENS[random.below(TOKENS.len())];
            drop(bytes.splice(at..at, token.bytes()));
        }
        5 => {
            let copy = bytes[span].to_vec();
            drop(bytes.splice(at..at, copy));
        }
        // A whole number, or a word, by another token.
        _ => {
            let is_word = |b: &u8| b.is_ascii_alphanumeric() || matches!(*b, b'-' | b'.' | b'_');
            let Some(start) = bytes[at..].iter().position(is_word).map(|i| at + i) else { return };
            let end = start + bytes[start..].iter().take_while(|b| is_word(b)).count();
            let token = TOKENS[random.below(TOKENS.len())];
            drop(bytes.splice(start..end, token.bytes()));
        }
    }
}

/// Tells which mutant was at work when a target panicked.
struct Blame<'a> {
    round: u64,
    bytes: &'a [u8],
}

impl Drop for Blame<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let text = String::from_utf8_lossy(&self.bytes[..self.bytes.len().min(4000)]).into_owned();
            let _ = writeln!(std::io::stderr(), "mutant {}: {text}", self.round);
        }
    }
}

/// Runs `target` over the seeds, then over mutants of them. The first `reach` bytes are mutated, and `repair` makes a
/// mutant plausible again.
fn run_with(target: fn(&[u8]), seeds: &[Vec<u8>], reach: usize, repair: fn(&mut [u8])) {
    assert!(!seeds.is_empty(), "no seeds");
    seeds.iter().for_each(|seed| target(seed));
    for round in 0..ROUNDS {
        let mut random = Random(round);
        let mut bytes = seeds[random.below(seeds.len())].clone();
        let other = &seeds[random.below(seeds.len())];
        for _ in 0..=random.below(4) {
            mutate(&mut bytes, reach, other, &mut random);
        }
        if random.below(2) == 0 {
            repair(&mut bytes);
        }
        let blame = Blame { round, bytes: &bytes };
        target(blame.bytes);
    }
}

fn run(target: fn(&[u8]), seeds: &[Vec<u8>]) {
    run_with(target, seeds, usize::MAX, |_| {});
}

fn fixture_files(name: &str) -> Vec<Vec<u8>> {
    FIXTURES.iter().map(|f| std::fs::read(fixture(f).join(name)).expect("a fixture")).collect()
}

/// Sets the length field to the end of the header's JSON, as far as it can be told.
fn repair_length(bytes: &mut [u8]) {
    let end = bytes.windows(2).rposition(|w| w == b"}}").map_or(bytes.len(), |i| i + 2);
    if let Some(prefix) = bytes.get_mut(..8) {
        prefix.copy_from_slice(&(end.saturating_sub(8) as u64).to_le_bytes());
    }
}

#[test]
fn safetensors_headers() {
    // Small enough that the mutations hit the header, of all kinds of dtype and shape.
    let parts = [
        tensor("model.embed_tokens.weight", "BF16", &[3, 4], 0, 24),
        tensor("scalar", "F32", &[], 24, 28),
        tensor("empty", "I64", &[0, 7], 28, 28),
        tensor("x.weight", "F8_E4M3", &[2, 2], 28, 32),
    ];
    let metadata = r#""__metadata__":{"format":"pt"}"#.to_owned();
    let small = [header(&parts), header(&[&[metadata][..], &parts].concat())].map(|h| super::files::file(&h, &[0; 32]));
    run_with(targets::safetensors_header, &small, 400, repair_length);
    let real: Vec<_> = fixture_files("model.safetensors").into_iter().take(1).collect();
    real.iter().for_each(|f| targets::safetensors_header(f));
}

#[test]
fn gguf_files() {
    // The headers alone take several kilobytes; what follows is mutated too, which tells of truncation.
    let seeds: Vec<_> = ["llama-q8_0.gguf", "gpt_oss-mxfp4.gguf", "llama-split/llama-bf16-00002-of-00002.gguf"]
        .iter()
        .map(|name| std::fs::read(root().join("tests/fixtures/gguf").join(name)).expect("a fixture"))
        .collect();
    run_with(targets::gguf, &seeds, 16 << 10, |_| {});
    // Small ones, so that most mutants are plausible.
    let text = |t: &str| [&(t.len() as u64).to_le_bytes()[..], t.as_bytes()].concat();
    let key = |k: &str, kind: u32, value: &[u8]| [&text(k)[..], &kind.to_le_bytes(), value].concat();
    let tensor = |name: &str, dims: &[u64], kind: u32, offset: u64| {
        let dims_bytes: Vec<u8> = dims.iter().flat_map(|d| d.to_le_bytes()).collect();
        [&text(name)[..], &(dims.len() as u32).to_le_bytes(), &dims_bytes, &kind.to_le_bytes(), &offset.to_le_bytes()]
            .concat()
    };
    let list = |texts: &[&str]| {
        let head = [&8u32.to_le_bytes()[..], &(texts.len() as u64).to_le_bytes()].concat();
        texts.iter().fold(head, |all, t| [all, text(t)].concat())
    };
    let mut small = [&b"GGUF\x03\0\0\0"[..], &2u64.to_le_bytes(), &5u64.to_le_bytes()].concat();
    small.extend(key("general.architecture", 8, &text("qwen3")));
    small.extend(key("qwen3.block_count", 4, &1u32.to_le_bytes()));
    small.extend(key("tokenizer.ggml.model", 8, &text("gpt2")));
    small.extend(key("tokenizer.ggml.pre", 8, &text("qwen2")));
    small.extend(key("tokenizer.ggml.tokens", 9, &list(&["a", "b", "ab"])));
    small.extend(tensor("token_embd.weight", &[32, 3], 8, 0));
    small.extend(tensor("output_norm.weight", &[32], 0, 128));
    small.resize(small.len().next_multiple_of(32) + 256, 0);
    targets::gguf(&small);
    run(targets::gguf, &[small]);
}

#[test]
fn shard_indexes() {
    let pairs = [("a", "model-00001-of-00002.safetensors"), ("b.weight", "model-00002-of-00002.safetensors")];
    run(targets::safetensors_index, &[index(&pairs).into_bytes(), index(&[]).into_bytes()]);
}

#[test]
fn configs() {
    run(targets::config, &fixture_files("config.json"));
}

#[test]
fn format_texts() {
    let texts: Vec<_> = ashlar_formats::ids()
        .flat_map(|id| {
            let variants = ashlar_formats::format(id).expect("registered").variants();
            variants.iter().map(move |v| format!("{id}:{}+o13", v.text).into_bytes())
        })
        .collect();
    run(targets::format_spec, &texts);
}

#[test]
fn planes_of_any_bits() {
    for round in 0..ROUNDS {
        let mut random = Random(round);
        let bytes: Vec<u8> = (0..4 + random.below(3000)).map(|_| random.next() as u8).collect();
        let blame = Blame { round, bytes: &bytes[..4] };
        targets::decode(&bytes);
        drop(blame);
    }
}

#[test]
fn recipes() {
    let folder = root().join("recipes").read_dir().expect("the recipes");
    let paths: Vec<PathBuf> = folder.map(|e| e.expect("an entry").path()).collect();
    let yaml = paths.iter().filter(|p| p.extension().is_some_and(|e| e == "yaml"));
    run(targets::recipe, &yaml.map(|p| std::fs::read(p).expect("a recipe")).collect::<Vec<_>>());
}

/// A manifest of plain, quantized and expert records in two shards.
fn small_manifest() -> Vec<u8> {
    use ashlar_pack::{Content, Manifest, RecordSpec, SealedRecord, TensorSpec, plan_layout};
    use ashlar_tensor::{Dtype, Plane, PlaneKind};
    let tensor = |name: &str, shape: &[usize], format: &str, content| TensorSpec {
        name: name.to_owned(),
        shape: shape.to_vec(),
        format: format.to_owned(),
        content,
    };
    let planes = [Plane { kind: PlaneKind::Codes, bytes: 1024 }, Plane { kind: PlaneKind::Scales, bytes: 64 }];
    let quantized = |name: &str| tensor(name, &[16, 64], "q8", Content::Planes(planes.to_vec()));
    let record = |layer, expert, tensors| RecordSpec { layer, expert, tensors };
    let records = vec![
        record(None, None, vec![tensor("model.norm.weight", &[64], "bf16", Content::Plain(Dtype::BF16))]),
        record(Some(0), None, vec![quantized("model.layers.0.self_attn.q_proj.weight")]),
        record(Some(0), Some(1), ["gate", "up", "down"].map(|p| quantized(&format!("experts.1.{p}.weight"))).to_vec()),
    ];
    let layout = plan_layout(records, 4096).expect("a layout");
    let hash = |r: &ashlar_pack::Record| ashlar_pack::Hash::from([r.bytes as u8; 32]);
    let seal =
        |record: ashlar_pack::Record| SealedRecord { blake3: hash(&record), record, source_blake3: Default::default() };
    let manifest = Manifest {
        generator: "ashlar 0.1.0".to_owned(),
        source: "00".repeat(32),
        config: serde_json::json!({"model_type": "llama", "rms_norm_eps": 1e-6}),
        recipe: "version: 1\n".to_owned(),
        shards: Manifest::shards_of(&layout),
        records: layout.records.into_iter().map(seal).collect(),
        measured: serde_json::json!({"attn": {"nmse": 1.25e-4}}),
    };
    manifest.to_json().into_bytes()
}

#[test]
fn manifests() {
    run(targets::manifest, &[small_manifest()]);
}

#[test]
fn packs() {
    let work = tempfile::tempdir().expect("a temporary folder");
    let pack = work.path().join("pack");
    let mut convert = ashlar();
    convert.arg("convert").arg(fixture("tiny/qwen3_moe")).arg("-o").arg(&pack).args(["--recipe", "4bit"]);
    finish(&mut convert).expect(0);
    let mut files: Vec<_> = pack.read_dir().expect("the pack").map(|e| e.expect("an entry").path()).collect();
    files.retain(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("ashlar")));
    assert!(files.len() >= 2, "{files:?}");
    for round in 0..300 {
        let mut random = Random(round);
        let path = &files[random.below(files.len())];
        let good = std::fs::read(path).expect("a file of the pack");
        let mut bytes = good.clone();
        for _ in 0..=random.below(3) {
            mutate(&mut bytes, 4096, &good, &mut random);
        }
        std::fs::write(path, &bytes).expect("writable");
        let blame = Blame { round, bytes: &bytes };
        read_all(&pack);
        drop(blame);
        std::fs::write(path, &good).expect("writable");
    }
    assert!(read_all(&pack), "the honest pack");
}

/// Opens a pack and reads every plane both ways; false if it is refused. What is opened can be read.
fn read_all(dir: &std::path::Path) -> bool {
    use ashlar_tensor::TensorStore;
    let Ok(pack) = ashlar_pack::Pack::open(dir) else { return false };
    for entry in pack.entries() {
        for (plane, described) in entry.planes.iter().enumerate() {
            let mut read = vec![0; described.bytes as usize];
            pack.read(entry, plane, 0, &mut read).expect("a plane inside its file");
            assert_eq!(&*pack.map(entry, plane).expect("a plane inside its file"), &read);
            assert!(pack.read(entry, plane, described.bytes, &mut [0]).is_err(), "a byte behind the plane");
        }
    }
    true
}

/// Runs `open` over mutants of one file of a model folder; the rest of the folder stays honest.
fn run_in_folder(model: &str, name: &str, rounds: u64, open: fn(&std::path::Path)) {
    let work = tempfile::tempdir().expect("a temporary folder");
    for file in ["tokenizer.json", "tokenizer_config.json", "config.json", "generation_config.json"] {
        std::fs::copy(fixture(model).join(file), work.path().join(file)).expect("a fixture");
    }
    let path = work.path().join(name);
    let good = std::fs::read(&path).expect("a fixture");
    for round in 0..rounds {
        let mut random = Random(round);
        let mut bytes = good.clone();
        for _ in 0..=random.below(3) {
            // The settings at the beginning and the vocabulary behind them, equally often.
            let reach = if random.below(2) == 0 { 4000 } else { usize::MAX };
            mutate(&mut bytes, reach, &good, &mut random);
        }
        std::fs::write(&path, &bytes).expect("writable");
        let blame = Blame { round, bytes: &bytes };
        open(work.path());
        drop(blame);
    }
}

#[test]
fn tokenizers() {
    fn open(dir: &std::path::Path) {
        let Ok(tokenizer) = ashlar_runtime::Tokenizer::open(dir) else { return };
        if let Ok(ids) = tokenizer.encode("Hello wörld <s> 12345 \u{1F600}\n\n  x", true) {
            let _ = tokenizer.decode(&ids, false);
        }
        let _ = tokenizer.prefix();
        let _ = tokenizer.decode(&[0, 1, 2, 300, 999_999, u32::MAX], true);
    }
    for model in ["tiny/llama", "tiny/qwen2", "tiny/mixtral", "demo-moe"] {
        run_in_folder(model, "tokenizer.json", 400, open);
    }
}

#[test]
fn chat_templates() {
    fn open(dir: &std::path::Path) {
        let Ok(chat) = ashlar_runtime::Chat::open(dir, &serde_json::Value::Null) else { return };
        let messages = [("system", "Be brief."), ("user", "Hi {{ x }}"), ("assistant", "Hi."), ("user", "Bye.")];
        let messages = messages.map(|(role, content)| ashlar_runtime::Message::new(role, content));
        let _ = chat.render(&ashlar_runtime::Conversation::of(messages.to_vec()));
    }
    run_in_folder("demo-moe", "tokenizer_config.json", ROUNDS, open);
}

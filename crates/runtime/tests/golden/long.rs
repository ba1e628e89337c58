//! Long texts: beyond windows, pooled entries and the length that YaRN starts from (`tests/fixtures/tiny/make_long.py`).

use crate::fixtures::{Golden, dir, relative_to_range};
use ashlar_runtime::{ActivationMode, Kv, KvFormat, Model, OpenOptions, Wanted, logits};
use ashlar_tensor::Silent;
use std::path::Path;

/// DESIGN §10.
const REFERENCE: f64 = 2e-4;
const CPU: f64 = 2e-3;

const POOLED: &[&str] = &["tiny/deepseek_v4", "tiny/deepseek_v4_bf16"];

fn open(dir: &Path, device: &str, kv: Kv) -> Model {
    let options = OpenOptions {
        device: device.into(),
        activations: Some(ActivationMode::F32),
        context: Some(704),
        chunk: 128,
        kv: Some(kv),
        ..OpenOptions::default()
    };
    Model::open(dir, &options, &Silent).unwrap()
}

/// The rows at the golden positions.
fn rows(all: &[f32], vocab: usize, positions: &[u32]) -> Vec<f32> {
    positions.iter().flat_map(|p| all[*p as usize * vocab..][..vocab].iter().copied()).collect()
}

/// Of the logits called `want`, over the text and the positions of these names.
fn error(model: &mut Model, golden: &Golden, [ids, positions, want]: [&str; 3]) -> f64 {
    let (ids, positions) = (golden.ids(ids).unwrap(), golden.ids(positions).unwrap());
    let all = logits(model, &ids).unwrap();
    relative_to_range(&rows(&all, model.spec().vocab_size, &positions), &golden.floats(want))
}

const LONG: [&str; 3] = ["input_ids", "positions", "logits"];

#[test]
fn pooled_entries_of_a_long_text_match_the_release() {
    for name in POOLED {
        let golden = Golden::named(name, "golden_long.safetensors");
        for (device, tolerance) in [("reference", REFERENCE), ("cpu", CPU)] {
            let error = error(&mut open(&dir(name), device, KvFormat::F32.into()), &golden, LONG);
            println!("{name} on {device}, 700 tokens: max error {error:.1e} of the range");
            assert!(error <= tolerance, "{name} on {device}: {error:.2e}");
        }
    }
}

/// A value almost between two codes rounds either way, and what follows from it does too. How far that moves a row, the
/// golden says: the greatest of 32 runs with values moved by 1e-6 of their group's greatest. Ours is one more such run, and of
/// terms that add up the greatest of 32 random choices is half of the worst at least: hence twice.
#[test]
fn keys_rounded_as_the_release_does_match_it() {
    for name in POOLED {
        let golden = Golden::named(name, "golden_long.safetensors");
        let want = golden.floats("logits_native");
        let spread = golden.floats("native_spread");
        let range = want.iter().fold(f32::MIN, |m, v| m.max(*v)) - want.iter().fold(f32::MAX, |m, v| m.min(*v));
        let (ids, positions) = (golden.ids("native_ids").unwrap(), golden.ids("native_positions").unwrap());
        let errors = |device: &str, kv: Kv| -> Vec<f64> {
            let mut model = open(&dir(name), device, kv);
            let vocab = model.spec().vocab_size;
            let got = rows(&logits(&mut model, &ids).unwrap(), vocab, &positions);
            let pairs = got.chunks(vocab).zip(want.chunks(vocab));
            let greatest = |(a, b): (&[f32], &[f32])| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            pairs.map(|pair| f64::from(greatest(pair) / range)).collect()
        };
        for (device, tolerance) in [("reference", REFERENCE), ("cpu", CPU)] {
            let bound = |row: usize| tolerance + 2.0 * f64::from(spread[row] / range);
            let within = |errors: &[f64]| errors.iter().enumerate().filter(|(row, e)| **e <= bound(*row)).count();
            let native = errors(device, Kv::Native);
            let median = median(&native);
            println!("{name} on {device}, 280 tokens, native keys: median error {median:.1e} of the range");
            assert_eq!(within(&native), native.len(), "{name} on {device}: {native:?}");
            // Most rows meet no such value, or one of little weight.
            assert!(median <= tolerance, "{name} on {device}: {median:.2e}");
            // Keys that are not rounded, or otherwise, are told apart.
            let plain = errors(device, KvFormat::F32.into());
            assert!(within(&plain) < plain.len() / 4, "{name} on {device}: {} of {}", within(&plain), plain.len());
        }
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// On the CPU to the bit: how a text is cut changes nothing.
#[test]
fn prefill_then_decode_equals_prefill_far_into_a_text() {
    let ids = Golden::named("tiny/deepseek_v4", "golden_long.safetensors").ids("input_ids").unwrap();
    for kv in [Kv::Native, KvFormat::F16.into()] {
        let mut model = open(&dir("tiny/deepseek_v4"), "cpu", kv);
        let vocab = model.spec().vocab_size;
        let whole = logits(&mut model, &ids).unwrap();
        let mut model = open(&dir("tiny/deepseek_v4"), "cpu", kv);
        logits(&mut model, &ids[..600]).unwrap();
        for at in 600..700 {
            let mut row = Vec::new();
            model.feed(0, at, &ids[at..=at], Wanted::Last, &mut |l| row = l.to_vec(), &mut |_| true).unwrap();
            assert!(row == whole[at * vocab..(at + 1) * vocab], "{} at {at}", kv.name());
        }
    }
}

#[test]
fn a_long_text_takes_the_memory_of_its_entries_and_no_more() {
    let ids = Golden::named("tiny/deepseek_v4", "golden_long.safetensors").ids("input_ids").unwrap();
    let mut model = open(&dir("tiny/deepseek_v4"), "cpu", Kv::Native);
    for (i, chunk) in ids.chunks(16).enumerate() {
        model.feed(0, i * 16, chunk, Wanted::Last, &mut |_| (), &mut |_| true).unwrap();
    }
    let (held, promised) = (model.memory().caches, model.kv().bytes(700, 16));
    assert!(held <= promised, "{held} {promised}");
    // From here on an entry of 4 tokens takes 129 bytes and one of the indexer 34, an entry of 128 tokens 129.
    let per_512 = 128 * (129 + 34) + 4 * 129;
    assert_eq!(model.kv().bytes(100_512, 16) - model.kv().bytes(100_000, 16), per_512);
}

#[test]
fn a_model_without_rounding_of_its_own_refuses_it() {
    let options = OpenOptions { kv: Some(Kv::Native), ..OpenOptions::default() };
    let refused = Model::open(&dir("tiny/llama"), &options, &Silent).err().unwrap().to_string();
    assert!(refused.contains("--kv") && refused.contains("f16"), "{refused}");
}

#[test]
fn beyond_the_length_that_yarn_starts_from_logits_match_transformers() {
    for name in ["tiny/deepseek_v3_bf16", "tiny/gpt_oss"] {
        let changed = tempfile::tempdir().unwrap();
        for file in ["model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
            std::fs::copy(dir(name).join(file), changed.path().join(file)).unwrap();
        }
        let config = std::fs::read_to_string(dir(name).join("config.json")).unwrap();
        let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
        assert_eq!(config["rope_scaling"]["original_max_position_embeddings"], 4096);
        config["rope_scaling"]["original_max_position_embeddings"] = 32.into();
        std::fs::write(changed.path().join("config.json"), config.to_string()).unwrap();
        let golden = Golden::named(name, "golden_long.safetensors");
        for (device, tolerance) in [("reference", REFERENCE), ("cpu", CPU)] {
            let error = error(&mut open(changed.path(), device, KvFormat::F32.into()), &golden, LONG);
            println!("{name} on {device}, beyond 32 positions: max error {error:.1e} of the range");
            assert!(error <= tolerance, "{name} on {device}: {error:.2e}");
        }
    }
}

//! Several sequences in one model: mixed batches, their memory, and its budget.

use crate::fixtures::{Golden, dir, relative_to_range};
use ashlar_backend::{Batch, KV_SAVED, SequenceRows};
use ashlar_runtime::{ActivationMode, GenerateOptions, Generator, Kv, KvFormat, Model, OpenOptions, logits};
use ashlar_tensor::Silent;
use std::sync::atomic::AtomicBool;

/// One of every kind of attention: plain, sliding with sinks, latent, pooled.
const KINDS: &[&str] = &["demo-moe", "tiny/gpt_oss", "tiny/deepseek_v3", "tiny/deepseek_v4"];

fn open(name: &str, kv: impl Into<Kv>, sequences: usize, kv_budget: Option<u64>) -> Model {
    let options = OpenOptions {
        device: "cpu".into(),
        threads: Some(2),
        context: Some(320),
        kv: Some(kv.into()),
        sequences,
        kv_budget,
        ..OpenOptions::default()
    };
    Model::open(&dir(name), &options, &Silent).unwrap()
}

fn float(name: &str, kv: KvFormat) -> Model {
    let activations = Some(ActivationMode::F32);
    let options = OpenOptions { activations, context: Some(320), kv: Some(kv.into()), ..OpenOptions::default() };
    Model::open(&dir(name), &options, &Silent).unwrap()
}

fn ids(name: &str) -> Vec<u32> {
    let mut ids = Golden::of(name).ids("input_ids").unwrap();
    ids.truncate(40);
    ids
}

/// Bits of the logits of every token, fed `step` tokens at a time.
fn alone(model: &mut Model, ids: &[u32], step: usize) -> Vec<u32> {
    let mut all = Vec::new();
    for (i, chunk) in ids.chunks(step).enumerate() {
        let mut batch = Batch::of(0, i * step, chunk);
        batch.outputs = (0..chunk.len()).collect();
        all.extend(model.forward(&batch).unwrap());
    }
    all.into_iter().map(f32::to_bits).collect()
}

#[test]
fn a_prompt_gives_the_same_bits_however_it_is_cut() {
    for name in KINDS {
        let native = name.contains("deepseek_v4").then_some(Kv::Native);
        for kv in KvFormat::ALL.map(Kv::As).into_iter().chain(native) {
            let mut model = open(name, kv, 1, None);
            let ids = ids(name);
            let whole = alone(&mut model, &ids, ids.len());
            for step in [1, 7, 32] {
                assert!(alone(&mut model, &ids, step) == whole, "{name} {} in steps of {step}", kv.name());
            }
        }
    }
}

/// Slot 2 is in the middle of its prompt while slot 0 decodes and slot 1 begins.
#[test]
fn prompts_and_single_tokens_in_one_batch_give_the_same_bits_as_alone() {
    for name in KINDS {
        let ids = ids(name);
        let mut model = open(name, KvFormat::Q8, 1, None);
        let vocab = model.spec().vocab_size;
        let want = alone(&mut model, &ids, ids.len());
        let mut model = open(name, KvFormat::Q8, 3, None);
        for (slot, held) in [(0, 11), (2, 5)] {
            model.forward(&Batch::of(slot, 0, &ids[..held])).unwrap();
        }
        let parts: [(usize, std::ops::Range<usize>); 3] = [(0, 11..12), (1, 0..9), (2, 5..25)];
        let mut batch = Batch::default();
        for (slot, tokens) in &parts {
            let rows = batch.tokens.len()..batch.tokens.len() + tokens.len();
            batch.tokens.extend_from_slice(&ids[tokens.clone()]);
            batch.sequences.push(SequenceRows { slot: *slot, rows, position: tokens.start });
        }
        batch.outputs = (0..batch.tokens.len()).collect();
        let got: Vec<u32> = model.forward(&batch).unwrap().into_iter().map(f32::to_bits).collect();
        let mut row = 0;
        for (slot, tokens) in parts {
            let got = &got[row * vocab..(row + tokens.len()) * vocab];
            row += tokens.len();
            assert!(got == &want[tokens.start * vocab..tokens.end * vocab], "{name} slot {slot}");
            assert_eq!(model.held(slot), tokens.end);
        }
    }
}

#[test]
fn memory_is_taken_page_by_page_and_given_back_at_the_end() {
    let mut model = open("demo-moe", KvFormat::F16, 2, None);
    assert_eq!((model.memory().caches, model.kv().used()), (0, 0));
    let ids = [5u32; 200];
    model.forward(&Batch::of(0, 0, &ids[..64])).unwrap();
    let one = model.memory().caches;
    assert!(one > 0 && model.kv().used() == one);
    model.forward(&Batch::of(0, 64, &ids[64..200])).unwrap();
    model.forward(&Batch::of(1, 0, &ids[..1])).unwrap();
    assert_eq!((model.memory().caches, model.kv().used()), (5 * one, 5 * one));
    model.release(0);
    assert_eq!((model.memory().caches, model.kv().used(), model.held(0)), (one, one, 0));
    model.forward(&Batch::of(0, 0, &ids[..64])).unwrap();
    assert_eq!(model.memory().caches, 2 * one);
}

#[test]
fn halves_take_half_the_memory_and_q8_about_a_quarter() {
    let bytes = |kv| open("demo-moe", kv, 1, None).kv().bytes(320, 1) as f64;
    let whole = bytes(KvFormat::F32);
    assert_eq!(bytes(KvFormat::F16), whole / 2.0);
    assert!((0.25..0.30).contains(&(bytes(KvFormat::Q8) / whole)));
}

#[test]
fn what_the_budget_cannot_hold_is_refused_before_anything_runs() {
    let page = open("demo-moe", KvFormat::F16, 2, None).kv().bytes(1, 1);
    let mut model = open("demo-moe", KvFormat::F16, 2, Some(2 * page));
    assert_eq!(model.capacity(), 128);
    model.forward(&Batch::of(0, 0, &[5; 65])).unwrap();
    let text = model.forward(&Batch::of(1, 0, &[5])).unwrap_err().to_string();
    assert!(text.contains(&format!("{} bytes", 3 * page)) && text.contains("128 positions"), "{text}");
    assert_eq!((model.held(0), model.memory().caches), (65, 2 * page));
    model.release(0);
    model.forward(&Batch::of(1, 0, &[5])).unwrap();

    let never = AtomicBool::new(false);
    let options = |max_tokens| GenerateOptions { max_tokens, ..GenerateOptions::default() };
    let mut g = Generator::new(open("demo-moe", KvFormat::F16, 1, Some(page))).unwrap();
    let refused = g.generate(&[5; 20], &options(Some(100)), &never, &mut |_, _| ()).unwrap_err().to_string();
    assert!(refused.contains("--kv-budget") && refused.contains("64 positions"), "{refused}");
    assert_eq!(g.model().held(0), 0);
    let ignore = GenerateOptions { ignore_stop_tokens: true, ..options(None) };
    assert_eq!(
        g.generate(&[5; 20], &ignore, &never, &mut |_, _| ()).unwrap().ids.len(),
        45,
        "44 positions and one more"
    );
}

/// On a trained model: in random ones experts are chosen near ties, and another choice is an error of a whole expert. With
/// f32 activations: rounding those to int8 as well would turn last bits into steps. docs/numerics.md has the divergence.
#[test]
fn stored_formats_move_logits_of_a_trained_model_by_little() {
    let ids = ids("demo-moe");
    let run = |kv| logits(&mut float("demo-moe", kv), &ids).unwrap();
    let exact = run(KvFormat::F32);
    for (kv, bound) in [(KvFormat::F16, 5e-3), (KvFormat::Q8, 5e-2)] {
        let error = relative_to_range(&run(kv), &exact);
        println!("demo-moe {}: {error:.1e} of the range", kv.name());
        assert!(error > 0.0 && error <= bound, "{}: {error:.2e}", kv.name());
    }
}

/// Every kind of cache: pages, windows, latent, pooled entries with the rows they are made of.
#[test]
fn a_sequence_that_goes_on_from_saved_blocks_gives_the_same_bits() {
    for name in KINDS {
        let native = name.contains("deepseek_v4").then_some(Kv::Native);
        for kv in KvFormat::ALL.map(Kv::As).into_iter().chain(native) {
            let options = OpenOptions {
                device: "cpu".into(),
                threads: Some(2),
                context: Some(700),
                kv: Some(kv),
                sequences: 2,
                ..OpenOptions::default()
            };
            let mut model = Model::open(&dir(name), &options, &Silent).unwrap();
            let vocab = model.spec().vocab_size as u32;
            let ids: Vec<u32> = (0..600).map(|i| (i * i + 7 * i) % vocab).collect();
            let (mut blocks, mut last) = (Vec::new(), Vec::new());
            for (number, chunk) in ids.chunks(KV_SAVED).enumerate() {
                let mut batch = Batch::of(0, number * KV_SAVED, chunk);
                batch.outputs = (0..chunk.len()).collect();
                last = model.forward(&batch).unwrap();
                if chunk.len() == KV_SAVED {
                    let (mut bytes, block) = (Vec::new(), number * KV_SAVED..(number + 1) * KV_SAVED);
                    assert!(model.save(0, &block, &mut bytes).unwrap(), "{name}");
                    blocks.push((block, bytes));
                }
            }
            // Another sequence lies in the slot.
            model.forward(&Batch::of(1, 0, &ids[300..400])).unwrap();
            for (block, bytes) in &blocks {
                model.restore(1, block, bytes).unwrap();
            }
            let mut batch = Batch::of(1, 2 * KV_SAVED, &ids[2 * KV_SAVED..]);
            batch.outputs = (0..batch.rows()).collect();
            let bits = |logits: &[f32]| logits.iter().map(|l| l.to_bits()).collect::<Vec<_>>();
            assert!(bits(&model.forward(&batch).unwrap()) == bits(&last), "{name} {}", kv.name());
            // What is not such a block is refused, and the slot is empty then.
            assert!(model.restore(1, &blocks[1].0, &blocks[1].1[1..]).is_err());
            assert_eq!(model.held(1), 0);
        }
    }
}

//! Logits and greedy tokens against transformers (f32, eager), from the stored BF16 weights.

use crate::fixtures::{Golden, MODELS, open, relative_to_range};
use ashlar_runtime::{Model, Wanted, logits};

/// DESIGN §10.
const REFERENCE_TOLERANCE: f64 = 2e-4;

/// DESIGN §10, unquantized weights.
const CPU_TOLERANCE: f64 = 2e-3;

fn argmax(row: &[f32]) -> u32 {
    let best = row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(&a.0))).unwrap();
    best.0 as u32
}

fn decode(model: &mut Model, position: usize, token: u32) -> Vec<f32> {
    let mut row = Vec::new();
    model.feed(0, position, &[token], Wanted::Last, &mut |l| row = l.to_vec(), &mut |_| true).unwrap();
    row
}

fn check_logits(device: &str, tolerance: f64) {
    for name in MODELS {
        let golden = Golden::of(name);
        let ids = golden.ids("input_ids").unwrap();
        let got = logits(&mut open(name, device), &ids).unwrap();
        let error = relative_to_range(&got, &golden.floats("logits"));
        println!("{name} on {device}: max error {error:.1e} of the range");
        assert!(error <= tolerance, "{name} on {device}: {error:.2e}");
    }
}

fn check_greedy(device: &str) {
    for name in MODELS {
        let golden = Golden::of(name);
        let mut model = open(name, device);
        let prompt = golden.greedy_prompt();
        let want = golden.ids("greedy_ids").unwrap();
        let vocab = model.spec().vocab_size;
        let all = logits(&mut model, &prompt).unwrap();
        let mut token = argmax(&all[all.len() - vocab..]);
        let mut got = vec![token];
        while got.len() < want.len() {
            token = argmax(&decode(&mut model, prompt.len() + got.len() - 1, token));
            got.push(token);
        }
        assert_eq!(got, want, "{name} on {device}");
    }
}

#[test]
fn reference_logits_match_transformers() {
    check_logits("reference", REFERENCE_TOLERANCE);
}

#[test]
fn reference_greedy_tokens_match_transformers() {
    check_greedy("reference");
}

#[test]
fn cpu_logits_match_transformers() {
    check_logits("cpu", CPU_TOLERANCE);
}

#[test]
fn cpu_greedy_tokens_match_transformers() {
    check_greedy("cpu");
}

/// Positions 254 to 261: a window of 128 tokens and one of 4 complete on the way, beyond the sliding window.
#[test]
fn pooled_entries_complete_while_decoding() {
    for (name, device) in
        [("tiny/deepseek_v4", "reference"), ("tiny/deepseek_v4", "cpu"), ("tiny/deepseek_v4_bf16", "cpu")]
    {
        let golden = Golden::of(name);
        let (ids, want) = (golden.ids("input_ids").unwrap(), golden.floats("logits"));
        let mut model = open(name, device);
        let vocab = model.spec().vocab_size;
        logits(&mut model, &ids[..254]).unwrap();
        // Once forward, and once more after going back into the middle of a window.
        for range in [254..262, 250..262] {
            let got: Vec<f32> = range.clone().flat_map(|i| decode(&mut model, i, ids[i])).collect();
            let error = relative_to_range(&got, &want[range.start * vocab..range.end * vocab]);
            assert!(error < REFERENCE_TOLERANCE, "{name} on {device} from {}: {error:.2e}", range.start);
        }
    }
}

// The reference sums in f64, so that batching changes nothing beyond the last bit of an activation.
#[test]
fn decoding_step_by_step_equals_prefill() {
    for name in MODELS {
        let ids: Vec<u32> = Golden::of(name).ids("input_ids").unwrap().into_iter().take(24).collect();
        let mut model = open(name, "reference");
        let all = logits(&mut model, &ids).unwrap();
        let stepwise: Vec<f32> = ids.iter().enumerate().flat_map(|(i, id)| decode(&mut model, i, *id)).collect();
        assert!(relative_to_range(&stepwise, &all) < 1e-6, "{name}");
    }
}

//! Perplexity and divergence of the bundled model against figures from its golden logits.

use crate::fixtures::{Golden, dir, open};
use ashlar_runtime::Tokenizer;
use ashlar_runtime::eval::{Continuations, Windows, compare, continue_greedily, perplexity};
use ashlar_tensor::Silent;
use std::sync::atomic::AtomicBool;

/// A text that tokenizes back to the golden ids.
fn text_and_logits() -> (String, Vec<u32>, Vec<f32>) {
    let golden = Golden::of("demo-moe");
    let ids = golden.ids("input_ids").unwrap();
    let tokenizer = Tokenizer::open(&dir("demo-moe")).unwrap();
    let text = tokenizer.decode(&ids, false).unwrap();
    assert_eq!(tokenizer.encode(&text, false).unwrap(), ids, "the golden ids are the tokens of a text");
    (text, ids, golden.floats("logits"))
}

#[test]
fn perplexity_is_what_the_golden_logits_say() {
    let (text, ids, logits) = text_and_logits();
    let vocab = logits.len() / ids.len();
    let nll = |i: usize| {
        let row = &logits[i * vocab..(i + 1) * vocab];
        let sum: f64 = row.iter().map(|l| f64::from(*l).exp()).sum();
        sum.ln() - f64::from(row[ids[i + 1] as usize])
    };
    let want = ((0..ids.len() - 1).map(nll).sum::<f64>() / (ids.len() - 1) as f64).exp();
    let tokenizer = Tokenizer::open(&dir("demo-moe")).unwrap();
    let windows = Windows::of(&tokenizer, &text, ids.len(), None).unwrap();
    let never = AtomicBool::new(false);
    let got = perplexity(&mut open("demo-moe", "reference"), &windows, &never, &Silent).unwrap().unwrap();
    assert_eq!((got.tokens, got.windows), (ids.len() - 1, 1));
    assert!((got.perplexity / want - 1.0).abs() < 1e-4, "{} {want}", got.perplexity);
}

#[test]
fn a_model_does_not_diverge_from_itself_and_little_on_another_device() {
    let (text, ids, _) = text_and_logits();
    let windows = Windows::of(&Tokenizer::open(&dir("demo-moe")).unwrap(), &text, 24, None).unwrap();
    let never = AtomicBool::new(false);
    let against = |device: &str| {
        let (model, mut reference) = (open("demo-moe", device), open("demo-moe", "reference"));
        let all = compare("eval", &mut [model], &mut reference, &windows, &never, &Silent).unwrap().unwrap();
        all.into_iter().next().unwrap()
    };
    let same = against("reference");
    assert_eq!((same.kl.mean, same.kl.p999, same.top1, same.delta), (0.0, 0.0, 1.0, 0.0));
    assert_eq!((same.model.windows, same.model.tokens), (ids.len() / 24, ids.len() / 24 * 23));
    assert_eq!((same.delta_p.rms.value, same.ratio.value, same.model.non_finite), (0.0, 1.0, 0));
    let routing = same.routing.unwrap();
    assert_eq!(routing.overlap, 1.0);
    // Each of the 24-token windows' tokens goes to the same number of experts in each layer.
    let sent: Vec<u64> = routing.layers.iter().map(|l| l.usage.iter().sum()).collect();
    assert!(sent.iter().all(|n| *n == sent[0] && *n % (same.model.windows as u64 * 24) == 0), "{sent:?}");
    assert!(routing.layers.iter().all(|l| l.overlap == 1.0 && l.usage == l.reference_usage));
    let cpu = against("cpu");
    assert!(cpu.kl.mean < 1e-6, "unquantized weights see f32 activations: {:?}", cpu.kl);
}

#[test]
fn several_models_are_compared_as_each_alone() {
    let (text, _, _) = text_and_logits();
    let windows = Windows::of(&Tokenizer::open(&dir("demo-moe")).unwrap(), &text, 24, None).unwrap();
    let never = AtomicBool::new(false);
    let against = |devices: &[&str]| {
        let mut models: Vec<_> = devices.iter().map(|d| open("demo-moe", d)).collect();
        compare("eval", &mut models, &mut open("demo-moe", "reference"), &windows, &never, &Silent).unwrap().unwrap()
    };
    let both = against(&["cpu", "reference"]);
    assert_eq!(both, [against(&["cpu"]), against(&["reference"])].concat());
}

#[test]
fn a_model_continues_like_itself() {
    let (text, _, _) = text_and_logits();
    let windows = Windows::of(&Tokenizer::open(&dir("demo-moe")).unwrap(), &text, 24, None).unwrap();
    let never = AtomicBool::new(false);
    let write = |device| {
        continue_greedily(&mut open("demo-moe", device), &windows, [3, 8, 12], &never, &Silent).unwrap().unwrap()
    };
    let (one, two) = (write("reference"), write("cpu"));
    assert!(one.len() == 3 && one.iter().all(|ids| ids.len() == 12), "{one:?}");
    let c = Continuations::of(&windows.prompts(3, 8), &one, &one);
    assert_eq!((c.first_difference, c.identical, c.prompt_tokens, c.tokens), (12.0, 1.0, 8, 12));
    assert_eq!(one, two, "float weights see f32 activations on the CPU too");
}

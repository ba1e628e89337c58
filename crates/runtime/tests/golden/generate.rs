//! The generation loop on the bundled model.

use crate::fixtures::{Golden, dir};
use ashlar_runtime::{GenerateOptions, Generation, Generator, Model, OpenOptions, Sampling, StopReason};
use ashlar_tensor::Silent;
use std::sync::atomic::{AtomicBool, Ordering};

fn generator(context: usize) -> Generator {
    let options =
        OpenOptions { device: "reference".into(), context: Some(context), chunk: 4, ..OpenOptions::default() };
    Generator::new(Model::open(&dir("demo-moe"), &options, &Silent).unwrap()).unwrap()
}

fn run(g: &mut Generator, prompt: &[u32], options: &GenerateOptions) -> (Generation, Vec<String>) {
    let mut said = Vec::new();
    let never = AtomicBool::new(false);
    let generation = g.generate(prompt, options, &never, &mut |_, text| said.push(text.to_owned())).unwrap();
    assert_eq!(said.concat(), generation.text);
    (generation, said)
}

fn at_most(max_tokens: usize) -> GenerateOptions {
    GenerateOptions { max_tokens: Some(max_tokens), ..GenerateOptions::default() }
}

#[test]
fn greedy_text_of_the_bundled_model_is_the_golden_one() {
    let golden = Golden::of("demo-moe");
    let mut g = generator(128);
    let (generation, _) = run(&mut g, &golden.greedy_prompt(), &at_most(48));
    assert_eq!(generation.ids, golden.ids("greedy_ids").unwrap());
    assert!(
        generation.text.starts_with(" the word of the LORD came unto me, saying, Son of man, set thy face"),
        "{}",
        generation.text
    );
    assert_eq!(generation.reason, StopReason::MaxTokens);
    assert_eq!((generation.timings.prompt_tokens, generation.timings.decoded_tokens), (11, 47));
}

#[test]
fn a_stop_text_ends_the_answer_before_it() {
    let mut g = generator(128);
    let stop = vec!["nowhere".to_owned(), "came unto".to_owned()];
    let options = GenerateOptions { stop, ..at_most(48) };
    let (generation, said) = run(&mut g, &Golden::of("demo-moe").greedy_prompt(), &options);
    assert_eq!(generation.text, " the word of the LORD ");
    assert_eq!(generation.reason, StopReason::Text("came unto".into()));
    assert!(said.len() > 1, "text is streamed: {said:?}");
}

#[test]
fn the_models_stop_tokens_come_from_its_files() {
    assert_eq!(generator(16).stop_tokens(), [0, 3]);
}

#[test]
fn a_full_context_is_a_reason_not_an_error_and_a_long_prompt_is_an_error() {
    let prompt = Golden::of("demo-moe").greedy_prompt();
    let (generation, _) = run(&mut generator(14), &prompt, &at_most(48));
    assert_eq!((generation.reason, generation.ids.len()), (StopReason::Context, 4));
    let never = AtomicBool::new(false);
    let e = generator(10).generate(&prompt, &at_most(1), &never, &mut |_, _| ()).unwrap_err().to_string();
    assert!(e.contains("11 positions") && e.contains("context is 10"), "{e}");
    assert!(generator(10).generate(&[], &at_most(1), &never, &mut |_, _| ()).is_err());
}

#[test]
fn a_common_beginning_is_not_computed_again_and_changes_nothing() {
    let prompt = Golden::of("demo-moe").greedy_prompt();
    let mut g = generator(128);
    let (first, _) = run(&mut g, &prompt, &at_most(10));
    let longer = [&prompt[..], &first.ids[..5], &[17, 18, 19]].concat();
    let (reused, _) = run(&mut g, &longer, &at_most(10));
    let (fresh, _) = run(&mut generator(128), &longer, &at_most(10));
    assert_eq!((reused.timings.reused_tokens, fresh.timings.reused_tokens), (16, 0));
    assert_eq!(reused.ids, fresh.ids);
    let (again, _) = run(&mut g, &longer, &at_most(10));
    assert_eq!((again.timings.reused_tokens, &again.ids), (longer.len() - 1, &fresh.ids), "one token is always fed");
}

#[test]
fn cancelling_stops_after_a_chunk_or_a_token_and_the_next_run_is_right() {
    let prompt = Golden::of("demo-moe").greedy_prompt();
    let mut g = generator(128);
    let cancelled = AtomicBool::new(true);
    let generation = g.generate(&prompt, &at_most(48), &cancelled, &mut |_, _| ()).unwrap();
    assert_eq!((generation.reason, generation.ids.len()), (StopReason::Cancelled, 0));
    let cancel = AtomicBool::new(false);
    let generation =
        g.generate(&prompt, &at_most(48), &cancel, &mut |_, _| cancel.store(true, Ordering::Relaxed)).unwrap();
    assert_eq!((generation.reason, generation.ids.len()), (StopReason::Cancelled, 1));
    let (whole, _) = run(&mut g, &prompt, &at_most(48));
    assert_eq!(whole.ids, Golden::of("demo-moe").ids("greedy_ids").unwrap());
}

#[test]
fn sampled_text_depends_on_the_seed_alone() {
    let prompt = Golden::of("demo-moe").greedy_prompt();
    let options = |seed| GenerateOptions {
        sampling: Sampling { temperature: 1.0, top_p: 0.9, seed, ..Sampling::default() },
        ..at_most(24)
    };
    let one = |seed| run(&mut generator(64), &prompt, &options(seed)).0.ids;
    assert_eq!(one(1), one(1));
    assert_ne!(one(1), one(2));
}

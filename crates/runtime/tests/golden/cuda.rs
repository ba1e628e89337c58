//! The CUDA kernels against transformers, alone and with every class of layers split between them and the CPU: on the host shim, and on
//! a GPU where there is one. A missing C++ compiler or GPU is a printed skip, and a failure where `ASHLAR_REQUIRE` names cuda.

use crate::fixtures::{Golden, MODELS, dir, relative_to_range};
use ashlar_backend::{Batch, KV_SAVED};
use ashlar_runtime::engine::{Engine, EngineOptions, EngineStats, Finished, Piece, Request, Sink};
use ashlar_runtime::placement::PlacementText;
use ashlar_runtime::{
    ActivationMode, GenerateOptions, KvFormat, Model, OpenOptions, RuntimeError, Sampling, Wanted, logits,
};
use ashlar_tensor::Silent;
use std::sync::mpsc::{Sender, channel};

/// As the CPU's with f32 inputs: f32 sums in another order.
const TOLERANCE: f64 = 2e-3;

fn open(name: &str, device: &str, rules: Option<String>) -> Result<Model, RuntimeError> {
    let options = OpenOptions {
        device: device.into(),
        placement: rules.map(|text| PlacementText { name: "rules".into(), text }),
        activations: Some(ActivationMode::F32),
        kv: Some(KvFormat::F32.into()),
        threads: Some(1),
        context: Some(320),
        sequences: 2,
        vram_limit: Some(LIMIT),
        ..OpenOptions::default()
    };
    Model::open(&dir(name), &options, &Silent)
}

/// The devices that are here, as placements name them.
fn devices() -> Vec<&'static str> {
    let there = |device: &&str| match open(MODELS[0], device, None) {
        Ok(_) => true,
        Err(error) => {
            let required = std::env::var("ASHLAR_REQUIRE").is_ok_and(|r| r.split(',').any(|name| name == "cuda"));
            assert!(!required, "ASHLAR_REQUIRE names cuda, but {device}: {error}");
            println!("SKIPPED golden logits on {device}: {error}");
            false
        }
    };
    ["cuda-host:0", "cuda:0"].into_iter().filter(there).collect()
}

/// Memory that a model may have: tests run beside each other.
const LIMIT: u64 = 1 << 28;

fn last_of(model: &mut Model, position: usize, tokens: &[u32]) -> Vec<f32> {
    let mut row = Vec::new();
    model.feed(0, position, tokens, Wanted::Last, &mut |l| row = l.to_vec(), &mut |_| true).unwrap();
    row
}

#[test]
fn logits_of_the_cuda_kernels_match_transformers() {
    for (device, name) in devices().into_iter().flat_map(|device| MODELS.iter().map(move |name| (device, name))) {
        let golden = Golden::of(name);
        let ids = golden.ids("input_ids").unwrap();
        let (want, mut model) = (golden.floats("logits"), open(name, device, None).unwrap());
        let error = relative_to_range(&logits(&mut model, &ids).unwrap(), &want);
        println!("{name} on {device}: max error {error:.1e} of the range");
        assert!(error <= TOLERANCE, "{name} on {device}: {error:.2e}");
        // Token by token: the small products, and positions split over blocks.
        let vocab = model.spec().vocab_size;
        let start = ids.len() - 3;
        last_of(&mut model, 0, &ids[..start]);
        for at in start..ids.len() {
            let got = last_of(&mut model, at, &ids[at..=at]);
            let error = relative_to_range(&got, &want[at * vocab..(at + 1) * vocab]);
            assert!(error <= TOLERANCE, "{name} on {device}, token {at} alone: {error:.2e}");
        }
    }
}

#[test]
fn any_class_of_layers_on_either_side_gives_the_same_logits() {
    const NAMES: [&str; 5] = ["tiny/llama", "tiny/qwen2_moe", "tiny/gpt_oss", "tiny/deepseek_v3", "tiny/deepseek_v4"];
    for (on, name) in devices().into_iter().flat_map(|device| NAMES.map(|name| (device, name))) {
        let golden = Golden::of(name);
        let ids: Vec<u32> = golden.ids("input_ids").unwrap().into_iter().take(40).collect();
        let all = golden.floats("logits");
        let layers = open(name, "cpu", None).unwrap().spec().layers.len();
        let matched =
            ["class: attn".to_owned(), "class: [mlp, experts]".to_owned(), format!("layers: 0-{}", layers / 2 - 1)];
        for matched in matched {
            let rule =
                |matched: &str, device: &str| format!("  - {{match: {{{matched}}}, set: {{device: '{device}'}}}}");
            let rules = ["version: 1", "rules:", &rule("name: '*'", "cpu"), &rule(&matched, on)].join("\n");
            let mut model = open(name, "auto", Some(rules)).unwrap();
            assert!(model.device().contains("cuda"), "{}", model.device());
            let got = logits(&mut model, &ids).unwrap();
            let error = relative_to_range(&got, &all[..got.len()]);
            assert!(error <= TOLERANCE, "{name}, {matched} on {on}: {error:.2e}");
        }
    }
}

#[test]
fn experts_that_take_turns_in_slots_of_the_device_leave_the_logits_what_they_are() {
    let rules = "version: 1\nrules:\n  - {match: {class: experts}, set: {tier: cached}}";
    let cached = |name: &str, on: &str, limit: u64| {
        let options = OpenOptions {
            device: on.into(),
            placement: Some(PlacementText { name: "rules".into(), text: rules.into() }),
            vram_limit: Some(limit),
            activations: Some(ActivationMode::F32),
            kv: Some(KvFormat::F32.into()),
            threads: Some(1),
            context: Some(64),
            ..OpenOptions::default()
        };
        Model::open(&dir(name), &options, &Silent)
    };
    let name = "tiny/qwen2_moe";
    for on in devices() {
        let golden = Golden::of(name);
        let ids: Vec<u32> = golden.ids("input_ids").unwrap().into_iter().take(40).collect();
        let all = golden.floats("logits");
        // From the least that holds the rest up to where everything fits.
        let mut limit = 64 << 10;
        let mut with_slots = 0;
        while with_slots < 2 && limit < 64 << 20 {
            limit += limit / 4;
            let Ok(mut model) = cached(name, on, limit) else { continue };
            if model.slots().is_empty() {
                continue;
            }
            with_slots += 1;
            let got = logits(&mut model, &ids).unwrap();
            let error = relative_to_range(&got, &all[..got.len()]);
            assert!(error <= TOLERANCE, "{name}, {limit} bytes: {error:.2e}");
            // Token by token, experts come and go.
            let vocab = model.spec().vocab_size;
            for at in 30..ids.len() {
                let got = last_of(&mut model, at, &ids[at..=at]);
                let error = relative_to_range(&got, &all[at * vocab..(at + 1) * vocab]);
                assert!(error <= TOLERANCE, "{name}, {limit} bytes, token {at}: {error:.2e}");
            }
            let (device, used) = model.slots().remove(0);
            assert!(device == on && used.hits + used.prompt_hits > 0 && used.fills > 0, "{used:?}");
            println!("{name} in {limit} bytes of {on}: {used:?}");
        }
        assert!(with_slots > 0, "{name}: no limit made slots");
    }
}

/// Hands on which tokens were chosen.
struct Chosen(Sender<u32>);

impl Sink for Chosen {
    fn piece(&mut self, piece: Piece) -> bool {
        piece.tokens.iter().all(|choice| self.0.send(choice.id).is_ok())
    }
    fn finished(self: Box<Self>, how: Result<Finished, String>) {
        assert!(how.is_ok(), "{how:?}");
    }
}

/// The tokens of a text; with probabilities, rows of logits come to the host whole.
fn text(on: &str, sampling: &Sampling, logprobs: Option<usize>) -> (Vec<u32>, EngineStats) {
    let options = EngineOptions { queue: 1, chunk: 64, shared_chunk: 64 };
    let mut engine = Engine::new(open("demo-moe", on, None).unwrap(), options).unwrap();
    let (sender, tokens) = channel();
    let options = GenerateOptions {
        max_tokens: Some(24),
        ignore_stop_tokens: true,
        sampling: sampling.clone(),
        ..GenerateOptions::default()
    };
    let prompt = Golden::of("demo-moe").greedy_prompt();
    assert!(engine.submit(Request { prompt, options, logprobs, sink: Box::new(Chosen(sender)) }).is_ok());
    while engine.step().unwrap() {}
    (tokens.try_iter().collect(), engine.stats())
}

#[test]
fn a_text_is_the_same_whether_logits_come_to_the_host_or_stay_on_the_device() {
    let greedy = Sampling { repetition_penalty: 1.1, ..Sampling::default() };
    let free = Sampling { temperature: 1.2, seed: 5, ..Sampling::default() };
    let filtered = Sampling { temperature: 0.8, top_k: 40, top_p: 0.9, min_p: 0.01, seed: 6, ..Sampling::default() };
    let all = [Sampling::default(), greedy, free, filtered];
    for (on, sampling) in devices().into_iter().flat_map(|device| all.iter().map(move |s| (device, s))) {
        let (there, stats) = text(on, sampling, None);
        let (here, whole) = text(on, sampling, Some(0));
        assert_eq!(there, here, "{on}, {sampling:?}");
        assert_eq!((stats.rows_surveyed + stats.rows_fetched, there.len()), (24, 24));
        assert!(stats.rows_fetched <= 1 && whole.rows_surveyed == 0, "{stats:?}");
    }
}

#[test]
fn a_sequence_goes_on_in_a_slot_of_the_device_that_was_given_what_another_holds() {
    for (on, name) in
        devices().into_iter().flat_map(|device| ["tiny/gpt_oss", "tiny/deepseek_v4"].map(|name| (device, name)))
    {
        let mut model = open(name, on, None).unwrap();
        assert!(model.saved_as().unwrap().contains("cuda"));
        let ids: Vec<u32> = (0..KV_SAVED as u32 + 8).map(|i| i * 37 % model.spec().vocab_size as u32).collect();
        last_of(&mut model, 0, &ids[..KV_SAVED]);
        let mut bytes = Vec::new();
        assert!(model.save(0, &(0..KV_SAVED), &mut bytes).unwrap());
        let rest = |model: &mut Model, slot| {
            let mut batch = Batch::of(slot, KV_SAVED, &ids[KV_SAVED..]);
            batch.outputs = vec![7];
            model.forward(&batch).unwrap().into_iter().map(f32::to_bits).collect::<Vec<_>>()
        };
        let want = rest(&mut model, 0);
        model.restore(1, &(0..KV_SAVED), &bytes).unwrap();
        assert!(rest(&mut model, 1) == want, "{name} on {on}");
    }
}

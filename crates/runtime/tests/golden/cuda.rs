//! The CUDA kernels on the host shim against transformers, alone and with every class of layers split between the shim
//! and the CPU. A missing C++ compiler is a printed skip, and a failure where `ASHLAR_REQUIRE` names cuda.

use crate::fixtures::{Golden, MODELS, dir, relative_to_range};
use ashlar_runtime::placement::PlacementText;
use ashlar_runtime::{ActivationMode, KvFormat, Model, OpenOptions, RuntimeError, Wanted, logits};
use ashlar_tensor::Silent;

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
        ..OpenOptions::default()
    };
    Model::open(&dir(name), &options, &Silent)
}

/// Whether there is a shim.
fn shim() -> bool {
    match open(MODELS[0], "cuda-host", None) {
        Ok(_) => true,
        Err(error) => {
            let required = std::env::var("ASHLAR_REQUIRE").is_ok_and(|r| r.split(',').any(|name| name == "cuda"));
            assert!(!required, "ASHLAR_REQUIRE names cuda, but: {error}");
            println!("SKIPPED golden logits on the cuda host shim: {error}");
            false
        }
    }
}

fn last_of(model: &mut Model, position: usize, tokens: &[u32]) -> Vec<f32> {
    let mut row = Vec::new();
    model.feed(0, position, tokens, Wanted::Last, &mut |l| row = l.to_vec(), &mut |_| true).unwrap();
    row
}

#[test]
fn logits_of_the_cuda_kernels_match_transformers() {
    if !shim() {
        return;
    }
    for name in MODELS {
        let golden = Golden::of(name);
        let ids = golden.ids("input_ids").unwrap();
        let (want, mut model) = (golden.floats("logits"), open(name, "cuda-host", None).unwrap());
        let error = relative_to_range(&logits(&mut model, &ids).unwrap(), &want);
        println!("{name} on the cuda host shim: max error {error:.1e} of the range");
        assert!(error <= TOLERANCE, "{name}: {error:.2e}");
        // Token by token: the small products, and positions split over blocks.
        let vocab = model.spec().vocab_size;
        let start = ids.len() - 3;
        last_of(&mut model, 0, &ids[..start]);
        for at in start..ids.len() {
            let got = last_of(&mut model, at, &ids[at..=at]);
            let error = relative_to_range(&got, &want[at * vocab..(at + 1) * vocab]);
            assert!(error <= TOLERANCE, "{name}, token {at} alone: {error:.2e}");
        }
    }
}

#[test]
fn any_class_of_layers_on_either_side_gives_the_same_logits() {
    if !shim() {
        return;
    }
    for name in ["tiny/llama", "tiny/qwen2_moe", "tiny/gpt_oss", "tiny/deepseek_v3", "tiny/deepseek_v4"] {
        let golden = Golden::of(name);
        let ids: Vec<u32> = golden.ids("input_ids").unwrap().into_iter().take(40).collect();
        let all = golden.floats("logits");
        let layers = open(name, "cpu", None).unwrap().spec().layers.len();
        let matched =
            ["class: attn".to_owned(), "class: [mlp, experts]".to_owned(), format!("layers: 0-{}", layers / 2 - 1)];
        for matched in matched {
            let rule =
                |matched: &str, device: &str| format!("  - {{match: {{{matched}}}, set: {{device: '{device}'}}}}");
            let rules = ["version: 1", "rules:", &rule("name: '*'", "cpu"), &rule(&matched, "cuda-host:0")].join("\n");
            let mut model = open(name, "auto", Some(rules)).unwrap();
            assert!(model.device().contains("cuda-host"), "{}", model.device());
            let got = logits(&mut model, &ids).unwrap();
            let error = relative_to_range(&got, &all[..got.len()]);
            assert!(error <= TOLERANCE, "{name}, {matched} on the shim: {error:.2e}");
        }
    }
}

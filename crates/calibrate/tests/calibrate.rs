//! Statistics of a small trained model.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use ashlar_backend::{Batch, MatmulInput, Observer, Routed};
use ashlar_calibrate::{CalibrateError, Input, Options, calibrate, starved};
use ashlar_convert::stats::{Routing, StatsError, StatsFile, merge_origins};
use ashlar_runtime::program::{Part, Resources, build_part};
use ashlar_runtime::{Loader, Tokenizer, device, open};
use ashlar_tensor::{Report, Silent};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name)
}

/// Two texts of exactly `windows` windows of 32 tokens each under the model's tokenizer.
fn texts(model: &Path, windows: usize) -> [Input; 2] {
    let text = std::fs::read_to_string(fixture("../../calibration/01-fiction.txt")).unwrap();
    let tokenizer = Tokenizer::open(model).unwrap();
    let per_window = 32 - tokenizer.prefix().unwrap().len();
    let mut words = text.split_inclusive(' ');
    [0, 1].map(|i| {
        let mut part = String::new();
        while tokenizer.encode(&part, false).unwrap().len() < windows * per_window {
            part.push_str(words.next().unwrap());
        }
        Input { name: format!("{i}.txt"), text: part }
    })
}

fn options() -> Options {
    Options { ctx: 32, threads: Some(2), ..Options::default() }
}

fn run(model: &Path, texts: &[Input], out: &Path, options: &Options) -> StatsFile {
    calibrate(model, texts, out, options, &Silent).unwrap();
    StatsFile::open(out).unwrap()
}

/// Largest difference of moments, relative to the tensor's largest moment; the token counts must be equal.
fn difference(a: &StatsFile, b: &StatsFile) -> f32 {
    assert_eq!(a.arrays().len(), b.arrays().len());
    let names = a.arrays().iter().filter_map(|i| i.name.strip_prefix("moments."));
    let mut worst = 0.0f32;
    for name in names {
        let ((x, n), (y, m)) = (a.moments(name).unwrap().unwrap(), b.moments(name).unwrap().unwrap());
        assert_eq!(n, m, "{name}");
        let scale = x.iter().copied().fold(f32::MIN_POSITIVE, f32::max);
        worst = x.iter().zip(&y).fold(worst, |w, (x, y)| w.max((x - y).abs() / scale));
    }
    worst
}

#[test]
fn threads_do_not_change_a_byte() {
    let (model, dir) = (fixture("demo-moe"), tempfile::tempdir().unwrap());
    let texts = texts(&model, 4);
    let files = [1, 3].map(|threads| {
        let out = dir.path().join(format!("{threads}.safetensors"));
        run(&model, &texts, &out, &Options { threads: Some(threads), ..options() });
        std::fs::read(out).unwrap()
    });
    assert!(files[0] == files[1]);
}

#[test]
fn the_fast_device_sees_what_the_reference_sees() {
    for name in
        ["tiny/llama", "tiny/qwen2_moe", "tiny/qwen3_moe", "tiny/gpt_oss", "tiny/deepseek_v3", "tiny/deepseek_v4"]
    {
        let (model, dir) = (fixture(name), tempfile::tempdir().unwrap());
        let texts = texts(&model, 2);
        let cpu = run(&model, &texts, &dir.path().join("cpu"), &options());
        let slow = Options { device: "reference".into(), ..options() };
        let reference = run(&model, &texts, &dir.path().join("reference"), &slow);
        // Both compute in f32 from the same weights; the sums of the reference run in f64.
        let worst = difference(&cpu, &reference);
        assert!(worst < 1e-4, "{name}: {worst:e}");
    }
}

/// Σ x² of one weight and of everything routed, straight from the definition.
#[derive(Default)]
struct Plain {
    q: Vec<f64>,
    down: Vec<f64>,
    tokens: Vec<u64>,
}

impl Observer for Plain {
    fn matmul_input(&mut self, input: &MatmulInput<'_>) {
        for name in input.weights {
            let sums = match *name {
                "model.layers.0.self_attn.q_proj.weight" => &mut self.q,
                "model.layers.0.mlp.experts.3.down_proj.weight" => &mut self.down,
                _ => continue,
            };
            sums.resize(input.k, 0.0);
            for (row, gate) in input.rows() {
                row.iter().zip(&mut *sums).for_each(|(x, s)| *s += (f64::from(*x) * f64::from(gate)).powi(2));
            }
        }
    }

    fn routed(&mut self, routed: &Routed<'_>) {
        self.tokens.resize(routed.experts, 0);
        routed.chosen.iter().for_each(|(e, _)| self.tokens[*e] += 1);
    }
}

#[test]
fn layer_streaming_gives_what_a_direct_run_of_the_layer_sees() {
    let (path, dir) = (fixture("demo-moe"), tempfile::tempdir().unwrap());
    let texts = texts(&path, 1);
    let texts = &texts[..1];
    let stats = run(&path, texts, &dir.path().join("s"), &options());

    let model = open(&path, &Silent).unwrap();
    let mut ids = Tokenizer::open(&path).unwrap().encode(&texts[0].text, false).unwrap();
    ids.splice(..0, Tokenizer::open(&path).unwrap().prefix().unwrap());
    ids.truncate(32);
    let mut backend = device("reference", None, None).unwrap();
    let mut loader = Loader::new(&*model.store, &mut *backend, &Silent, [1, 32, 32]);
    let table = loader.weight(&model.spec.embed).unwrap();
    let program = build_part(&model.spec, Part::Layer(0), table, &mut loader).unwrap();
    let mut seen = Plain::default();
    for op in &program.ops {
        backend.run(op, &Batch::of(0, 0, &ids), Some(&mut seen)).unwrap();
    }
    let close = |name: &str, want: &[f64]| {
        let (got, _) = stats.moments(name).unwrap().unwrap();
        let scale = want.iter().copied().fold(0.0, f64::max);
        assert!(scale > 0.0 && got.len() == want.len(), "{name}");
        assert!(got.iter().zip(want).all(|(g, w)| (f64::from(*g) - w).abs() < 1e-5 * scale), "{name}");
    };
    close("model.layers.0.self_attn.q_proj.weight", &seen.q);
    close("model.layers.0.mlp.experts.3.down_proj.weight", &seen.down);
    assert_eq!(stats.routing(0).unwrap().unwrap().tokens, seen.tokens);
}

#[test]
fn every_matmul_has_moments_and_counts_agree() {
    let (path, dir) = (fixture("demo-moe"), tempfile::tempdir().unwrap());
    let stats = run(&path, &texts(&path, 2), &dir.path().join("s"), &options());
    let model = open(&path, &Silent).unwrap();
    let head = model.spec.lm_head.as_ref().unwrap_or(&model.spec.embed);
    let matrices = model.spec.layers.iter().filter_map(|l| l.attn.heads()).flat_map(|a| [&a.q, &a.k, &a.v, &a.o]);
    for leaf in matrices.chain([head]) {
        let (sums, tokens) = stats.moments(&leaf.name).unwrap().unwrap();
        assert_eq!((sums.len(), tokens), (leaf.shape[1], stats.origin().tokens), "{}", leaf.name);
    }
    for layer in 0..model.spec.layers.len() {
        let Routing { tokens: counts, weights } = stats.routing(layer).unwrap().unwrap();
        let together = stats.coactivation(layer).unwrap().unwrap();
        let tokens = stats.origin().tokens;
        assert_eq!(counts.iter().sum::<u64>(), 4 * tokens, "top 4");
        assert!((weights.iter().sum::<f64>() - tokens as f64).abs() < 1e-3, "weights of a token sum to 1");
        for (e, count) in counts.iter().enumerate() {
            assert_eq!(together[e * counts.len() + e], *count);
            let down = format!("model.layers.{layer}.mlp.experts.{e}.down_proj.weight");
            assert_eq!(stats.tokens(&down).unwrap(), *count, "{down}");
        }
    }
    let few = starved(&stats, 20).unwrap();
    assert!(!few.is_empty() && few.windows(2).all(|w| w[0].tokens <= w[1].tokens));
    assert!(few.iter().all(|s| stats.routing(s.layer).unwrap().unwrap().tokens[s.expert] == s.tokens && s.tokens < 20));
}

#[test]
fn statistics_of_another_model_do_not_merge() {
    let dir = tempfile::tempdir().unwrap();
    let of = |name: &str| {
        let model = fixture(name);
        run(&model, &texts(&model, 1), &dir.path().join(name.replace('/', "-")), &options())
    };
    let error = merge_origins(&[of("tiny/llama"), of("tiny/qwen3")]).unwrap_err();
    assert!(matches!(error, StatsError::OtherModel { .. }), "{error}");
}

/// Dies (by panic) after so many advances, as a kill would.
struct Kill(AtomicU64);

impl Report for Kill {
    fn begin(&self, _stage: &str, _total: u64) {}
    fn advance(&self, _amount: u64, _current: &str) {
        assert!(self.0.fetch_sub(1, Ordering::SeqCst) > 1, "killed");
    }
    fn note(&self, _text: &str) {}
    fn end(&self) {}
}

#[test]
fn a_killed_run_goes_on_after_its_last_layer_and_ends_with_the_same_bytes() {
    let (model, dir) = (fixture("demo-moe"), tempfile::tempdir().unwrap());
    let (texts, out, once) = (texts(&model, 2), dir.path().join("s"), dir.path().join("once"));
    run(&model, &texts, &once, &options());
    // One batch per part: the embedding, layers 0 and 1, then layer 2 dies.
    let killed =
        std::panic::catch_unwind(|| calibrate(&model, &texts, &out, &options(), &Kill(AtomicU64::new(4))).is_ok());
    assert!(killed.is_err() && !out.exists() && dir.path().join("s.partial/states").exists());

    let other = Options { ctx: 16, ..options() };
    let error = calibrate(&model, &texts, &out, &other, &Silent).unwrap_err();
    assert!(matches!(error, CalibrateError::OtherRun { .. }), "{error}");

    let summary = calibrate(&model, &texts, &out, &options(), &Silent).unwrap();
    assert_eq!(summary.resumed_layers, 2);
    assert!(std::fs::read(&out).unwrap() == std::fs::read(&once).unwrap());
    assert!(!dir.path().join("s.partial").exists());

    let error = calibrate(&model, &texts, &out, &options(), &Silent).unwrap_err();
    assert!(matches!(error, CalibrateError::Exists { .. }), "{error}");
}

#[test]
fn damaged_states_are_not_used() {
    let (model, dir) = (fixture("demo-moe"), tempfile::tempdir().unwrap());
    let (texts, out) = (texts(&model, 2), dir.path().join("s"));
    let killed =
        std::panic::catch_unwind(|| calibrate(&model, &texts, &out, &options(), &Kill(AtomicU64::new(4))).is_ok());
    assert!(killed.is_err());
    let states = dir.path().join("s.partial/states");
    let mut bytes = std::fs::read(&states).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&states, bytes).unwrap();
    assert_eq!(calibrate(&model, &texts, &out, &options(), &Silent).unwrap().resumed_layers, 0);
}

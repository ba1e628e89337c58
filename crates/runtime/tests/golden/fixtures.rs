//! Where the fixtures lie and how their golden files are read.

use ashlar_runtime::{ActivationMode, KvFormat, Model, OpenOptions};
use ashlar_tensor::Silent;
use safetensors::SafeTensors;
use std::path::PathBuf;

/// Every checkpoint with golden logits.
pub const MODELS: &[&str] = &[
    "tiny/llama",
    "tiny/qwen2",
    "tiny/qwen3",
    "tiny/qwen2_moe",
    "tiny/qwen3_moe",
    "tiny/mixtral",
    "tiny/gpt_oss",
    "tiny/deepseek_v2",
    "tiny/deepseek_v3",
    "tiny/deepseek_v3_bf16",
    "tiny/deepseek_v4",
    "tiny/deepseek_v4_bf16",
    "demo-moe",
];

pub fn dir(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name)
}

pub fn open(name: &str, device: &str) -> Model {
    // Some checkpoints are quantized; golden logits are from f32 inputs.
    let activations = Some(ActivationMode::F32);
    let kv = Some(KvFormat::F32.into());
    let options = OpenOptions { device: device.into(), activations, kv, context: Some(320), ..OpenOptions::default() };
    Model::open(&dir(name), &options, &Silent).unwrap()
}

/// What `golden.safetensors` holds.
pub struct Golden {
    bytes: Vec<u8>,
}

impl Golden {
    pub fn of(name: &str) -> Self {
        Self::named(name, "golden.safetensors")
    }

    pub fn named(name: &str, file: &str) -> Self {
        Self { bytes: std::fs::read(dir(name).join(file)).unwrap() }
    }

    fn tensor(&self, name: &str) -> Option<Vec<u8>> {
        SafeTensors::deserialize(&self.bytes).unwrap().tensor(name).ok().map(|t| t.data().to_vec())
    }

    pub fn floats(&self, name: &str) -> Vec<f32> {
        let data = self.tensor(name).unwrap();
        data.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    }

    pub fn ids(&self, name: &str) -> Option<Vec<u32>> {
        let data = self.tensor(name)?;
        Some(data.as_chunks::<8>().0.iter().map(|b| u32::try_from(i64::from_le_bytes(*b)).unwrap()).collect())
    }

    /// The prompt of `greedy_ids`.
    pub fn greedy_prompt(&self) -> Vec<u32> {
        self.ids("greedy_prompt_ids").unwrap_or_else(|| {
            let len = self.ids("greedy_prompt_len").unwrap()[0] as usize;
            self.ids("input_ids").unwrap()[..len].to_vec()
        })
    }
}

/// max |got − want| / (max want − min want)
pub fn relative_to_range(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let (mut low, mut high, mut worst) = (f32::INFINITY, f32::NEG_INFINITY, 0.0f64);
    for (g, w) in got.iter().zip(want) {
        assert!(g.is_finite());
        (low, high) = (low.min(*w), high.max(*w));
        worst = worst.max((f64::from(*g) - f64::from(*w)).abs());
    }
    worst / f64::from(high - low)
}

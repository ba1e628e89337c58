//! Checkpoints made on the spot: Llama-shaped, any size, the same bytes for the same arguments.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

/// The sizes of a Llama-shaped model.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub hidden: usize,
    pub intermediate: usize,
    pub layers: usize,
    pub vocab: usize,
    /// Files the weights are spread over.
    pub shards: usize,
}

impl Shape {
    /// About 130 MB in BF16: long enough to be killed on the way.
    pub const MEDIUM: Self = Self { hidden: 1024, intermediate: 2816, layers: 5, vocab: 1024, shards: 3 };

    /// About 440 MB in BF16: more than a bounded conversion may hold.
    pub const LARGE: Self = Self { hidden: 2048, intermediate: 5632, layers: 4, vocab: 2048, shards: 2 };

    fn config(&self) -> String {
        let Self { hidden, intermediate, layers, vocab, .. } = self;
        let heads = hidden / 64;
        format!(
            "{{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", \"hidden_size\": {hidden}, \
             \"intermediate_size\": {intermediate}, \"num_hidden_layers\": {layers}, \"num_attention_heads\": {heads}, \
             \"num_key_value_heads\": {heads}, \"vocab_size\": {vocab}, \"rms_norm_eps\": 1e-5, \"rope_theta\": 10000.0, \
             \"max_position_embeddings\": 2048, \"hidden_act\": \"silu\", \"tie_word_embeddings\": false, \
             \"torch_dtype\": \"bfloat16\"}}"
        )
    }

    fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (h, i) = (self.hidden, self.intermediate);
        let mut all = vec![("model.embed_tokens.weight".to_owned(), vec![self.vocab, h])];
        for layer in 0..self.layers {
            let parts: [(&str, Vec<usize>); 9] = [
                ("input_layernorm", vec![h]),
                ("self_attn.q_proj", vec![h, h]),
                ("self_attn.k_proj", vec![h, h]),
                ("self_attn.v_proj", vec![h, h]),
                ("self_attn.o_proj", vec![h, h]),
                ("post_attention_layernorm", vec![h]),
                ("mlp.gate_proj", vec![i, h]),
                ("mlp.up_proj", vec![i, h]),
                ("mlp.down_proj", vec![h, i]),
            ];
            all.extend(parts.map(|(part, shape)| (format!("model.layers.{layer}.{part}.weight"), shape)));
        }
        all.push(("model.norm.weight".to_owned(), vec![h]));
        all.push(("lm_head.weight".to_owned(), vec![self.vocab, h]));
        all
    }
}

/// Writes config, shards and index. Values are pseudo-random in ±0.06, a few of them eight times larger.
pub fn write_checkpoint(dir: &Path, shape: Shape) -> std::io::Result<()> {
    std::fs::create_dir_all(dir)?;
    std::fs::write(dir.join("config.json"), shape.config())?;
    let tensors = shape.tensors();
    let per_shard = tensors.len().div_ceil(shape.shards);
    let mut index = serde_json::Map::new();
    let mut seed = 1;
    for (s, part) in tensors.chunks(per_shard).enumerate() {
        let file = format!("model-{:05}-of-{:05}.safetensors", s + 1, tensors.len().div_ceil(per_shard));
        write_shard(&dir.join(&file), part, &mut seed)?;
        index.extend(part.iter().map(|(name, _)| (name.clone(), file.clone().into())));
    }
    let index = serde_json::json!({"metadata": {}, "weight_map": index});
    std::fs::write(dir.join("model.safetensors.index.json"), index.to_string())
}

fn write_shard(path: &Path, tensors: &[(String, Vec<usize>)], seed: &mut u64) -> std::io::Result<()> {
    let mut header = serde_json::Map::new();
    let mut offset = 0;
    for (name, shape) in tensors {
        let end = offset + shape.iter().product::<usize>() * 2;
        header
            .insert(name.clone(), serde_json::json!({"dtype": "BF16", "shape": shape, "data_offsets": [offset, end]}));
        offset = end;
    }
    let mut text = serde_json::Value::Object(header).to_string();
    text.extend(std::iter::repeat_n(' ', (8 - text.len() % 8) % 8));
    let mut out = BufWriter::new(File::create(path)?);
    out.write_all(&(text.len() as u64).to_le_bytes())?;
    out.write_all(text.as_bytes())?;
    for (_, shape) in tensors {
        let norm = shape.len() == 1;
        for _ in 0..shape.iter().product::<usize>() {
            let value = if norm { 1.0 } else { random(seed) };
            out.write_all(&value.to_bits().to_le_bytes()[2..])?;
        }
    }
    out.into_inner()?.sync_all()
}

/// splitmix64, as a weight.
fn random(seed: &mut u64) -> f32 {
    *seed = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *seed;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^= z >> 31;
    let unit = (z >> 40) as f32 / (1u64 << 24) as f32 - 0.5;
    let outlier = z & 0x3FF == 0;
    unit * if outlier { 0.96 } else { 0.12 }
}

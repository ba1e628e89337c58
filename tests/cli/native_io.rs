//! What is read and written when a native FP8 checkpoint is converted: every byte once.

use crate::support::{Test, ashlar, write_release};
use ashlar_recipe::Release;
use std::path::Path;
use std::process::Command;

/// A small model in the naming and precision of DeepSeek-V3: FP8 in blocks of 128 with f32 scales, 32 experts per layer.
const RELEASE: &str = r#"
name: io
repository: none/none
license: mit
presets: []
config:
  architectures: ["DeepseekV3ForCausalLM"]
  model_type: deepseek_v3
  hidden_size: 1024
  intermediate_size: 2048
  moe_intermediate_size: 512
  num_hidden_layers: 3
  first_k_dense_replace: 1
  num_attention_heads: 8
  num_key_value_heads: 8
  q_lora_rank: 256
  kv_lora_rank: 128
  qk_nope_head_dim: 64
  qk_rope_head_dim: 32
  v_head_dim: 64
  n_routed_experts: 32
  num_experts_per_tok: 4
  n_shared_experts: 1
  n_group: 4
  topk_group: 2
  norm_topk_prob: true
  routed_scaling_factor: 2.5
  scoring_func: sigmoid
  topk_method: noaux_tc
  rms_norm_eps: 1.0e-6
  rope_theta: 10000
  max_position_embeddings: 4096
  vocab_size: 4096
  hidden_act: silu
  tie_word_embeddings: false
  quantization_config: {quant_method: fp8, fmt: e4m3, weight_block_size: [128, 128], activation_scheme: dynamic}
stored:
  "*norm.weight": "bf16"
  "*e_score_correction_bias": "f32"
  "*.mlp.gate.weight": "bf16"
  "model.embed_tokens.weight": "bf16"
  "lm_head.weight": "bf16"
  "*": "fp8:128x128,f32"
"#;

/// Headers, tokenizer, the program itself and its libraries; journal, manifest and messages.
const BESIDES: u64 = 12 << 20;

/// Bytes that a command reads and writes, whatever the page cache does: a shell's own count takes in that of its children.
fn io_of(command: &Command) -> Result<[u64; 2], Box<dyn std::error::Error>> {
    let mut shell = Command::new("sh");
    shell.args(["-c", "\"$@\" && cat /proc/$$/io", "sh"]).arg(command.get_program()).args(command.get_args());
    let output = shell.output()?;
    let text = String::from_utf8(output.stdout)?;
    assert!(output.status.success(), "{text} {}", String::from_utf8_lossy(&output.stderr));
    let field = |name: &str| text.lines().find_map(|l| l.strip_prefix(name)?.trim().parse::<u64>().ok());
    Ok([field("rchar:").ok_or("rchar")?, field("wchar:").ok_or("wchar")?])
}

#[cfg(target_os = "linux")]
#[test]
fn converting_native_fp8_reads_the_source_once_and_writes_the_pack_once() -> Test {
    let dir = tempfile::tempdir()?;
    let src = dir.path().join("src");
    std::fs::create_dir(&src)?;
    let (_, bytes) = write_release(&src, &Release::parse(RELEASE)?)?;
    assert!(bytes > 100_000_000, "{bytes}");
    let whole =
        |out: &Path| -> std::io::Result<u64> { std::fs::read_dir(out)?.map(|e| Ok(e?.metadata()?.len())).sum() };
    for recipe in ["keep", "deepseek-v3-2bit-experts"] {
        let out = dir.path().join(recipe);
        let mut convert = ashlar();
        convert.arg("convert").arg(&src).arg("-o").arg(&out).args(["--recipe", recipe, "--quiet"]);
        let [read, written] = io_of(&convert)?;
        let pack = whole(&out)?;
        println!("{recipe}: source {bytes}, pack {pack}, read {read}, written {written}");
        assert!((bytes..bytes + bytes / 50 + BESIDES).contains(&read), "{recipe}: {read} of {bytes}");
        // Room that nothing is written to is left by setting the length.
        assert!((pack - pack / 50..pack + pack / 50 + BESIDES).contains(&written), "{recipe}: {written} of {pack}");
    }
    Ok(())
}

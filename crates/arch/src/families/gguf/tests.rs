//! Metadata as converters write them, and what they become.

use super::*;
use serde_json::json;

fn map(value: Value) -> Map<String, Value> {
    value.as_object().cloned().unwrap_or_default()
}

fn shapes(list: &[(&str, &[usize])]) -> Vec<(String, Vec<usize>)> {
    list.iter().map(|(name, shape)| ((*name).to_owned(), shape.to_vec())).collect()
}

fn model(metadata: Value, tensors: &[(&str, &[usize])], rope_factors: &[f32]) -> Result<GgufModel, GgufError> {
    gguf(Gguf { metadata: &map(metadata), tensors: &shapes(tensors), rope_factors })
}

const DEEPSEEK: &[(&str, &[usize])] = &[
    ("token_embd.weight", &[320, 128]),
    ("output.weight", &[320, 128]),
    ("blk.0.attn_kv_a_mqa.weight", &[80, 128]),
    ("blk.0.attn_kv_b.weight", &[256, 64]),
    ("blk.1.ffn_gate_exps.weight", &[8, 64, 128]),
    ("blk.1.ffn_down_shexp.weight", &[128, 128]),
    ("blk.1.exp_probs_b.bias", &[8]),
];

fn deepseek() -> Value {
    json!({
        "general.architecture": "deepseek2",
        "deepseek2.block_count": 3, "deepseek2.context_length": 163840, "deepseek2.embedding_length": 128,
        "deepseek2.feed_forward_length": 256, "deepseek2.attention.head_count": 4, "deepseek2.attention.head_count_kv": 4,
        "deepseek2.rope.freq_base": 10000.0, "deepseek2.attention.layer_norm_rms_epsilon": 1e-6,
        "deepseek2.expert_used_count": 3, "deepseek2.leading_dense_block_count": 1,
        "deepseek2.attention.kv_lora_rank": 64, "deepseek2.attention.key_length": 48, "deepseek2.attention.value_length": 32,
        "deepseek2.expert_feed_forward_length": 64, "deepseek2.expert_count": 8, "deepseek2.expert_shared_count": 2,
        "deepseek2.expert_weights_scale": 1.5, "deepseek2.rope.dimension_count": 16,
        "deepseek2.rope.scaling.type": "yarn", "deepseek2.rope.scaling.factor": 40.0,
        "deepseek2.rope.scaling.original_context_length": 4096, "deepseek2.rope.scaling.yarn_log_multiplier": 0.0707,
    })
}

#[test]
fn latent_attention_is_read_with_its_widths_and_scaling() -> Result<(), GgufError> {
    let read = model(deepseek(), DEEPSEEK, &[])?;
    let c = &read.config;
    assert_eq!(
        (&c["qk_nope_head_dim"], &c["qk_rope_head_dim"], &c["v_head_dim"]),
        (&json!(32), &json!(16), &json!(32))
    );
    assert_eq!(c["rope_scaling"]["mscale_all_dim"], json!(0.707));
    assert_eq!((&c["topk_method"], &c["n_shared_experts"]), (&json!("greedy"), &json!(2)));
    let names: Vec<_> = read.weights.iter().flatten().map(|w| w.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "model.embed_tokens.weight",
            "lm_head.weight",
            "model.layers.0.self_attn.kv_a_proj_with_mqa.weight",
            "model.layers.0.self_attn.kv_b_proj.weight",
            "model.layers.1.mlp.experts.",
            "model.layers.1.mlp.shared_experts.down_proj.weight",
            "model.layers.1.mlp.gate.e_score_correction_bias",
        ]
    );
    let model = crate::model_spec(c).map_err(|e| GgufError::Unsupported { what: e.to_string() })?;
    assert_eq!((model.family, model.layers.len()), ("deepseek_v2", 3));
    // The sigmoid tells the third version.
    let mut sigmoid = deepseek();
    sigmoid["deepseek2.expert_gating_func"] = json!(2);
    sigmoid["deepseek2.expert_weights_norm"] = json!(true);
    let third = self::model(sigmoid, DEEPSEEK, &[])?;
    assert_eq!(crate::model_spec(&third.config).map(|m| m.family).map_err(|e| e.to_string()), Ok("deepseek_v3"));
    let halves: &[(&str, &[usize])] = &[("blk.0.attn_k_b.weight", &[4, 64, 32])];
    let error = self::model(deepseek(), halves, &[]).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("`attn_k_b` and `attn_v_b` are stored apart"), "{error}");
    Ok(())
}

fn llama(more: Value) -> Value {
    let mut all = json!({
        "general.architecture": "llama",
        "llama.block_count": 1, "llama.context_length": 131072, "llama.embedding_length": 128,
        "llama.feed_forward_length": 256, "llama.attention.head_count": 2, "llama.attention.head_count_kv": 1,
        "llama.rope.freq_base": 500000.0, "llama.rope.dimension_count": 64,
        "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2,
    });
    for (key, value) in map(more) {
        all[key] = value;
    }
    all
}

/// The factors that llama.cpp's converter computes for Llama 3.1, in f32 as it does.
fn factors(factor: f32, context: f32) -> Vec<f32> {
    let (low, high) = (1.0, 4.0);
    let one = |i: usize| {
        let wavelength = std::f32::consts::TAU * 500_000f32.powf(2.0 * i as f32 / 64.0);
        if wavelength < context / high {
            1.0
        } else if wavelength > context / low {
            factor
        } else {
            let smooth = (context / wavelength - low) / (high - low);
            1.0 / ((1.0 - smooth) / factor + smooth)
        }
    };
    (0..32).map(one).collect()
}

#[test]
fn rope_factors_give_back_the_rule_they_were_made_by() -> Result<(), GgufError> {
    let tensors: &[(&str, &[usize])] = &[("token_embd.weight", &[9, 128]), ("rope_freqs.weight", &[32])];
    for (factor, context) in [(8.0, 8192.0), (32.0, 8192.0), (4.0, 4096.0)] {
        let read = model(llama(json!({})), tensors, &factors(factor, context))?;
        let scaling = &read.config["rope_scaling"];
        assert_eq!(scaling["rope_type"], "llama3");
        assert_eq!(
            (&scaling["factor"], &scaling["original_max_position_embeddings"]),
            (&json!(factor), &json!(context as u64))
        );
        assert_eq!(read.weights[1], None);
    }
    assert!(model(llama(json!({})), tensors, &[1.0; 32])?.config.get("rope_scaling").is_none());
    let odd: Vec<f32> = (0..32).map(|i| 1.0 + i as f32).collect();
    assert!(model(llama(json!({})), tensors, &odd).is_err());
    Ok(())
}

#[test]
fn experts_make_the_first_architecture_another_family() -> Result<(), GgufError> {
    let tensors: &[(&str, &[usize])] = &[
        ("token_embd.weight", &[9, 128]),
        ("blk.0.ffn_gate_exps.weight", &[8, 256, 128]),
        ("blk.0.ffn_gate_inp.weight", &[8, 128]),
    ];
    let read = model(llama(json!({"llama.expert_count": 8, "llama.expert_used_count": 2})), tensors, &[])?;
    assert_eq!(read.config["architectures"], json!(["MixtralForCausalLM"]));
    let Some(Some(experts)) = read.weights.get(1) else { panic!("{:?}", read.weights) };
    let name = |e: usize| format!("{}{e}{}", experts.name, experts.after_expert.as_deref().unwrap_or_default());
    assert_eq!(name(7), "model.layers.0.block_sparse_moe.experts.7.w1.weight");
    assert_eq!(experts.shape, [256, 128]);
    assert_eq!(read.weights[2].as_ref().map(|w| w.name.as_str()), Some("model.layers.0.block_sparse_moe.gate.weight"));
    Ok(())
}

#[test]
fn names_that_only_look_right_are_refused() {
    for name in [
        "blk.0.attn_q",
        "blk.00.attn_q.weight",
        "blk.-1.attn_q.weight",
        "blk.0.attn_q.scale",
        "attn_q.weight",
        "blk.0.ffn_gate.3.weight",
        "",
    ] {
        let error = model(llama(json!({})), &[(name, &[4, 4])], &[]).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(&format!("tensor `{name}` is not known")), "{error}");
    }
}

fn tokenizer_of(more: Value) -> Result<TokenizerFiles, String> {
    let mut all = map(json!({
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.tokens": ["a", "b", "ab", "<s>", "<think>"], "tokenizer.ggml.token_type": [1, 1, 1, 3, 4],
        "tokenizer.ggml.merges": ["a b"], "tokenizer.ggml.bos_token_id": 3, "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.eot_token_id": 1, "tokenizer.chat_template": "{{ x }}",
    }));
    all.extend(map(more));
    tokenizer(&all).map_err(|e| e.to_string())?.ok_or_else(|| "none".to_owned())
}

#[test]
fn added_tokens_templates_and_stops_come_along() -> Result<(), String> {
    let files = tokenizer_of(json!({}))?;
    let added = files.tokenizer["added_tokens"].as_array().cloned().unwrap_or_default();
    let facts: Vec<_> = added.iter().map(|t| (t["id"].as_u64(), t["special"].as_bool())).collect();
    assert_eq!(facts, [(Some(3), Some(true)), (Some(4), Some(false))]);
    assert_eq!(files.tokenizer["post_processor"]["single"][0]["SpecialToken"]["id"], "<s>");
    assert_eq!(files.tokenizer["model"]["ignore_merges"], true);
    assert_eq!(files.tokenizer["model"]["merges"], json!([["a", "b"]]));
    assert_eq!((&files.config["chat_template"], &files.config["eos_token"]), (&json!("{{ x }}"), &json!("ab")));
    assert_eq!(files.generation["eos_token_id"], json!([2, 1]));
    let without = tokenizer_of(json!({"tokenizer.ggml.add_bos_token": false}))?;
    assert_eq!(without.tokenizer["post_processor"], Value::Null);
    Ok(())
}

#[test]
fn pieces_become_merges_by_score() -> Result<(), String> {
    let files = tokenizer_of(json!({
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["<unk>", "a", "b", "c", "ab", "bc", "abc"],
        "tokenizer.ggml.token_type": [2, 1, 1, 1, 1, 1, 1],
        "tokenizer.ggml.scores": [0.0, -9.0, -9.0, -9.0, -1.0, -2.0, -3.0],
    }))?;
    // Of two ways to the same piece the longer first part comes first.
    assert_eq!(files.tokenizer["model"]["merges"], json!([["a", "b"], ["b", "c"], ["ab", "c"], ["a", "bc"]]));
    assert_eq!(files.tokenizer["model"]["unk_token"], "<unk>");
    assert_eq!(files.tokenizer["normalizer"]["normalizers"].as_array().map(Vec::len), Some(2));
    Ok(())
}

#[test]
fn tokenizers_that_are_malformed_or_unknown_are_refused() {
    for (more, says) in [
        (
            json!({"tokenizer.ggml.pre": "mystery"}),
            "`tokenizer.ggml.pre` `mystery` is not supported; supported are llama-bpe",
        ),
        (json!({"tokenizer.ggml.model": "bert"}), "`tokenizer.ggml.model` `bert` is not supported"),
        (json!({"tokenizer.ggml.tokens": [1, 2]}), "`tokenizer.ggml.tokens`: expected a list of texts"),
        (json!({"tokenizer.ggml.tokens": "a"}), "`tokenizer.ggml.tokens`: expected a list of texts, got \"a\""),
        (json!({"tokenizer.ggml.merges": ["ab"]}), "two tokens with a space between"),
        (json!({"tokenizer.ggml.model": "llama"}), "`tokenizer.ggml.scores`: expected one for each token"),
        (json!({"tokenizer.ggml.add_bos_token": 1}), "expected true or false"),
    ] {
        let error = tokenizer_of(more).map(|_| ()).unwrap_err();
        assert!(error.contains(says), "{error}");
    }
    assert_eq!(tokenizer(&Map::new()).map_err(|e| e.to_string()), Ok(None));
}

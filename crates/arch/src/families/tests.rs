use super::{families, model_spec};
use crate::{ArchError, Class, Ffn, ModelSpec, RopeScaling, check};
use proptest::prelude::*;
use serde_json::{Map, Value, json};
use std::error::Error;
use std::path::PathBuf;

type Outcome = Result<(), Box<dyn Error>>;
type Tensors = Vec<(String, Vec<usize>)>;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name)
}

fn config(name: &str) -> Result<Value, Box<dyn Error>> {
    Ok(serde_json::from_slice(&std::fs::read(fixture(name).join("config.json"))?)?)
}

/// Names and shapes from the safetensors header: u64 length, then JSON.
fn header(name: &str) -> Result<Tensors, Box<dyn Error>> {
    let bytes = std::fs::read(fixture(name).join("model.safetensors"))?;
    let len = u64::from_le_bytes(bytes[..8].try_into()?) as usize;
    let header: Map<String, Value> = serde_json::from_slice(&bytes[8..8 + len])?;
    let mut tensors = Vec::new();
    for (name, info) in header.into_iter().filter(|(name, _)| name != "__metadata__") {
        tensors.push((name, serde_json::from_value(info["shape"].clone())?));
    }
    Ok(tensors)
}

const FIXTURES: [&str; 13] = [
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

#[test]
fn every_tensor_of_every_fixture_is_known_with_its_shape() -> Outcome {
    // That of gpt_oss is fused: `source` takes it apart, and the end-to-end tests open it.
    for name in FIXTURES.into_iter().filter(|n| *n != "tiny/gpt_oss") {
        let mut spec = model_spec(&config(name)?)?;
        let mut tensors = header(name)?;
        // `source` lists scales with their weights, and packed codes by the values they hold.
        let scales: Vec<String> =
            tensors.iter().filter_map(|(n, _)| n.strip_suffix(".scale").map(str::to_owned)).collect();
        tensors.retain(|(name, _)| !name.ends_with("_scale_inv") && !name.ends_with(".scale"));
        for (name, shape) in &mut tensors {
            let scaled = name.strip_suffix(".weight").is_some_and(|stem| scales.iter().any(|s| s == stem));
            if scaled && name.contains(".ffn.experts.") {
                shape[1] *= 2;
            }
        }
        spec.adopt(tensors.iter().map(|(n, s)| (n.as_str(), s.as_slice())));
        let ignored = check(&spec, tensors.iter().map(|(n, s)| (n.as_str(), s.as_slice())))
            .map_err(|e| format!("{name}: {e}"))?;
        assert_eq!(ignored, Vec::<String>::new(), "{name}");
        assert_eq!(spec.tensors().count(), tensors.len(), "{name}");
    }
    Ok(())
}

/// The same model described in the dialect of transformers 5.
#[test]
fn both_dialects_describe_the_same_model() -> Outcome {
    for name in FIXTURES {
        let old = config(name)?;
        let mut new = old.clone();
        let map = new.as_object_mut().ok_or("object")?;
        let mut rope = match map.remove("rope_scaling") {
            Some(Value::Object(section)) => section,
            _ => Map::from_iter([("rope_type".to_owned(), json!("default"))]),
        };
        rope.extend(map.remove("rope_theta").map(|theta| ("rope_theta".to_owned(), theta)));
        map.insert("rope_parameters".to_owned(), Value::Object(rope));
        if let Some(experts) = map.remove("num_local_experts") {
            map.insert("num_experts".to_owned(), experts);
        }
        if let Some(dtype) = map.remove("torch_dtype") {
            map.insert("dtype".to_owned(), dtype);
        }
        assert_eq!(model_spec(&old)?, model_spec(&new)?, "{name}");
    }
    Ok(())
}

fn llama_31_8b() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128_256,
        "rms_norm_eps": 1e-5, "rope_theta": 5e5, "max_position_embeddings": 131_072, "tie_word_embeddings": false,
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192}
    })
}

fn qwen25_7b() -> Value {
    json!({
        "architectures": ["Qwen2ForCausalLM"], "hidden_size": 3584, "intermediate_size": 18944,
        "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152_064,
        "rms_norm_eps": 1e-6, "rope_theta": 1e6, "max_position_embeddings": 32768, "tie_word_embeddings": false,
        "use_sliding_window": false, "sliding_window": 131_072, "max_window_layers": 28
    })
}

fn qwen3_30b_a3b() -> Value {
    json!({
        "architectures": ["Qwen3MoeForCausalLM"], "hidden_size": 2048, "intermediate_size": 6144,
        "moe_intermediate_size": 768, "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4,
        "head_dim": 128, "vocab_size": 151_936, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "num_experts": 128,
        "num_experts_per_tok": 8, "norm_topk_prob": true, "max_position_embeddings": 40960,
        "decoder_sparse_step": 1, "mlp_only_layers": [], "tie_word_embeddings": false
    })
}

fn mixtral_8x7b() -> Value {
    json!({
        "architectures": ["MixtralForCausalLM"], "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000,
        "rms_norm_eps": 1e-5, "rope_theta": 1e6, "num_local_experts": 8, "num_experts_per_tok": 2,
        "max_position_embeddings": 32768, "sliding_window": null, "tie_word_embeddings": false
    })
}

fn deepseek_v3() -> Value {
    json!({
        "architectures": ["DeepseekV3ForCausalLM"], "hidden_size": 7168, "intermediate_size": 18432,
        "moe_intermediate_size": 2048, "num_hidden_layers": 61, "num_attention_heads": 128, "q_lora_rank": 1536,
        "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
        "first_k_dense_replace": 3, "moe_layer_freq": 1, "n_routed_experts": 256, "num_experts_per_tok": 8,
        "n_shared_experts": 1, "n_group": 8, "topk_group": 4, "scoring_func": "sigmoid", "topk_method": "noaux_tc",
        "norm_topk_prob": true, "routed_scaling_factor": 2.5, "rms_norm_eps": 1e-6, "rope_theta": 10000,
        "rope_scaling": {"type": "yarn", "factor": 40, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0,
            "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096},
        "vocab_size": 129_280, "max_position_embeddings": 163_840, "num_nextn_predict_layers": 1,
        "tie_word_embeddings": false
    })
}

/// Moonshot's own names for the same architecture.
fn kimi_k2() -> Value {
    let changes = json!({
        "model_type": "kimi_k2", "num_attention_heads": 64, "first_k_dense_replace": 1, "n_routed_experts": 384,
        "n_group": 1, "topk_group": 1, "routed_scaling_factor": 2.827, "rope_theta": 50000, "vocab_size": 163_840,
        "num_nextn_predict_layers": 0
    });
    let mut config = deepseek_v3();
    let changes = changes.as_object().cloned().unwrap_or_default();
    changes.into_iter().for_each(|(key, value)| config[&key] = value);
    config
}

fn deepseek_v4_flash() -> Value {
    let ratios: Vec<usize> = (0..43)
        .map(|i| {
            if i < 2 {
                0
            } else if i % 2 == 0 {
                4
            } else {
                128
            }
        })
        .chain([0])
        .collect();
    json!({
        "architectures": ["DeepseekV4ForCausalLM"], "hidden_size": 4096, "num_hidden_layers": 43,
        "num_attention_heads": 64, "num_key_value_heads": 1, "head_dim": 512, "qk_rope_head_dim": 64,
        "q_lora_rank": 1024, "o_lora_rank": 1024, "o_groups": 8, "sliding_window": 128, "compress_ratios": ratios,
        "index_n_heads": 64, "index_head_dim": 128, "index_topk": 512, "moe_intermediate_size": 2048,
        "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 6, "num_hash_layers": 3,
        "hc_mult": 4, "hc_eps": 1e-6, "hc_sinkhorn_iters": 20, "swiglu_limit": 10.0, "scoring_func": "sqrtsoftplus",
        "topk_method": "noaux_tc", "norm_topk_prob": true, "routed_scaling_factor": 1.5, "rms_norm_eps": 1e-6,
        "rope_theta": 10000, "compress_rope_theta": 160_000, "rope_scaling": {"type": "yarn", "factor": 16,
            "beta_fast": 32, "beta_slow": 1, "original_max_position_embeddings": 65536},
        "vocab_size": 129_280, "max_position_embeddings": 1_048_576, "num_nextn_predict_layers": 1,
        "tie_word_embeddings": false
    })
}

fn gpt_oss_20b() -> Value {
    json!({
        "architectures": ["GptOssForCausalLM"], "hidden_size": 2880, "intermediate_size": 2880,
        "num_hidden_layers": 24, "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64,
        "num_local_experts": 32, "num_experts_per_tok": 4, "vocab_size": 201_088, "rms_norm_eps": 1e-5,
        "sliding_window": 128, "attention_bias": true, "swiglu_limit": 7.0, "rope_theta": 150_000,
        "rope_scaling": {"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0,
            "original_max_position_embeddings": 4096, "truncate": false},
        "max_position_embeddings": 131_072, "tie_word_embeddings": false
    })
}

fn of(model: &ModelSpec, class: Class) -> u64 {
    model.counts().get(&class).map_or(0, |c| c.1)
}

/// Figures of the published models (safetensors totals on their model cards).
#[test]
fn parameter_counts_are_those_of_the_published_models() -> Outcome {
    let llama = model_spec(&llama_31_8b())?;
    assert_eq!(llama.params(), 8_030_261_248);
    assert_eq!((of(&llama, Class::Embed), of(&llama, Class::LmHead)), (525_336_576, 525_336_576));
    assert_eq!((of(&llama, Class::Attn), of(&llama, Class::Mlp)), (1_342_177_280, 5_637_144_576));
    assert_eq!(of(&llama, Class::Norm), 266_240);

    let qwen2 = model_spec(&qwen25_7b())?;
    assert_eq!(qwen2.params(), 7_615_616_512);
    assert_eq!((of(&qwen2, Class::Attn), of(&qwen2, Class::Norm)), (822_212_608, 204_288));

    let moe = model_spec(&qwen3_30b_a3b())?;
    assert_eq!(moe.params(), 30_532_122_624);
    assert_eq!((of(&moe, Class::Router), of(&moe, Class::Experts)), (12_582_912, 28_991_029_248));
    assert_eq!((of(&moe, Class::Attn), of(&moe, Class::Norm)), (905_969_664, 210_944));

    assert_eq!(model_spec(&mixtral_8x7b())?.params(), 46_702_792_704);

    let v3 = model_spec(&deepseek_v3())?;
    assert_eq!(v3.params(), 671_026_419_200);
    assert_eq!((of(&v3, Class::Attn), of(&v3, Class::SharedExpert)), (11_413_422_080, 2_554_331_136));
    assert_eq!((of(&v3, Class::Experts), of(&v3, Class::Router)), (653_908_770_816, 106_445_312));
    assert_eq!(model_spec(&kimi_k2())?.params(), 1_026_408_232_448);
    assert_eq!(model_spec(&gpt_oss_20b())?.params(), 20_914_757_184);

    let v4 = model_spec(&deepseek_v4_flash())?;
    assert_eq!(of(&v4, Class::Experts), 277_025_390_592);
    assert_eq!((of(&v4, Class::SharedExpert), of(&v4, Class::Hyper)), (1_082_130_432, 33_884_439));
    let pooled: u64 = [Class::Attn, Class::Compressor, Class::Indexer].map(|class| of(&v4, class)).iter().sum();
    assert_eq!(pooled, 5_086_228_160);
    // Three tables from tokens to experts are not parameters.
    assert_eq!(v4.params() - 3 * 775_680, 284_332_240_471);
    // The release has 1565, 1576 and 1569 tensors in the layers of the three kinds; 776 of them, 777 with an indexer, are
    // scales.
    assert_eq!(v4.tensors().count(), 6 + 2 * (1565 - 776) + 21 * (1576 - 777) + 20 * (1569 - 776));
    Ok(())
}

/// The figures of the release: 192^-½ · (0.1 ln 40 + 1)².
#[test]
fn latent_attention_scales_its_scores_by_mscale() -> Outcome {
    let model = model_spec(&deepseek_v3())?;
    let crate::Mixer::Latent(attention) = &model.layers[0].attn else { return Err("latent".into()) };
    assert!((attention.scale - 0.135_234).abs() < 1e-6, "{}", attention.scale);
    assert_eq!(model.mtp_prefixes, ["model.layers.61."]);
    Ok(())
}

#[test]
fn next_token_layers_are_adopted_as_they_are_or_not_at_all() -> Outcome {
    let mut model = model_spec(&deepseek_v3())?;
    let before = model.tensors().count();
    let shape: &[usize] = &[7168, 14336];
    model.adopt([("model.layers.61.eh_proj.weight", shape), ("model.layers.60.eh_proj.weight", shape)]);
    let added: Vec<_> = model.tensors().skip(before).map(|l| (l.name.as_str(), l.role.class)).collect();
    assert_eq!(added, [("model.layers.61.eh_proj.weight", Class::Mtp)]);
    model.adopt([]);
    assert_eq!(model.tensors().count(), before);
    Ok(())
}

#[test]
fn llama31_rope_is_read() -> Outcome {
    let rope = model_spec(&llama_31_8b())?.layers[0].attn.rope().clone();
    assert_eq!(rope.theta, 5e5);
    let expected =
        RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max_position: 8192.0 };
    assert_eq!(rope.scaling, expected);
    Ok(())
}

fn with(mut config: Value, key: &str, value: Value) -> Value {
    config[key] = value;
    config
}

fn message(config: &Value) -> String {
    model_spec(config).map(|m| m.params()).expect_err("should be refused").to_string()
}

#[test]
fn a_window_counts_only_where_the_config_switches_it_on() -> Outcome {
    let windows = |config: &Value| -> Result<Vec<_>, ArchError> {
        Ok(model_spec(config)?.layers.iter().map(|l| l.attn.heads().and_then(|a| a.window)).collect())
    };
    let qwen = with(qwen25_7b(), "num_hidden_layers", json!(4));
    assert_eq!(windows(&qwen)?, [None; 4]);
    let on = with(with(qwen.clone(), "use_sliding_window", json!(true)), "max_window_layers", json!(3));
    assert_eq!(windows(&on)?, [None, None, None, Some(131_072)]);
    let listed = json!(["sliding_attention", "full_attention", "full_attention", "full_attention"]);
    assert_eq!(windows(&with(on, "layer_types", listed.clone()))?, [Some(131_072), None, None, None]);
    assert!(message(&with(qwen, "layer_types", listed)).contains("needs use_sliding_window"));
    let mixtral = with(with(mixtral_8x7b(), "num_hidden_layers", json!(2)), "sliding_window", json!(4096));
    assert_eq!(windows(&mixtral)?, [Some(4096); 2]);
    Ok(())
}

#[test]
fn sparse_step_and_mlp_only_layers_choose_dense_layers() -> Outcome {
    let config = with(with(qwen3_30b_a3b(), "num_hidden_layers", json!(6)), "decoder_sparse_step", json!(2));
    let sparse = |config: &Value| -> Result<Vec<bool>, ArchError> {
        Ok(model_spec(config)?.layers.iter().map(|l| matches!(l.ffn, Ffn::Moe(_))).collect())
    };
    assert_eq!(sparse(&config)?, [false, true, false, true, false, true]);
    assert_eq!(sparse(&with(config.clone(), "mlp_only_layers", json!([3])))?, [false, true, false, false, false, true]);
    assert!(message(&with(config, "mlp_only_layers", json!([6]))).contains("indices of layers"));
    Ok(())
}

#[test]
fn refusals_name_key_expected_and_got() {
    let llama = llama_31_8b();
    for (key, value, text) in [
        ("num_hidden_layers", json!(0), "`num_hidden_layers`: expected a whole number from 1 to 10000, got 0"),
        ("num_hidden_layers", json!("32"), "got \"32\""),
        ("hidden_size", json!(-1), "`hidden_size`: expected a whole number from 1 to 2147483648, got -1"),
        ("vocab_size", Value::Null, "`vocab_size`: expected a whole number from 1 to 2147483648, got nothing"),
        ("num_key_value_heads", json!(5), "expected a divisor of num_attention_heads (32), got 5"),
        ("num_attention_heads", json!(1 << 30), "as there is no head_dim"),
        ("hidden_act", json!("gelu"), "`hidden_act`: `gelu` is not supported; supported is silu"),
        ("mlp_bias", json!(true), "`mlp_bias`: biases in the MLP are not supported"),
        ("rms_norm_eps", json!(0), "`rms_norm_eps`"),
        ("head_dim", json!(33), "even head width"),
        ("tie_word_embeddings", json!("no"), "expected true or false"),
        ("architectures", json!("LlamaForCausalLM"), "`architectures`: expected a list"),
    ] {
        let got = message(&with(llama.clone(), key, value));
        assert!(got.starts_with("config.json: ") && got.contains(text), "{key}: {got}");
    }
    assert!(message(&json!([])).contains("expected an object, got a list of 0 values"));
    let wide = with(with(llama, "head_dim", json!(1 << 30)), "num_key_value_heads", json!(1));
    assert!(message(&wide).contains("`num_attention_heads`: expected at most"));
}

#[test]
fn compressed_attention_is_read_layer_by_layer() -> Outcome {
    let model = model_spec(&deepseek_v4_flash())?;
    let kind = |layer: usize| match &model.layers[layer].attn {
        crate::Mixer::Compressed(a) => {
            (a.compressor.as_ref().map_or(0, |c| c.ratio), a.indexer.is_some(), a.rope.theta)
        }
        other => panic!("{other:?}"),
    };
    assert_eq!([0, 2, 3, 42].map(kind), [(0, false, 1e4), (4, true, 1.6e5), (128, false, 1.6e5), (4, true, 1.6e5)]);
    assert_eq!(model.residual_width(), 4 * 4096);
    let flash = deepseek_v4_flash();
    assert!(
        message(&with(flash.clone(), "compress_ratios", json!([0, 4]))).contains("at least num_hidden_layers (43)")
    );
    assert!(message(&with(flash.clone(), "compress_ratios", json!(vec![5; 43]))).contains("0, 4 or 128"));
    assert!(message(&with(flash, "o_groups", json!(7))).contains("a divisor of num_attention_heads (64)"));
    Ok(())
}

/// A few bytes of config must not make gigabytes of names.
#[test]
fn absurd_numbers_of_tensors_are_refused() {
    let config = with(with(mixtral_8x7b(), "num_local_experts", json!(65_536)), "num_hidden_layers", json!(10_000));
    assert!(message(&config).contains("tensors; at most 250000 are supported"));
}

#[test]
fn an_unknown_architecture_gets_the_list_and_the_nearest() {
    let text = message(&json!({"architectures": ["LlamaForCausalML"]}));
    assert!(
        text.contains("`LlamaForCausalML` is not supported (the nearest supported name is `LlamaForCausalLM`)"),
        "{text}"
    );
    assert!(text.contains("MixtralForCausalLM, Qwen2ForCausalLM"), "{text}");
    assert_eq!(families().count(), 11);
}

#[test]
fn without_architectures_the_model_type_decides() -> Outcome {
    let mut config = config("tiny/qwen3")?;
    config.as_object_mut().ok_or("object")?.remove("architectures");
    assert_eq!(model_spec(&config)?.family, "qwen3");
    Ok(())
}

/// Fixture tensors after `change`, checked.
fn checked(name: &str, change: impl FnOnce(&mut Tensors)) -> Result<Result<Vec<String>, ArchError>, Box<dyn Error>> {
    let spec = model_spec(&config(name)?)?;
    let mut tensors = header(name)?;
    change(&mut tensors);
    Ok(check(&spec, tensors.iter().map(|(n, s)| (n.as_str(), s.as_slice()))))
}

#[test]
fn missing_and_misnamed_tensors_are_reported_with_their_likely_partner() -> Outcome {
    let renamed = checked("tiny/llama", |t| {
        let tensor = t.iter_mut().find(|t| t.0 == "model.layers.1.mlp.down_proj.weight").expect("there");
        tensor.0 = "model.layers.1.mlp.dwon_proj.weight".to_owned();
    })?;
    let text = renamed.expect_err("refused").to_string();
    assert_eq!(
        text,
        "tensor `model.layers.1.mlp.down_proj.weight` [128, 256] is missing (there is \
         `model.layers.1.mlp.dwon_proj.weight`)\ntensor `model.layers.1.mlp.dwon_proj.weight` is not part of this \
         architecture (the nearest one is `model.layers.1.mlp.down_proj.weight`)"
    );
    Ok(())
}

#[test]
fn a_wrong_shape_is_reported_with_both_shapes() -> Outcome {
    let bent = checked("tiny/qwen3", |t| {
        t.iter_mut().for_each(|t| {
            if t.0 == "model.norm.weight" {
                t.1 = vec![64]
            }
        })
    })?;
    let text = bent.expect_err("refused").to_string();
    assert_eq!(text, "tensor `model.norm.weight` has shape [64], but config.json says [128]");
    Ok(())
}

#[test]
fn the_head_of_a_tied_model_and_rope_tables_are_ignored_by_name() -> Outcome {
    let extra = ["lm_head.weight", "model.layers.0.self_attn.rotary_emb.inv_freq"];
    let tied = checked("tiny/qwen3", |t| t.extend(extra.map(|n| (n.to_owned(), vec![1]))))?;
    assert_eq!(tied?, extra);
    Ok(())
}

#[test]
fn an_empty_checkpoint_lists_some_and_counts_all() -> Outcome {
    let text = checked("demo-moe", Vec::clear)?.expect_err("refused").to_string();
    assert!(text.contains("`model.embed_tokens.weight` [2048, 256] is missing"), "{text}");
    assert!(text.ends_with("… and 221 more"), "{text}");
    Ok(())
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        prop_oneof![(-2_i64..130).boxed(), any::<i64>().boxed()].prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        prop_oneof![Just("silu"), Just("yarn"), Just("llama3"), Just("LlamaForCausalLM"), Just("")]
            .prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 8, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map("rope_type|type|factor|rope_theta", inner, 0..4)
                .prop_map(|m| Value::Object(m.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn arbitrary_json_never_panics(value in any_json()) {
        let _ = model_spec(&value);
    }

    /// Valid configs with a few keys replaced by anything: accepted or refused, and what is accepted is usable.
    #[test]
    fn a_damaged_config_never_panics(
        base in 0..FIXTURES.len(),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any_json()), 1..4),
    ) {
        let mut config = config(FIXTURES[base]).expect("fixture");
        let keys: Vec<String> = config.as_object().expect("object").keys().cloned().collect();
        for (index, value) in damage {
            config[index.get(&keys)] = value;
        }
        if let Ok(spec) = model_spec(&config) {
            prop_assert!(spec.params() > 0);
            prop_assert!(spec.tensors().all(|t| t.shape.iter().all(|&d| d > 0)));
            prop_assert!(spec.layers.iter().filter_map(|l| l.attn.heads()).all(|a| a.num_heads % a.num_kv_heads == 0));
        }
    }
}

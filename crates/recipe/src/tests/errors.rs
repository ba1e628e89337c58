use super::{Outcome, refused};

/// Each recipe, the fixture it is chosen for, and the whole message.
const CASES: &[(&str, &str, &str)] = &[
    (
        "version: 1\nrules:\n  - {id: e, match: {class: experst}, set: {format: q8}}\n",
        "demo-moe",
        "recipe.yaml:3: rule `e`: there is no class `experst`; there are attn, mlp, experts, shared_expert, router, \
         embed, lm_head, norm, indexer, compressor, hyper, mtp, other; did you mean `experts`?",
    ),
    (
        "version: 1\nrules:\n  - id: down\n    match:\n      proj: dwon\n    set: {format: q8}\n",
        "demo-moe",
        "recipe.yaml:5: rule `down`: there is no proj `dwon`; there are q, k, v, o, gate, up, down, q_a, q_b, kv_a, kv_b, o_a, o_b, kv; did you mean `down`?",
    ),
    ("version: 1\nruels: []\n", "tiny/llama", "recipe.yaml:2: the recipe has no key `ruels`; did you mean `rules`?"),
    (
        "version: 1\nrules:\n  - {id: a, match: {class: attn}, set: {fromat: q8}}\n",
        "tiny/llama",
        "recipe.yaml:3: rule `a`: `set` has no key `fromat`; did you mean `format`?",
    ),
    (
        "version: 1\nrules:\n  - {id: a, match: {class: attn}, set: {format: q8, method: serch}}\n",
        "tiny/llama",
        "recipe.yaml:3: rule `a`: there is no method `serch`; there are auto, gptq, rtn, search; did you mean `search`?",
    ),
    (
        "version: 1\nrules:\n  - {id: exp, match: {class: experts}, set: {format: q8}}\n",
        "tiny/llama",
        "recipe.yaml:3: rule `exp` matches no tensor: `class: experts`; this model has attn, mlp, embed, lm_head, norm; \
         `optional: true` allows that",
    ),
    (
        "version: 1\nrules:\n  - {id: x, match: {class: attn, layers: 3-5}, set: {format: q8}}\n",
        "tiny/llama",
        "recipe.yaml:3: rule `x` matches no tensor: `layers: 3-5`; this model has layers 0-2; `optional: true` allows that",
    ),
    (
        "version: 1\nrules:\n  - {id: x, match: {class: attn, proj: [gate, up]}, set: {format: q8}}\n",
        "tiny/llama",
        "recipe.yaml:3: rule `x` matches no tensor: none has `class: attn` and `proj: [gate, up]` together; \
         `optional: true` allows that",
    ),
    (
        "version: 1\nrules:\n  - {id: x, match: {name: model.layers.0.mlp.down_porj.weight}, set: {format: q8}}\n",
        "tiny/llama",
        "recipe.yaml:3: rule `x` matches no tensor: `name: model.layers.0.mlp.down_porj.weight`; `optional: true` allows \
         that; did you mean `model.layers.0.mlp.down_proj.weight`?",
    ),
    (
        "version: 1\nrules:\n  - {id: r, match: {class: [router]}, set: {format: q8}}\n",
        "demo-moe",
        "recipe.yaml:3: rule `r`: tensor `model.layers.0.mlp.gate.weight` and 3 more: class router has no `format: q8`: \
         it is tiny and stays in floating point; use keep, bf16, f16 or f32",
    ),
    (
        "version: 1\nbudget: {total: 81G, solve: [mlp, embd]}\nrules:\n  - {id: embed, match: {class: embed}, set: {format: q8}}\n",
        "tiny/llama",
        "recipe.yaml:2: `total`: `G` is no unit of bytes; write e.g. 512MiB (2^20 bytes each), 81GB (10^9), or a number of \
         bytes\nrecipe.yaml:2: `solve`: there is no rule `mlp`\nrecipe.yaml:2: `solve`: there is no rule `embd`; did you \
         mean `embed`?",
    ),
    (
        "version: 1\nbudget: {total: 1GB, bpw: 2}\n",
        "tiny/llama",
        "recipe.yaml:2: `budget` needs one of `total` (such as 81GB) and `bpw` (bits per weight, such as 2.7)",
    ),
    (
        "version: 1\nbudget: {bpw: 3, solve: m}\nrules:\n  - {id: m, match: {class: mlp}, set: {format: k4, allow: [k2, k3], min_format: k4}}\n",
        "tiny/llama",
        "recipe.yaml:4: rule `m`: tensor `model.layers.0.mlp.gate_proj.weight` and 8 more: `min_format: k4` leaves none of \
         the formats allowed, k2, k3",
    ),
    (
        "version: 1\nrules:\n  - {id: hot, match: {experts: {top: 25%}}, set: {format: q8}}\n",
        "demo-moe",
        "recipe.yaml:3: rule `hot`: `experts: {top: 25%}`: needs to know how often experts are used: give statistics of \
         this model with --stats (`ashlar calibrate` makes them), or name experts by number",
    ),
    (
        "version: 1\nrules:\n  - {id: hot, match: {experts: [{top: 120%}, top 5]}, set: {format: q8}}\n",
        "demo-moe",
        "recipe.yaml:3: rule `hot`: `top` is `120%`; expected a share of the experts such as 25%, or how many\n\
         recipe.yaml:3: rule `hot`: `experts`: write `{top: 25%}` or `{bottom: 25%}`",
    ),
    ("version: 2\n", "tiny/llama", "recipe.yaml:1: `version` is 2; this program reads version 1"),
    ("rules: []\n", "tiny/llama", "recipe.yaml:1: `version: 1` is missing"),
    (
        "version: 1\nrules:\n  - {id: a, match: {class: attn}, set: {group: 64}}\n",
        "tiny/llama",
        "recipe.yaml:3: rule `a`: tensor `model.layers.0.self_attn.q_proj.weight` and 11 more: `group`, `zero_point` and \
         `outliers` need a `format`, but the format here is keep",
    ),
    (
        "version: 1\nrules:\n  - {id: a, match: {name: '*'}, set: {format: q8}}\n  - {id: a, match: {name: '*'}, set: {tier: ram}}\n",
        "tiny/llama",
        "recipe.yaml:4: rule `a`: another rule has this id (line 3)",
    ),
    (
        "version: 1\nrules:\n  - {match: {regex: 'a)|(b'}, set: {format: q8}}\n",
        "tiny/llama",
        "recipe.yaml:3: rule `#1`: `regex`: error: unopened group",
    ),
    (
        "version: 1\nrules:\n  - {id: a, match: {layers: 2-0}, set: {format: q8}}\n",
        "tiny/llama",
        "recipe.yaml:3: rule `a`: `layers`: `2-0` runs backwards; ranges are inclusive, first to last",
    ),
    (
        "version: 1\nrules:\n  - {id: a, match: {}, set: {}}\n",
        "tiny/llama",
        "recipe.yaml:3: rule `a`: `match` is empty; `match: {name: \"*\"}` matches every tensor\n\
         recipe.yaml:3: rule `a`: `set` is empty; there are format, group, zero_point, outliers, method, allow, \
         min_format, final, tier, device",
    ),
    (
        "version: 1\nrules:\n  - {id: a, match: {name: '*'}, set: {device: cuda0, tier: vrma}}\n",
        "tiny/llama",
        "recipe.yaml:3: rule `a`: there is no device `cuda0`; there are auto, cpu, cuda:0, reference, virtual:0; did you mean `cuda:0`?\n\
         recipe.yaml:3: rule `a`: there is no tier `vrma`; there are auto, vram, ram, nvme, cached; did you mean `vram`?",
    ),
];

#[test]
fn messages_name_line_rule_and_remedy() -> Outcome {
    for (recipe, fixture, expected) in CASES {
        assert_eq!(refused(recipe, fixture)?.to_string(), *expected);
    }
    Ok(())
}

#[test]
fn an_unknown_format_is_refused_with_all_there_are_and_the_nearest() -> Outcome {
    let text = refused("version: 1\nrules:\n  - {id: a, match: {class: attn}, set: {format: mxpf4}}\n", "tiny/llama")?;
    let all = ashlar_formats::ids().chain(["keep"]).collect::<Vec<_>>().join(", ");
    let expected =
        format!("recipe.yaml:3: rule `a`: there is no format `mxpf4`; there are {all}; did you mean `mxfp4`?");
    assert_eq!(text.to_string(), expected);
    Ok(())
}

#[test]
fn a_format_that_does_not_fit_names_rule_tensor_and_what_fits() -> Outcome {
    let recipe =
        "version: 1\nrules:\n  - {id: d, match: {class: experts, proj: down}, set: {format: nf4, group: 64}}\n";
    let text = refused(recipe, "tiny/mixtral")?.to_string();
    assert!(
        text.starts_with("recipe.yaml:3: rule `d`: tensor `model.layers.0.block_sparse_moe.experts.0.w2.weight` and 15 more: 128 × 96"),
        "{text}"
    );
    assert!(
        text.contains("multiple of 64") && text.contains("`group: 32` fits") && text.contains("add `fallback: ["),
        "{text}"
    );
    Ok(())
}

#[test]
fn a_parameter_the_format_lacks_is_refused_once_per_rule() -> Outcome {
    let recipe = "version: 1\nrules:\n  - {id: a, match: {class: attn}, set: {format: i4, group: 48}}\n";
    let error = refused(recipe, "tiny/llama")?;
    assert_eq!(error.total, 1, "{error}");
    assert!(error.to_string().contains("i4:g32"), "{error}");
    Ok(())
}

#[test]
fn every_problem_is_reported_in_the_order_of_the_file() -> Outcome {
    let recipe = "version: 1
defaults: {format: kep}
rules:
  - {id: a, match: {class: atn, proj: w, layers: x}, set: {format: q8, gruop: 3}}
  - {id: b, mtach: {class: attn}, set: {format: 7, group: many, final: 3, outliers: {share: 2, sgma: 3}}}
";
    let error = refused(recipe, "tiny/llama")?;
    let lines: Vec<_> = error.problems.iter().map(|p| p.line).collect();
    assert!(lines.is_sorted(), "{error}");
    assert_eq!(error.total, 12, "{error}");
    assert!(error.problems.iter().all(|p| p.file == "recipe.yaml" && p.column > 0));
    Ok(())
}

#[test]
fn very_many_problems_are_counted_not_printed() -> Outcome {
    let rules: String =
        (0..3000).map(|i| format!("  - {{id: x{i}, match: {{class: nope}}, set: {{format: q8}}}}\n")).collect();
    let error = refused(&format!("version: 1\nrules:\n{rules}"), "tiny/llama")?;
    assert_eq!((error.total, error.problems.len()), (3000, 1000));
    assert!(error.to_string().ends_with("… and 2980 more"));
    let rules: String =
        (0..9000).map(|i| format!("  - {{id: x{i}, match: {{name: nope{i}}}, set: {{format: q8}}}}\n")).collect();
    assert_eq!(refused(&format!("version: 1\nrules:\n{rules}"), "tiny/llama")?.total, 9000);
    Ok(())
}

#[test]
fn patterns_and_rules_are_bounded() -> Outcome {
    let one = |key: &str, text: &str| {
        format!("version: 1\nrules:\n  - {{match: {{{key}: '{text}'}}, set: {{format: q8}}}}\n")
    };
    for text in ["(a{1000}){1000}".to_owned(), "a".repeat(501), "(".repeat(400)] {
        let message = refused(&one("regex", &text), "tiny/llama")?.to_string();
        assert!(message.starts_with("recipe.yaml:3: rule `#1`: "), "{message}");
    }
    assert!(refused(&one("name", "[a"), "tiny/llama")?.to_string().contains("`name`: "));
    let many = "  - {match: {regex: a}, set: {format: q8}}\n".repeat(201);
    assert!(
        refused(&format!("version: 1\nrules:\n{many}"), "tiny/llama")?.to_string().contains("201 regular expressions")
    );
    let many = "  - {match: {name: a}, set: {format: q8}}\n".repeat(10_001);
    assert!(refused(&format!("version: 1\nrules:\n{many}"), "tiny/llama")?.to_string().contains("10001 rules"));
    Ok(())
}

#[test]
fn bad_yaml_has_its_line() -> Outcome {
    let text = refused("version: 1\nrules:\n  - {id: a, match: {class: *all}, set: {}}\n", "tiny/llama")?.to_string();
    assert!(text.starts_with("recipe.yaml:3: "), "{text}");
    let text = refused("- just\n- a list\n", "tiny/llama")?.to_string();
    assert!(
        text.starts_with("recipe.yaml:1: the recipe is a list of 2; expected a map with the keys version"),
        "{text}"
    );
    assert!(refused("", "tiny/llama")?.to_string().starts_with("recipe.yaml:"));
    Ok(())
}

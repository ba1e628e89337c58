//! Roles by name alone, for architectures that no family knows: enough to convert a model, not to run it.

use crate::{Class, Leaf, Proj, Role};

/// Segments before the number of a layer.
const LAYERS: &[&str] = &["layers", "layer", "h", "blocks", "block"];
/// What a name has to contain for a class, in this order; the first that fits counts.
const CLASSES: &[(&[&str], Class)] = &[
    (&["mtp", "nextn"], Class::Mtp),
    (&["shared_expert", "shared_experts"], Class::SharedExpert),
    (&["expert", "experts"], Class::Experts),
    (&["router", "gate"], Class::Router),
    (&["indexer"], Class::Indexer),
    (&["compressor"], Class::Compressor),
    (&["attn", "self_attn", "attention", "self_attention", "mixer"], Class::Attn),
    (&["mlp", "ffn", "feed_forward", "fc1", "fc2"], Class::Mlp),
    (&["lm_head", "embed_out", "output", "head"], Class::LmHead),
];
/// What a projection is called.
const PROJS: &[(&[&str], Proj)] = &[
    (&["q_proj", "wq", "query"], Proj::Q),
    (&["k_proj", "wk", "key"], Proj::K),
    (&["v_proj", "wv", "value"], Proj::V),
    (&["o_proj", "wo", "out_proj", "dense"], Proj::O),
    (&["gate_proj", "w1"], Proj::Gate),
    (&["up_proj", "w3", "fc1"], Proj::Up),
    (&["down_proj", "w2", "fc2"], Proj::Down),
];

/// The tensors of a checkpoint with roles that their names suggest. What suggests nothing is `other`.
#[must_use]
pub fn generic<'a>(tensors: impl IntoIterator<Item = (&'a str, &'a [usize])>) -> Vec<Leaf> {
    let leaf =
        |(name, shape): (&str, &[usize])| Leaf { name: name.to_owned(), shape: shape.to_vec(), role: role(name) };
    tensors.into_iter().map(leaf).collect()
}

fn role(name: &str) -> Role {
    let segments: Vec<&str> = name.split('.').collect();
    let number_after = |words: &[&str]| {
        let numbered = segments.windows(2).find_map(|w| match w {
            [word, number] if words.contains(word) => number.parse::<usize>().ok(),
            _ => None,
        });
        // No real model has more; a number that large is no index.
        numbered.filter(|n| *n < 1 << 20)
    };
    let has = |words: &[&str]| segments.iter().any(|s| words.contains(s));
    let layer = number_after(LAYERS);
    let expert = number_after(&["experts", "expert"]);
    let class = if segments.iter().any(|s| s.contains("norm") || s.starts_with("ln_")) {
        Class::Norm
    } else if layer.is_none()
        && segments.iter().any(|s| s.contains("embed") || matches!(*s, "wte" | "wpe"))
        && !has(&["embed_out"])
    {
        Class::Embed
    } else {
        CLASSES.iter().find(|(words, _)| has(words)).map_or(Class::Other, |(_, class)| *class)
    };
    let proj = PROJS.iter().find(|(words, _)| has(words)).map(|(_, proj)| *proj);
    let expert = expert.filter(|_| class == Class::Experts);
    Role { class, proj, layer, expert }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_use_get_the_roles_that_families_give_them() {
        for (name, class, proj, layer, expert) in [
            ("model.embed_tokens.weight", Class::Embed, None, None, None),
            ("transformer.wte.weight", Class::Embed, None, None, None),
            ("lm_head.weight", Class::LmHead, None, None, None),
            ("model.layers.7.self_attn.q_proj.weight", Class::Attn, Some(Proj::Q), Some(7), None),
            ("model.layers.7.self_attn.q_norm.weight", Class::Norm, None, Some(7), None),
            ("model.layers.3.mlp.gate_proj.weight", Class::Mlp, Some(Proj::Gate), Some(3), None),
            ("model.layers.3.mlp.gate.weight", Class::Router, None, Some(3), None),
            ("model.layers.3.mlp.experts.12.down_proj.weight", Class::Experts, Some(Proj::Down), Some(3), Some(12)),
            ("model.layers.3.mlp.shared_experts.up_proj.weight", Class::SharedExpert, Some(Proj::Up), Some(3), None),
            ("layers.3.ffn.experts.5.w2.weight", Class::Experts, Some(Proj::Down), Some(3), Some(5)),
            ("h.0.attn.wq.weight", Class::Attn, Some(Proj::Q), Some(0), None),
            ("vision_tower.patch.weight", Class::Other, None, None, None),
        ] {
            assert_eq!(role(name), Role { class, proj, layer, expert }, "{name}");
        }
    }

    #[test]
    fn numbers_beyond_any_model_are_no_indices() {
        assert_eq!(role("layers.99999999999999999999.x").layer, None);
        assert_eq!(role("layers.4294967295.x").layer, None);
    }
}

//! gpt-oss: grouped-query attention with biases, a sink per head and a window in every other layer; routed experts with
//! biases and a clamped activation, stored as MXFP4.
//!
//! Source: `modeling_gpt_oss.py` of transformers. The checkpoint fuses the experts of a layer (`gate_up_proj_blocks`, rows
//! of gate and up alternating); `source` lists them one by one, under the names that are used here. Routing: softmax over
//! the chosen logits, which is softmax over all divided by the sum of the chosen.

use crate::blocks::{Frame, Heads, MoeNames};
use crate::config::{Config, MAX_SIZE};
use crate::{Activation, ArchError, Class, Ffn, GatedMlp, Leaf, ModelSpec, Moe, Role};

const NAMES: MoeNames =
    MoeNames { router: "mlp.router.weight", experts: "mlp.experts", projs: ["gate_proj", "up_proj", "down_proj"] };
/// Not in any config.
const ALPHA: f32 = 1.702;

pub fn spec(family: &'static str, config: Config<'_>) -> Result<ModelSpec, ArchError> {
    let frame = Frame::read(config)?;
    let bias = config.bool_or("attention_bias", true)?;
    let heads = Heads { qkv_bias: bias, o_bias: bias, sinks: true, ..frame.heads(Some(64), 150_000.0)? };
    let sizes = frame.moe_sizes("intermediate_size", true)?;
    let limit = config.optional_number("swiglu_limit", 1e-3..=1e6)?.unwrap_or(7.0) as f32;
    let layers = (0..)
        .zip(windows(&frame)?)
        .map(|(i, window)| {
            let moe = with_biases(frame.moe(i, &sizes, &NAMES), i);
            let mut layer = frame.layer(i, frame.attention(i, &heads, window), Ffn::Moe(moe));
            layer.activation = Activation::ClampedSwish { limit, alpha: ALPHA };
            layer
        })
        .collect();
    frame.model(family, layers)
}

/// As `layer_types` says; without it, every other layer from the first on is windowed.
fn windows(frame: &Frame<'_>) -> Result<Vec<Option<usize>>, ArchError> {
    let c = &frame.config;
    let window = c.optional_size("sliding_window", 1..=MAX_SIZE)?.unwrap_or(128);
    match c.list("layer_types")? {
        Some(types) => frame.layer_types(types, Some(window)),
        None => Ok((0..frame.layers).map(|i| (i % 2 == 0).then_some(window)).collect()),
    }
}

fn with_biases(mut moe: Moe, layer: usize) -> Moe {
    let role = Role { class: Class::Router, proj: None, layer: Some(layer), expert: None };
    let name = format!("model.layers.{layer}.mlp.router.bias");
    moe.router_bias = Some(Leaf { name, shape: vec![moe.experts.len()], role });
    for expert in &mut moe.experts {
        let GatedMlp { gate, up, down, .. } = &*expert;
        expert.biases = Some(Box::new([gate, up, down].map(bias)));
    }
    moe
}

/// The bias of a weight: as many values as it has outputs, under the same name but for the ending.
fn bias(weight: &Leaf) -> Leaf {
    let name = format!("{}.bias", weight.name.strip_suffix(".weight").unwrap_or(&weight.name));
    Leaf { name, shape: weight.shape.iter().take(1).copied().collect(), role: weight.role }
}

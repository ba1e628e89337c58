//! [`Recorder`]: writes down where a running model routes its tokens.

use super::routes::{LayerBytes, LayerStep, Routes};
use crate::{Model, RuntimeError};
use ashlar_arch::{Class, Ffn, ModelSpec};
use ashlar_backend::{MatmulInput, Observer, Routed};
use std::collections::HashMap;

/// An observer that keeps routing decisions.
pub struct Recorder {
    routes: Routes,
    /// Layers by the names of their routers.
    layers: HashMap<String, usize>,
    decode: bool,
    /// The number of the first token of the batch.
    first: u64,
    /// Decisions of the batch, by token.
    batch: Vec<LayerStep>,
}

impl Recorder {
    /// For a model whose weights have so many bytes.
    ///
    /// # Errors
    /// [`RuntimeError::Evaluate`] if it has no experts.
    pub fn new(name: &str, spec: &ModelSpec, bytes: &dyn Fn(&str) -> Option<u64>) -> Result<Self, RuntimeError> {
        let mut layers = HashMap::new();
        let mut sums = vec![LayerBytes::default(); spec.layers.len()];
        let (mut experts, mut top_k) = (0, 0);
        for leaf in spec.loaded() {
            let Some(sum) = leaf.role.layer.and_then(|layer| sums.get_mut(layer)) else { continue };
            let part = if leaf.role.class == Class::Experts { &mut sum.expert } else { &mut sum.dense };
            *part += bytes(&leaf.name).unwrap_or_default();
        }
        for (i, layer) in spec.layers.iter().enumerate() {
            let Ffn::Moe(moe) = &layer.ffn else { continue };
            layers.insert(moe.router.name.clone(), i);
            (experts, top_k) = (experts.max(moe.experts.len()), top_k.max(moe.routing.top_k));
            sums[i].expert /= moe.experts.len().max(1) as u64;
        }
        if layers.is_empty() {
            return Err(RuntimeError::Evaluate("the model has no experts, so nothing is routed".into()));
        }
        let model = name.split_whitespace().collect::<Vec<_>>().join("_");
        let routes = Routes { model, experts, top_k, layers: sums, steps: Vec::new() };
        Ok(Self { routes, layers, decode: false, first: 0, batch: Vec::new() })
    }

    /// A batch of `rows` tokens has run: its decisions, layer by layer.
    fn end_batch(&mut self, rows: usize) {
        self.routes.steps.append(&mut self.batch);
        self.first += rows as u64;
    }
}

impl Observer for Recorder {
    fn matmul_input(&mut self, _input: &MatmulInput<'_>) {}

    fn wants_inputs(&self) -> bool {
        false
    }

    fn routed(&mut self, routed: &Routed<'_>) {
        let Some(&layer) = self.layers.get(routed.router) else { return };
        for (row, chosen) in routed.chosen.chunks(routed.top_k.max(1)).enumerate() {
            let chosen = chosen.iter().map(|(e, w)| (*e as u32, *w)).collect();
            self.batch.push(LayerStep { decode: self.decode, token: self.first + row as u64, layer, chosen });
        }
    }
}

/// Runs a prompt and then decodes greedily; returns where all of it was routed.
///
/// # Errors
/// What running the model reports; [`RuntimeError::Evaluate`] if it has no experts.
pub fn record(
    model: &mut Model,
    mut recorder: Recorder,
    prompt: &[u32],
    decoded: usize,
    progress: &mut dyn FnMut(usize) -> bool,
) -> Result<Routes, RuntimeError> {
    model.check(&format!("{} tokens", prompt.len() + decoded), prompt.len() + decoded)?;
    let vocab = model.spec().vocab_size;
    let mut position = 0;
    let mut next = 0;
    let (chunk, mut left) = (model.chunk(), prompt);
    while !left.is_empty() || position < prompt.len() + decoded {
        let one = [next];
        let rows: &[u32] = if left.is_empty() { &one } else { left.get(..chunk.min(left.len())).unwrap_or(left) };
        recorder.decode = left.is_empty();
        let logits = model.observe_last(position, rows, &mut recorder)?;
        recorder.end_batch(rows.len());
        let best = logits.iter().take(vocab).enumerate().max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(&a.0)));
        next = best.map_or(0, |(i, _)| i as u32);
        position += rows.len();
        left = left.get(rows.len()..).unwrap_or_default();
        if !progress(position) {
            break;
        }
    }
    Ok(recorder.routes)
}

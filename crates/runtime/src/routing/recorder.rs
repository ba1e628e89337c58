//! [`Recorder`]: writes down where a running model routes its tokens.

use super::routes::{LayerBytes, LayerStep, Routes};
use crate::load::values;
use crate::{Model, RuntimeError};
use ashlar_arch::{Ffn, Leaf, ModelSpec, Routing};
use ashlar_backend::{MatmulInput, Observer, Routed, route};
use ashlar_tensor::TensorStore;
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
    /// By layer with experts: the next one's router.
    next: HashMap<usize, NextRouter>,
    /// What it named for the batch's rows, by its layer.
    named: HashMap<usize, Vec<Vec<u32>>>,
}

/// A router that is asked one layer early.
struct NextRouter {
    layer: usize,
    /// experts × hidden
    weight: Vec<f32>,
    bias: Option<Vec<f32>>,
    choice_bias: Option<Vec<f32>>,
    routing: Routing,
    experts: usize,
}

impl NextRouter {
    /// The experts that it names for a row, best first; none if the row has another width.
    fn names(&self, x: &[f32]) -> Vec<u32> {
        if x.is_empty() || self.weight.len() != self.experts * x.len() {
            return Vec::new();
        }
        let logit = |w: &[f32]| w.iter().zip(x).map(|(w, x)| w * x).sum::<f32>();
        let mut logits: Vec<f32> = self.weight.chunks_exact(x.len()).map(logit).collect();
        for (logit, bias) in logits.iter_mut().zip(self.bias.iter().flatten()) {
            *logit += bias;
        }
        route(&logits, self.choice_bias.as_deref(), &self.routing).into_iter().map(|(e, _)| e as u32).collect()
    }
}

impl Recorder {
    /// For a model whose weights have so many bytes.
    ///
    /// # Errors
    /// [`RuntimeError::Evaluate`] if it has no experts.
    pub fn new(name: &str, spec: &ModelSpec, bytes: &dyn Fn(&str) -> Option<u64>) -> Result<Self, RuntimeError> {
        let mut layers = HashMap::new();
        let (sums, _) = LayerBytes::of(spec, bytes);
        let (mut experts, mut top_k) = (0, 0);
        for (i, layer) in spec.layers.iter().enumerate() {
            let Ffn::Moe(moe) = &layer.ffn else { continue };
            layers.insert(moe.router.name.clone(), i);
            (experts, top_k) = (experts.max(moe.experts.len()), top_k.max(moe.routing.top_k));
        }
        if layers.is_empty() {
            return Err(RuntimeError::Evaluate("the model has no experts, so nothing is routed".into()));
        }
        let model = name.split_whitespace().collect::<Vec<_>>().join("_");
        let routes = Routes { model, experts, top_k, layers: sums, steps: Vec::new() };
        let (batch, next, named) = (Vec::new(), HashMap::new(), HashMap::new());
        Ok(Self { routes, layers, decode: false, first: 0, batch, next, named })
    }

    /// Writes down besides what every router names for decoded tokens one layer early, from what the experts of the layer before read: the
    /// guess of a running model. Routers that go by a table need none.
    ///
    /// # Errors
    /// [`RuntimeError`] if a router is not in `store`.
    pub fn with_look_ahead(mut self, spec: &ModelSpec, store: &dyn TensorStore) -> Result<Self, RuntimeError> {
        let mut before = None;
        for (layer, ffn) in spec.layers.iter().map(|layer| &layer.ffn).enumerate() {
            let Ffn::Moe(moe) = ffn else { continue };
            if let (Some(before), None) = (before, &moe.table) {
                let optional = |leaf: &Option<Leaf>| leaf.as_ref().map(|leaf| values(store, leaf)).transpose();
                let router = NextRouter {
                    layer,
                    weight: values(store, &moe.router)?,
                    bias: optional(&moe.router_bias)?,
                    choice_bias: optional(&moe.choice_bias)?,
                    routing: moe.routing,
                    experts: moe.experts.len(),
                };
                self.next.insert(before, router);
            }
            before = Some(layer);
        }
        Ok(self)
    }

    /// A batch of `rows` tokens has run: its decisions, layer by layer.
    fn end_batch(&mut self, rows: usize) {
        self.routes.steps.append(&mut self.batch);
        self.named.clear();
        self.first += rows as u64;
    }
}

impl Observer for Recorder {
    fn matmul_input(&mut self, input: &MatmulInput<'_>) {
        let router = input.weights.first().and_then(|name| self.layers.get(*name));
        if let Some(next) = router.and_then(|layer| self.next.get(layer)).filter(|_| self.decode) {
            self.named.insert(next.layer, input.rows().map(|(x, _)| next.names(x)).collect());
        }
    }

    fn wants_inputs(&self) -> bool {
        self.decode && !self.next.is_empty()
    }

    fn routed(&mut self, routed: &Routed<'_>) {
        let Some(&layer) = self.layers.get(routed.router) else { return };
        for (row, chosen) in routed.chosen.chunks(routed.top_k.max(1)).enumerate() {
            let chosen = chosen.iter().map(|(e, w)| (*e as u32, *w)).collect();
            let named = self.named.get(&layer).and_then(|rows| rows.get(row)).cloned().unwrap_or_default();
            self.batch.push(LayerStep { decode: self.decode, token: self.first + row as u64, layer, chosen, named });
        }
    }
}

/// Runs a prompt and then decodes, the tokens of `follow` one after the other, then greedily; returns where all of it was routed.
///
/// # Errors
/// What running the model reports; [`RuntimeError::Evaluate`] if it has no experts.
pub fn record(
    model: &mut Model,
    mut recorder: Recorder,
    [prompt, follow]: [&[u32]; 2],
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
        position += rows.len();
        let given = position.checked_sub(prompt.len()).and_then(|at| follow.get(at)).copied();
        next = given.or(best.map(|(i, _)| i as u32)).unwrap_or(0);
        left = left.get(rows.len()..).unwrap_or_default();
        if !progress(position) {
            break;
        }
    }
    Ok(recorder.routes)
}

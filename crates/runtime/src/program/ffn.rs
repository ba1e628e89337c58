//! The second half of a layer: a gated MLP, or a mixture of experts with what every token visits besides.

use super::{Builder, Resources, Target, Use};
use ashlar_arch::{Activation, Ffn, GatedMlp, Layer, Leaf, ModelSpec, Moe};
use ashlar_backend::{BufferId, ExpertWeights, MoeOptions, Op};

impl<R: Resources> Builder<'_, R> {
    /// target = ffn(norm(x))
    pub(super) fn ffn(&mut self, layer: &Layer, spec: &ModelSpec, x: BufferId, to: Target) -> Result<(), R::Error> {
        let normed = self.norm(&layer.ffn_norm, spec, x)?;
        let activation = layer.activation;
        match &layer.ffn {
            Ffn::Dense(mlp) => self.gated(mlp, None, activation, normed, to),
            Ffn::Moe(moe) => {
                // Experts add to what the shared one, which comes first, or the residual stream left.
                if let Some(shared) = &moe.shared {
                    self.gated(&shared.mlp, shared.gate.as_ref(), activation, normed, to)?;
                }
                self.experts(moe, activation, normed, to.out)
            }
        }
    }

    /// target = mlp(normed), times sigmoid(normed · gateᵀ) where there is a gate.
    fn gated(
        &mut self,
        mlp: &GatedMlp,
        gate: Option<&Leaf>,
        activation: Activation,
        normed: BufferId,
        to: Target,
    ) -> Result<(), R::Error> {
        let intermediate = mlp.gate.shape.first().copied().unwrap_or_default();
        let out = self.buffer(Use::Hidden, intermediate)?;
        let weights = (self.weight(&mlp.gate)?, self.weight(&mlp.up)?);
        self.ops.push(Op::GatedLinear { x: normed, gate: weights.0, up: weights.1, activation, out });
        if let Some(weight) = self.optional(gate)? {
            // Before the down projection, which is linear, instead of behind it: no buffer of its own.
            self.ops.push(Op::SigmoidGate { x: normed, weight, y: out });
        }
        self.project_out(out, &mlp.down, None, to)
    }

    /// x += Σ experts(normed)
    fn experts(&mut self, moe: &Moe, activation: Activation, normed: BufferId, x: BufferId) -> Result<(), R::Error> {
        let router = self.weight(&moe.router)?;
        let options = MoeOptions {
            router_bias: self.optional(moe.router_bias.as_ref())?,
            choice_bias: self.optional(moe.choice_bias.as_ref())?,
            table: self.optional(moe.table.as_ref())?,
        };
        let mut experts = Vec::with_capacity(moe.experts.len());
        for e in &moe.experts {
            let (gate, up, down) = (self.weight(&e.gate)?, self.weight(&e.up)?, self.weight(&e.down)?);
            let biases = match e.biases.as_deref() {
                Some([gate, up, down]) => Some([self.weight(gate)?, self.weight(up)?, self.weight(down)?]),
                None => None,
            };
            experts.push(ExpertWeights { gate, up, down, biases });
        }
        let (experts, routing) = (experts.into(), moe.routing);
        self.ops.push(Op::Moe { x: normed, router, routing, options, experts, activation, out: x });
        Ok(())
    }
}

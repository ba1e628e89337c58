//! What ops read and write: the one list that placement, copies between devices and renaming go by.

use crate::{BufferId, CacheId, Op, WeightId};

/// What an op does with a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// It reads what is there.
    Read,
    /// It replaces what is there, unread.
    Write,
    /// It reads what is there and changes it.
    Update,
}

/// One operand, to be looked at or renamed.
#[derive(Debug)]
pub enum Operand<'a> {
    /// A weight.
    Weight(&'a mut WeightId),
    /// A buffer.
    Buffer(&'a mut BufferId, Access),
    /// A cache, read and written.
    Cache(&'a mut CacheId),
}

/// The operands of an op. What it names twice is listed twice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Operands {
    /// Weights, in the order of the op's fields.
    pub weights: Vec<WeightId>,
    /// Buffers; inputs first.
    pub buffers: Vec<(BufferId, Access)>,
    /// Caches.
    pub caches: Vec<CacheId>,
}

impl Op {
    /// Its operands.
    #[must_use]
    pub fn operands(&self) -> Operands {
        let mut all = Operands::default();
        self.clone().visit(&mut |operand| match operand {
            Operand::Weight(id) => all.weights.push(*id),
            Operand::Buffer(id, access) => all.buffers.push((*id, access)),
            Operand::Cache(id) => all.caches.push(*id),
        });
        all
    }

    /// Shows every operand to `each`, which may rename it. Buffers that are read come before those that are written.
    pub fn visit(&mut self, each: &mut dyn FnMut(Operand<'_>)) {
        use Access::{Read, Update, Write};
        use Operand::{Buffer, Cache, Weight};
        match self {
            Self::Embed { table, out } => {
                each(Weight(table));
                each(Buffer(out, Write));
            }
            Self::RmsNorm { x, weight, out, .. } => {
                each(Weight(weight));
                each(Buffer(x, Read));
                each(Buffer(out, Write));
            }
            Self::Linear { x, parts, accumulate } => {
                each(Buffer(x, Read));
                for part in parts {
                    each(Weight(&mut part.weight));
                    part.bias.iter_mut().for_each(|bias| each(Weight(bias)));
                    each(Buffer(&mut part.out, if *accumulate { Update } else { Write }));
                }
            }
            Self::GatedLinear { x, gate, up, out, .. } => {
                each(Weight(gate));
                each(Weight(up));
                each(Buffer(x, Read));
                each(Buffer(out, Write));
            }
            Self::QkNormRope { q, k, q_norm, k_norm, .. } => {
                q_norm.iter_mut().chain(k_norm).for_each(|norm| each(Weight(norm)));
                each(Buffer(q, Update));
                each(Buffer(k, Update));
            }
            Self::Attention { q, k, v, cache, options, out, .. } => {
                options.sinks.iter_mut().for_each(|sinks| each(Weight(sinks)));
                for x in [k, q, v] {
                    each(Buffer(x, Read));
                }
                each(Cache(cache));
                if let Some(entries) = &mut options.entries {
                    entries.selected.iter_mut().for_each(|chosen| each(Buffer(chosen, Read)));
                    each(Cache(&mut entries.cache));
                }
                each(Buffer(out, Write));
            }
            Self::Moe { x, router, options, experts, out, .. } => {
                each(Weight(router));
                let optional = [&mut options.router_bias, &mut options.choice_bias, &mut options.table];
                optional.into_iter().flatten().for_each(|id| each(Weight(id)));
                let mut all = experts.to_vec();
                for expert in &mut all {
                    each(Weight(&mut expert.gate));
                    each(Weight(&mut expert.up));
                    each(Weight(&mut expert.down));
                    expert.biases.iter_mut().flatten().for_each(|bias| each(Weight(bias)));
                }
                *experts = all.into();
                each(Buffer(x, Read));
                each(Buffer(out, Update));
            }
            Self::HeadNormRope { x, norm, .. } => {
                let weight = norm.as_mut().and_then(|norm| norm.weight.as_mut());
                weight.into_iter().for_each(|id| each(Weight(id)));
                each(Buffer(x, Update));
            }
            Self::BlockLinear { x, weight, out, .. } => {
                each(Weight(weight));
                each(Buffer(x, Read));
                each(Buffer(out, Write));
            }
            Self::BlockLinearTransposed { x, weight, meets, out, .. } => {
                each(Weight(weight));
                each(Buffer(x, Read));
                each(Buffer(meets, Read));
                each(Buffer(out, Write));
            }
            Self::Compress { kv, gate, position, norm, tokens, entries, .. } => {
                each(Weight(position));
                each(Weight(norm));
                each(Buffer(kv, Read));
                each(Buffer(gate, Read));
                each(Cache(tokens));
                each(Cache(entries));
            }
            Self::SelectEntries { q, weights, entries, out, .. } => {
                each(Buffer(q, Read));
                each(Buffer(weights, Read));
                each(Cache(entries));
                each(Buffer(out, Write));
            }
            Self::Repeat { x, out } | Self::SelectRows { x, out } => {
                each(Buffer(x, Read));
                each(Buffer(out, Write));
            }
            Self::HyperMix { x, mix, base, scale, coefficients, out, .. } => {
                for id in [mix, base, scale] {
                    each(Weight(id));
                }
                each(Buffer(x, Read));
                coefficients.iter_mut().for_each(|id| each(Buffer(id, Write)));
                each(Buffer(out, Write));
            }
            Self::HyperAdd { x, z, coefficients, .. } => {
                each(Buffer(z, Read));
                each(Buffer(coefficients, Read));
                each(Buffer(x, Update));
            }
            Self::SigmoidGate { x, weight, y } => {
                each(Weight(weight));
                each(Buffer(x, Read));
                each(Buffer(y, Update));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ExpertWeights, MoeOptions, Projection};
    use ashlar_arch::{Activation, Routing};

    #[test]
    fn operands_are_listed_with_what_becomes_of_them() {
        let bias = Some(WeightId(9));
        let parts = vec![
            Projection { weight: WeightId(1), bias, out: BufferId(5) },
            Projection { weight: WeightId(2), bias: None, out: BufferId(6) },
        ];
        for (accumulate, access) in [(false, Access::Write), (true, Access::Update)] {
            let all = Op::Linear { x: BufferId(4), parts: parts.clone(), accumulate }.operands();
            assert_eq!(all.weights, [1, 9, 2].map(WeightId));
            assert_eq!(all.buffers, [(BufferId(4), Access::Read), (BufferId(5), access), (BufferId(6), access)]);
        }
    }

    #[test]
    fn every_weight_of_every_expert_is_renamed() {
        let expert = |i| ExpertWeights {
            gate: WeightId(i),
            up: WeightId(i + 1),
            down: WeightId(i + 2),
            biases: Some([i + 3, i + 4, i + 5].map(WeightId)),
        };
        let mut op = Op::Moe {
            x: BufferId(0),
            router: WeightId(100),
            routing: Routing::default(),
            options: MoeOptions { choice_bias: Some(WeightId(101)), ..MoeOptions::default() },
            experts: vec![expert(0), expert(6)].into(),
            activation: Activation::Silu,
            out: BufferId(1),
        };
        op.visit(&mut |operand| {
            if let Operand::Weight(id) = operand {
                id.0 += 1000;
            }
        });
        let mut expected = vec![WeightId(1100), WeightId(1101)];
        expected.extend((1000..1012).map(WeightId));
        assert_eq!(op.operands().weights, expected);
        assert_eq!(op.operands().buffers, [(BufferId(0), Access::Read), (BufferId(1), Access::Update)]);
    }
}

//! Stretches of a model that run alone: what calibration walks through.

use super::{Builder, Half, Resources, Use};
use ashlar_arch::ModelSpec;
use ashlar_backend::{BufferId, Op, WeightId};

/// A stretch of a model that runs alone, on hidden states that another stretch left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The embedding. Its rows are those of the table that is given.
    Embed,
    /// One layer.
    Layer(usize),
    /// The first half of a layer: x += attention(norm(x)).
    Attention(usize),
    /// The second half of a layer: x += ffn(norm(x)).
    Ffn(usize),
    /// The norm before the head.
    FinalNorm,
}

/// A [`Part`] as ops.
#[derive(Clone, Debug)]
pub struct PartProgram {
    /// In order of execution.
    pub ops: Vec<Op>,
    /// Where the hidden states of every row end up: as wide as the residual stream, behind the final norm as
    /// `hidden_size`.
    pub out: BufferId,
}

/// The program of a part. Its input are the rows of `table` (rows × the residual stream's width) that the batch's tokens name: for
/// [`Part::Embed`] the embedding itself, for the others hidden states, whose "tokens" are row numbers.
///
/// # Errors
/// What the resources report.
pub fn build_part<R: Resources>(
    spec: &ModelSpec,
    part: Part,
    table: WeightId,
    resources: &mut R,
) -> Result<PartProgram, R::Error> {
    let mut b = Builder::new(resources);
    if part == Part::Embed {
        let out = b.embed(spec, table)?;
        return Ok(PartProgram { ops: b.ops, out });
    }
    let x = b.buffer(Use::Residual, spec.residual_width())?;
    b.ops.push(Op::Embed { table, out: x });
    let mut out = x;
    match part {
        Part::Embed => {}
        Part::Layer(index) | Part::Attention(index) | Part::Ffn(index) => {
            let Some(layer) = spec.layers.get(index) else { return Ok(PartProgram { ops: b.ops, out }) };
            if part != Part::Ffn(index) {
                b.half(Half::Attention, layer, spec, x)?;
            }
            if part != Part::Attention(index) {
                b.half(Half::Ffn, layer, spec, x)?;
            }
        }
        Part::FinalNorm => {
            let joined = b.joined(spec, x)?;
            out = b.norm(&spec.final_norm, spec, joined)?;
        }
    }
    Ok(PartProgram { ops: b.ops, out })
}

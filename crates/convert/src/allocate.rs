//! Which format every tensor gets under a budget of bytes (`docs/allocation.md`).
//!
//! The pipeline: [`groups`] says which tensors go together; `curves` tries every allowed format on a sample of rows;
//! [`predict`] turns errors into KL divergence by measured sensitivities; [`solve`] picks the mix; here it is fitted to
//! the exact size of the pack and written into the choices.
//!
//! Owns: that whole decision. Refuses: which formats are allowed (`recipe`), how sensitivities are measured
//! (`calibrate`), how bits are chosen (`quantize`).

mod curves;
pub mod groups;
pub mod predict;
mod problem;
pub mod solve;
pub mod trial;
mod weights;

pub use curves::{Item, Offer, Sampled};
pub use weights::Weights;

use crate::error::ConvertError;
use crate::stats::Importance;
use ashlar_recipe::Choices;
use ashlar_tensor::{Report, TensorStore};
use predict::{Basis, Prediction};
use problem::{Mix, Problem};
use serde::Serialize;

/// A target up to so much above the largest mix is met by that.
const CEILING: f64 = 1.005;

/// Why there is no allocation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AllocateError {
    /// A weight or the statistics.
    #[error(transparent)]
    Convert(#[from] ConvertError),
    /// The target is less than the smallest mix.
    #[error(
        "{target} bytes are less than the smallest mix of the formats allowed, which has {floor}: {what}; raise the target, \
         or allow smaller formats for the parts named (`allow`, `min_format`)"
    )]
    Floor {
        /// Bytes asked for.
        target: u64,
        /// Bytes of the smallest mix.
        floor: u64,
        /// What takes most of it.
        what: String,
    },
    /// The target is more than the largest mix needs.
    #[error(
        "{target} bytes are more than the largest mix of the formats allowed can use, which has {ceiling}; lower the \
         target, or allow larger formats (`allow`)"
    )]
    Ceiling {
        /// Bytes asked for.
        target: u64,
        /// Bytes of the largest mix.
        ceiling: u64,
    },
    /// No tensor is the solver's to decide.
    #[error(
        "the budget has nothing to decide: no rule named in `solve` sets the format of any matrix; name rules in \
         `budget: {{solve: […]}}`"
    )]
    Nothing,
}

/// What an allocation starts from.
pub struct Inputs<'a> {
    /// The weights.
    pub store: &'a dyn TensorStore,
    /// What the model's activations are like.
    pub stats: Option<&'a Importance>,
    /// Whether the quantizer of a tensor will know its Hessian.
    pub hessian: &'a (dyn Fn(&str) -> bool + Sync),
    /// The exact bytes of a pack with these choices.
    pub size: &'a dyn Fn(&Choices) -> Result<u64, ConvertError>,
    /// Threads; `None` for all cores. They change nothing.
    pub threads: Option<usize>,
}

/// One part of a mix, for reports.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Part {
    /// The group, such as `3.experts.gate_up`.
    pub group: String,
    /// Which experts.
    pub experts: &'static str,
    /// How many tensors.
    pub tensors: usize,
    /// The format it gets.
    pub format: String,
    /// Whether the solver decided.
    pub solved: bool,
    /// Values.
    pub weights: u64,
    /// Its bytes, without records' alignment.
    pub bytes: u64,
    /// Its error, relative to the energy of its outputs.
    pub error: f64,
    /// What it adds to the sum behind the predicted KL.
    pub kl: f64,
    /// What else it could have got: format, bytes, what it would add.
    pub offers: Vec<(String, u64, f64)>,
}

/// The predicted KL with more and with fewer bytes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Marginal {
    /// How many more or fewer.
    pub bytes: u64,
    /// With more; `None` where nothing can use them.
    pub more: Option<Prediction>,
    /// With fewer; `None` below the floor.
    pub fewer: Option<Prediction>,
}

/// What was predicted, and decided.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Allocation {
    /// Bytes asked for; `None` where the rules decided everything.
    pub target_bytes: Option<u64>,
    /// Exact bytes of the shards.
    pub total_bytes: u64,
    /// Exact bytes of the smallest mix allowed.
    pub floor_bytes: Option<u64>,
    /// Exact bytes of the largest mix allowed.
    pub ceiling_bytes: Option<u64>,
    /// The predicted mean KL.
    pub predicted: Prediction,
    /// What it rests on.
    pub basis: Basis,
    /// What bytes are worth.
    pub marginal: Option<Marginal>,
    /// What was read for it.
    pub sampled: Sampled,
    /// Every part, by layer and class.
    pub parts: Vec<Part>,
}

/// Chooses formats so that the pack has at most `target` bytes, and as little KL as that allows. Reads a sample of rows.
///
/// # Errors
/// [`AllocateError`]; the choices are then as they were.
pub fn allocate(
    choices: &mut Choices,
    target: u64,
    inputs: &Inputs<'_>,
    report: &dyn Report,
) -> Result<Allocation, AllocateError> {
    let problem = Problem::new(choices, inputs, report)?;
    if !problem.is_open() {
        return Err(AllocateError::Nothing);
    }
    let [floor, ceiling] = problem.extremes(choices)?;
    if target < floor.bytes {
        return Err(AllocateError::Floor { target, floor: floor.bytes, what: problem.heaviest(&floor.answer) });
    }
    if target as f64 > ceiling.bytes as f64 * CEILING {
        return Err(AllocateError::Ceiling { target, ceiling: ceiling.bytes });
    }
    let mix = problem.fit(choices, target, &floor)?;
    let mut allocation = problem.summary(&mix);
    allocation.target_bytes = Some(target);
    allocation.floor_bytes = Some(floor.bytes);
    allocation.ceiling_bytes = Some(ceiling.bytes);
    allocation.marginal = Some(problem.marginal(&mix));
    *choices = problem.decided(choices, &mix.answer, true);
    Ok(allocation)
}

/// Predicts the KL of choices as they are. Reads a sample of rows.
///
/// # Errors
/// [`AllocateError::Convert`].
pub fn predict_choices(
    choices: &Choices,
    inputs: &Inputs<'_>,
    report: &dyn Report,
) -> Result<Allocation, AllocateError> {
    let mut fixed = choices.clone();
    fixed.list.iter_mut().for_each(|c| c.candidates.clear());
    let problem = Problem::new(&fixed, inputs, report)?;
    let answer = vec![0; problem.items().len()];
    Ok(problem.summary(&Mix { answer, bytes: (inputs.size)(&fixed)? }))
}

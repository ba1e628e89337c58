//! Whether a checkpoint holds exactly the tensors of a model.

use crate::error::TensorProblem;
use crate::nearest::nearest;
use crate::{ArchError, Leaf, ModelSpec};
use std::collections::HashMap;

/// Problems that are listed; the others are counted.
const LISTED: usize = 10;

/// Compares the tensors of a checkpoint with those of the model. Returns the names of harmless extra tensors, which
/// are ignored and should be mentioned.
///
/// # Errors
/// [`ArchError::Tensors`] if a tensor is missing, has another shape, or is unknown.
pub fn check<'a>(
    spec: &ModelSpec,
    tensors: impl IntoIterator<Item = (&'a str, &'a [usize])>,
) -> Result<Vec<String>, ArchError> {
    let mut missing: HashMap<&str, &Leaf> = spec.tensors().map(|leaf| (leaf.name.as_str(), leaf)).collect();
    let (mut ignored, mut shapes, mut unexpected) = (Vec::new(), Vec::new(), Vec::new());
    for (name, shape) in tensors {
        match missing.remove(name) {
            Some(leaf) if leaf.shape == shape => {}
            Some(leaf) => shapes.push(TensorProblem::Shape {
                name: name.to_owned(),
                expected: leaf.shape.clone(),
                got: shape.to_owned(),
            }),
            None if harmless(spec, name) => ignored.push(name.to_owned()),
            None => unexpected.push(name),
        }
    }
    let total = missing.len() + shapes.len() + unexpected.len();
    if total == 0 {
        return Ok(ignored);
    }
    // In the model's order, so that the message is the same every time.
    let absent: Vec<&Leaf> = spec.tensors().filter(|leaf| missing.contains_key(leaf.name.as_str())).collect();
    let mut problems = shapes;
    problems.extend(absent.iter().take(LISTED).map(|leaf| TensorProblem::Missing {
        name: leaf.name.clone(),
        shape: leaf.shape.clone(),
        nearest: nearest(&leaf.name, unexpected.iter().copied()).map(str::to_owned),
    }));
    problems.extend(unexpected.iter().take(LISTED).map(|name| TensorProblem::Unexpected {
        name: name.chars().take(200).collect(),
        nearest: nearest(name, candidates(spec, &absent)).map(str::to_owned),
    }));
    problems.truncate(2 * LISTED);
    Err(ArchError::Tensors { problems, total })
}

/// Names that an unexpected tensor may have been meant to have: missing ones, if there are any.
fn candidates<'s>(spec: &'s ModelSpec, absent: &[&'s Leaf]) -> Vec<&'s str> {
    if absent.is_empty() {
        spec.tensors().map(|l| l.name.as_str()).collect()
    } else {
        absent.iter().map(|l| l.name.as_str()).collect()
    }
}

/// Tensors that some releases carry though nothing reads them: the head of a tied model, and rope tables.
fn harmless(spec: &ModelSpec, name: &str) -> bool {
    (spec.lm_head.is_none() && name == "lm_head.weight") || name.ends_with(".rotary_emb.inv_freq")
}

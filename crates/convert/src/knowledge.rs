//! [`Knowledge`]: what a conversion is told about the inputs of weights, whoever gathered it. A statistics file
//! ([`crate::stats::Importance`]) knows all layers at once; a stream that calibrates while it converts knows the layer it is at.

use crate::error::ConvertError;
use serde_json::Value;

/// What is known of the inputs of a model's weights. Every answer about a weight must be the same whenever it is asked:
/// the bytes of the pack follow from them.
pub trait Knowledge: Send + Sync {
    /// A text that tells these statistics from others: an interrupted conversion goes on only with the same.
    fn identity(&self) -> String;

    /// What the pack's manifest says of them.
    ///
    /// # Errors
    /// [`ConvertError`] if it cannot be read.
    fn provenance(&self) -> Result<Value, ConvertError>;

    /// Whether [`Knowledge::importance`] has something to say about a weight; asked at plan time.
    fn knows(&self, tensor: &str) -> bool;

    /// How much each input column of a weight matters: the mean of x² per column, scaled to a mean of 1. `None` where
    /// nothing is known.
    ///
    /// # Errors
    /// [`ConvertError`] if it cannot be read.
    fn importance(&self, tensor: &str) -> Result<Option<Vec<f32>>, ConvertError>;

    /// The name of the inputs whose Hessian guides a weight, `None` where there is none; asked at plan time. Weights
    /// with the same name share one Hessian, which is then factored once.
    fn hessian_of(&self, tensor: &str) -> Option<String>;

    /// The mean of x xᵀ over the inputs of a weight, k × k row-major, of which the lower triangle is filled. Any scale
    /// will do. `None` if nothing was seen after all.
    ///
    /// # Errors
    /// [`ConvertError`] if it cannot be read.
    fn hessian(&self, tensor: &str) -> Result<Option<Vec<f32>>, ConvertError>;
}

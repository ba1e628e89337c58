//! Parameter counts, in all and per class.

use crate::{Class, Leaf, ModelSpec};
use std::collections::BTreeMap;

impl Leaf {
    /// Number of values. Saturates instead of overflowing.
    #[must_use]
    pub fn params(&self) -> u64 {
        self.shape.iter().fold(1, |product: u64, &d| product.saturating_mul(d as u64))
    }
}

impl ModelSpec {
    /// Number of values of all tensors. A tied embedding counts once.
    #[must_use]
    pub fn params(&self) -> u64 {
        self.tensors().fold(0, |sum, leaf| sum.saturating_add(leaf.params()))
    }

    /// (tensors, values) of each class that the model has, in the order of [`Class`].
    #[must_use]
    pub fn counts(&self) -> BTreeMap<Class, (usize, u64)> {
        let mut counts = BTreeMap::new();
        for leaf in self.tensors() {
            let (tensors, params) = counts.entry(leaf.role.class).or_insert((0, 0_u64));
            *tensors += 1;
            *params = params.saturating_add(leaf.params());
        }
        counts
    }
}

//! What is planned and converted: a whole model, a part of one, or a list of tensors of which no family is known.

use crate::{Class, Leaf, ModelSpec};

/// Named tensors with their roles.
pub trait Tensors {
    /// Every tensor, in execution order.
    fn leaves(&self) -> Box<dyn Iterator<Item = &Leaf> + '_>;
}

impl Tensors for ModelSpec {
    fn leaves(&self) -> Box<dyn Iterator<Item = &Leaf> + '_> {
        Box::new(self.tensors())
    }
}

impl Tensors for [Leaf] {
    fn leaves(&self) -> Box<dyn Iterator<Item = &Leaf> + '_> {
        Box::new(self.iter())
    }
}

impl ModelSpec {
    /// Whether a tensor of that name belongs to the next-token layers.
    #[must_use]
    pub fn is_next_token(&self, name: &str) -> bool {
        self.mtp_prefixes.iter().any(|prefix| name.starts_with(prefix.as_str()))
    }

    /// Everything but the next-token layers.
    #[must_use]
    pub fn without_next_token(&self) -> Vec<Leaf> {
        self.tensors().filter(|leaf| leaf.role.class != Class::Mtp).cloned().collect()
    }
}

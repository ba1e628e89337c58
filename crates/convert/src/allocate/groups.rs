//! Which tensors get their format together: one projection of one class in one layer, experts by how often they are
//! used.

use ashlar_arch::{Class, Leaf, Proj};
use std::fmt;

/// Tensors whose errors act alike: a layer's class and projection. gate and up are one, as they are multiplied
/// together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupKey {
    /// The layer; `None` for embedding and head.
    pub layer: Option<usize>,
    /// The class.
    pub class: Class,
    /// The projection, `gate_up` for both of these; empty where there is none.
    pub part: &'static str,
}

impl GroupKey {
    /// The group of a matrix; `None` for what is never quantized.
    #[must_use]
    pub fn of(leaf: &Leaf) -> Option<Self> {
        let role = &leaf.role;
        if leaf.shape.len() != 2 || ashlar_recipe::stays_float(*role) {
            return None;
        }
        let part = match role.proj {
            Some(Proj::Gate | Proj::Up) => "gate_up",
            Some(proj) => proj.name(),
            None => "",
        };
        Some(Self { layer: role.layer, class: role.class, part })
    }
}

/// `3.experts.gate_up`, `embed`: the name of its arrays in statistics.
impl fmt::Display for GroupKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(layer) = self.layer {
            write!(f, "{layer}.")?;
        }
        f.write_str(self.class.name())?;
        if !self.part.is_empty() {
            write!(f, ".{}", self.part)?;
        }
        Ok(())
    }
}

/// A part of a layer's experts, by how often the router chose them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Bucket {
    /// All of them.
    All,
    /// The most used quarter.
    Hot,
    /// The half between.
    Warm,
    /// The least used quarter.
    Cold,
}

/// Fewer experts than this are not told apart.
const LEAST_EXPERTS: usize = 8;

impl Bucket {
    /// For each expert of a layer, by the tokens it saw. Experts that saw equally many rank by their number.
    #[must_use]
    pub fn of(tokens: &[f64]) -> Vec<Self> {
        let count = tokens.len();
        if count < LEAST_EXPERTS {
            return vec![Self::All; count];
        }
        let mut order: Vec<(usize, f64)> = tokens.iter().copied().enumerate().collect();
        order.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let mut buckets = vec![Self::Warm; count];
        for (rank, (expert, _)) in order.into_iter().enumerate() {
            if let Some(bucket) = buckets.get_mut(expert) {
                *bucket = match rank {
                    r if r < count / 4 => Self::Hot,
                    r if r >= count - count / 4 => Self::Cold,
                    _ => Self::Warm,
                };
            }
        }
        buckets
    }

    /// For messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Hot => "most used quarter",
            Self::Warm => "middle half",
            Self::Cold => "least used quarter",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ashlar_arch::Role;

    #[test]
    fn gate_and_up_share_a_group_and_vectors_have_none() {
        let leaf = |class, proj, shape: &[usize]| Leaf {
            name: "x".into(),
            shape: shape.to_vec(),
            role: Role { class, proj, layer: Some(3), expert: None },
        };
        let key = |class, proj| GroupKey::of(&leaf(class, proj, &[4, 4])).map(|k| k.to_string());
        assert_eq!(key(Class::Experts, Some(Proj::Gate)), key(Class::Experts, Some(Proj::Up)));
        assert_eq!(key(Class::Experts, Some(Proj::Up)).as_deref(), Some("3.experts.gate_up"));
        assert_eq!(key(Class::Attn, Some(Proj::Q)).as_deref(), Some("3.attn.q"));
        assert_eq!(key(Class::Router, None), None);
        assert_eq!(GroupKey::of(&leaf(Class::Attn, Some(Proj::Q), &[4])), None);
    }

    #[test]
    fn a_quarter_of_the_experts_is_hot_and_a_quarter_cold() {
        let tokens: Vec<f64> = (0..16).map(|e| f64::from((e * 7 + 3) % 16)).collect();
        let buckets = Bucket::of(&tokens);
        let least = |b| tokens.iter().zip(&buckets).filter(|(_, x)| **x == b).map(|(t, _)| *t).fold(99.0, f64::min);
        let count = |b| buckets.iter().filter(|x| **x == b).count();
        assert_eq!((count(Bucket::Hot), count(Bucket::Warm), count(Bucket::Cold)), (4, 8, 4));
        assert_eq!((least(Bucket::Hot), least(Bucket::Warm), least(Bucket::Cold)), (12.0, 4.0, 0.0));
        assert_eq!(Bucket::of(&[1.0, 2.0]), [Bucket::All; 2]);
    }
}

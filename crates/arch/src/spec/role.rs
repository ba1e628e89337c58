//! What a tensor is: the words that recipes and everything else speak of it by.

use std::fmt;

/// What a tensor is for: the `class` of recipes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the words of the recipe schema, DESIGN §6")]
pub enum Class {
    Attn,
    Mlp,
    Experts,
    SharedExpert,
    Router,
    Embed,
    LmHead,
    Norm,
    Indexer,
    Compressor,
    Hyper,
    Mtp,
    Other,
}

/// Which projection of its block a tensor is: the `proj` of recipes (`q`, `k`, `v`, `o`, `gate`, `up`, `down`, …).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the field's names")]
pub enum Proj {
    Q,
    K,
    V,
    O,
    Gate,
    Up,
    Down,
    QA,
    QB,
    KvA,
    KvB,
    OA,
    OB,
    Kv,
}

/// What recipes can say about a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Role {
    /// What it is for.
    pub class: Class,
    /// Which projection, where that makes sense.
    pub proj: Option<Proj>,
    /// Layer index, from 0.
    pub layer: Option<usize>,
    /// Expert index, from 0.
    pub expert: Option<usize>,
}

/// One tensor of the model, under the checkpoint's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// Name in the checkpoint.
    pub name: String,
    /// Shape: `[n, k]` for matrices (n outputs, k inputs), `[n]` for vectors.
    pub shape: Vec<usize>,
    /// What it is.
    pub role: Role,
}

const CLASSES: &[(Class, &str)] = &[
    (Class::Attn, "attn"),
    (Class::Mlp, "mlp"),
    (Class::Experts, "experts"),
    (Class::SharedExpert, "shared_expert"),
    (Class::Router, "router"),
    (Class::Embed, "embed"),
    (Class::LmHead, "lm_head"),
    (Class::Norm, "norm"),
    (Class::Indexer, "indexer"),
    (Class::Compressor, "compressor"),
    (Class::Hyper, "hyper"),
    (Class::Mtp, "mtp"),
    (Class::Other, "other"),
];

const PROJS: &[(Proj, &str)] = &[
    (Proj::Q, "q"),
    (Proj::K, "k"),
    (Proj::V, "v"),
    (Proj::O, "o"),
    (Proj::Gate, "gate"),
    (Proj::Up, "up"),
    (Proj::Down, "down"),
    (Proj::QA, "q_a"),
    (Proj::QB, "q_b"),
    (Proj::KvA, "kv_a"),
    (Proj::KvB, "kv_b"),
    (Proj::OA, "o_a"),
    (Proj::OB, "o_b"),
    (Proj::Kv, "kv"),
];

macro_rules! named {
    ($type:ty, $table:ident) => {
        impl $type {
            /// The name recipes use.
            #[must_use]
            pub fn name(self) -> &'static str {
                $table.iter().find(|(v, _)| *v == self).map_or("?", |(_, n)| n)
            }

            /// The value of that name.
            #[must_use]
            pub fn from_name(name: &str) -> Option<Self> {
                $table.iter().find(|(_, n)| *n == name).map(|(v, _)| *v)
            }

            /// Every name, for messages.
            pub fn names() -> impl Iterator<Item = &'static str> {
                $table.iter().map(|(_, n)| *n)
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.name())
            }
        }
    };
}

named!(Class, CLASSES);
named!(Proj, PROJS);

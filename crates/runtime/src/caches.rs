//! Which caches a program needs and how they store: as a format of the user's choice, or as the release does.

use crate::program::{Pooled, Sizes};
use ashlar_backend::{CacheShape, EntryFormat, KvFormat, KvHeads, Stored};

/// How keys and values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kv {
    /// In a format that every model can have.
    As(KvFormat),
    /// Rounded as the release rounds them, which it was trained with ([`ashlar_backend::EntryFormat`] says how); what no release
    /// rounds, in halves.
    Native,
}

impl Kv {
    /// The name in options and reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::As(format) => format.name(),
            Self::Native => "native",
        }
    }
}

impl Kv {
    /// The one of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let all = KvFormat::ALL.map(Self::As).into_iter().chain([Self::Native]);
        all.into_iter().find(|kv| kv.name() == name)
    }
}

impl From<KvFormat> for Kv {
    fn from(format: KvFormat) -> Self {
        Self::As(format)
    }
}

/// The caches of a program.
pub struct Caches {
    sizes: Sizes,
    shapes: Vec<CacheShape>,
}

impl Caches {
    /// None yet.
    pub fn new(sizes: Sizes) -> Self {
        Self { sizes, shapes: Vec::new() }
    }

    /// Those that were added.
    pub fn shapes(&self) -> &[CacheShape] {
        &self.shapes
    }

    /// The same.
    pub fn into_shapes(self) -> Vec<CacheShape> {
        self.shapes
    }

    /// A cache that stores this.
    pub fn add(&mut self, stored: Stored) -> CacheShape {
        let Sizes { sequences, context, rows, .. } = self.sizes;
        let capacity = match stored {
            Stored::Entries { ratio, .. } => context / ratio.max(1),
            Stored::Tokens { .. } | Stored::Heads(..) => context,
        };
        let shape = CacheShape { sequences, capacity, rows, stored };
        self.shapes.push(shape);
        shape
    }

    /// Keys and values of a layer.
    pub fn heads(&self, heads: KvHeads) -> Stored {
        match self.sizes.kv {
            Kv::As(format) => Stored::Heads(KvHeads { native: None, ..heads }, format),
            // The values of E4M3 and bf16 are halves, but for the least ones.
            Kv::Native => Stored::Heads(heads, KvFormat::F16),
        }
    }

    /// What pooling needs of the tokens.
    pub fn tokens(pooled: Pooled) -> Stored {
        let windows = if pooled.overlap { 2 } else { 1 };
        let width = if pooled.overlap { 2 * pooled.width } else { pooled.width };
        Stored::Tokens { width, kept: windows * pooled.ratio }
    }

    /// Pooled entries.
    pub fn entries(&self, pooled: Pooled) -> Stored {
        let Pooled { width, ratio, native, .. } = pooled;
        let format = match self.sizes.kv {
            Kv::As(KvFormat::F32) => EntryFormat::F32,
            Kv::As(KvFormat::F16 | KvFormat::Q8) => EntryFormat::F16,
            Kv::Native => native,
        };
        Stored::Entries { width, ratio, format }
    }
}

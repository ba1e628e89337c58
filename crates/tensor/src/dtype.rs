//! Element types of stored tensors, named as safetensors names them.

use std::fmt;

/// The element type of a stored tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs, reason = "each variant is its safetensors name")]
pub enum Dtype {
    Bool,
    U8,
    I8,
    F8E4M3,
    F8E5M2,
    F8E8M0,
    I16,
    U16,
    F16,
    BF16,
    I32,
    U32,
    F32,
    I64,
    U64,
    F64,
}

const NAMES: &[(Dtype, &str, usize)] = &[
    (Dtype::Bool, "BOOL", 1),
    (Dtype::U8, "U8", 1),
    (Dtype::I8, "I8", 1),
    (Dtype::F8E4M3, "F8_E4M3", 1),
    (Dtype::F8E5M2, "F8_E5M2", 1),
    (Dtype::F8E8M0, "F8_E8M0", 1),
    (Dtype::I16, "I16", 2),
    (Dtype::U16, "U16", 2),
    (Dtype::F16, "F16", 2),
    (Dtype::BF16, "BF16", 2),
    (Dtype::I32, "I32", 4),
    (Dtype::U32, "U32", 4),
    (Dtype::F32, "F32", 4),
    (Dtype::I64, "I64", 8),
    (Dtype::U64, "U64", 8),
    (Dtype::F64, "F64", 8),
];

impl Dtype {
    /// Bytes of one element.
    #[must_use]
    pub fn size(self) -> usize {
        NAMES.iter().find(|(d, ..)| *d == self).map_or(1, |(.., s)| *s)
    }

    /// The name safetensors uses, such as `BF16`.
    #[must_use]
    pub fn name(self) -> &'static str {
        NAMES.iter().find(|(d, ..)| *d == self).map_or("?", |(_, n, _)| n)
    }

    /// Every dtype, smallest first.
    pub fn all() -> impl Iterator<Item = Self> {
        NAMES.iter().map(|(d, ..)| *d)
    }

    /// The dtype of that safetensors name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        NAMES.iter().find(|(_, n, _)| *n == name).map(|(d, ..)| *d)
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_and_sizes_are_those_of_the_safetensors_specification() {
        let spec =
            [("BOOL", 1), ("F8_E4M3", 1), ("F8_E8M0", 1), ("F16", 2), ("BF16", 2), ("F32", 4), ("I64", 8), ("F64", 8)];
        for (name, size) in spec {
            let dtype = Dtype::from_name(name).expect(name);
            assert_eq!((dtype.name(), dtype.size(), dtype.to_string()), (name, size, name.to_owned()));
        }
    }

    #[test]
    fn every_dtype_is_found_by_its_own_name_only() {
        let all: BTreeSet<_> = Dtype::all().collect();
        assert_eq!(all.len(), Dtype::all().count());
        for dtype in all {
            assert_eq!(Dtype::from_name(dtype.name()), Some(dtype));
            assert_eq!(Dtype::from_name(&dtype.name().to_ascii_lowercase()), None);
        }
        assert_eq!(Dtype::from_name(""), None);
    }
}

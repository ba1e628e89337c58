//! Read-only named weights. A checkpoint and a pack are both a [`TensorStore`].

use crate::Bytes;
use std::path::PathBuf;

/// In which order a weight's codes and scales lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Order {
    /// As the checkpoint has them: row-major, each format's own source convention.
    Rows,
    /// The pack's panels of 16 rows × 32 columns (DESIGN §4, `docs/format.md`).
    X16,
}

/// What one contiguous byte region of a weight holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PlaneKind {
    /// Plain floating-point values (f32, f16, bf16), row-major.
    Values,
    /// Quantized codes, or their low bits.
    Codes,
    /// The high bits of codes that lie in two planes.
    HighCodes,
    /// Group, block or row scales.
    Scales,
    /// Floats that scale small integer [`PlaneKind::Scales`].
    OuterScales,
    /// Zero points.
    Zeros,
    /// (u16 column, f16 delta) slots.
    Outliers,
}

/// One byte region of a weight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plane {
    /// What the bytes are.
    pub kind: PlaneKind,
    /// Length in bytes.
    pub bytes: u64,
}

/// One logical weight, described from headers alone.
///
/// A store guarantees, whatever its files say: names are unique, printable and not empty; the product of all non-zero
/// dimensions times the element size fits `isize`, so that callers may multiply dimensions in any order; `planes` agree
/// with shape and format, and every byte of them lies inside the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The checkpoint's name of the weight, such as `model.layers.0.mlp.down_proj.weight`.
    pub name: String,
    /// Logical shape; a matrix is `[n, k]`: n outputs, k inputs.
    pub shape: Vec<usize>,
    /// What the bits mean: the text form of a `formats::Spec`, or a lower-case dtype for what is no weight (`i64`).
    /// Opaque to this crate.
    pub format: String,
    /// In which order the planes lie.
    pub order: Order,
    /// The byte regions, in the order `formats` declares for (format, order).
    pub planes: Vec<Plane>,
    /// The file that holds it, for messages.
    pub file: String,
}

impl Entry {
    /// Number of logical values.
    #[must_use]
    pub fn elements(&self) -> u64 {
        if self.shape.contains(&0) { 0 } else { self.shape.iter().fold(1, |n, &d| n.saturating_mul(d as u64)) }
    }

    /// Stored bytes of all planes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.planes.iter().fold(0, |n, p| n.saturating_add(p.bytes))
    }
}

/// Where the bytes of a plane lie as they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilePlace {
    /// The file.
    pub file: PathBuf,
    /// First byte, from the start of the file.
    pub offset: u64,
}

/// Why a read from a store failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The operating system refused.
    #[error(
        "{file}: tensor `{tensor}`: cannot read {len} bytes at {offset}: {source}; check the disk, or download the file again"
    )]
    Io {
        /// File name.
        file: String,
        /// Tensor name.
        tensor: String,
        /// Byte offset in the file.
        offset: u64,
        /// Bytes asked for.
        len: u64,
        /// The cause.
        source: std::io::Error,
    },
    /// The caller asked for bytes outside the plane: a bug of the caller, reported rather than panicking.
    #[error(
        "tensor `{tensor}`: bytes {offset}..{end} of plane {plane} were asked for, which has {bytes}; please report this bug"
    )]
    Range {
        /// Tensor name.
        tensor: String,
        /// Plane index.
        plane: usize,
        /// First byte asked for.
        offset: u64,
        /// One past the last byte asked for.
        end: u64,
        /// Bytes of the plane.
        bytes: u64,
    },
    /// The caller asked for a weight or plane this store does not have: a bug of the caller, too.
    #[error("tensor `{tensor}` has no plane {plane} in this store; please report this bug")]
    Unknown {
        /// Tensor name.
        tensor: String,
        /// Plane index.
        plane: usize,
    },
}

/// Read-only named weights.
pub trait TensorStore: Send + Sync {
    /// Every weight, sorted by name.
    fn entries(&self) -> &[Entry];

    /// The weight of that name.
    fn entry(&self, name: &str) -> Option<&Entry> {
        let all = self.entries();
        all.binary_search_by(|e| e.name.as_str().cmp(name)).ok().and_then(|i| all.get(i))
    }

    /// Reads `out.len()` bytes of `entry.planes[plane]` from byte `offset` of that plane, by positioned reads
    /// (never through a mapping, so that page cache is not charged to the caller's memory).
    ///
    /// # Errors
    /// [`StoreError`] if the range lies outside the plane or the read fails or is short.
    fn read(&self, entry: &Entry, plane: usize, offset: u64, out: &mut [u8]) -> Result<(), StoreError>;

    /// The whole plane, without a copy where the file allows it. The bytes start at a multiple of the element size (at
    /// 64 in packs); a file whose header leaves values unaligned is copied instead ([`Bytes::is_mapped`] tells).
    ///
    /// # Errors
    /// [`StoreError`] if the mapping fails or memory for a copy is short.
    fn map(&self, entry: &Entry, plane: usize) -> Result<Bytes, StoreError>;

    /// Where a plane lies, for who reads past the store (around the page cache, say); `None` where the bytes are not in a
    /// file as they are.
    fn place(&self, entry: &Entry, plane: usize) -> Option<FilePlace> {
        let _ = (entry, plane);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, shape: &[usize], planes: &[u64]) -> Entry {
        let planes = planes.iter().map(|&bytes| Plane { kind: PlaneKind::Values, bytes }).collect();
        Entry {
            name: name.into(),
            shape: shape.to_vec(),
            format: "f32".into(),
            order: Order::Rows,
            planes,
            file: "f".into(),
        }
    }

    struct List(Vec<Entry>);

    impl TensorStore for List {
        fn entries(&self) -> &[Entry] {
            &self.0
        }
        fn read(&self, entry: &Entry, plane: usize, _offset: u64, _out: &mut [u8]) -> Result<(), StoreError> {
            Err(StoreError::Unknown { tensor: entry.name.clone(), plane })
        }
        fn map(&self, entry: &Entry, plane: usize) -> Result<Bytes, StoreError> {
            Err(StoreError::Unknown { tensor: entry.name.clone(), plane })
        }
    }

    #[test]
    fn a_scalar_has_one_element_and_a_zero_dimension_none() {
        assert_eq!(entry("s", &[], &[4]).elements(), 1);
        assert_eq!(entry("z", &[3, 0, 5], &[0]).elements(), 0);
        assert_eq!(entry("m", &[3, 5], &[60]).elements(), 15);
    }

    #[test]
    fn counts_saturate_instead_of_wrapping() {
        let big = usize::MAX;
        assert_eq!(entry("t", &[big, 2], &[u64::MAX, 2]).elements(), u64::MAX);
        assert_eq!(entry("t", &[big, big, 0], &[u64::MAX, 2]).elements(), 0);
        assert_eq!(entry("t", &[1], &[u64::MAX, 2]).bytes(), u64::MAX);
    }

    #[test]
    fn an_entry_is_found_by_its_exact_name() {
        let store = List(["a", "a.b", "b", "é"].map(|n| entry(n, &[1], &[4])).to_vec());
        for name in ["a", "a.b", "b", "é"] {
            assert_eq!(store.entry(name).map(|e| e.name.as_str()), Some(name));
        }
        for name in ["", "a.", "A", "c"] {
            assert_eq!(store.entry(name), None);
        }
    }

    #[test]
    fn messages_name_file_tensor_and_place() {
        let source = std::io::ErrorKind::UnexpectedEof.into();
        let io = StoreError::Io { file: "m.safetensors".into(), tensor: "t".into(), offset: 8, len: 4, source };
        assert!(io.to_string().starts_with("m.safetensors: tensor `t`: cannot read 4 bytes at 8: "), "{io}");
        let range = StoreError::Range { tensor: "t".into(), plane: 1, offset: 2, end: 9, bytes: 8 };
        assert!(range.to_string().contains("tensor `t`: bytes 2..9 of plane 1"), "{range}");
    }
}

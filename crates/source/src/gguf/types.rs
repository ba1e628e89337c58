//! Block types of GGUF tensors, and as which planes of which format they are listed.
//!
//! Source: `GGML_QUANT_SIZES` and `GGMLQuantizationType` of `gguf-py/gguf/constants.py`, and `ggml-common.h`, of
//! ggml-org/llama.cpp (MIT).

use crate::blocks::Pick;
use ashlar_tensor::PlaneKind;

/// A plane made of one piece of every block.
#[derive(Debug, PartialEq, Eq)]
pub struct Piece {
    pub kind: PlaneKind,
    /// Of every block.
    pub bytes: u64,
    pub pick: Pick,
}

/// A type.
#[derive(Debug, PartialEq, Eq)]
pub struct Type {
    /// In the file.
    pub id: u32,
    /// As llama.cpp calls it.
    pub name: &'static str,
    /// Values of a block.
    pub values: u64,
    /// Bytes of a block.
    pub bytes: u64,
    /// The format it is listed as.
    pub format: &'static str,
    /// In the order of that format.
    pub planes: &'static [Piece],
}

const fn piece(kind: PlaneKind, first: usize, bytes: u64) -> Piece {
    Piece { kind, bytes, pick: Pick::From(first) }
}

/// Plain values.
macro_rules! plain {
    ($id:literal, $name:literal, $bytes:literal, $format:literal) => {
        Type {
            id: $id,
            name: $name,
            values: 1,
            bytes: $bytes,
            format: $format,
            planes: &[piece(PlaneKind::Values, 0, $bytes)],
        }
    };
}

/// Blocks that are kept whole.
macro_rules! whole {
    ($id:literal, $name:literal, $values:literal, $bytes:literal, $format:literal) => {
        Type {
            id: $id,
            name: $name,
            values: $values,
            bytes: $bytes,
            format: $format,
            planes: &[piece(PlaneKind::Codes, 0, $bytes)],
        }
    };
}

/// A scale before so many bytes of codes.
macro_rules! scaled {
    ($id:literal, $name:literal, $scale:literal, $codes:literal, $format:literal) => {
        Type {
            id: $id,
            name: $name,
            values: 32,
            bytes: $scale + $codes,
            format: $format,
            planes: &[piece(PlaneKind::Codes, $scale, $codes), piece(PlaneKind::Scales, 0, $scale)],
        }
    };
}

/// All that are read.
pub static TYPES: &[Type] = &[
    plain!(0, "F32", 4, "f32"),
    plain!(1, "F16", 2, "f16"),
    plain!(30, "BF16", 2, "bf16"),
    scaled!(8, "Q8_0", 2, 32, "q8"),
    scaled!(2, "Q4_0", 2, 16, "i4:g32"),
    scaled!(20, "IQ4_NL", 2, 16, "iq4nl"),
    scaled!(39, "MXFP4", 1, 16, "mxfp4"),
    Type {
        id: 14,
        name: "Q6_K",
        values: 256,
        bytes: 210,
        format: "q6",
        planes: &[
            Piece { kind: PlaneKind::Codes, bytes: 128, pick: Pick::SixLow },
            Piece { kind: PlaneKind::HighCodes, bytes: 64, pick: Pick::SixHigh },
            piece(PlaneKind::Scales, 192, 16),
            piece(PlaneKind::OuterScales, 208, 2),
        ],
    },
    whole!(3, "Q4_1", 32, 20, "q4_1"),
    whole!(6, "Q5_0", 32, 22, "q5_0"),
    whole!(7, "Q5_1", 32, 24, "q5_1"),
    whole!(10, "Q2_K", 256, 84, "q2_k"),
    whole!(11, "Q3_K", 256, 110, "q3_k"),
    whole!(12, "Q4_K", 256, 144, "q4_k"),
    whole!(13, "Q5_K", 256, 176, "q5_k"),
    whole!(16, "IQ2_XXS", 256, 66, "iq2_xxs"),
    whole!(17, "IQ2_XS", 256, 74, "iq2_xs"),
    whole!(18, "IQ3_XXS", 256, 98, "iq3_xxs"),
    whole!(23, "IQ4_XS", 256, 136, "iq4_xs"),
];

/// Names of types that are known and not read, for messages.
const OTHERS: &[(u32, &str)] = &[
    (9, "Q8_1"),
    (15, "Q8_K"),
    (19, "IQ1_S"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (40, "NVFP4"),
];

/// The type of that number.
pub fn find(id: u32) -> Option<&'static Type> {
    TYPES.iter().find(|t| t.id == id)
}

/// What a number that is not read stands for.
pub fn other(id: u32) -> String {
    OTHERS.iter().find(|(other, _)| *other == id).map_or_else(|| format!("number {id}"), |(_, name)| (*name).to_owned())
}

/// Names of all that are read.
pub fn supported() -> String {
    TYPES.iter().map(|t| t.name).collect::<Vec<_>>().join(", ")
}

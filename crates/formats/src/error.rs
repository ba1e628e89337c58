//! What can be wrong with a format, its parameters or its bytes.

/// Why a format refuses.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// No such format.
    #[error("there is no format `{0}`")]
    Unknown(String),
    /// The format has no such parameter, or not with that value.
    #[error("format {id}: {what}")]
    Parameter {
        /// The format.
        id: &'static str,
        /// What is wrong and what is allowed.
        what: String,
    },
    /// The shape does not fit.
    #[error("{n} × {k} does not fit format {id}: {what}")]
    Shape {
        /// The format.
        id: &'static str,
        /// Outputs.
        n: usize,
        /// Inputs.
        k: usize,
        /// What the format needs.
        what: String,
    },
    /// The planes are shorter than the layout says.
    #[error("format {id}: plane {plane} has {got} bytes, expected at least {expected}")]
    Short {
        /// The format.
        id: &'static str,
        /// Plane index.
        plane: usize,
        /// Bytes present.
        got: usize,
        /// Bytes needed.
        expected: usize,
    },
    /// The caller asked for rows that its planes or its output do not cover: a bug of the caller, reported rather
    /// than panicking.
    #[error("format {id}: {what}")]
    Rows {
        /// The format.
        id: &'static str,
        /// Which rows, and what was there.
        what: String,
    },
    /// The bytes cannot come from an encoder.
    #[error("format {id}: {what}")]
    Corrupt {
        /// The format.
        id: &'static str,
        /// Where, and what is wrong.
        what: String,
    },
    /// A value that no weight may have: a NaN or infinity among the weights, a code that stands for one, or a scale
    /// that makes one.
    #[error("row {row}, column {column} is {value}")]
    NotFinite {
        /// Row of the weight.
        row: usize,
        /// Column of the weight.
        column: usize,
        /// NaN or an infinity.
        value: f32,
    },
    /// A finite value that the format cannot hold.
    #[error(
        "row {row}, column {column} is {value:e}: too large for format {id}, whose limit there is {limit:e}; use bf16 or f32 for this tensor"
    )]
    TooLarge {
        /// The format.
        id: &'static str,
        /// Row of the weight.
        row: usize,
        /// Column of the weight.
        column: usize,
        /// The value.
        value: f32,
        /// The largest magnitude that can be stored there.
        limit: f32,
    },
}

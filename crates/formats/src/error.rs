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
    /// A value that no weight may have.
    #[error("row {row}, column {column} is {value}")]
    NotFinite {
        /// Row of the weight.
        row: usize,
        /// Column of the weight.
        column: usize,
        /// NaN or an infinity.
        value: f32,
    },
}

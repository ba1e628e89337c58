//! What can be wrong with a config, or with the tensors found for it.

use std::fmt;

/// Why a config or a checkpoint is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ArchError {
    /// The config is not a JSON object.
    #[error("config.json: expected an object, got {got}; is this the config of a Hugging Face checkpoint?")]
    NotAnObject {
        /// What it is.
        got: String,
    },
    /// A key is absent, of the wrong type, or out of bounds.
    #[error("config.json: `{key}`: expected {expected}, got {got}")]
    Key {
        /// The key, dotted where nested.
        key: String,
        /// What is allowed.
        expected: String,
        /// What the file has.
        got: String,
    },
    /// The value is legal, but this program cannot run it.
    #[error("config.json: `{key}`: {what}")]
    Unsupported {
        /// The key.
        key: String,
        /// What is unsupported and what is supported.
        what: String,
    },
    /// No family for this architecture.
    #[error(
        "config.json: `architectures`: `{got}` is not supported{}; supported are {}",
        nearest.map(|n| format!(" (the nearest supported name is `{n}`)")).unwrap_or_default(),
        known.join(", ")
    )]
    UnknownArchitecture {
        /// The architecture named by the config.
        got: String,
        /// The most similar supported one.
        nearest: Option<&'static str>,
        /// Every supported one.
        known: Vec<&'static str>,
    },
    /// The tensors are not those of the model.
    #[error("{}", list(problems, *total))]
    Tensors {
        /// The first problems.
        problems: Vec<TensorProblem>,
        /// How many there are in all.
        total: usize,
    },
}

/// One tensor that does not fit the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TensorProblem {
    /// The model needs it; the checkpoint lacks it.
    Missing {
        /// Its name.
        name: String,
        /// Its shape.
        shape: Vec<usize>,
        /// The most similar tensor that the model does not know.
        nearest: Option<String>,
    },
    /// It is there with another shape.
    Shape {
        /// Its name.
        name: String,
        /// The shape that follows from the config.
        expected: Vec<usize>,
        /// The shape in the checkpoint.
        got: Vec<usize>,
    },
    /// The model has no such tensor.
    Unexpected {
        /// Its name.
        name: String,
        /// The most similar tensor of the model.
        nearest: Option<String>,
    },
}

impl fmt::Display for TensorProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { name, shape, nearest } => {
                write!(f, "tensor `{name}` {shape:?} is missing")?;
                match nearest {
                    Some(n) => write!(f, " (there is `{n}`)"),
                    None => f.write_str("; is the download complete?"),
                }
            }
            Self::Shape { name, expected, got } => {
                write!(f, "tensor `{name}` has shape {got:?}, but config.json says {expected:?}")
            }
            Self::Unexpected { name, nearest } => {
                write!(f, "tensor `{name}` is not part of this architecture")?;
                match nearest {
                    Some(n) => write!(f, " (the nearest one is `{n}`)"),
                    None => Ok(()),
                }
            }
        }
    }
}

fn list(problems: &[TensorProblem], total: usize) -> String {
    let mut text = problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    if total > problems.len() {
        text.push_str(&format!("\n… and {} more", total - problems.len()));
    }
    text
}

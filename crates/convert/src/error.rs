//! Why a conversion cannot be planned or fails.

use crate::stats::StatsError;
use ashlar_formats::FormatError;
use ashlar_pack::PackError;
use ashlar_quantize::{FactorError, UnknownMethod};
use ashlar_simd::IsaError;
use ashlar_tensor::StoreError;
use std::path::PathBuf;

/// Why a plan cannot be made, or a conversion or verification fails.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConvertError {
    /// The values of a tensor.
    #[error("{file}: tensor `{tensor}`: {source}; if the file is damaged, download it again, else tell its author")]
    Values {
        /// The file that holds it.
        file: String,
        /// The tensor.
        tensor: String,
        /// What is wrong, with row and column.
        source: FormatError,
    },
    /// A format that cannot be read or written for this tensor.
    #[error("tensor `{tensor}`, format `{format}`: {source}")]
    Format {
        /// The tensor.
        tensor: String,
        /// The format's text.
        format: String,
        /// What is wrong.
        source: FormatError,
    },
    /// The choices, the model and the store disagree.
    #[error("tensor `{tensor}`: {what}")]
    Tensor {
        /// The tensor.
        tensor: String,
        /// What is wrong: expected and got.
        what: String,
    },
    /// A recipe wants a method that needs the Hessian of a weight's inputs, and there is none.
    #[error(
        "tensor `{tensor}`{more}: method gptq needs the Hessian of the inputs; give statistics that hold it (`--stats` with a \
         file of `ashlar calibrate --hessians`, or `--calibrate`), or use `method: auto`, which takes what there is"
    )]
    NoHessian {
        /// The tensor.
        tensor: String,
        /// How many more, as text.
        more: String,
    },
    /// A Hessian that cannot be factored.
    #[error("tensor `{tensor}`: {source}")]
    Hessian {
        /// The tensor.
        tensor: String,
        /// What is wrong.
        source: FactorError,
    },
    /// The memory bound is too small for a single row block, or for the Hessians in use.
    #[error(
        "--memory {given} bytes is too small: `{tensor}` needs {needed} bytes at once; give at least --memory {needed}"
    )]
    Memory {
        /// The bound.
        given: u64,
        /// Bytes needed.
        needed: u64,
        /// The tensor that needs most.
        tensor: String,
    },
    /// A quantizer that does not exist.
    #[error(transparent)]
    Method(#[from] UnknownMethod),
    /// The instruction set asked for.
    #[error(transparent)]
    Isa(#[from] IsaError),
    /// Reading the source.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The activation statistics.
    #[error(transparent)]
    Stats(Box<StatsError>),
    /// Writing or reading a pack.
    #[error(transparent)]
    Pack(#[from] PackError),
    /// A file of the source is not what it was when the conversion began.
    #[error(
        "{}: the file was changed or replaced while it was converted; nothing has been published; when it is complete, \
         run the same command with --restart", file.display()
    )]
    SourceChanged {
        /// The file.
        file: PathBuf,
    },
    /// Parts that cannot be made, or not be put together.
    #[error("{what}")]
    Parts {
        /// What is wrong, and what helps.
        what: String,
    },
    /// The source's files could not be had.
    #[error("{0}")]
    Supply(Box<dyn std::error::Error + Send + Sync>),
    /// A bug of ours, reported rather than taking the process down.
    #[error("{what}; this is a bug, please report it; what is complete stays in OUT.partial")]
    Panic {
        /// What the thread said.
        what: String,
    },
    /// The pack's config names a model that this build does not know.
    #[error("{0}")]
    Arch(String),
}

impl From<StatsError> for ConvertError {
    fn from(error: StatsError) -> Self {
        Self::Stats(Box::new(error))
    }
}

impl ConvertError {
    /// Whether the source is at fault, so that going on with the same source makes no sense.
    #[must_use]
    pub fn is_about_the_source(&self) -> bool {
        matches!(self, Self::Values { .. })
    }
}

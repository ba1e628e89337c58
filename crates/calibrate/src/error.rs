//! Why statistics cannot be gathered.

use ashlar_backend::BackendError;
use ashlar_convert::ConvertError;
use ashlar_convert::stats::StatsError;
use ashlar_runtime::RuntimeError;

/// Why statistics cannot be gathered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CalibrateError {
    /// The model, its tokenizer, an option.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// The device.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The statistics file.
    #[error(transparent)]
    Stats(#[from] StatsError),
    /// The conversion.
    #[error(transparent)]
    Convert(Box<ConvertError>),
    /// Too little memory for the Hessians of a part and the converter's buffers.
    #[error(
        "--memory {given} bytes is too small: the Hessians of one part and the converter's buffers need {needed}; give at least \
         --memory {needed}"
    )]
    StreamMemory {
        /// The bound.
        given: u64,
        /// Bytes needed.
        needed: u64,
    },
    /// A text that holds nothing.
    #[error("{name}: {what}; give a text of at least one window")]
    Text {
        /// The text.
        name: String,
        /// What is wrong.
        what: String,
    },
    /// The output is there already.
    #[error("{path} exists; use --force to replace it, or another name")]
    Exists {
        /// The output.
        path: String,
    },
    /// An interrupted run that began with other inputs.
    #[error("{dir} is left from a run with another model, text or --ctx; use --restart to discard it")]
    OtherRun {
        /// The journal.
        dir: String,
    },
    /// The operating system refused.
    #[error("{path}: cannot {action}: {source}")]
    Io {
        /// The file.
        path: String,
        /// What was tried.
        action: &'static str,
        /// The cause.
        source: std::io::Error,
    },
    /// Too little memory for the hidden states.
    #[error("the hidden states of {tokens} tokens need {bytes} bytes, which are not free; use --tokens for fewer")]
    Memory {
        /// Tokens.
        tokens: usize,
        /// Bytes.
        bytes: u64,
    },
    /// Too little memory for a Hessian.
    #[error(
        "the Hessian of the inputs of `{tensor}` needs {bytes} bytes, which are not free; use `convert --calibrate`, which \
             goes through a layer in parts, or statistics without --hessians"
    )]
    HessianMemory {
        /// The weight.
        tensor: String,
        /// Bytes.
        bytes: u64,
    },
    /// Hessians that are too large for the memory that may be used.
    #[error(
        "the Hessians of one layer need {needed} bytes of memory, --memory is {given}; give more, or let `ashlar convert \
         --calibrate` collect and use them layer by layer, without writing them down"
    )]
    HessianSize {
        /// Bytes needed.
        needed: u64,
        /// Bytes that may be used.
        given: u64,
    },
    /// Activations overflowed.
    #[error("inputs of `{tensor}` are not finite; does the model generate sensible text with `ashlar run`?")]
    NotFinite {
        /// The weight.
        tensor: String,
    },
}

impl From<ConvertError> for CalibrateError {
    fn from(error: ConvertError) -> Self {
        Self::Convert(Box::new(error))
    }
}

/// An I/O error at a path.
pub(crate) fn io(path: &std::path::Path, action: &'static str) -> impl Fn(std::io::Error) -> CalibrateError + use<> {
    let path = path.display().to_string();
    move |source| CalibrateError::Io { path: path.clone(), action, source }
}

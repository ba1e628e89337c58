//! What can go wrong between a path and a token.

/// Why a model cannot be opened, run or evaluated.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RuntimeError {
    /// The checkpoint.
    #[error(transparent)]
    Source(#[from] ashlar_source::SourceError),
    /// The pack.
    #[error(transparent)]
    Pack(#[from] ashlar_pack::PackError),
    /// The config, or tensors that do not belong to it.
    #[error("{path}: {source}")]
    Arch {
        /// The model directory.
        path: String,
        /// What is wrong.
        source: ashlar_arch::ArchError,
    },
    /// A read from the checkpoint or pack.
    #[error(transparent)]
    Store(#[from] ashlar_tensor::StoreError),
    /// A tensor whose type cannot be a weight.
    #[error("{file}: tensor `{tensor}` is stored as `{format}`: {source}")]
    Weight {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// Its stored format.
        format: String,
        /// Why that does not do.
        source: Box<ashlar_formats::FormatError>,
    },
    /// A tensor of the model that the store does not have (checked at open, so a store that changed since).
    #[error("tensor `{0}` is missing; is the download complete?")]
    Missing(String),
    /// The device.
    #[error(transparent)]
    Backend(#[from] ashlar_backend::BackendError),
    /// The device runs no weights of this format.
    #[error("tensor `{tensor}` is `{format}`, which {device} cannot run: {why}")]
    Unsupported {
        /// The tensor.
        tensor: String,
        /// Its format.
        format: String,
        /// The device.
        device: String,
        /// Reason and remedy.
        why: String,
    },
    /// A placement that cannot be read, or whose rules match nothing.
    #[error(transparent)]
    Recipe(#[from] ashlar_recipe::RecipeError),
    /// A placement that cannot be carried out.
    #[error(transparent)]
    Place(#[from] crate::placement::PlaceError),
    /// A resolved placement that comes to something else here.
    #[error(
        "the placement was resolved for another model or other options: it says\n{was}and here it comes to\n{now}resolve it \
         again with `ashlar plan --placement … --emit`"
    )]
    Resolved {
        /// What it says.
        was: String,
        /// What it comes to.
        now: String,
    },
    /// A device that is not there.
    #[error("{device}: {why}")]
    Device {
        /// The device.
        device: String,
        /// What is missing and what to do.
        why: String,
    },
    /// Experts that are to be read as they are used, and cannot.
    #[error("experts on disk: {0}")]
    Nvme(String),
    /// An option out of its range.
    #[error("{option}: got {got}, expected {expected}")]
    Option {
        /// The option.
        option: &'static str,
        /// What was given.
        got: String,
        /// What is allowed.
        expected: String,
    },
    /// A reply that is not written as the model was told to.
    #[error("the model's call of a tool cannot be read: expected {expected}, got `{got}`")]
    Reply {
        /// What should stand there.
        expected: String,
        /// What does.
        got: String,
    },
    /// Too many tokens.
    #[error("{what} needs {needed} positions, but the context is {context}; use a larger --context or a shorter text")]
    Context {
        /// What does not fit.
        what: String,
        /// Positions needed.
        needed: usize,
        /// Positions there are.
        context: usize,
    },
    /// Keys and values beyond their budget.
    #[error(
        "{what} needs {needed} bytes for keys and values, but --kv-budget is {budget}, which holds {fit} positions of one \
         sequence; use a larger budget, a shorter text, or a smaller --kv format than {format}"
    )]
    KvBudget {
        /// What does not fit.
        what: String,
        /// Bytes needed, those of other sequences included.
        needed: u64,
        /// Bytes there are.
        budget: u64,
        /// Positions that one sequence alone could have.
        fit: usize,
        /// The format of keys and values.
        format: &'static str,
    },
    /// The directory of `--kv-dir`.
    #[error("{dir}: {what}")]
    Prefixes {
        /// The directory.
        dir: String,
        /// What is wrong and what to do.
        what: String,
    },
    /// The tokenizer file, or a text it cannot encode.
    #[error("{file}: {what}")]
    Tokenizer {
        /// The file.
        file: String,
        /// What is wrong.
        what: String,
    },
    /// The chat template.
    #[error("{file}: chat template: {what}")]
    Template {
        /// The file it came from.
        file: String,
        /// What is wrong and what to do.
        what: String,
    },
    /// A text or pair of models that cannot be evaluated.
    #[error("{0}")]
    Evaluate(String),
}

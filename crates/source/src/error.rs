//! Everything that can be wrong with a checkpoint. Each message says what, where, what was expected, what was found, and
//! what to do.

use std::io;

/// Why a checkpoint is refused. Names and texts in the fields are already bounded and printable.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the fields are what the message of each variant shows")]
pub enum SourceError {
    /// The operating system refused.
    #[error("{path}: cannot {action}: {source}; check that the path exists, is readable and that the disk is sound")]
    Io { path: String, action: &'static str, source: io::Error },

    /// A path that must be a file is a directory, a pipe, a device…
    #[error("{path}: expected a regular file, got {got}; put the real file there")]
    NotAFile { path: String, got: &'static str },

    /// Nothing in the directory is a checkpoint.
    #[error(
        "{dir}: no weights found: looked for `model.safetensors`, `model.safetensors.index.json` and a `.gguf` file; {hint}"
    )]
    NoWeights { dir: String, hint: String },

    /// A file that is not safetensors was given.
    #[error("{path}: expected a checkpoint directory, a `.safetensors` or a `.gguf` file; {hint}")]
    Unsupported { path: String, hint: String },

    /// The machine cannot hold what the (real) file needs.
    #[error("{file}: cannot allocate {bytes} bytes for {what}; free some memory")]
    Memory { file: String, what: &'static str, bytes: u64 },

    // -- config.json ---------------------------------------------------------------------------------------------
    /// No config beside the weights.
    #[error(
        "{path}: missing; a checkpoint needs its `config.json` beside the weights, download it from the same repository"
    )]
    ConfigMissing { path: String },

    /// A JSON file larger than any real one.
    #[error("{file}: {got} bytes, expected at most {max}; this is not the file that belongs there, download it again")]
    TooLarge { file: String, got: u64, max: u64 },

    /// Not JSON, or not of the right shape.
    #[error("{file}: {message}; expected {expected}; download the file again or mend it there")]
    Json { file: String, message: String, expected: &'static str },

    // -- safetensors header --------------------------------------------------------------------------------------
    /// Shorter than the eight bytes every safetensors file starts with.
    #[error("{file}: {got} bytes, expected at least 8 for the header length; the file is truncated, download it again")]
    TooShort { file: String, got: u64 },

    /// The length field is beyond the cap or the file.
    #[error(
        "{file}: the header claims {got} bytes, expected at most {max} ({why}); the file is damaged or not safetensors, download it again"
    )]
    HeaderLength { file: String, got: u64, max: u64, why: &'static str },

    /// The header is not what the safetensors specification says.
    #[error("{file}: bad safetensors header: {message}; the file is damaged or not safetensors, download it again")]
    Header { file: String, message: String },

    /// A name no tensor or file may have.
    #[error("{file}: the name `{name}` {why}; rename it where the file was made")]
    Name { file: String, name: String, why: String },

    /// Two tensors of the same name: which one is meant cannot be known.
    #[error("{file}: tensor `{tensor}`: listed twice, expected once; export the file again")]
    Duplicate { file: String, tensor: String },

    /// A dtype this version does not know.
    #[error("{file}: tensor `{tensor}`: unknown dtype `{got}`, expected one of {expected}; convert it to one of these")]
    Dtype { file: String, tensor: String, got: String, expected: String },

    /// More values than can be counted.
    #[error(
        "{file}: tensor `{tensor}`: shape {shape:?} of {dtype} overflows the address space; the header is damaged, download the file again"
    )]
    ShapeOverflow { file: String, tensor: String, shape: Vec<u64>, dtype: &'static str },

    /// End before begin.
    #[error(
        "{file}: tensor `{tensor}`: data_offsets [{begin}, {end}] run backwards, expected begin ≤ end; the header is damaged, download the file again"
    )]
    Backwards { file: String, tensor: String, begin: u64, end: u64 },

    /// Range and shape disagree.
    #[error(
        "{file}: tensor `{tensor}`: {dtype} {shape:?} needs {expected} bytes, got {got} (from data byte {begin} on); the header is damaged, download the file again"
    )]
    RangeSize {
        file: String,
        tensor: String,
        dtype: &'static str,
        shape: Vec<usize>,
        expected: u64,
        got: u64,
        begin: u64,
    },

    /// A range that leaves the file.
    #[error(
        "{file}: tensor `{tensor}`: data_offsets [{begin}, {end}], but the file has only {data_len} data bytes; it is truncated or its header is damaged, download it again"
    )]
    OutsideFile { file: String, tensor: String, begin: u64, end: u64, data_len: u64 },

    /// Two tensors claim the same bytes.
    #[error(
        "{file}: tensor `{tensor}`: data_offsets [{begin}, {end}] overlap `{other}`, which ends at {expected}; the header is damaged, download the file again"
    )]
    Overlap { file: String, tensor: String, other: String, begin: u64, end: u64, expected: u64 },

    /// Bytes that belong to no tensor, which the specification forbids.
    #[error(
        "{file}: tensor `{tensor}` begins at data byte {begin}, expected {expected}: the bytes between belong to no tensor; export the file again"
    )]
    Hole { file: String, tensor: String, begin: u64, expected: u64 },

    /// The file ends before its last tensor.
    #[error(
        "{file}: truncated: {got} bytes, expected {expected}; tensor `{tensor}` is the first that is incomplete; download the file again"
    )]
    Truncated { file: String, tensor: String, got: u64, expected: u64 },

    /// The file goes on after its last tensor.
    #[error(
        "{file}: {got} bytes, expected {expected}: the bytes at the end belong to no tensor; download the file again"
    )]
    Trailing { file: String, got: u64, expected: u64 },

    // -- shards --------------------------------------------------------------------------------------------------
    /// The index points out of the directory.
    #[error(
        "{file}: tensor `{tensor}` is said to be in `{got}`, expected a file name in the same directory; correct the index"
    )]
    ShardPath { file: String, tensor: String, got: String },

    /// The index names a file that is not there.
    #[error(
        "{index}: shard `{shard}` is missing in {dir}; expected it to hold {tensors} tensors, among them `{tensor}`; download it"
    )]
    MissingShard { index: String, shard: String, dir: String, tensors: usize, tensor: String },

    /// The index places a tensor in a shard that lacks it.
    #[error(
        "{index}: tensor `{tensor}` is expected in `{shard}`, which {got}; index and shards are of different exports, download them again"
    )]
    NotInShard { index: String, tensor: String, shard: String, got: String },

    /// A shard holds a tensor the index does not list.
    #[error(
        "{shard}: tensor `{tensor}` is not listed in {index}; index and shards are of different exports, download them again"
    )]
    NotInIndex { index: String, tensor: String, shard: String },

    /// The same name in two shards.
    #[error("{shard}: tensor `{tensor}` is also in `{other}`, expected in one shard only; export the checkpoint again")]
    TwoShards { tensor: String, shard: String, other: String },

    // -- FP8 -----------------------------------------------------------------------------------------------------
    /// An FP8 weight without scales.
    #[error(
        "{file}: tensor `{tensor}` is F8_E4M3, expected its block scales as `{expected}`, got none; only FP8 with block scales is supported, use a checkpoint of that kind or the BF16 one"
    )]
    ScaleMissing { file: String, tensor: String, expected: String },

    /// Scales without an FP8 weight.
    #[error(
        "{file}: tensor `{tensor}` holds block scales, expected an F8_E4M3 weight `{expected}`, got {got}; download the missing shard or export again"
    )]
    ScaleOrphan { file: String, tensor: String, expected: String, got: String },

    /// Scales of a dtype FP8 does not use.
    #[error(
        "{file}: tensor `{tensor}` holds block scales as {got}, expected F32, BF16 or F8_E8M0; export the checkpoint again"
    )]
    ScaleDtype { file: String, tensor: String, got: &'static str },

    /// Scales that do not cover the weight.
    #[error(
        "{file}: tensor `{tensor}` has shape {got:?}, expected {expected:?} for a weight of {weight}; config.json and weights disagree, download both again"
    )]
    ScaleShape { file: String, tensor: String, got: Vec<usize>, expected: [usize; 2], weight: String },

    /// FP8 that is no matrix.
    #[error(
        "{file}: tensor `{tensor}` is F8_E4M3 of shape {got:?}, expected a matrix [n, k]; export the checkpoint again"
    )]
    Fp8Shape { file: String, tensor: String, got: Vec<usize> },

    /// Packed 4-bit codes that are no matrix.
    #[error(
        "{file}: tensor `{tensor}` holds 4-bit codes as I8 of shape {got:?}, expected [n, k/2] with k a multiple of 32; export the checkpoint again"
    )]
    Fp4Shape { file: String, tensor: String, got: Vec<usize> },

    /// No usable block size for FP8 weights.
    #[error(
        "config.json: quantization_config.weight_block_size is {got}, expected two positive integers such as [128, 128], since tensor `{tensor}` is F8_E4M3; download config.json again"
    )]
    BlockSize { tensor: String, got: String },

    // -- fused experts -------------------------------------------------------------------------------------------
    /// Codes without scales or scales without codes.
    #[error(
        "{file}: tensor `{tensor}` is one half of an MXFP4 weight, expected the other one as `{expected}`, got none; download the missing shard or export again"
    )]
    FusedHalf { file: String, tensor: String, expected: String },

    /// Fused experts whose shapes do not agree.
    #[error("{file}: tensor `{tensor}` holds fused experts as {got}, expected {expected}; export the checkpoint again")]
    Fused { file: String, tensor: String, expected: String, got: String },

    /// A fused expert beside a tensor of its own.
    #[error("{file}: tensor `{name}` is stored both alone and among fused experts, expected once; export again")]
    FusedTwice { file: String, name: String },

    // -- weights that other programs quantized -------------------------------------------------------------------
    /// Tensors of a quantized weight that do not fit each other, or cannot be kept.
    #[error("{file}: tensor `{tensor}`: {message}")]
    Quantized { file: String, tensor: String, message: String },

    /// Parameters of a known scheme that are not supported.
    #[error(
        "config.json: quantization_config.{key} is {got}, expected {expected}; take another quantization of this model, or the unquantized release"
    )]
    QuantizedConfig { key: String, expected: &'static str, got: String },

    // -- GGUF ----------------------------------------------------------------------------------------------------
    /// The container is not what the format says.
    #[error("{file}: bad GGUF: {message}; the file is damaged or made by another version, download it again")]
    Gguf { file: String, message: String },

    /// A block type that is not read.
    #[error(
        "{file}: tensor `{tensor}` is stored as {got}, which is not supported; supported are {supported}; take another quantization of this model"
    )]
    GgufType { file: String, tensor: String, got: String, supported: String },

    /// Parts that do not belong together.
    #[error("{file}: {message}; all parts of one release must lie in one folder under the names they had")]
    GgufSplit { file: String, message: String },

    /// Several models in one folder.
    #[error(
        "{dir}: holds {count} GGUF files of different models or quantizations, such as `{one}` and `{other}`; pass the one you mean"
    )]
    GgufChoice { dir: String, one: String, other: String, count: usize },

    /// A model that cannot be read as a checkpoint.
    #[error("{file}: {source}")]
    GgufModel { file: String, source: ashlar_arch::GgufError },
}

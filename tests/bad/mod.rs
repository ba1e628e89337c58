//! Hostile and broken checkpoints, one file per defect: each ends with exit code 1 and a message that names file,
//! tensor and remedy, and leaves nothing behind. `mutations` looks for defects nobody thought of.

mod absent_tensor;
mod broken_config;
mod duplicate_names;
mod files;
mod honest;
mod huge_header;
mod lying_offsets;
mod missing_shard;
mod missing_tensor;
mod mutations;
mod not_finite;
mod overflowing_ranges;
mod overlapping_ranges;
mod truncated_file;
mod unexpected_tensor;
mod victim;
mod wrong_dtype;
mod wrong_shape;

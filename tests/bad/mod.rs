//! Hostile and broken checkpoints: each ends with exit code 1 and a message that names file, tensor and remedy.

mod files;
mod mutations;

//! Golden tests of the runtime: models, tokenizers and templates against data made by transformers.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot read its fixture has failed; errors are shown"
)]

mod cuda;
mod eval;
mod fixtures;
mod generate;
mod logits;
mod long;
mod sequences;
mod tokenizers;

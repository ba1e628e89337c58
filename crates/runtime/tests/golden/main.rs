//! Golden tests of the runtime: models, tokenizers and templates against data made by transformers.

mod eval;
mod fixtures;
mod generate;
mod logits;
mod tokenizers;

//! Golden tests of the runtime: models, tokenizers and templates against data made by transformers.

mod fixtures;
mod logits;

//! Quality on a text: perplexity, and how far models' predictions are from a reference model's.
//!
//! Definition. The text is encoded as a whole, without special tokens, and cut into non-overlapping windows of `ctx`
//! tokens; a rest shorter than that is dropped unless it is all there is. If the tokenizer puts tokens before every text
//! (a beginning-of-text token), each window begins with them and has so many fewer tokens of the text. Every window
//! starts with an empty cache. In each, every token of the text but the window's first token is scored by the prediction
//! made just before it: perplexity is exp of the mean negative log probability. KL(reference ‖ model), the change of the
//! probability of the token that came, and top-1 agreement are means over those same predictions. Probabilities are f64
//! softmaxes of the f32 logits over the whole vocabulary. Confidence intervals: bootstrap over windows, since tokens of
//! one window are not independent. `docs/eval.md` defines every figure.
//!
//! The cast: [`Windows`] (the text), [`perplexity`] and [`compare`] (one pass over it), [`Comparison`] (the figures),
//! [`continue_greedily`] and [`Continuations`] (what the models write themselves), [`ablate`] (which weights cost most),
//! [`verdict`] (a word for the figures). Refuses: files, recipes, printing.

mod ablation;
mod bootstrap;
mod figures;
mod greedy;
mod measure;
mod routing;
mod score;
mod verdict;
mod windows;

pub use ablation::{Ablation, AblationOptions, Grouping, PartCost, ablate};
pub use figures::{Comparison, DeltaP, Divergence, Estimate, Perplexity, Stretch};
pub use greedy::{Continuations, Written, continue_greedily};
pub use measure::{compare, perplexity};
pub use routing::{LayerRouting, RoutingFigures};
pub use verdict::{Quality, Verdict, verdict};
pub use windows::Windows;

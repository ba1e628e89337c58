//! YAML recipes: which tensor gets which format.
//!
//! Owns: the vocabulary of `docs/recipes.md` (DESIGN §6), selectors, precedence, fallbacks, presets, the trace behind
//! `plan --explain`, the resolved recipe behind `plan --emit`, which formats a budget may choose from, placements
//! and the machines they are made for, the catalogue of released models. Refuses: what
//! formats mean (`formats`), how bits are chosen (`quantize`), offsets, sizes and the solver of budgets (`convert`). Reads headers only; never a weight.
//!
//! [`Recipe::parse`] checks what can be checked without a model, [`Recipe::choose`] the rest; both report every problem
//! with its line.
#![forbid(unsafe_code)]

mod budget;
mod catalogue;
mod choices;
mod choose;
mod device;
mod emit;
mod error;
mod fit;
mod hardware;
mod hints;
mod measured;
mod place;
mod presets;
mod range;
mod read;
mod recipe;
mod schema;
mod selector;
mod set;
mod short;
mod size;
#[cfg(test)]
mod tests;
mod tiers;
mod tree;
mod usage;

pub use budget::{ALLOWED, Budget, Size};
pub use catalogue::{CatalogueError, Release, catalogue, catalogued};
pub use choices::{Action, Choice, Choices, NoSuchTensor, explain};
pub use choose::{extents, stays_float};
pub use device::{Device, EXAMPLES as DEVICE_EXAMPLES, parse as parse_device};
pub use emit::{emit, same};
pub use error::{Problem, RecipeError};
pub use hardware::{DeviceShare, Hardware, Resolved};
pub use measured::{KernelRate, Measured};
pub use place::{Place, Places};
pub use presets::{preset, presets};
pub use recipe::{Recipe, Validate};
pub use set::METHODS;
pub use size::{parse_bytes, parse_rate};
pub use tiers::{tier, tiers};
pub use usage::ExpertUsage;

//! [`Recipe`]: what a file says, checked as far as that goes without a model.

use crate::budget::{Budget, Size};
use crate::error::{At, Problems};
use crate::hardware::{Hardware, Resolved};
use crate::measured::Measured;
use crate::selector::Selector;
use crate::set::{Set, Want};
use crate::{RecipeError, schema, tree};

/// A recipe.
#[derive(Clone, Debug)]
pub struct Recipe {
    pub(crate) file: String,
    pub(crate) defaults: Set,
    pub(crate) defaults_at: At,
    pub(crate) rules: Vec<Rule>,
    /// Formats to try for shapes that the wanted one cannot take.
    pub(crate) fallback: Vec<Want>,
    /// Whether it is in the short form, which tells what it does not name.
    pub(crate) short: bool,
    pub(crate) budget: Option<Budget>,
    hardware: Option<Hardware>,
    resolved: Option<Resolved>,
    measured: Option<Measured>,
    validate: Validate,
    notes: Vec<String>,
}

/// One rule.
#[derive(Clone, Debug)]
pub(crate) struct Rule {
    pub id: String,
    pub at: At,
    pub selector: Selector,
    pub set: Set,
    /// Whether it may match nothing.
    pub optional: bool,
}

/// Quality that a pack must reach; `None` where the recipe does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Validate {
    /// Largest mean KL divergence from the source, in nats.
    pub kld_mean: Option<f64>,
    /// Largest 99.9th percentile of the KL divergence, in nats.
    pub kld_p999: Option<f64>,
    /// Smallest share of positions whose most probable token is the source's, 0 to 1.
    pub top1: Option<f64>,
}

/// What the schema reads besides rules.
#[derive(Default)]
pub(crate) struct Parts {
    pub defaults: Set,
    pub defaults_at: At,
    pub rules: Vec<Rule>,
    pub fallback: Vec<Want>,
    pub short: bool,
    pub budget: Option<Budget>,
    pub hardware: Option<Hardware>,
    pub resolved: Option<Resolved>,
    pub measured: Option<Measured>,
    pub validate: Validate,
    pub notes: Vec<String>,
}

impl Recipe {
    /// Reads a recipe. `file` is how errors call it.
    ///
    /// # Errors
    /// [`RecipeError`] with every problem found: YAML, unknown keys and names, values out of bounds.
    pub fn parse(text: &str, file: &str) -> Result<Self, RecipeError> {
        let mut problems = Problems::new(file);
        let parts = match tree::parse(text) {
            Ok(root) => schema::read(&root, &mut problems),
            Err((at, what)) => {
                problems.add(at, what);
                Parts::default()
            }
        };
        let Parts {
            defaults,
            defaults_at,
            rules,
            fallback,
            short,
            budget,
            hardware,
            resolved,
            measured,
            validate,
            notes,
        } = parts;
        let file = file.to_owned();
        problems.finish(Self {
            file,
            defaults,
            defaults_at,
            rules,
            fallback,
            short,
            budget,
            hardware,
            resolved,
            measured,
            validate,
            notes,
        })
    }

    /// The size to be reached, and which rules' tensors a solver decides for it.
    #[must_use]
    pub fn budget(&self) -> Option<&Budget> {
        self.budget.as_ref()
    }

    /// The same recipe for another size. Without a budget of its own, every rule that sets a quantized format is the
    /// solver's.
    #[must_use]
    pub fn with_size(mut self, size: Size) -> Self {
        let solve = self.budget.take().and_then(|b| b.solve);
        self.budget = Some(Budget { size, solve });
        self
    }

    /// Quality that a pack made by this recipe must reach; `ashlar eval` checks it.
    #[must_use]
    pub fn validate(&self) -> Validate {
        self.validate
    }

    /// The machine that its placement is made for, if it says.
    #[must_use]
    pub fn hardware(&self) -> Option<Hardware> {
        self.hardware
    }

    /// What that machine's processor reaches, if it was measured.
    #[must_use]
    pub fn measured(&self) -> Option<&Measured> {
        self.measured.as_ref()
    }

    /// What its placement came to, if it is a resolved one.
    #[must_use]
    pub fn resolved(&self) -> Option<&Resolved> {
        self.resolved.as_ref()
    }

    /// What a user should know about the recipe itself: fields that this version does not use.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.notes
    }
}

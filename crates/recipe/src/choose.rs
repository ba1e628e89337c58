//! From rules to one decision per tensor.

use crate::budget;
use crate::choices::{Action, Choice, Choices};
use crate::error::{At, Problems};
use crate::fit::{Fit, Fitter};
use crate::recipe::{Recipe, Rule};
use crate::selector::{Compiled, Extent};
use crate::set::{AUTO, State, Want};
use crate::usage::ExpertUsage;
use crate::{RecipeError, hints};
use ashlar_arch::{Class, Leaf, Role, Tensors};
use ashlar_formats::Options;
use ashlar_tensor::TensorStore;
use std::collections::BTreeSet;

impl Recipe {
    /// Decides for every tensor of `model`; `store` says which formats they have now, `usage` which experts `top` and
    /// `bottom` mean. Reads no weights. Tensors that a budget's solver decides get the rules' format and what else they
    /// may get.
    ///
    /// # Errors
    /// [`RecipeError`] with every problem: rules that match nothing, formats that do not fit, absent statistics.
    pub fn choose(
        &self,
        model: &(impl Tensors + ?Sized),
        store: &dyn TensorStore,
        usage: Option<&dyn ExpertUsage>,
    ) -> Result<Choices, RecipeError> {
        let mut problems = Problems::new(&self.file);
        let mut tensors = Vec::new();
        for leaf in model.leaves() {
            match store.entry(&leaf.name) {
                Some(entry) => tensors.push((leaf, entry.format.as_str())),
                None => {
                    problems.add(At { line: 1, column: 1 }, format!("tensor `{}` is not in the checkpoint", leaf.name))
                }
            }
        }
        self.decide(&tensors, usage, problems)
    }

    /// As [`Recipe::choose`], for tensors with the text of their source formats.
    pub(crate) fn decide(
        &self,
        tensors: &[(&Leaf, &str)],
        usage: Option<&dyn ExpertUsage>,
        mut problems: Problems,
    ) -> Result<Choices, RecipeError> {
        let extent = Extent::of(tensors.iter().map(|(leaf, _)| *leaf));
        self.check_usage(self.rules.iter(), tensors, usage, &mut problems);
        let compiled: Vec<_> = self.rules.iter().map(|r| r.selector.compile(extent, usage)).collect();
        let mut decider = Decider::new(self, compiled, usage.is_some(), problems);
        let list = tensors.iter().map(|(leaf, source)| decider.one(leaf, source)).collect();
        decider.finish(list, tensors, extent)
    }

    /// Rules that go by how often experts are used need statistics of every layer that has experts.
    pub(crate) fn check_usage<'r>(
        &self,
        rules: impl Iterator<Item = &'r Rule>,
        tensors: &[(&Leaf, &str)],
        usage: Option<&dyn ExpertUsage>,
        problems: &mut Problems,
    ) {
        let mut rules = rules.filter_map(|r| Some((r, r.selector.needs_usage()?))).peekable();
        if rules.peek().is_none() {
            return;
        }
        let layers: BTreeSet<usize> = tensors
            .iter()
            .filter(|(leaf, _)| leaf.role.expert.is_some())
            .filter_map(|(leaf, _)| leaf.role.layer)
            .collect();
        let unknown = layers.into_iter().find(|layer| usage.is_none_or(|u| u.tokens(*layer).is_none()));
        let what = match (usage, unknown) {
            (_, None) => return,
            (None, _) => "needs to know how often experts are used: give statistics of this model with --stats \
                          (`ashlar calibrate` makes them), or name experts by number"
                .to_owned(),
            (Some(_), Some(layer)) => {
                format!("the statistics know nothing of the experts of layer {layer}; run `ashlar calibrate` again")
            }
        };
        for (rule, key) in rules {
            problems.rule = Some(rule.id.clone());
            problems.add(key.at, format!("`{}`: {what}", key.text));
        }
        problems.rule = None;
    }
}

/// Matrices that no quantized format applies to, besides vectors: tiny, and errors in them are errors of routing, of the
/// residual stream, or of what is pooled and chosen.
#[must_use]
pub fn stays_float(role: Role) -> bool {
    match role.class {
        Class::Router | Class::Norm | Class::Hyper => true,
        Class::Compressor | Class::Indexer => role.proj.is_none(),
        _ => false,
    }
}

struct Decider<'a> {
    recipe: &'a Recipe,
    compiled: Vec<Compiled<'a>>,
    /// What the trace says when a rule applies; the last is the defaults'.
    lines: Vec<String>,
    defaults_line: String,
    /// Tensors that each rule matched, and those whose format it decided.
    matched: Vec<usize>,
    decided: Vec<usize>,
    /// Tensors that a rule wanted quantized, though they cannot be.
    stayed: usize,
    /// Quantized sources that are encoded anew.
    requantized: usize,
    /// Tensors that no rule matched.
    unnamed: Vec<&'a str>,
    /// Whether it is known how often experts are used.
    ranks: bool,
    fitter: Fitter<'a>,
    problems: Problems,
}

impl<'a> Decider<'a> {
    fn new(recipe: &'a Recipe, compiled: Vec<Compiled<'a>>, ranks: bool, problems: Problems) -> Self {
        let line = |r: &Rule| format!("rule `{}` (line {}): {}", r.id, r.at.line, r.set.text());
        let defaults = recipe.defaults.text();
        Self {
            recipe,
            compiled,
            lines: recipe.rules.iter().map(line).collect(),
            defaults_line: format!("defaults: {}", if defaults.is_empty() { "format: keep" } else { &defaults }),
            matched: vec![0; recipe.rules.len()],
            decided: vec![0; recipe.rules.len()],
            stayed: 0,
            requantized: 0,
            unnamed: Vec::new(),
            ranks,
            fitter: Fitter::new(recipe),
            problems,
        }
    }

    fn one(&mut self, leaf: &'a Leaf, source: &str) -> Choice {
        let mut state = State::new(&self.recipe.defaults);
        let mut trace = vec![self.defaults_line.clone()];
        let mut last: Option<&Rule> = None;
        let mut named = false;
        for (i, (rule, compiled)) in self.recipe.rules.iter().zip(&self.compiled).enumerate() {
            if !compiled.matches(leaf) {
                continue;
            }
            named = true;
            bump(&mut self.matched, Some(i));
            if let Some(lock) = last {
                trace.push(format!("rule `{}` (line {}): no, `{}` was final", rule.id, rule.at.line, lock.id));
                continue;
            }
            state.apply(&rule.set, Some(i));
            trace.extend(self.lines.get(i).cloned());
            last = rule.set.is_final.then_some(rule);
        }
        if !named {
            self.unnamed.push(&leaf.name);
        }
        bump(&mut self.decided, state.format_by);
        let (n, k) = extents(&leaf.shape);
        let action = self.action(leaf, source, (n, k), &state, &mut trace);
        let candidates = self.candidates(leaf, source, (n, k), &state, &mut trace);
        let has_outliers = matches!(&action, Action::Encode { spec, .. } if spec.outlier_slots > 0);
        Choice {
            leaf: leaf.clone(),
            n,
            k,
            source_format: source.to_owned(),
            action,
            outliers: state.options.outliers.filter(|_| has_outliers),
            trace,
            tier: state.tier.filter(|t| *t != AUTO).map(str::to_owned),
            device: state.device.filter(|d| *d != AUTO).map(str::to_owned),
            candidates,
        }
    }

    /// What the budget's solver may do with a tensor.
    fn candidates(
        &mut self,
        leaf: &'a Leaf,
        source: &str,
        (n, k): (usize, usize),
        state: &State<'_>,
        trace: &mut Vec<String>,
    ) -> Vec<Action> {
        let rule = state.format_by.and_then(|i| self.recipe.rules.get(i));
        let solves = rule.zip(self.recipe.budget.as_ref()).is_some_and(|(rule, budget)| budget.solves(rule));
        if !solves || leaf.shape.len() != 2 || stays_float(leaf.role) {
            return Vec::new();
        }
        let specs = match budget::candidates(state, (n, k)) {
            Ok(specs) => specs,
            Err(what) => {
                self.fitter.refuse(state.format_by, &leaf.name, what);
                return Vec::new();
            }
        };
        if specs.is_empty() {
            trace.push("none of the formats allowed fits the shape: not the solver's".to_owned());
            return Vec::new();
        }
        let source_id = source.split([':', '+']).next().unwrap_or_default();
        // What is quantized already can stay as it is, without loss.
        let kept = (self.fitter.is_float(source_id) == Some(false)).then_some(Action::Keep);
        let encoded = specs.into_iter().map(|spec| {
            if spec.to_string() == source { Action::Keep } else { Action::Encode { spec, method: state.method } }
        });
        let mut all: Vec<Action> = Vec::new();
        for action in encoded.chain(kept) {
            if !all.contains(&action) {
                all.push(action);
            }
        }
        all
    }

    fn action(
        &mut self,
        leaf: &'a Leaf,
        source: &str,
        (n, k): (usize, usize),
        state: &State<'_>,
        trace: &mut Vec<String>,
    ) -> Action {
        let Want::Format { id, float } = state.want else {
            if state.options != Options::default() {
                let what = "`group`, `zero_point` and `outliers` need a `format`, but the format here is keep";
                self.fitter.refuse(state.options_by, &leaf.name, what.to_owned());
            }
            return Action::Keep;
        };
        if !float && (!is_matrix(leaf) || stays_float(leaf.role)) {
            self.stays(leaf, id, state, trace);
            return Action::Keep;
        }
        let fit = self.fitter.fit(leaf, id, &state.options, (n, k), (state.format_by, state.options_by));
        let (spec, note) = match fit {
            Fit::Spec(spec) => (spec, None),
            Fit::Instead(spec, why) => (spec, Some(why)),
            Fit::Keep(why) => {
                trace.push(why);
                return Action::Keep;
            }
            // Reported; the value is not used.
            Fit::Refused => return Action::Keep,
        };
        trace.extend(note);
        let source_id = source.split([':', '+']).next().unwrap_or_default();
        if source == spec.to_string() || (source_id == spec.id && state.options == Options::default()) {
            trace.push(format!("the source is {source} already: kept"));
            return Action::Keep;
        }
        match self.fitter.is_float(source_id) {
            Some(true) => {}
            Some(false) => self.requantized += 1,
            None => {
                let what = format!("its values are {source}, which cannot be encoded; use `format: keep`");
                self.fitter.refuse(state.format_by, &leaf.name, what);
            }
        }
        Action::Encode { spec, method: state.method }
    }

    fn stays(&mut self, leaf: &Leaf, id: &str, state: &State<'_>, trace: &mut Vec<String>) {
        let class = leaf.role.class;
        let rule = state.format_by.and_then(|i| self.recipe.rules.get(i));
        if stays_float(leaf.role) && rule.is_some_and(|r| r.selector.names_class(class)) {
            let what = format!(
                "class {class} has no `format: {id}`: it is tiny and stays in floating point; use keep, bf16, f16 or f32"
            );
            self.fitter.refuse(state.format_by, &leaf.name, what);
        }
        self.stayed += 1;
        let what = match class {
            _ if leaf.shape.len() < 2 => "a vector",
            _ if !is_matrix(leaf) => "what is no matrix",
            Class::Router => "the router",
            _ => "a small matrix",
        };
        trace.push(format!("{what} is never quantized: kept"));
    }

    fn finish(mut self, list: Vec<Choice>, tensors: &[(&Leaf, &str)], extent: Extent) -> Result<Choices, RecipeError> {
        let mut notes = self.recipe.notes().to_vec();
        notes.extend(hints::unused_bounds(self.recipe));
        for (i, (rule, compiled)) in self.recipe.rules.iter().zip(&self.compiled).enumerate() {
            let count = |counts: &[usize]| counts.get(i).copied().unwrap_or_default();
            self.problems.rule = Some(rule.id.clone());
            let unknown = !self.ranks && rule.selector.needs_usage().is_some();
            if count(&self.matched) == 0 && !rule.optional && !unknown {
                // The reason takes a pass over all tensors.
                let tensors = if self.problems.many() { &[] } else { tensors };
                let (at, message, near) = hints::matches_nothing(rule, compiled, tensors, extent);
                self.problems.add_near(at, message, near.as_deref());
            }
            if count(&self.matched) > 0 {
                notes.extend(hints::outside(rule, compiled, extent));
            }
            if count(&self.matched) > 0 && rule.set.format.is_some() && count(&self.decided) == 0 {
                notes.push(format!(
                    "rule `{}` (line {}): other rules decide the format of every tensor it matches",
                    rule.id, rule.at.line
                ));
            }
        }
        self.problems.rule = None;
        notes.extend(self.fitter.finish(&mut self.problems));
        if self.stayed > 0 {
            notes.push(format!(
                "{} vectors and routers stay as they are: quantized formats are for the other matrices",
                self.stayed
            ));
        }
        if self.requantized > 0 {
            notes.push(format!(
                "{} tensors are quantized in the source already and are encoded anew, which adds to their error",
                self.requantized
            ));
        }
        if self.recipe.short && !self.unnamed.is_empty() {
            notes.push(hints::unnamed(&self.unnamed, &self.defaults_line));
        }
        self.problems.finish(Choices { list, notes, validate: self.recipe.validate() })
    }
}

fn bump(counts: &mut [usize], rule: Option<usize>) {
    if let Some(count) = rule.and_then(|i| counts.get_mut(i)) {
        *count += 1;
    }
}

/// Whether a tensor is multiplied as a matrix: or as several of the same shape, one below the other, as some architectures keep
/// the experts of a layer.
fn is_matrix(leaf: &Leaf) -> bool {
    leaf.shape.len() == 2 || leaf.shape.len() == 3 && leaf.role.class == Class::Experts
}

/// n × k of a shape; vectors are one row, matrices of the same shape lie one below the other.
#[must_use]
pub fn extents(shape: &[usize]) -> (usize, usize) {
    match shape {
        [] => (1, 1),
        [rows @ .., k] => (rows.iter().fold(1, |n: usize, d| n.saturating_mul(*d)), *k),
    }
}

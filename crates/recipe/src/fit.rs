//! Whether the wanted format takes a tensor's shape, and what to do where it does not. Problems and notes are gathered
//! per rule and shape, as a model has thousands of tensors alike.

use crate::error::{At, Problems};
use crate::read;
use crate::recipe::Recipe;
use crate::set::Want;
use ashlar_arch::Leaf;
use ashlar_formats::{FormatError, Options, Spec};
use ashlar_tensor::Order;
use std::collections::{BTreeMap, HashMap};

/// What became of a wish.
pub enum Fit {
    /// It fits.
    Spec(Spec),
    /// A fallback is used; the text says why.
    Instead(Spec, String),
    /// The fallback is to keep the tensor.
    Keep(String),
    /// A problem, recorded.
    Refused,
}

/// How often something happened, and the first tensor.
struct Count {
    first: String,
    more: usize,
}

/// Resolves formats for one recipe and one model.
pub struct Fitter<'a> {
    recipe: &'a Recipe,
    /// By rule (`None`: the defaults) and message.
    refused: BTreeMap<(Option<usize>, String), Count>,
    /// By rule and what is used instead.
    instead: BTreeMap<(Option<usize>, String), Count>,
    floats: HashMap<String, Option<bool>>,
}

impl<'a> Fitter<'a> {
    pub fn new(recipe: &'a Recipe) -> Self {
        Self { recipe, refused: BTreeMap::new(), instead: BTreeMap::new(), floats: HashMap::new() }
    }

    /// Whether a format of a source is a plain float; `None` if it is no format at all (an integer tensor).
    pub fn is_float(&mut self, id: &str) -> Option<bool> {
        if let Some(known) = self.floats.get(id) {
            return *known;
        }
        let found = ashlar_formats::ids().find(|known| *known == id);
        let float = found.map(|id| matches!(read::want(id), Want::Format { float: true, .. }));
        let float = float.or_else(|| is_kept_weight(id).then_some(false));
        self.floats.insert(id.to_owned(), float);
        float
    }

    /// The spec for an n × k weight. `by` are the rules that set the format and its options.
    pub fn fit(
        &mut self,
        leaf: &Leaf,
        id: &str,
        options: &Options,
        (n, k): (usize, usize),
        by: (Option<usize>, Option<usize>),
    ) -> Fit {
        let error = match Spec::resolve(id, options, n, k) {
            Ok(spec) => return Fit::Spec(spec),
            Err(error) => error,
        };
        if !matches!(error, FormatError::Shape { .. }) {
            self.refuse(by.1, &leaf.name, error.to_string());
            return Fit::Refused;
        }
        if let Some(fit) = self.fallback(leaf, options, (n, k), by.0, &error) {
            return fit;
        }
        self.refuse(by.0, &leaf.name, format!("{error}; {}", remedy(id, options, n, k)));
        Fit::Refused
    }

    fn fallback(
        &mut self,
        leaf: &Leaf,
        options: &Options,
        (n, k): (usize, usize),
        by: Option<usize>,
        error: &FormatError,
    ) -> Option<Fit> {
        let plain = Options::default();
        let outliers = Options { outliers: options.outliers, ..plain.clone() };
        for want in &self.recipe.fallback {
            let (name, spec) = match want {
                Want::Keep => ("the source's format".to_owned(), None),
                Want::Format { id, .. } => {
                    let fits = |options: &Options| Spec::resolve(id, options, n, k).ok();
                    match fits(&outliers).or_else(|| fits(&plain)) {
                        Some(spec) => (spec.to_string(), Some(spec)),
                        None => continue,
                    }
                }
            };
            let key = (by, format!("{error}; fallback to {name}"));
            count(&mut self.instead, key, &leaf.name);
            let why = format!("fallback: {name}, as {error}");
            return Some(spec.map_or(Fit::Keep(why.clone()), |spec| Fit::Instead(spec, why)));
        }
        None
    }

    /// Records a problem of a tensor.
    pub fn refuse(&mut self, by: Option<usize>, tensor: &str, what: String) {
        count(&mut self.refused, (by, what), tensor);
    }

    /// Reports what was recorded; returns notes about fallbacks.
    pub fn finish(&self, problems: &mut Problems) -> Vec<String> {
        for ((by, what), count) in &self.refused {
            let (id, at) = self.place(*by);
            problems.rule = id;
            problems.add(at, format!("tensor `{}`{}: {what}", count.first, more(count.more)));
        }
        problems.rule = None;
        let note = |((by, what), count): (&(Option<usize>, String), &Count)| {
            let (id, at) = self.place(*by);
            let rule = id.map_or("defaults".to_owned(), |id| format!("rule `{id}`"));
            format!("{rule} (line {}): tensor `{}`{}: {what}", at.line, count.first, more(count.more))
        };
        self.instead.iter().map(note).collect()
    }

    fn place(&self, by: Option<usize>) -> (Option<String>, At) {
        match by.and_then(|i| self.recipe.rules.get(i)) {
            Some(rule) => (Some(rule.id.clone()), rule.at),
            None => (None, self.recipe.defaults_at),
        }
    }
}

fn count(counts: &mut BTreeMap<(Option<usize>, String), Count>, key: (Option<usize>, String), tensor: &str) {
    counts.entry(key).and_modify(|c| c.more += 1).or_insert_with(|| Count { first: tensor.to_owned(), more: 0 });
}

fn more(count: usize) -> String {
    if count == 0 { String::new() } else { format!(" and {count} more") }
}

/// What would take the shape: smaller groups of the same format, other formats.
fn remedy(id: &str, options: &Options, n: usize, k: usize) -> String {
    let fits = |id: &str, options: &Options| Spec::resolve(id, options, n, k).is_ok();
    let variants = ashlar_formats::format(id).map(|f| f.variants()).unwrap_or_default();
    let group =
        variants.iter().map(|v| v.group).find(|group| fits(id, &Options { group: Some(*group), ..options.clone() }));
    let group = group.map(|group| format!("`group: {group}` fits; ")).unwrap_or_default();
    let plain = Options::default();
    let others: Vec<_> = ashlar_formats::ids().filter(|other| *other != id && fits(other, &plain)).collect();
    let wanted = usual_bytes(id, options);
    let nearest = others
        .iter()
        .filter(|other| matches!(read::want(other), Want::Format { float: false, .. }))
        .min_by_key(|other| usual_bytes(other, &plain).abs_diff(wanted));
    match nearest {
        Some(nearest) => format!(
            "{group}{} fit: use one of them, or add `fallback: [{nearest}]` to the recipe, or `format: keep` for this tensor",
            others.join(", ")
        ),
        None => format!(
            "{group}only floating-point formats fit: use `format: keep` for this tensor, or add `fallback: [keep]`"
        ),
    }
}

/// What a weight that every format can take would need, to tell which format comes nearest.
fn usual_bytes(id: &str, options: &Options) -> u64 {
    const SIZE: usize = 4096;
    Spec::resolve(id, options, SIZE, SIZE)
        .and_then(|spec| spec.layout(Order::X16, SIZE, SIZE))
        .map_or(0, |layout| layout.bytes())
}

/// Whether it is a format of weights that recipes cannot ask for, such as a block type of another program.
fn is_kept_weight(id: &str) -> bool {
    let kept = ashlar_formats::kept_ids().find(|kept| *kept == id);
    let grid = kept.and_then(|id| Some(ashlar_formats::format(id).ok()?.grid(&Spec::plain(id))));
    grid.is_some_and(|grid| !matches!(grid, ashlar_formats::Grid::Float(_)))
}

//! A resolved recipe: what was decided, as rules that give exactly the same choices again.

use crate::choices::{Action, Choice, Choices};
use crate::error::Problems;
use crate::range::compress;
use crate::read;
use crate::recipe::Recipe;
use crate::set::Set;
use ashlar_arch::{Class, Leaf, Proj};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

/// Names per rule in the list of exceptions.
const NAMES: usize = 50;

/// The choices as a recipe. Rules go by class, projection, layers and experts; what these cannot express follows by
/// name.
#[must_use]
pub fn emit(choices: &Choices) -> String {
    let mut rules = Rules::default();
    for (class, list) in group(&choices.list, |c| c.leaf.role.class) {
        rules.class(class, &list);
    }
    // Vectors follow rules meant for matrices only in part; comparing with the choices themselves settles every case.
    let exceptions = differing(&rules.text(), choices);
    for (set, list) in group(exceptions.iter().copied(), wish) {
        for part in list.chunks(NAMES) {
            let names: Vec<_> = part.iter().map(|c| quoted(&globset::escape(&c.leaf.name))).collect();
            rules.push(&format!("name: [{}]", names.join(", ")), &set);
        }
    }
    rules.text()
}

/// Choices that the recipe `text` would make differently.
fn differing<'a>(text: &str, choices: &'a Choices) -> Vec<&'a Choice> {
    let tensors: Vec<(&Leaf, &str)> = choices.list.iter().map(|c| (&c.leaf, c.source_format.as_str())).collect();
    let again = Recipe::parse(text, "").and_then(|r| r.decide(&tensors, Problems::new("")));
    match again {
        Ok(again) => choices.list.iter().zip(&again.list).filter(|(a, b)| !same(a, b)).map(|(a, _)| a).collect(),
        Err(_) => choices.list.iter().collect(),
    }
}

/// Whether two choices do the same.
pub fn same(a: &Choice, b: &Choice) -> bool {
    a.leaf == b.leaf && a.action == b.action && a.outliers == b.outliers && a.tier == b.tier && a.device == b.device
}

/// What a rule must set to get this choice.
fn wish(choice: &Choice) -> String {
    let mut set = Set { device: choice.device.clone(), ..Set::default() };
    set.tier = choice.tier.as_deref().and_then(|t| crate::set::TIERS.iter().find(|known| **known == t)).copied();
    match &choice.action {
        Action::Keep => set.format = Some(crate::set::Want::Keep),
        Action::Encode { spec, method } => {
            set.format = Some(read::want(spec.id));
            set.group = Some(spec.group).filter(|g| *g > 0);
            set.zero_point = spec.zero_point.then_some(true);
            set.outliers = choice.outliers;
            set.method = Some(method);
        }
    }
    set.text()
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

fn group<'a, C, K: Ord>(list: impl IntoIterator<Item = &'a C>, key: impl Fn(&C) -> K) -> BTreeMap<K, Vec<&'a C>> {
    let mut groups: BTreeMap<K, Vec<&C>> = BTreeMap::new();
    for item in list {
        groups.entry(key(item)).or_default().push(item);
    }
    groups
}

/// Rules in the making.
#[derive(Default)]
struct Rules {
    lines: Vec<String>,
}

impl Rules {
    fn text(&self) -> String {
        let mut text = "version: 1\ndefaults: {format: keep, method: auto}\nrules:\n".to_owned();
        if self.lines.is_empty() {
            text = text.replace("rules:\n", "rules: []\n");
        }
        for line in &self.lines {
            let _ = writeln!(text, "{line}");
        }
        text
    }

    fn push(&mut self, selector: &str, set: &str) {
        let id = format!("r{}", self.lines.len() + 1);
        self.lines.push(format!("  - {{id: {id}, match: {{{selector}}}, set: {{{set}}}}}"));
    }

    /// One rule for what most matrices of the class get, then what differs, projection by projection.
    fn class(&mut self, class: Class, list: &[&Choice]) {
        let matrices: Vec<&Choice> = list.iter().copied().filter(|c| c.leaf.shape.len() == 2).collect();
        let Some(base) = most(&matrices) else { return };
        if base != "format: keep" {
            self.push(&format!("class: {class}"), &base);
        }
        for (proj, list) in group(matrices.iter().copied(), |c| c.leaf.role.proj) {
            let here = most(&list).unwrap_or_default();
            let proj = proj.map_or(String::new(), |p: Proj| format!(", proj: {p}"));
            if here != base && !proj.is_empty() {
                self.push(&format!("class: {class}{proj}"), &here);
            }
            let usual = if proj.is_empty() { &base } else { &here };
            self.exceptions(&format!("class: {class}{proj}"), usual, &list);
        }
    }

    /// Rules for choices other than `usual`: layers with the same exceptions share one.
    fn exceptions(&mut self, selector: &str, usual: &str, list: &[&Choice]) {
        // (what is set, which experts) → layers
        let mut rules: BTreeMap<(String, Vec<usize>), BTreeSet<usize>> = BTreeMap::new();
        for (layer, list) in group(list.iter().copied(), |c| c.leaf.role.layer) {
            let Some(layer) = layer else { continue };
            let all = list.len();
            for (set, some) in group(list.iter().copied(), wish) {
                if set == usual {
                    continue;
                }
                // No list of experts when it would name all of them.
                let mut experts: Vec<usize> = some.iter().filter_map(|c| c.leaf.role.expert).collect();
                experts.sort_unstable();
                if some.len() == all {
                    experts.clear();
                }
                rules.entry((set, experts)).or_default().insert(layer);
            }
        }
        for ((set, experts), layers) in rules {
            let layers = compress(&layers.into_iter().collect::<Vec<_>>());
            let experts =
                if experts.is_empty() { String::new() } else { format!(", experts: \"{}\"", compress(&experts)) };
            self.push(&format!("{selector}, layers: \"{layers}\"{experts}"), &set);
        }
    }
}

/// The most frequent wish.
fn most(list: &[&Choice]) -> Option<String> {
    let groups = group(list.iter().copied(), wish);
    groups.into_iter().max_by_key(|(_, list)| list.len()).map(|(set, _)| set)
}

//! A resolved recipe: what was decided, as rules that give exactly the same choices again.

use crate::choices::{Action, Choice, Choices};
use crate::error::Problems;
use crate::range::compress;
use crate::read;
use crate::recipe::{Recipe, Validate};
use crate::set::{AUTO, Set, TIERS, Want};
use ashlar_arch::{Class, Leaf, Proj};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

/// Names per rule in the list of exceptions.
const NAMES: usize = 50;

/// The choices as a recipe. Rules go by class, projection, layers and experts; what these cannot express follows by
/// name.
#[must_use]
pub fn emit(choices: &Choices) -> String {
    let mut rules = Rules::new(&choices.list);
    for (class, list) in group(&choices.list, |c| c.leaf.role.class) {
        rules.class(class, &list);
    }
    // Vectors follow rules meant for matrices only in part; comparing with the choices themselves settles every case.
    let exceptions = differing(&rules.text(), choices);
    for (set, list) in group(exceptions, |c| rules.wish(c)) {
        for part in list.chunks(NAMES) {
            let names: Vec<_> = part.iter().map(|c| quoted(&globset::escape(&c.leaf.name))).collect();
            rules.push(&format!("name: [{}]", names.join(", ")), &set);
        }
    }
    rules.text() + &validate(choices.validate)
}

/// Quality gates; empty where there are none.
fn validate(gates: Validate) -> String {
    let all = [("kld_mean", gates.kld_mean), ("kld_p999", gates.kld_p999), ("top1", gates.top1)];
    let set: Vec<String> = all.iter().filter_map(|(key, v)| v.map(|v| format!("{key}: {v}"))).collect();
    if set.is_empty() { String::new() } else { format!("validate: {{{}}}\n", set.join(", ")) }
}

/// Choices that the recipe `text` would make differently.
fn differing<'a>(text: &str, choices: &'a Choices) -> Vec<&'a Choice> {
    let tensors: Vec<(&Leaf, &str)> = choices.list.iter().map(|c| (&c.leaf, c.source_format.as_str())).collect();
    let again = Recipe::parse(text, "").and_then(|r| r.decide(&tensors, None, Problems::new("")));
    match again {
        Ok(again) => choices.list.iter().zip(&again.list).filter(|(a, b)| !same(a, b)).map(|(a, _)| a).collect(),
        Err(_) => choices.list.iter().collect(),
    }
}

/// Whether two choices do the same.
pub fn same(a: &Choice, b: &Choice) -> bool {
    a.leaf == b.leaf && a.action == b.action && a.outliers == b.outliers && a.tier == b.tier && a.device == b.device
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
struct Rules {
    lines: Vec<String>,
    /// Which settings any tensor has: every rule then names them, as later rules must undo earlier ones.
    used: Used,
}

/// Whether any tensor has a tier, a device, zero points, outliers.
struct Used {
    tier: bool,
    device: bool,
    zero_point: bool,
    outliers: bool,
}

impl Rules {
    fn new(list: &[Choice]) -> Self {
        let zero_point = |c: &Choice| matches!(&c.action, Action::Encode { spec, .. } if spec.zero_point);
        let used = Used {
            tier: list.iter().any(|c| c.tier.is_some()),
            device: list.iter().any(|c| c.device.is_some()),
            zero_point: list.iter().any(zero_point),
            outliers: list.iter().any(|c| c.outliers.is_some()),
        };
        Self { lines: Vec::new(), used }
    }

    fn text(&self) -> String {
        let mut text = "version: 1\ndefaults: {format: keep, method: auto}\n".to_owned();
        text.push_str(if self.lines.is_empty() { "rules: []\n" } else { "rules:\n" });
        for line in &self.lines {
            let _ = writeln!(text, "{line}");
        }
        text
    }

    fn push(&mut self, selector: &str, set: &str) {
        let id = format!("r{}", self.lines.len() + 1);
        self.lines.push(format!("  - {{id: {id}, match: {{{selector}}}, set: {{{set}}}}}"));
    }

    /// What a rule must set to get this choice.
    fn wish(&self, choice: &Choice) -> String {
        let mut set = self.placed(choice.tier.as_deref(), choice.device.as_deref());
        if let Action::Encode { spec, method } = &choice.action {
            set.format = Some(read::want(spec.id));
            set.group = Some(spec.group).filter(|g| *g > 0);
            set.zero_point = self.used.zero_point.then_some(spec.zero_point);
            set.outliers = self.used.outliers.then_some(choice.outliers);
            set.method = Some(method);
        }
        set.text()
    }

    /// Whether the defaults already give `wish`.
    fn is_default(&self, wish: &str) -> bool {
        self.placed(None, None).text() == wish
    }

    fn placed(&self, tier: Option<&str>, device: Option<&str>) -> Set {
        let (tier, device) = (tier.unwrap_or(AUTO), device.unwrap_or(AUTO));
        Set {
            format: Some(Want::Keep),
            tier: TIERS.iter().find(|known| self.used.tier && **known == tier).copied(),
            device: self.used.device.then(|| device.to_owned()),
            ..Set::default()
        }
    }

    /// The most frequent wish; `usual` where it is as frequent as any other.
    fn most(&self, list: &[&Choice], usual: &str) -> Option<String> {
        let groups = group(list.iter().copied(), |c| self.wish(c));
        groups.into_iter().max_by_key(|(set, list)| (list.len(), set == usual)).map(|(set, _)| set)
    }

    /// One rule for what most matrices of the class get (vectors, where it has only these), then what differs,
    /// projection by projection.
    fn class(&mut self, class: Class, list: &[&Choice]) {
        let mut matrices: Vec<&Choice> = list.iter().copied().filter(|c| c.leaf.shape.len() == 2).collect();
        if matrices.is_empty() {
            matrices = list.to_vec();
        }
        let Some(base) = self.most(&matrices, "") else { return };
        if !self.is_default(&base) {
            self.push(&format!("class: {class}"), &base);
        }
        for (proj, list) in group(matrices.iter().copied(), |c| c.leaf.role.proj) {
            let here = self.most(&list, &base).unwrap_or_default();
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
            for (set, some) in group(list.iter().copied(), |c| self.wish(c)) {
                if set == usual {
                    continue;
                }
                let mut experts: Vec<usize> = some.iter().filter_map(|c| c.leaf.role.expert).collect();
                experts.sort_unstable();
                // A list that names all of them says nothing.
                if some.len() == list.len() {
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

//! Messages about rules as a whole: why one matches nothing, where a range reaches outside the model.

use crate::error::At;
use crate::range;
use crate::recipe::{Recipe, Rule};
use crate::selector::{Compiled, CompiledKey, Extent, Test};
use ashlar_arch::{Class, Leaf, nearest};
use std::collections::BTreeSet;

/// Place, message and suggestion for a rule that matches no tensor: names the key that alone matches nothing, if there
/// is one. Without tensors it says no more than that.
pub fn matches_nothing(
    rule: &Rule,
    compiled: &Compiled<'_>,
    tensors: &[(&Leaf, &str)],
    extent: Extent,
) -> (At, String, Option<String>) {
    if tensors.is_empty() {
        return (rule.at, "matches no tensor".to_owned(), None);
    }
    let empty = |key: &&CompiledKey<'_>| !tensors.iter().any(|(leaf, _)| key.matches(leaf));
    let Some(key) = compiled.keys.iter().find(empty) else {
        let all: Vec<_> = compiled.keys.iter().map(|k| format!("`{}`", k.key.text)).collect();
        let message =
            format!("matches no tensor: none has {} together; `optional: true` allows that", all.join(" and "));
        return (rule.at, message, None);
    };
    let has = match &key.key.test {
        Test::Class(_) => {
            let classes: BTreeSet<Class> = tensors.iter().map(|(leaf, _)| leaf.role.class).collect();
            let names: Vec<_> = classes.into_iter().map(Class::name).collect();
            format!("; this model has {}", names.join(", "))
        }
        Test::Layers(_) => format!("; this model has {}", numbered("layers", extent.layers)),
        Test::Experts(..) => format!("; this model has {}", numbered("experts", extent.experts)),
        _ => String::new(),
    };
    let near = match &key.key.test {
        Test::Name(_, written) => {
            written.iter().find_map(|name| nearest(name, tensors.iter().map(|(l, _)| l.name.as_str())))
        }
        _ => None,
    };
    let message = format!("matches no tensor: `{}`{has}; `optional: true` allows that", key.key.text);
    (key.key.at, message, near.map(str::to_owned))
}

/// A note if a range of the rule is not wholly inside the model.
pub fn outside(rule: &Rule, compiled: &Compiled<'_>, extent: Extent) -> Option<String> {
    let one = |key: &CompiledKey<'_>| {
        let (what, count) = match &key.key.test {
            Test::Layers(_) => ("layers", extent.layers),
            Test::Experts(..) => ("experts", extent.experts),
            _ => return None,
        };
        let ranges: Vec<_> = key.spans.outside.iter().map(range::Range::to_string).collect();
        (!ranges.is_empty()).then(|| format!("{what} {} (this model has {})", ranges.join(","), numbered(what, count)))
    };
    let found: Vec<_> = compiled.keys.iter().filter_map(one).collect();
    (!found.is_empty())
        .then(|| format!("rule `{}` (line {}) reaches outside the model: {}", rule.id, rule.at.line, found.join(", ")))
}

fn numbered(what: &str, count: usize) -> String {
    match count {
        0 => format!("no {what}"),
        _ => format!("{what} 0-{}", count - 1),
    }
}

/// A note about tensors that no rule names.
pub fn unnamed(names: &[&str], defaults: &str) -> String {
    let shown = names.iter().take(4).copied().collect::<Vec<_>>().join(", ");
    let rest = if names.len() > 4 { ", …" } else { "" };
    format!("{} tensors are named by no rule ({defaults}, device: auto): {shown}{rest}", names.len())
}

/// A note about rules that bound a budget where there is none.
pub fn unused_bounds(recipe: &Recipe) -> Option<String> {
    let bounded = |r: &&Rule| !r.set.allow.is_empty() || r.set.min_format.is_some();
    let ids: Vec<_> = recipe.rules.iter().filter(bounded).map(|r| format!("`{}`", r.id)).collect();
    (recipe.budget.is_none() && !ids.is_empty()).then(|| {
        format!(
            "`allow` and `min_format` (rules {}) bound what a budget chooses; without one (`budget`, --target-size, \
             --target-bpw) the formats of the rules hold",
            ids.join(", ")
        )
    })
}

//! `experts: {top: 25%}`: experts by how often the router chose them.

use crate::read;
use crate::tree::{Node, Value};
use crate::{error::Problems, tree::Key};
use std::fmt;

/// How often the experts of a model are used; statistics of a calibration know it.
pub trait ExpertUsage {
    /// Tokens per expert of a layer, or `None` where nothing is known of it.
    fn tokens(&self, layer: usize) -> Option<Vec<f64>>;
}

/// The most or least used experts of every layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ranked {
    /// The most used ones; else the least used.
    pub top: bool,
    pub count: Count,
}

/// How many experts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Count {
    /// A share of a layer's experts, 0 to 1; at least one.
    Share(f64),
    /// So many, or all.
    Number(usize),
}

impl fmt::Display for Ranked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let which = if self.top { "top" } else { "bottom" };
        match self.count {
            Count::Share(share) => write!(f, "{which}: {}%", share * 100.0),
            Count::Number(number) => write!(f, "{which}: {number}"),
        }
    }
}

impl Ranked {
    /// Whether each expert is among them. Experts used equally often rank by their number.
    pub fn mask(self, tokens: &[f64]) -> Vec<bool> {
        let count = match self.count {
            Count::Share(share) => ((share * tokens.len() as f64).round() as usize).max(1),
            Count::Number(number) => number,
        };
        let mut order: Vec<(usize, f64)> = tokens.iter().copied().enumerate().collect();
        order.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        if !self.top {
            order.reverse();
        }
        let mut mask = vec![false; tokens.len()];
        for (expert, _) in order.into_iter().take(count) {
            if let Some(chosen) = mask.get_mut(expert) {
                *chosen = true;
            }
        }
        mask
    }
}

/// Reads `{top: 25%}` or `{bottom: 4}`; `None` if `node` is no map.
pub fn read(node: &Node, problems: &mut Problems) -> Option<Vec<Ranked>> {
    let Value::Map(entries) = &node.value else { return None };
    let known = read::map(node, "`experts`", &["top", "bottom"], problems);
    if entries.is_empty() {
        problems
            .add(node.at, "`experts` is empty; write `{top: 25%}` or `{bottom: 25%}`, or numbers such as \"0-7,31\"");
    }
    Some(known.iter().filter_map(|(key, value)| one(key, value, problems)).collect())
}

fn one(key: &Key, value: &Node, problems: &mut Problems) -> Option<Ranked> {
    let top = match key.name.as_str() {
        "top" => true,
        "bottom" => false,
        _ => return None,
    };
    let count = match &value.value {
        Value::Int(n @ 1..=1_000_000) => usize::try_from(*n).ok().map(Count::Number),
        Value::Text(text) => {
            let share = text.strip_suffix('%').and_then(|t| t.trim().parse::<f64>().ok());
            share.filter(|p| *p > 0.0 && *p <= 100.0).map(|p| Count::Share(p / 100.0))
        }
        _ => None,
    };
    if count.is_none() {
        let what =
            format!("`{}` is {}; expected a share of the experts such as 25%, or how many", key.name, value.show());
        problems.add(value.at, what);
    }
    count.map(|count| Ranked { top, count })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(ranked: Ranked, tokens: &[f64]) -> Vec<usize> {
        ranked.mask(tokens).iter().enumerate().filter(|(_, c)| **c).map(|(i, _)| i).collect()
    }

    #[test]
    fn shares_and_numbers_pick_the_most_or_least_used() {
        let tokens = [5.0, 1.0, 9.0, 5.0, 0.0, 2.0, 7.0, 3.0];
        let of = |top, count| chosen(Ranked { top, count }, &tokens);
        assert_eq!(of(true, Count::Share(0.25)), [2, 6]);
        assert_eq!(of(false, Count::Share(0.25)), [1, 4]);
        assert_eq!(of(true, Count::Number(3)), [0, 2, 6], "equals rank by number");
        assert_eq!(of(true, Count::Share(0.001)), [2], "at least one");
        assert_eq!(of(false, Count::Number(99)).len(), 8);
        assert!(chosen(Ranked { top: true, count: Count::Number(1) }, &[]).is_empty());
    }
}

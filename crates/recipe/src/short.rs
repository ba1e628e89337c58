//! The short form that other tools use: `optimization_rules: [{match: "model.layers.0-15", device: …, precision: int4}]`.

use crate::error::Problems;
use crate::read;
use crate::recipe::Rule;
use crate::schema::{device, rule_list};
use crate::selector::{Key, Segment, Selector, Test};
use crate::set::Set;
use crate::tree::Node;

/// Words for precision, and our formats.
const PRECISIONS: &[(&str, &str)] =
    &[("int4", "i4"), ("int8", "q8"), ("fp8", "fp8"), ("nf4", "nf4"), ("fp16", "f16"), ("bf16", "bf16")];

/// The rules of the short form.
pub fn rules(node: &Node, problems: &mut Problems) -> Vec<Rule> {
    let list = rule_list(node, "optimization_rules", problems).unwrap_or_default();
    let mut rules = Vec::new();
    for (i, item) in list.iter().enumerate() {
        let id = format!("#{}", i + 1);
        problems.rule = Some(id.clone());
        let entries = read::map(item, "a rule", &["match", "device", "precision"], problems);
        let Some(prefix) = read::get(entries, "match") else {
            problems.add(item.at, "`match` is missing; it is a dotted prefix such as \"model.layers.0-15\"");
            continue;
        };
        let mut set = Set::default();
        if let Some(node) = read::get(entries, "device") {
            set.device = device(node, problems);
        }
        if let Some(node) = read::get(entries, "precision") {
            set.format = precision(node, problems);
        }
        if entries.len() == 1 {
            problems.add(item.at, "the rule changes nothing; give `precision`, `device` or both");
        }
        if let Some(selector) = selector(prefix, problems) {
            rules.push(Rule { id, at: item.at, selector, set, optional: false });
        }
    }
    problems.rule = None;
    rules
}

fn precision(node: &Node, problems: &mut Problems) -> Option<crate::set::Want> {
    let words: Vec<_> = PRECISIONS.iter().map(|(word, _)| *word).collect();
    let word = read::one_of(node, "precision", &words, problems)?;
    let format = PRECISIONS.iter().find(|(w, _)| *w == word)?.1;
    if ashlar_formats::format(format).is_err() {
        problems.add(node.at, format!("format `{format}` is not in this version yet"));
        return None;
    }
    Some(read::want(format))
}

fn selector(node: &Node, problems: &mut Problems) -> Option<Selector> {
    let text = read::text(node, "match", problems)?;
    let mut segments = Vec::new();
    for part in text.split('.') {
        match segment(part) {
            Ok(segment) => segments.push(segment),
            Err(what) => problems.add(node.at, format!("`match`: {what}")),
        }
    }
    let text = format!("match: {}", node.show().replace('`', ""));
    Some(Selector { keys: vec![Key { at: node.at, text, test: Test::Prefix(segments) }] })
}

/// `0-15` is a range of numbers, anything else with a dash a word.
fn segment(part: &str) -> Result<Segment, String> {
    if part.is_empty() {
        return Err("an empty part between dots".to_owned());
    }
    if part == "*" {
        return Ok(Segment::Any);
    }
    match part.split_once('-').map(|(a, b)| (a.parse::<usize>(), b.parse::<usize>())) {
        Some((Ok(first), Ok(last))) if first <= last => Ok(Segment::Numbers(first, last)),
        Some((Ok(_), Ok(_))) => Err(format!("`{part}` runs backwards; ranges are inclusive, first to last")),
        _ => Ok(Segment::Word(part.to_owned())),
    }
}

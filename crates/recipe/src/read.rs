//! Typed access to the tree: every mismatch becomes a problem with its line, and reading goes on.

use crate::error::{At, Problems};
use crate::set::Want;
use crate::tree::{Key, Node, Value};
use ashlar_arch::nearest;
use ashlar_formats::{Options, Spec};
use ashlar_tensor::{Order, PlaneKind};

/// The entries of a map. Keys outside `known` are problems.
pub fn map<'n>(node: &'n Node, what: &str, known: &[&str], problems: &mut Problems) -> &'n [(Key, Node)] {
    let Value::Map(entries) = &node.value else {
        problems.add(node.at, format!("{what} is {}; expected a map with the keys {}", node.show(), known.join(", ")));
        return &[];
    };
    for (key, _) in entries.iter().filter(|(key, _)| !known.contains(&key.name.as_str())) {
        let name: String = key.name.chars().take(80).collect();
        let hint = (!problems.many()).then(|| nearest(&key.name, known.iter().copied())).flatten();
        let message = match hint {
            Some(_) => format!("{what} has no key `{name}`"),
            None => format!("{what} has no key `{name}`; there are {}", known.join(", ")),
        };
        problems.add_near(key.at, message, hint);
    }
    entries
}

/// The value under `name`.
pub fn get<'n>(entries: &'n [(Key, Node)], name: &str) -> Option<&'n Node> {
    entries.iter().find(|(key, _)| key.name == name).map(|(_, node)| node)
}

/// A list's items, or the one value as a list of itself.
pub fn items(node: &Node) -> &[Node] {
    match &node.value {
        Value::List(list) => list,
        _ => std::slice::from_ref(node),
    }
}

/// A word. Numbers are taken as they are written.
pub fn text(node: &Node, what: &str, problems: &mut Problems) -> Option<String> {
    match &node.value {
        Value::Text(text) if !text.is_empty() => Some(text.clone()),
        Value::Int(number) => Some(number.to_string()),
        _ => {
            problems.add(node.at, format!("`{what}` is {}; expected text", node.show()));
            None
        }
    }
}

/// Words: one, or a list of them.
pub fn texts(node: &Node, what: &str, problems: &mut Problems) -> Vec<(At, String)> {
    if items(node).is_empty() {
        problems.add(node.at, format!("`{what}` is an empty list"));
    }
    items(node).iter().filter_map(|item| Some((item.at, text(item, what, problems)?))).collect()
}

/// true or false.
pub fn boolean(node: &Node, what: &str, problems: &mut Problems) -> Option<bool> {
    let Value::Bool(value) = node.value else {
        problems.add(node.at, format!("`{what}` is {}; expected true or false", node.show()));
        return None;
    };
    Some(value)
}

/// A finite number: `0.005`, or `0.5%`.
pub fn number(node: &Node, what: &str, problems: &mut Problems) -> Option<f64> {
    let value = match &node.value {
        Value::Int(v) => Some(*v as f64),
        Value::Float(v) => Some(*v),
        Value::Text(t) => t.strip_suffix('%').and_then(|t| t.trim().parse::<f64>().ok()).map(|v| v / 100.0),
        _ => None,
    };
    let value = value.filter(|v| v.is_finite());
    if value.is_none() {
        problems.add(node.at, format!("`{what}` is {}; expected a number or a percentage", node.show()));
    }
    value
}

/// One of `known`, with the nearest as a suggestion.
pub fn one_of(node: &Node, what: &str, known: &[&'static str], problems: &mut Problems) -> Option<&'static str> {
    let name = text(node, what, problems)?;
    let found = known.iter().find(|k| **k == name).copied();
    if found.is_none() {
        no_such(node.at, what, &name, known, problems);
    }
    found
}

/// A problem: there is no such name.
pub fn no_such(at: At, what: &str, name: &str, known: &[&str], problems: &mut Problems) {
    let name: String = name.chars().take(80).collect();
    let message = format!("there is no {what} `{name}`; there are {}", known.join(", "));
    let hint = (!problems.many()).then(|| nearest(&name, known.iter().copied())).flatten();
    problems.add_near(at, message, hint);
}

/// A format by id, or `keep` where that makes sense.
pub fn format(node: &Node, what: &str, keep: bool, problems: &mut Problems) -> Option<Want> {
    let mut known: Vec<&'static str> = ashlar_formats::ids().collect();
    if keep {
        known.push(Want::Keep.name());
    }
    let id = one_of(node, what, &known, problems)?;
    Some(want(id))
}

/// The want of a name from the registry, or of `keep`.
pub fn want(id: &'static str) -> Want {
    if id == Want::Keep.name() {
        return Want::Keep;
    }
    let layout = Spec::resolve(id, &Options::default(), 1, 1).and_then(|spec| spec.layout(Order::Rows, 1, 1));
    let float = layout.is_ok_and(|l| l.planes.iter().all(|p| p.kind == PlaneKind::Values));
    Want::Format { id, float }
}

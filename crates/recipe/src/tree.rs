//! YAML as a tree that remembers where each key and value stands, so that every problem names its line and all
//! problems can be reported at once. Bounded: size, nesting, aliases.

use crate::error::At;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;
use std::fmt;

/// Largest recipe, in bytes. A resolved recipe that names every expert of a 61-layer model apart has about 1 MB.
pub const MAX_BYTES: usize = 4 << 20;

/// A value with its place.
#[derive(Clone, Debug)]
pub struct Node {
    pub at: At,
    pub value: Value,
}

/// What a node holds.
#[derive(Clone, Debug)]
pub enum Value {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

/// A key with its place.
#[derive(Clone, Debug)]
pub struct Key {
    pub at: At,
    pub name: String,
}

impl Node {
    /// The value for messages, shortened.
    pub fn show(&self) -> String {
        match &self.value {
            Value::Null => "nothing".to_owned(),
            Value::Bool(v) => v.to_string(),
            Value::Int(v) => v.to_string(),
            Value::Float(v) => v.to_string(),
            Value::Text(v) => format!("`{}`", v.chars().take(80).collect::<String>()),
            Value::List(v) => format!("a list of {}", v.len()),
            Value::Map(v) => format!("a map of {} keys", v.len()),
        }
    }
}

/// Reads one YAML document.
pub fn parse(text: &str) -> Result<Node, (At, String)> {
    if text.len() > MAX_BYTES {
        return Err((At { line: 1, column: 1 }, format!("{} bytes; a recipe may have {MAX_BYTES}", text.len())));
    }
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: 16,
            flow_nesting_limit: 16,
            max_documents: 1,
            max_nodes: 500_000,
            max_events: 1_500_000,
            max_aliases: 1000,
            max_anchors: 1000,
            max_recorded_anchor_events: 100_000,
            max_merge_keys: 1000,
            max_total_scalar_bytes: MAX_BYTES,
        },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: 100_000 },
        strict_booleans: true,
        with_snippet: false,
    };
    match serde_saphyr::from_str_with_options::<Spanned<Value>>(text, options) {
        Ok(root) => Ok(node(root)),
        Err(e) => {
            let at = e.location().map_or(At { line: 1, column: 1 }, at);
            let what = e.without_snippet().to_string();
            // The library appends the place, which our messages begin with.
            let what = what.lines().next().unwrap_or_default().split(" at line ").next().unwrap_or_default().to_owned();
            Err((at, what))
        }
    }
}

fn at(location: serde_saphyr::Location) -> At {
    At { line: location.line() as usize, column: location.column() as usize }
}

fn node(spanned: Spanned<Value>) -> Node {
    Node { at: at(spanned.referenced), value: spanned.value }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyValue)
    }
}

struct AnyValue;

impl<'de> Visitor<'de> for AnyValue {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_bool<E: Error>(self, v: bool) -> Result<Value, E> {
        Ok(Value::Bool(v))
    }

    fn visit_i64<E: Error>(self, v: i64) -> Result<Value, E> {
        Ok(Value::Int(v))
    }

    fn visit_u64<E: Error>(self, v: u64) -> Result<Value, E> {
        Ok(i64::try_from(v).map_or_else(|_| Value::Text(v.to_string()), Value::Int))
    }

    fn visit_i128<E: Error>(self, v: i128) -> Result<Value, E> {
        Ok(Value::Text(v.to_string()))
    }

    fn visit_u128<E: Error>(self, v: u128) -> Result<Value, E> {
        Ok(Value::Text(v.to_string()))
    }

    fn visit_f64<E: Error>(self, v: f64) -> Result<Value, E> {
        Ok(Value::Float(v))
    }

    fn visit_str<E: Error>(self, v: &str) -> Result<Value, E> {
        Ok(Value::Text(v.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = seq.next_element::<Spanned<Value>>()? {
            list.push(node(item));
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some((key, value)) = map.next_entry::<Spanned<String>, Spanned<Value>>()? {
            entries.push((Key { at: at(key.referenced), name: key.value }, node(value)));
        }
        Ok(Value::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(node: &Node) -> &[(Key, Node)] {
        match &node.value {
            Value::Map(entries) => entries,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn keys_and_values_know_their_line() {
        let root = parse("version: 1\nrules:\n  - {id: a, layers: 0-2,\n     proj: [q, no]}\n").unwrap();
        let (key, rules) = &map(&root)[1];
        assert_eq!((key.name.as_str(), key.at), ("rules", At { line: 2, column: 1 }));
        let Value::List(rules) = &rules.value else { panic!() };
        let rule = map(&rules[0]);
        assert_eq!(rule[1].0.at, At { line: 3, column: 13 });
        assert!(matches!(&rule[1].1.value, Value::Text(t) if t == "0-2"));
        assert_eq!(rule[2].1.at, At { line: 4, column: 12 });
        let Value::List(projs) = &rule[2].1.value else { panic!() };
        assert!(matches!(&projs[1].value, Value::Text(t) if t == "no"));
        assert_eq!(projs[1].at.line, 4);
    }

    #[test]
    fn scalars_keep_their_kind() {
        let root = parse("[1, -2, 0.5, true, null, ~, '1', a, 99999999999999999999]").unwrap();
        let Value::List(list) = root.value else { panic!() };
        let shown: Vec<_> = list.iter().map(Node::show).collect();
        assert_eq!(shown[..8], ["1", "-2", "0.5", "true", "nothing", "nothing", "`1`", "`a`"]);
    }

    #[test]
    fn duplicate_keys_and_bad_yaml_are_refused_with_their_line() {
        let (at, what) = parse("version: 1\nversion: 1\n").unwrap_err();
        assert_eq!(at.line, 2);
        assert!(what.contains("duplicate"), "{what}");
        let (at, what) = parse("version: 1\nrules: [\n").unwrap_err();
        assert!(at.line >= 2 && !what.is_empty(), "{at:?} {what}");
    }

    #[test]
    fn alias_bombs_deep_nesting_and_huge_files_are_refused() {
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for i in 1..9 {
            let refs = vec![format!("*a{}", i - 1); 10].join(", ");
            bomb.push_str(&format!("a{i}: &a{i} [{refs}]\n"));
        }
        assert!(parse(&bomb).is_err());
        assert!(parse(&"[".repeat(100_000)).is_err());
        assert!(parse(&"- ".repeat(100_000)).is_err());
        assert!(parse(&"x".repeat(MAX_BYTES + 1)).is_err());
        assert!(parse(&"a: 1\n---\n".repeat(3)).is_err());
    }
}

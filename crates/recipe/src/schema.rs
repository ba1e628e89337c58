//! The keys of a recipe (DESIGN §6): `version`, `defaults`, `rules`, `fallback`, `budget`, `validate`, or the short
//! form's `optimization_rules`; of placements `hardware`, `resolved` and `measured`.

use crate::budget;
use crate::device;
use crate::error::{At, Problems};
use crate::hardware;
use crate::measured;
use crate::range::{self, Range};
use crate::read;
use crate::recipe::{Parts, Rule, Validate};
use crate::selector::{Key, Selector, Test};
use crate::set::{AUTO, METHODS, NONE, Set, TIERS, Want};
use crate::short;
use crate::tree::{Node, Value};
use crate::usage;
use ashlar_arch::{Class, Proj};
use ashlar_formats::OutlierRule;
use globset::{GlobBuilder, GlobSetBuilder};
use regex::bytes::RegexBuilder;
use std::collections::HashMap;

/// More rules than any recipe needs; a resolved one has about a thousand.
pub const MAX_RULES: usize = 10_000;
/// Longest glob or regex.
const MAX_PATTERN: usize = 500;
/// Regular expressions in one recipe: each runs on every name.
const MAX_REGEXES: usize = 200;
/// Bound of a compiled regex, in bytes.
const REGEX_BYTES: usize = 64 << 10;
/// Outlier slots where a recipe names none: 0.16 bits per weight.
const DEFAULT_SHARE: f64 = 0.005;

const TOP: &[&str] = &[
    "version",
    "defaults",
    "rules",
    "fallback",
    "validate",
    "budget",
    "optimization_rules",
    "hardware",
    "resolved",
    "measured",
];
/// Keys of the vocabulary that later versions will read.
const LATER: &[&str] = &["expert_cache", "kv", "prefill", "calibration"];
const RULE: &[&str] = &["id", "match", "set", "optional"];
const MATCH: &[&str] = &["class", "proj", "layers", "experts", "name", "regex"];
const SET: &[&str] =
    &["format", "group", "zero_point", "outliers", "method", "allow", "min_format", "final", "tier", "device"];

/// Reads the whole file.
pub fn read(root: &Node, problems: &mut Problems) -> Parts {
    let mut known = TOP.to_vec();
    known.extend(LATER);
    let top = read::map(root, "the recipe", &known, problems);
    for (key, _) in top.iter().filter(|(key, _)| LATER.contains(&key.name.as_str())) {
        problems.add(key.at, format!("`{}` is not in this version yet; leave it out", key.name));
    }
    let mut parts = Parts { defaults_at: root.at, ..Parts::default() };
    let short_form = read::get(top, "optimization_rules");
    version(read::get(top, "version"), root.at, short_form.is_some(), problems);
    if let Some(node) = read::get(top, "defaults") {
        parts.defaults_at = node.at;
        parts.defaults = set(node, "defaults", problems);
        if parts.defaults.is_final {
            problems.add(node.at, "`final` makes no sense in defaults");
        }
    }
    for item in read::get(top, "fallback").map(read::items).unwrap_or_default() {
        parts.fallback.extend(read::format(item, "format", true, problems));
    }
    match (read::get(top, "rules"), short_form) {
        (Some(_), Some(node)) => problems.add(node.at, "`rules` and `optimization_rules` exclude each other; use one"),
        (Some(node), None) => parts.rules = rules(node, problems),
        (None, Some(node)) => {
            parts.short = true;
            parts.rules = short::rules(node, problems);
        }
        (None, None) => {}
    }
    if let Some(node) = read::get(top, "validate") {
        parts.validate = validate(node, problems);
    }
    parts.hardware = read::get(top, "hardware").map(|node| hardware::read(node, problems));
    parts.resolved = read::get(top, "resolved").map(|node| hardware::resolved(node, problems));
    parts.measured = read::get(top, "measured").map(|node| measured::read(node, problems));
    parts.budget = read::get(top, "budget").and_then(|node| budget::read(node, &parts.rules, problems));
    parts
}

fn version(node: Option<&Node>, root: At, short_form: bool, problems: &mut Problems) {
    match node.map(|n| (n.at, &n.value)) {
        Some((_, Value::Int(1))) => {}
        Some((at, _)) => {
            let got = node.map(Node::show).unwrap_or_default();
            problems.add(at, format!("`version` is {got}; this program reads version 1"));
        }
        // Other tools' files have none.
        None if short_form => {}
        None => problems.add(root, "`version: 1` is missing"),
    }
}

fn validate(node: &Node, problems: &mut Problems) -> Validate {
    let entries = read::map(node, "`validate`", &["kld_mean", "kld_p999", "top1"], problems);
    let mut threshold = |name: &str, most: f64| {
        let node = read::get(entries, name)?;
        let value = read::number(node, name, problems)?;
        if !(0.0..=most).contains(&value) {
            problems.add(node.at, format!("`{name}` is {value}; expected a number from 0 to {most}"));
        }
        Some(value)
    };
    Validate {
        kld_mean: threshold("kld_mean", 1e3),
        kld_p999: threshold("kld_p999", 1e3),
        top1: threshold("top1", 1.0),
    }
}

fn rules(node: &Node, problems: &mut Problems) -> Vec<Rule> {
    let Some(list) = rule_list(node, "rules", problems) else { return Vec::new() };
    let mut ids: HashMap<String, usize> = HashMap::new();
    let (mut rules, mut regexes) = (Vec::new(), 0);
    for (i, item) in list.iter().enumerate() {
        problems.rule = None;
        let entries = read::map(item, "a rule", RULE, problems);
        let id = read::get(entries, "id").and_then(|n| read::text(n, "id", problems));
        let id: String = id.unwrap_or_else(|| format!("#{}", i + 1)).chars().take(100).collect();
        problems.rule = Some(id.clone());
        if let Some(line) = ids.insert(id.clone(), item.at.line) {
            problems.add(item.at, format!("another rule has this id (line {line})"));
        }
        let selector = match read::get(entries, "match") {
            Some(node) => selector(node, problems),
            None => {
                problems.add(item.at, "`match` is missing; `match: {name: \"*\"}` matches every tensor");
                Selector::default()
            }
        };
        let set = match read::get(entries, "set") {
            Some(node) => set(node, "`set`", problems),
            None => {
                problems.add(item.at, "`set` is missing; it says what the rule changes, such as `set: {format: q8}`");
                Set::default()
            }
        };
        let optional = read::get(entries, "optional").and_then(|n| read::boolean(n, "optional", problems));
        regexes +=
            selector.keys.iter().map(|k| if let Test::Regex(list) = &k.test { list.len() } else { 0 }).sum::<usize>();
        rules.push(Rule { id, at: item.at, selector, set, optional: optional.unwrap_or(false) });
    }
    if regexes > MAX_REGEXES {
        problems.add(node.at, format!("{regexes} regular expressions; a recipe may have {MAX_REGEXES}"));
    }
    problems.rule = None;
    rules
}

/// The items of a list of rules.
pub fn rule_list<'n>(node: &'n Node, what: &str, problems: &mut Problems) -> Option<&'n [Node]> {
    match &node.value {
        Value::List(list) if list.len() <= MAX_RULES => return Some(list),
        Value::List(list) => problems.add(node.at, format!("{} rules; a recipe may have {MAX_RULES}", list.len())),
        Value::Null => return Some(&[]),
        _ => problems.add(node.at, format!("`{what}` is {}; expected a list", node.show())),
    }
    None
}

fn selector(node: &Node, problems: &mut Problems) -> Selector {
    let mut keys = Vec::new();
    for (key, value) in read::map(node, "`match`", MATCH, problems) {
        let test = match key.name.as_str() {
            "class" => names(value, "class", Class::names().collect(), Class::from_name, problems).map(Test::Class),
            "proj" => names(value, "proj", Proj::names().collect(), Proj::from_name, problems).map(Test::Proj),
            "layers" => ranges(value, "layers", problems).map(Test::Layers),
            "experts" => experts(value, problems),
            "name" => globs(value, problems),
            "regex" => regexes(value, problems),
            _ => None,
        };
        let words: Vec<_> = read::items(value).iter().map(shown).collect();
        let text = match words.as_slice() {
            [one] => format!("{}: {one}", key.name),
            many => format!("{}: [{}]", key.name, many.iter().take(5).cloned().collect::<Vec<_>>().join(", ")),
        };
        keys.extend(test.map(|test| Key { at: value.at, text, test }));
    }
    if matches!(&node.value, Value::Map(entries) if entries.is_empty()) {
        problems.add(node.at, "`match` is empty; `match: {name: \"*\"}` matches every tensor");
    }
    // Numbers before patterns, so that patterns run on few names.
    keys.sort_by_key(|k| matches!(k.test, Test::Name(..) | Test::Regex(_)));
    Selector { keys }
}

fn names<T>(
    node: &Node,
    what: &str,
    known: Vec<&'static str>,
    of: impl Fn(&str) -> Option<T>,
    problems: &mut Problems,
) -> Option<Vec<T>> {
    let mut found = Vec::new();
    for (at, name) in read::texts(node, what, problems) {
        match of(&name) {
            Some(value) => found.push(value),
            None => read::no_such(at, what, &name, &known, problems),
        }
    }
    (!found.is_empty()).then_some(found)
}

fn ranges(node: &Node, what: &str, problems: &mut Problems) -> Option<Vec<Range>> {
    let mut found = Vec::new();
    for item in read::items(node) {
        match (&item.value, read::text(item, what, problems)) {
            (Value::Int(index), _) if index.unsigned_abs() < 1 << 32 => found.push(Range::one(*index)),
            (_, Some(text)) => match range::parse(&text) {
                Ok(list) => found.extend(list),
                Err(e) => problems.add(item.at, format!("`{what}`: {e}")),
            },
            (_, None) => {}
        }
    }
    (!found.is_empty()).then_some(found)
}

/// What a value of a `match` key is called in messages.
fn shown(node: &Node) -> String {
    match &node.value {
        Value::Map(entries) => {
            let entries: Vec<_> = entries.iter().take(5).map(|(k, v)| format!("{}: {}", k.name, v.show())).collect();
            format!("{{{}}}", entries.join(", ")).replace('`', "")
        }
        _ => node.show().replace('`', ""),
    }
}

/// Numbers and ranges, `{top: 25%}`, `{bottom: 25%}`, or a list of them.
fn experts(node: &Node, problems: &mut Problems) -> Option<Test> {
    let (mut spans, mut ranked) = (Vec::new(), Vec::new());
    for item in read::items(node) {
        if let Value::Text(text) = &item.value
            && ["top", "bottom"].iter().any(|w| text.trim_start().starts_with(w))
        {
            problems.add(item.at, "`experts`: write `{top: 25%}` or `{bottom: 25%}`");
            continue;
        }
        match usage::read(item, problems) {
            Some(found) => ranked.extend(found),
            None => spans.extend(ranges(item, "experts", problems).unwrap_or_default()),
        }
    }
    (!spans.is_empty() || !ranked.is_empty()).then_some(Test::Experts(spans, ranked))
}

fn pattern(at: At, text: &str, problems: &mut Problems) -> bool {
    if text.len() > MAX_PATTERN {
        problems.add(at, format!("the pattern has {} bytes; {MAX_PATTERN} are allowed", text.len()));
    }
    text.len() <= MAX_PATTERN
}

fn globs(node: &Node, problems: &mut Problems) -> Option<Test> {
    let mut set = GlobSetBuilder::new();
    let mut written = Vec::new();
    for (at, text) in read::texts(node, "name", problems) {
        if !pattern(at, &text, problems) {
            continue;
        }
        match GlobBuilder::new(&text).backslash_escape(true).build() {
            Ok(glob) => {
                set.add(glob);
                written.push(text);
            }
            Err(e) => problems.add(at, format!("`name`: {e}")),
        }
    }
    match set.build() {
        Ok(globs) => (!written.is_empty()).then_some(Test::Name(globs, written)),
        Err(e) => {
            problems.add(node.at, format!("`name`: {e}"));
            None
        }
    }
}

fn regexes(node: &Node, problems: &mut Problems) -> Option<Test> {
    let mut found = Vec::new();
    for (at, text) in read::texts(node, "regex", problems) {
        if !pattern(at, &text, problems) {
            continue;
        }
        // Alone first, so that `a)|(b` is an error and not a way out of the group below.
        let build = |text: &str| RegexBuilder::new(text).unicode(false).size_limit(REGEX_BYTES).nest_limit(50).build();
        match build(&text).and_then(|_| build(&format!(r"\A(?:{text})\z"))) {
            Ok(regex) => found.push(regex),
            Err(e) => {
                let what = e.to_string();
                problems.add(at, format!("`regex`: {}", what.lines().last().unwrap_or_default().trim()));
            }
        }
    }
    (!found.is_empty()).then_some(Test::Regex(found))
}

/// The fields of a `set` or of `defaults`.
pub fn set(node: &Node, what: &str, problems: &mut Problems) -> Set {
    let entries = read::map(node, what, SET, problems);
    if entries.is_empty() && matches!(node.value, Value::Map(_)) {
        problems.add(node.at, format!("{what} is empty; there are {}", SET.join(", ")));
    }
    let mut set = Set::default();
    for (key, value) in entries {
        match key.name.as_str() {
            "format" => set.format = read::format(value, "format", true, problems),
            "group" => set.group = group(value, problems),
            "zero_point" => set.zero_point = read::boolean(value, "zero_point", problems),
            "outliers" => set.outliers = outliers(value, problems),
            "method" => set.method = read::one_of(value, "method", METHODS, problems),
            "allow" => set.allow = formats(value, problems),
            "min_format" => set.min_format = read::format(value, "format", false, problems),
            "final" => set.is_final = read::boolean(value, "final", problems).unwrap_or(false),
            "tier" => set.tier = read::one_of(value, "tier", TIERS, problems),
            "device" => set.device = device(value, problems),
            _ => {}
        }
    }
    set
}

fn formats(node: &Node, problems: &mut Problems) -> Vec<Want> {
    read::items(node).iter().filter_map(|item| read::format(item, "format", false, problems)).collect()
}

fn group(node: &Node, problems: &mut Problems) -> Option<usize> {
    match node.value {
        Value::Int(v @ 1..=1_048_576) => usize::try_from(v).ok(),
        _ => {
            problems.add(node.at, format!("`group` is {}; expected values per scale, such as 32 or 64", node.show()));
            None
        }
    }
}

fn outliers(node: &Node, problems: &mut Problems) -> Option<Option<OutlierRule>> {
    if matches!(&node.value, Value::Text(text) if text == NONE) {
        return Some(None);
    }
    let entries = read::map(node, "`outliers`", &["share", "sigma"], problems);
    let mut value =
        |name: &str, default: f64| read::get(entries, name).map_or(Some(default), |n| read::number(n, name, problems));
    let rule =
        OutlierRule { share: value("share", DEFAULT_SHARE)?, sigma: value("sigma", OutlierRule::DEFAULT_SIGMA)? };
    if !(rule.share > 0.0 && rule.share <= 0.25) {
        let what = format!("`share` is {}; expected more than 0 and at most 0.25 (0.005 is usual)", rule.share);
        problems.add(node.at, what);
    }
    if !(0.0..=100.0).contains(&rule.sigma) {
        problems.add(node.at, format!("`sigma` is {}; expected 0 to 100 (3 or 4 is usual)", rule.sigma));
    }
    Some(Some(rule))
}

/// `cpu`, `cuda:0`, `auto`.
pub fn device(node: &Node, problems: &mut Problems) -> Option<String> {
    let name = read::text(node, "device", problems)?;
    let known = if name == AUTO { Some(name.clone()) } else { device::parse(&name).map(|d| d.to_string()) };
    if known.is_none() {
        read::no_such(node.at, "device", &name, &device::EXAMPLES, problems);
    }
    known
}

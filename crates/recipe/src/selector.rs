//! Which tensors a rule is about: keys are ANDed, lists ORed.

use crate::error::At;
use crate::range::{Range, Spans};
use crate::usage::{ExpertUsage, Ranked};
use ashlar_arch::{Class, Leaf, Proj};
use globset::GlobSet;
use regex::bytes::Regex;
use std::collections::HashMap;

/// One key of `match`, as written, for messages.
#[derive(Clone, Debug)]
pub struct Key {
    pub at: At,
    pub text: String,
    pub test: Test,
}

/// What a key demands.
#[derive(Clone, Debug)]
pub enum Test {
    Class(Vec<Class>),
    Proj(Vec<Proj>),
    Layers(Vec<Range>),
    /// By number, or by how often they are used.
    Experts(Vec<Range>, Vec<Ranked>),
    /// Patterns and what was written.
    Name(GlobSet, Vec<String>),
    Regex(Vec<Regex>),
    /// Dotted path of the short form; each segment is a word or an inclusive range.
    Prefix(Vec<Segment>),
}

/// A segment of a dotted prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Segment {
    Any,
    Word(String),
    Numbers(usize, usize),
}

/// The keys of a rule's `match`.
#[derive(Clone, Debug, Default)]
pub struct Selector {
    pub keys: Vec<Key>,
}

impl Selector {
    /// Whether `class` is one of the classes it names.
    pub fn names_class(&self, class: Class) -> bool {
        self.keys.iter().any(|k| matches!(&k.test, Test::Class(list) if list.contains(&class)))
    }

    /// The first key that goes by how often experts are used.
    pub fn needs_usage(&self) -> Option<&Key> {
        self.keys.iter().find(|k| matches!(&k.test, Test::Experts(_, ranked) if !ranked.is_empty()))
    }

    /// Ready for the tensors of a model. Layers that `usage` does not know have no most used experts.
    pub fn compile(&self, extent: Extent, usage: Option<&dyn ExpertUsage>) -> Compiled<'_> {
        let one = |key| CompiledKey::new(key, extent, usage);
        Compiled { keys: self.keys.iter().map(one).collect() }
    }
}

/// How many layers and experts a model has.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    pub layers: usize,
    pub experts: usize,
}

impl Extent {
    pub fn of<'a>(leaves: impl Iterator<Item = &'a Leaf>) -> Self {
        leaves.fold(Self { layers: 0, experts: 0 }, |extent, leaf| Self {
            layers: extent.layers.max(leaf.role.layer.map_or(0, |l| l + 1)),
            experts: extent.experts.max(leaf.role.expert.map_or(0, |e| e + 1)),
        })
    }
}

/// A selector against one model. Cheap tests come first.
pub struct Compiled<'a> {
    pub keys: Vec<CompiledKey<'a>>,
}

impl Compiled<'_> {
    pub fn matches(&self, leaf: &Leaf) -> bool {
        self.keys.iter().all(|k| k.matches(leaf))
    }
}

/// One key against one model.
pub struct CompiledKey<'a> {
    pub key: &'a Key,
    mask: u32,
    pub spans: Spans,
    /// Experts by layer that are among the most or least used.
    ranked: HashMap<usize, Vec<bool>>,
}

impl<'a> CompiledKey<'a> {
    fn new(key: &'a Key, extent: Extent, usage: Option<&dyn ExpertUsage>) -> Self {
        let mask = match &key.test {
            Test::Class(list) => list.iter().fold(0, |mask, c| mask | 1 << (*c as u32)),
            Test::Proj(list) => list.iter().fold(0, |mask, p| mask | 1 << (*p as u32)),
            _ => 0,
        };
        let spans = match &key.test {
            Test::Layers(ranges) => Spans::new(ranges, extent.layers),
            Test::Experts(ranges, _) => Spans::new(ranges, extent.experts),
            _ => Spans::default(),
        };
        let ranked = match (&key.test, usage) {
            (Test::Experts(_, list), Some(usage)) if !list.is_empty() => ranked(list, extent, usage),
            _ => HashMap::new(),
        };
        Self { key, mask, spans, ranked }
    }

    pub fn matches(&self, leaf: &Leaf) -> bool {
        let role = &leaf.role;
        match &self.key.test {
            Test::Class(_) => self.mask & (1 << (role.class as u32)) != 0,
            Test::Proj(_) => role.proj.is_some_and(|p| self.mask & (1 << (p as u32)) != 0),
            Test::Layers(_) => role.layer.is_some_and(|l| self.spans.contains(l)),
            Test::Experts(..) => role.expert.is_some_and(|e| {
                let ranked = role.layer.and_then(|l| self.ranked.get(&l)?.get(e).copied());
                self.spans.contains(e) || ranked.unwrap_or(false)
            }),
            Test::Name(globs, _) => globs.is_match(&leaf.name),
            Test::Regex(list) => list.iter().any(|r| r.is_match(leaf.name.as_bytes())),
            Test::Prefix(segments) => prefix(segments, &leaf.name),
        }
    }
}

/// The experts of every layer that any of `list` picks.
fn ranked(list: &[Ranked], extent: Extent, usage: &dyn ExpertUsage) -> HashMap<usize, Vec<bool>> {
    let layer = |layer: usize| {
        let tokens = usage.tokens(layer)?;
        let mut any = vec![false; tokens.len()];
        for ranked in list {
            any.iter_mut().zip(ranked.mask(&tokens)).for_each(|(any, chosen)| *any |= chosen);
        }
        Some((layer, any))
    };
    (0..extent.layers).filter_map(layer).collect()
}

/// Whether the first segments of a dotted name are those of the pattern.
fn prefix(pattern: &[Segment], name: &str) -> bool {
    let mut segments = name.split('.');
    pattern.iter().all(|p| {
        segments.next().is_some_and(|s| match p {
            Segment::Any => true,
            Segment::Word(word) => word == s,
            Segment::Numbers(first, last) => s.parse().is_ok_and(|n: usize| (*first..=*last).contains(&n)),
        })
    })
}

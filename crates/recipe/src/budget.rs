//! `budget`: how large the pack may be, and which rules' formats a solver may change for it.

use crate::error::Problems;
use crate::read;
use crate::recipe::Rule;
use crate::set::{State, Want};
use crate::size::parse_bytes;
use crate::tree::Node;
use ashlar_arch::nearest;
use ashlar_formats::{Options, Spec};
use ashlar_tensor::Order;
use std::fmt;

/// Formats that a budget may choose from where a rule does not say: each is the best of its size.
pub const ALLOWED: &[&str] = &["k2", "k2h", "k3", "k4", "q6", "q8"];

/// The size a pack is to have.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Size {
    /// Bytes of all shards, headers and padding included.
    Bytes(u64),
    /// Those bytes × 8, per value of the model.
    BitsPerWeight(f64),
}

impl Size {
    /// In bytes, for a model of so many values.
    #[must_use]
    pub fn bytes(self, params: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::BitsPerWeight(bpw) => (bpw * params as f64 / 8.0) as u64,
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => write!(f, "{bytes} bytes"),
            Self::BitsPerWeight(bpw) => write!(f, "{bpw} bits per weight"),
        }
    }
}

/// What the solver is to reach, and by which rules.
#[derive(Clone, Debug, PartialEq)]
pub struct Budget {
    /// The size.
    pub size: Size,
    /// Ids of the rules whose tensors it decides; `None` for every rule that sets a quantized format.
    pub solve: Option<Vec<String>>,
}

impl Budget {
    /// Whether tensors whose format `rule` set are the solver's.
    pub(crate) fn solves(&self, rule: &Rule) -> bool {
        match &self.solve {
            Some(ids) => ids.contains(&rule.id),
            None => matches!(rule.set.format, Some(Want::Format { float: false, .. })),
        }
    }
}

/// Reads `{total: 81GB, solve: [exp]}`.
pub fn read(node: &Node, rules: &[Rule], problems: &mut Problems) -> Option<Budget> {
    let entries = read::map(node, "`budget`", &["total", "bpw", "solve"], problems);
    let total = read::get(entries, "total");
    let bpw = read::get(entries, "bpw");
    let size = match (total, bpw) {
        (Some(node), None) => bytes(node, problems),
        (None, Some(node)) => bits(node, problems),
        _ => {
            problems
                .add(node.at, "`budget` needs one of `total` (such as 81GB) and `bpw` (bits per weight, such as 2.7)");
            None
        }
    };
    let solve = read::get(entries, "solve").map(|node| ids(node, rules, problems));
    Some(Budget { size: size?, solve })
}

fn bytes(node: &Node, problems: &mut Problems) -> Option<Size> {
    let text = read::text(node, "total", problems)?;
    match parse_bytes(&text) {
        Ok(bytes) if bytes > 0 => Some(Size::Bytes(bytes)),
        Ok(_) => {
            problems.add(node.at, "`total` is nothing; write e.g. 81GB");
            None
        }
        Err(what) => {
            problems.add(node.at, format!("`total`: {what}"));
            None
        }
    }
}

fn bits(node: &Node, problems: &mut Problems) -> Option<Size> {
    let bpw = read::number(node, "bpw", problems)?;
    if !(bpw > 0.0 && bpw <= 32.0) {
        problems.add(node.at, format!("`bpw` is {bpw}; expected bits per weight, more than 0 and at most 32"));
        return None;
    }
    Some(Size::BitsPerWeight(bpw))
}

fn ids(node: &Node, rules: &[Rule], problems: &mut Problems) -> Vec<String> {
    let mut found = Vec::new();
    for (at, id) in read::texts(node, "solve", problems) {
        match rules.iter().find(|r| r.id == id) {
            Some(rule) if rule.set.format.is_none() => {
                problems.add(
                    at,
                    format!("`solve`: rule `{id}` sets no format; the solver decides tensors whose format it set"),
                );
            }
            Some(_) => found.push(id),
            None => {
                let near = nearest(&id, rules.iter().map(|r| r.id.as_str()));
                problems.add_near(at, format!("`solve`: there is no rule `{id}`"), near);
            }
        }
    }
    found
}

/// The formats that a solver may give an n × k weight, in the order of their size. Empty if none takes the shape.
///
/// # Errors
/// A sentence, if `min_format` leaves none of those allowed.
pub fn candidates(state: &State<'_>, (n, k): (usize, usize)) -> Result<Vec<Spec>, String> {
    let asked: Vec<&str> = match state.allow {
        [] => ALLOWED.to_vec(),
        list => list.iter().map(|w| w.name()).collect(),
    };
    let least = state.min_format.map_or(0.0, |w| usual_bits(w.name()));
    let wanted = state.want.name();
    let enough: Vec<&str> = asked.iter().copied().filter(|id| usual_bits(id) >= least).collect();
    if let (true, Some(min)) = (enough.is_empty(), state.min_format) {
        return Err(format!("`min_format: {}` leaves none of the formats allowed, {}", min.name(), asked.join(", ")));
    }
    let mut found: Vec<(u64, Spec)> = Vec::new();
    for id in enough {
        let options = if id == wanted { state.options.clone() } else { Options::default() };
        let spec = Spec::resolve(id, &options, n, k).or_else(|_| Spec::resolve(id, &Options::default(), n, k));
        let Ok(spec) = spec else { continue };
        let Ok(layout) = spec.layout(Order::X16, n, k) else { continue };
        found.push((layout.bytes(), spec));
    }
    found.sort_by_key(|(bytes, _)| *bytes);
    found.dedup_by(|a, b| a.1 == b.1);
    Ok(found.into_iter().map(|(_, spec)| spec).collect())
}

/// Bits per weight of a format with its default parameters, on a weight that every format can take.
fn usual_bits(id: &str) -> f64 {
    const SIZE: usize = 4096;
    Spec::resolve(id, &Options::default(), SIZE, SIZE)
        .and_then(|spec| spec.layout(Order::X16, SIZE, SIZE))
        .map_or(0.0, |layout| layout.bytes() as f64 * 8.0 / (SIZE * SIZE) as f64)
}

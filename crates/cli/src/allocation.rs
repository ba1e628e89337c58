//! `--target-size`, `--target-bpw`: a recipe for a model, its budget solved, and what is told about that.

use crate::exit::{Failure, OrUsage};
use crate::model::{Model, Source, bpw};
use crate::{recipe, units};
use anyhow::anyhow;
use ashlar_arch::{Class, Leaf};
use ashlar_convert::allocate::predict::{Basis, Prediction};
use ashlar_convert::allocate::{AllocateError, Allocation, Inputs, Marginal, allocate, predict_choices};
use ashlar_convert::stats::Importance;
use ashlar_convert::{ConvertError, Knowledge, Origin, Plan};
use ashlar_formats::Spec;
use ashlar_recipe::{Action, Choices, Size};
use ashlar_tensor::{Order, Report};
use clap::Args;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

/// The recipe that a target alone means.
const DEFAULT_RECIPE: &str = "auto";
/// Smallest bound of a file of a pack.
const SMALLEST_SHARD: u64 = 1 << 20;
/// Classes that are named where a target is too small.
const HEAVIEST: usize = 3;
/// Bits per weight of attention below which models are known to repeat themselves.
const LOOPS_BELOW: f64 = 4.5;

/// How large a pack may be.
#[derive(Args, Clone, Copy, Debug, Default)]
#[group(multiple = false)]
pub struct TargetArgs {
    /// Choose formats so that the shards have at most so many bytes, such as 81GB or 20GiB
    #[arg(long, value_name = "BYTES", value_parser = ashlar_recipe::parse_bytes)]
    pub target_size: Option<u64>,
    /// Choose formats so that the shards have at most so many bits per weight, such as 2.7
    #[arg(long, value_name = "X", value_parser = bits)]
    pub target_bpw: Option<f64>,
}

fn bits(text: &str) -> Result<f64, String> {
    let value = text.parse::<f64>().ok().filter(|v| *v > 0.0 && *v <= 32.0);
    value.ok_or_else(|| format!("`{text}` is no number of bits per weight; write e.g. 2.7"))
}

/// How large the files of a pack may be.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct ShardArgs {
    /// Largest file of the pack, such as 2GiB [default: 4GiB]
    #[arg(long, value_name = "BYTES", value_parser = shard_bytes)]
    pub shard_size: Option<u64>,
}

fn shard_bytes(text: &str) -> Result<u64, String> {
    let bytes = ashlar_recipe::parse_bytes(text)?;
    if bytes >= SMALLEST_SHARD { Ok(bytes) } else { Err(format!("files of {text} are too small; give 1MiB or more")) }
}

impl TargetArgs {
    /// The target, if there is one.
    #[must_use]
    pub fn size(self) -> Option<Size> {
        self.target_size.map(Size::Bytes).or(self.target_bpw.map(Size::BitsPerWeight))
    }
}

/// What is to be done with a model.
pub struct Decided {
    /// Every tensor's format.
    pub choices: Choices,
    /// How a budget was solved, or what is predicted.
    pub allocation: Option<Allocation>,
    /// Bound of a file's data.
    shard_bytes: u64,
}

/// Whose formats, for which size.
#[derive(Default)]
pub struct Request<'a> {
    /// A file or preset; `None` for the one that goes with a target.
    pub recipe: Option<&'a str>,
    /// Overrides the recipe's own budget.
    pub target: TargetArgs,
    /// What is known of the model's activations.
    pub stats: Option<&'a Importance>,
    /// Whether quantizers will know the Hessian of every matrix, whatever `stats` hold.
    pub hessians: bool,
    /// Predict the KL as well where there is no budget.
    pub predict: bool,
    /// Threads; `None` for all cores.
    pub threads: Option<usize>,
    /// Bound of a file's data; `None` for the usual one.
    pub shard_bytes: Option<u64>,
}

impl Request<'_> {
    /// Lets the recipe decide, and the solver where there is a budget.
    ///
    /// # Errors
    /// A recipe that cannot be carried out is the user's mistake; a size that cannot be reached is found wanting.
    pub fn decide(&self, model: &Model, report: &dyn Report) -> Result<Decided, Failure> {
        let mut recipe = recipe::open(self.recipe.unwrap_or(DEFAULT_RECIPE))?;
        if let Some(size) = self.target.size() {
            recipe = recipe.with_size(size);
        }
        let usage = self.stats.map(|s| s.file() as &dyn ashlar_recipe::ExpertUsage);
        let mut choices = recipe.choose(model.leaves.as_slice(), model.store(), usage).or_usage()?;
        let shard_bytes = self.shard_bytes.unwrap_or(ashlar_pack::DEFAULT_SHARD_BYTES);
        let planned = |choices: &Choices| plan(model, &model.leaves, choices, String::new(), shard_bytes);
        let size = |choices: &Choices| planned(choices).map(|p| p.total_bytes);
        let hessian = |tensor: &str| self.hessians || self.stats.is_some_and(|s| s.hessian_of(tensor).is_some());
        let inputs =
            Inputs { store: model.store(), stats: self.stats, hessian: &hessian, size: &size, threads: self.threads };
        let allocation = match recipe.budget() {
            Some(budget) => {
                let entries = model.leaves.iter().filter_map(|l| model.store().entry(&l.name));
                let target = budget.size.bytes(entries.map(|e| e.elements()).sum());
                if model.source.is_shapes() {
                    return Err(without_weights(&choices, target, &size));
                }
                Some(allocate(&mut choices, target, &inputs, report).map_err(failure)?)
            }
            None if self.predict => Some(predict_choices(&choices, &inputs, report).map_err(failure)?),
            None => None,
        };
        Ok(Decided { choices, allocation, shard_bytes })
    }
}

fn failure(error: AllocateError) -> Failure {
    match error {
        AllocateError::Floor { .. } | AllocateError::Ceiling { .. } => Failure::wanting(error),
        AllocateError::Nothing => Failure::usage(error),
        error => error.into(),
    }
}

/// Why no budget is solved for a model of which shapes are known, and nothing else: what it could be solved to.
fn without_weights(choices: &Choices, target: u64, size: &dyn Fn(&Choices) -> Result<u64, ConvertError>) -> Failure {
    let bytes = |pick: fn(&[Action]) -> Option<&Action>| {
        let mut all = choices.clone();
        for choice in &mut all.list {
            if let Some(action) = pick(&choice.candidates).cloned() {
                choice.decide(action, String::new());
            }
        }
        size(&all)
    };
    let (floor, ceiling) = match (bytes(|c| c.first()), bytes(|c| c.last())) {
        (Ok(floor), Ok(ceiling)) => (floor, ceiling),
        (Err(e), _) | (_, Err(e)) => return e.into(),
    };
    if target < floor {
        return failure(AllocateError::Floor { target, floor, what: heaviest(choices) });
    }
    Failure::usage(anyhow!(
        "formats for a size are chosen by trying them on weights, and there are only shapes here; the formats that this recipe \
         allows reach from {} to {}. Plan with a fixed recipe, or download the model and plan again",
        units::bytes(floor),
        units::bytes(ceiling)
    ))
}

/// The classes that take most of the smallest mix.
fn heaviest(choices: &Choices) -> String {
    let mut classes: BTreeMap<&str, (u64, BTreeSet<String>)> = BTreeMap::new();
    for choice in &choices.list {
        let smallest = choice.candidates.first().unwrap_or(&choice.action);
        let format = match smallest {
            Action::Keep => choice.source_format.clone(),
            Action::Encode { spec, .. } => spec.to_string(),
        };
        let layout = format.parse().and_then(|spec: Spec| spec.layout(Order::X16, choice.n, choice.k));
        let (bytes, formats) = classes.entry(choice.leaf.role.class.name()).or_default();
        *bytes += layout.map_or(0, |l| l.bytes());
        formats.insert(format);
    }
    let mut classes: Vec<_> = classes.into_iter().collect();
    classes.sort_by_key(|(_, (bytes, _))| std::cmp::Reverse(*bytes));
    let line = |(class, (bytes, formats)): (&str, (u64, BTreeSet<String>))| {
        let formats: Vec<String> = formats.into_iter().collect();
        format!("{class} {} in {}", units::bytes(bytes), formats.join(", "))
    };
    classes.into_iter().take(HEAVIEST).map(line).collect::<Vec<_>>().join("; ")
}

impl Decided {
    /// The plan, with the resolved recipe.
    ///
    /// # Errors
    /// If a format does not fit.
    pub fn plan(&self, model: &Model) -> Result<Plan, Failure> {
        plan(model, &model.leaves, &self.choices, self.resolved(model), self.shard_bytes).or_usage()
    }

    /// Bytes of the shards without next-token layers; `None` where there are none.
    ///
    /// # Errors
    /// If a format does not fit.
    pub fn bytes_without_next_token(&self, model: &Model) -> Result<Option<u64>, Failure> {
        let stays = |leaf: &Leaf| leaf.role.class != Class::Mtp;
        if model.leaves.iter().all(stays) {
            return Ok(None);
        }
        let mut choices = self.choices.clone();
        choices.list.retain(|c| stays(&c.leaf));
        ashlar_convert::planned_bytes(model.store(), &choices, self.shard_bytes).or_usage().map(Some)
    }

    /// The decisions as a recipe; it says what they were made for.
    #[must_use]
    pub fn resolved(&self, model: &Model) -> String {
        let rules = ashlar_recipe::emit(&self.choices);
        let Some(a) = self.allocation.as_ref().filter(|a| a.target_bytes.is_some()) else { return rules };
        let params = model.classes().iter().map(|c| c.parameters).sum();
        format!(
            "# Solved for at most {} bytes: {} bytes, {:.3} bits per weight, {}.\n{rules}",
            a.target_bytes.unwrap_or_default(),
            a.total_bytes,
            bpw(a.total_bytes, params),
            predicted(a)
        )
    }
}

/// Plans the conversion of `leaves`, which are tensors of `model`, by `choices`; `resolved` is the recipe that the pack will
/// hold.
fn plan(
    model: &Model,
    leaves: &[Leaf],
    choices: &Choices,
    resolved: String,
    shard_bytes: u64,
) -> Result<Plan, ConvertError> {
    let origin = match &model.source {
        Source::Checkpoint(c) => Origin::checkpoint(c, resolved),
        Source::Headers(h) => Origin::checkpoint(h.checkpoint(), resolved),
        // Its files change while it is converted; their hashes are checked as they come.
        Source::Stream(s) => Origin { weights: Vec::new(), ..Origin::checkpoint(s.checkpoint(), resolved) },
        Source::Pack(p) => Origin::pack(p, resolved),
        Source::Catalogue(_) => Origin::shapes(model.source.identity(), model.source.config().clone(), resolved),
    };
    ashlar_convert::plan(leaves, model.store(), choices, origin, shard_bytes)
}

/// `predicted mean KL 0.031 (0.023 to 0.042)`, and what that rests on.
fn predicted(a: &Allocation) -> String {
    let basis = match a.basis {
        Basis::Measured => "from sensitivities measured on this model",
        Basis::Prior => "a guess from other models",
    };
    format!("predicted mean KL {}, {basis}", interval(&a.predicted))
}

fn interval(p: &Prediction) -> String {
    format!("{} ({} to {})", kl(p.kl), kl(p.low), kl(p.high))
}

/// Three digits.
fn kl(value: f64) -> String {
    let digits = match value {
        v if v >= 0.9995 => 2,
        v if v >= 0.0999 => 3,
        v if v >= 0.00999 => 4,
        _ => return format!("{value:.2e}"),
    };
    format!("{value:.digits$}")
}

/// The lines below the table of a plan.
#[must_use]
pub fn text(a: &Allocation) -> String {
    let mut out = String::new();
    if let (Some(target), Some(floor), Some(ceiling)) = (a.target_bytes, a.floor_bytes, a.ceiling_bytes) {
        let _ = writeln!(
            out,
            "solved for {} bytes: {:.2} % used; the formats allowed reach from {} to {}",
            units::thousands(target),
            100.0 * a.total_bytes as f64 / target as f64,
            units::bytes(floor),
            units::bytes(ceiling)
        );
    }
    let _ = writeln!(out, "{}", predicted(a));
    if a.basis == Basis::Prior {
        let _ =
            writeln!(out, "note: `ashlar calibrate SRC --sensitivity -o S` measures this model; give it by --stats S");
    }
    if let Some(Marginal { bytes, more, fewer }) = a.marginal {
        let change = |p: Option<Prediction>| {
            let percent = |p: Prediction| 100.0 * (p.kl / a.predicted.kl.max(f64::MIN_POSITIVE) - 1.0);
            p.map_or("not possible".to_owned(), |p| format!("predicted KL {} ({:+.1} %)", kl(p.kl), percent(p)))
        };
        let _ = writeln!(out, "{} more: {}; {0} less: {}", units::bytes(bytes), change(more), change(fewer));
    }
    let _ = writeln!(
        out,
        "tried formats on {} weights, {} read",
        units::count(a.sampled.weights),
        units::bytes(a.sampled.bytes)
    );
    out
}

/// What the user should know about the formats of a plan.
#[must_use]
pub fn warnings(plan: &Plan) -> Vec<String> {
    let coarse = plan.classes.iter().find(|c| c.class == "attn" && c.bytes < c.source_bytes && c.bpw < LOOPS_BELOW);
    let note = |bpw: f64| {
        format!(
            "attention has {bpw:.2} bits per weight; models whose attention has 4 bits are known to fall into loops: compare \
             long answers, or keep it at 5 bits or more (`min_format: q6` for class attn)"
        )
    };
    coarse.map(|c| note(c.bpw)).into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergences_show_three_digits() {
        assert_eq!([1.5, 0.1234, 0.03125, 0.00123].map(kl), ["1.50", "0.123", "0.0312", "1.23e-3"]);
    }

    #[test]
    fn bits_per_weight_are_numbers_up_to_32() {
        assert_eq!(bits("2.7"), Ok(2.7));
        for bad in ["0", "-1", "33", "x", "2.7bpw", "nan", ""] {
            assert!(bits(bad).is_err(), "{bad}");
        }
    }
}

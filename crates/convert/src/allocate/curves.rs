//! What every format that a budget may choose would cost and lose, group by group: bytes from the layout, errors from
//! rows that are quantized on trial.

use super::Inputs;
use super::groups::{Bucket, GroupKey};
use super::trial::{self, Loss, Weight};
use super::weights::Weights;
use crate::error::ConvertError;
use crate::pool;
use ashlar_formats::Spec;
use ashlar_recipe::{Action, Choice, Choices, ExpertUsage};
use ashlar_simd::Isa;
use ashlar_tensor::{Order, Report, TensorStore};
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// Planes start at multiples of so many bytes (docs/format.md).
const ALIGN: u64 = 64;
/// Rows of a weight that are tried: a twentieth, but at least so many …
const LEAST_ROWS: usize = 64;
/// … and at most so many.
const MOST_ROWS: usize = 256;
/// Experts of an item that are tried.
const EXPERTS: usize = 6;
/// Rows tried of each.
const EXPERT_ROWS: usize = 32;

/// A format that an item may get.
#[derive(Clone, Debug, PartialEq)]
pub struct Offer {
    /// What would be done.
    pub action: Action,
    /// Its bytes in the pack, alignment of planes included.
    pub bytes: u64,
    /// Its error, relative to the energy of the outputs.
    pub error: f64,
}

/// Tensors that get the same format: a group, or a part of its experts.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    /// The group.
    pub key: GroupKey,
    /// Which experts.
    pub bucket: Bucket,
    /// Indices of its choices.
    pub tensors: Vec<usize>,
    /// At least one, smallest first; one where the rules decide.
    pub offers: Vec<Offer>,
    /// Whether the solver decides.
    pub is_open: bool,
    /// Its share of the group: of the tokens that experts see, else of the weights.
    pub share: f64,
    /// Values.
    pub weights: u64,
}

/// How much was read for the curves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Sampled {
    /// Values that were quantized on trial.
    pub weights: u64,
    /// Bytes of the source.
    pub bytes: u64,
}

/// Items with everything but their errors.
///
/// # Errors
/// [`ConvertError`] if a format does not fit.
pub fn items(choices: &Choices, usage: Option<&dyn ExpertUsage>) -> Result<Vec<Item>, ConvertError> {
    let mut buckets: HashMap<usize, Vec<Bucket>> = HashMap::new();
    let mut grouped: BTreeMap<(GroupKey, Bucket, String), Vec<usize>> = BTreeMap::new();
    for (index, choice) in choices.list.iter().enumerate() {
        let Some(key) = GroupKey::of(&choice.leaf) else { continue };
        if choice.candidates.is_empty() && choice.action == Action::Keep {
            continue;
        }
        let bucket = match (key.layer, choice.leaf.role.expert) {
            (Some(layer), Some(expert)) if !choice.candidates.is_empty() => {
                let of = |l: &usize| usage.and_then(|u| u.tokens(*l)).map(|t| Bucket::of(&t)).unwrap_or_default();
                let layer = buckets.entry(layer).or_insert_with_key(of);
                layer.get(expert).copied().unwrap_or(Bucket::All)
            }
            _ => Bucket::All,
        };
        // Tensors that may get other formats than the rest of their group are an item of their own.
        let may = if choice.candidates.is_empty() { vec![choice.action.clone()] } else { choice.candidates.clone() };
        let may = format!("{} {may:?} {:?}", choice.candidates.is_empty(), choice.outliers);
        grouped.entry((key, bucket, may)).or_default().push(index);
    }
    grouped.into_iter().map(|((key, bucket, _), tensors)| item(choices, key, bucket, tensors)).collect()
}

fn item(choices: &Choices, key: GroupKey, bucket: Bucket, tensors: Vec<usize>) -> Result<Item, ConvertError> {
    let members: Vec<&Choice> = tensors.iter().filter_map(|i| choices.list.get(*i)).collect();
    let weights = members.iter().map(|c| (c.n * c.k) as u64).sum();
    let is_open = members.iter().any(|c| !c.candidates.is_empty());
    let mut item = Item { key, bucket, tensors, offers: Vec::new(), is_open, share: 1.0, weights };
    let Some(first) = members.first() else { return Ok(item) };
    let offers = if first.candidates.is_empty() { vec![first.action.clone()] } else { first.candidates.clone() };
    for action in offers {
        let action = usable(action)?;
        let bytes = members.iter().map(|c| stored_bytes(c, &action)).sum::<Result<u64, _>>()?;
        item.offers.push(Offer { action, bytes, error: 0.0 });
    }
    item.offers.sort_by_key(|o| o.bytes);
    Ok(item)
}

/// A method that cannot choose the bits of a format gives way to the one that is usual for it.
fn usable(action: Action) -> Result<Action, ConvertError> {
    Ok(match action {
        Action::Encode { spec, method } if method != "auto" => {
            let fits = ashlar_quantize::quantizer(method)?.supports(&spec).is_ok();
            Action::Encode { spec, method: if fits { method } else { "auto" } }
        }
        other => other,
    })
}

/// Bytes of a tensor in the pack: planes, each up to the next multiple of 64.
fn stored_bytes(choice: &Choice, action: &Action) -> Result<u64, ConvertError> {
    let text = match action {
        Action::Encode { spec, .. } => spec.to_string(),
        Action::Keep => choice.source_format.clone(),
    };
    let layout = text.parse::<Spec>().and_then(|spec| spec.layout(Order::X16, choice.n, choice.k));
    let wrong = |source| ConvertError::Format { tensor: choice.leaf.name.clone(), format: text.clone(), source };
    Ok(layout.map_err(wrong)?.planes.iter().map(|p| p.bytes.next_multiple_of(ALIGN)).sum())
}

/// One stretch of rows to be tried: item, tensor, rows.
type Job = (usize, usize, Range<usize>);

/// What was lost on the sampled rows of an item, per offer.
#[derive(Clone, Debug, Default)]
struct Seen {
    losses: Vec<Loss>,
}

/// Fills in the errors: quantizes sampled rows of every item in each of its formats.
///
/// # Errors
/// [`ConvertError`] if a weight cannot be read or quantized.
pub fn measure(
    items: &mut [Item],
    choices: &Choices,
    inputs: &Inputs<'_>,
    weights: &Weights<'_>,
    isa: Isa,
    report: &dyn Report,
) -> Result<Sampled, ConvertError> {
    let store = inputs.store;
    let jobs = jobs(items, choices, store)?;
    let seen = Mutex::new(jobs.iter().map(|_| None).collect::<Vec<Option<Seen>>>());
    let bytes = |(_, tensor, rows): &Job| -> Result<u64, ConvertError> {
        let Some(choice) = choices.list.get(*tensor) else { return Ok(0) };
        Ok(Weight::open(store, &choice.leaf)?.row_bytes() * rows.len() as u64)
    };
    report.begin("trying formats", jobs.iter().map(bytes).sum::<Result<u64, _>>()?);
    let numbered: Vec<(usize, &Job)> = jobs.iter().enumerate().collect();
    let threads = inputs.threads.unwrap_or_else(pool::default_threads);
    let offers: &[Item] = items;
    pool::for_each(threads, &numbered, Vec::new, |values, (number, (item, tensor, rows))| {
        let (Some(item), Some(choice)) = (offers.get(*item), choices.list.get(*tensor)) else { return Ok(()) };
        let weight = Weight::open(store, &choice.leaf)?;
        weight.read(rows, isa, values)?;
        let columns = weights.columns(weight.name())?;
        let tried =
            Seen { losses: try_all(item, values, &weight, (inputs.hessian)(weight.name()), columns.as_deref(), isa)? };
        if let Some(slot) = seen.lock().unwrap_or_else(PoisonError::into_inner).get_mut(*number) {
            *slot = Some(tried);
        }
        report.advance(weight.row_bytes() * rows.len() as u64, weight.name());
        Ok(())
    })?;
    report.end();
    let seen = seen.into_inner().unwrap_or_else(PoisonError::into_inner);
    let mut sampled = Sampled { weights: 0, bytes: jobs.iter().map(bytes).sum::<Result<u64, _>>()? };
    let mut sums: Vec<Seen> = items.iter().map(|_| Seen::default()).collect();
    // In the order of the jobs, so that threads change no bit.
    for ((item, tensor, rows), one) in jobs.iter().zip(seen.into_iter().flatten()) {
        if let (Some(sum), Some(choice)) = (sums.get_mut(*item), choices.list.get(*tensor)) {
            sum.losses.resize(one.losses.len(), Loss::default());
            sum.losses.iter_mut().zip(one.losses).for_each(|(sum, loss)| *sum += loss);
            sampled.weights += (rows.len() * choice.k) as u64;
        }
    }
    relate(items, choices, weights, &sums);
    Ok(sampled)
}

fn jobs(items: &[Item], choices: &Choices, store: &dyn TensorStore) -> Result<Vec<Job>, ConvertError> {
    let mut jobs = Vec::new();
    for (number, item) in items.iter().enumerate() {
        let count = item.tensors.len();
        let taken = if count > 2 { EXPERTS.min(count) } else { count };
        for i in 0..taken {
            // Gate and up of an expert stand side by side, so that odd steps take both.
            let Some(tensor) = item.tensors.get((2 * i + 1) * count / (2 * taken)) else { continue };
            let Some(choice) = choices.list.get(*tensor) else { continue };
            let weight = Weight::open(store, &choice.leaf)?;
            let rows = match choice.leaf.role.expert {
                Some(_) => EXPERT_ROWS,
                None => (weight.n / 20).clamp(LEAST_ROWS, MOST_ROWS),
            };
            let block = weight.sample(1).next().map_or(16, |r| r.len().max(1));
            jobs.extend(weight.sample(rows.div_ceil(block)).map(|rows| (number, *tensor, rows)));
        }
    }
    Ok(jobs)
}

fn try_all(
    item: &Item,
    values: &[f32],
    weight: &Weight<'_>,
    knows_hessian: bool,
    importance: Option<&[f32]>,
    isa: Isa,
) -> Result<Vec<Loss>, ConvertError> {
    let mut losses = Vec::with_capacity(item.offers.len());
    for offer in &item.offers {
        losses.push(match &offer.action {
            Action::Keep => Loss::default(),
            Action::Encode { spec, method } => {
                let method = if *method == "auto" { ashlar_quantize::auto_with(spec, knows_hessian) } else { method };
                let hessian = ashlar_quantize::quantizer(method)?.needs_hessian();
                let tried = if hessian { ashlar_quantize::auto(spec) } else { method };
                let wrong = |source| ConvertError::Format {
                    tensor: weight.name().to_owned(),
                    format: spec.to_string(),
                    source,
                };
                let (_, mut loss) = trial::quantize(values, weight.k, spec, tried, importance, isa).map_err(wrong)?;
                if hessian {
                    loss.error *= feedback_gain(spec);
                }
                loss
            }
        });
    }
    // Kept values lose nothing, but their energy counts.
    let energy = losses.iter().map(|l| l.energy).fold(0.0, f64::max);
    losses.iter_mut().for_each(|l| l.energy = energy);
    Ok(losses)
}

/// What error feedback leaves of the error of the weighted search: a trial has no Hessian.
fn feedback_gain(spec: &Spec) -> f64 {
    let bits = spec.layout(Order::X16, 4096, 4096).map_or(8.0, |l| l.bytes() as f64 * 8.0 / (1 << 24) as f64);
    if bits < 2.7 {
        0.62
    } else if bits < 3.7 {
        0.66
    } else {
        0.72
    }
}

/// Errors of items relative to their own outputs, and what share of their group these are.
fn relate(items: &mut [Item], choices: &Choices, weights: &Weights<'_>, seen: &[Seen]) {
    let count = |item: &Item| -> f64 {
        let members = item.tensors.iter().filter_map(|i| choices.list.get(*i));
        members.map(|c| weights.tokens(&c.leaf.name) * (c.n * c.k) as f64).sum()
    };
    let counts: Vec<f64> = items.iter().map(count).collect();
    let mut totals: BTreeMap<GroupKey, f64> = BTreeMap::new();
    for (item, count) in items.iter().zip(&counts) {
        *totals.entry(item.key).or_default() += count;
    }
    for ((item, count), seen) in items.iter_mut().zip(&counts).zip(seen) {
        item.share = count / totals.get(&item.key).copied().unwrap_or(0.0).max(f64::MIN_POSITIVE);
        for (offer, loss) in item.offers.iter_mut().zip(&seen.losses) {
            offer.error = loss.error / loss.energy.max(f64::MIN_POSITIVE);
        }
    }
}

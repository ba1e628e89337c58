//! Weights quantized on trial, and a store that has them in place of the model's own.

use crate::CalibrateError;
use ashlar_arch::Leaf;
use ashlar_convert::ConvertError;
use ashlar_convert::allocate::Weights;
use ashlar_convert::allocate::trial::{Loss, Weight, quantize_whole};
use ashlar_formats::{Options, Spec};
use ashlar_simd::Isa;
use ashlar_tensor::{AlignedBytes, Bytes, Entry, Order, Plane, StoreError, TensorStore};
use std::collections::HashMap;

/// Quantizes groups of weights.
pub struct Trials<'a> {
    pub store: &'a dyn TensorStore,
    pub weights: &'a Weights<'a>,
    pub isa: Isa,
    pub threads: Option<usize>,
}

/// Groups in a trial format.
pub struct Trial<'a> {
    store: &'a dyn TensorStore,
    replaced: HashMap<String, (Entry, Vec<Bytes>)>,
    loss: Loss,
}

impl<'a> Trials<'a> {
    /// Quantizes the weights of a group by weighted search, as a conversion would. A shape that the format cannot take
    /// leaves the whole group as it is.
    pub fn group(&self, leaves: &[&Leaf], format: &str) -> Result<Trial<'a>, CalibrateError> {
        let mut trial = Trial { store: self.store, replaced: HashMap::new(), loss: Loss::default() };
        let weights = leaves.iter().map(|l| Weight::open(self.store, l)).collect::<Result<Vec<_>, _>>()?;
        let specs: Result<Vec<Spec>, _> =
            weights.iter().map(|w| Spec::resolve(format, &Options::default(), w.n, w.k)).collect();
        let Ok([spec, ..]) = specs.as_deref() else { return Ok(trial) };
        let columns = |tensor: &str| self.weights.columns(tensor);
        let method = ashlar_quantize::auto(spec);
        let all = quantize_whole(&weights, spec, method, &columns, self.isa, self.threads)?;
        for (weight, quantized) in weights.iter().zip(all) {
            let mass = self.weights.mass(weight.name());
            trial.loss += Loss { error: mass * quantized.loss.error, energy: mass * quantized.loss.energy };
            let bytes = quantized.planes.iter().map(|p| aligned(p)).collect::<Option<Vec<_>>>();
            let bytes = bytes.ok_or_else(|| CalibrateError::Memory {
                tokens: 0,
                bytes: quantized.planes.iter().map(|p| p.len() as u64).sum(),
            })?;
            trial.replaced.insert(weight.name().to_owned(), (entry(weight, spec)?, bytes));
        }
        Ok(trial)
    }

    /// Several groups at once.
    pub fn together<'t>(&self, trials: impl Iterator<Item = &'t Trial<'a>>) -> Trial<'a>
    where
        'a: 't,
    {
        let mut all = Trial { store: self.store, replaced: HashMap::new(), loss: Loss::default() };
        for trial in trials {
            all.loss += trial.loss;
            all.replaced.extend(trial.replaced.iter().map(|(name, weight)| (name.clone(), weight.clone())));
        }
        all
    }
}

fn aligned(plane: &[u8]) -> Option<Bytes> {
    let mut bytes = AlignedBytes::zeroed(plane.len())?;
    bytes.copy_from_slice(plane);
    Some(bytes.into())
}

fn entry(weight: &Weight<'_>, spec: &Spec) -> Result<Entry, CalibrateError> {
    let format = |source| ConvertError::Format { tensor: weight.name().to_owned(), format: spec.to_string(), source };
    let layout = spec.layout(Order::X16, weight.n, weight.k).map_err(format)?;
    Ok(Entry {
        name: weight.name().to_owned(),
        shape: vec![weight.n, weight.k],
        format: spec.to_string(),
        order: Order::X16,
        planes: layout.planes.iter().map(|p| Plane { kind: p.kind, bytes: p.bytes }).collect(),
        file: "a trial".to_owned(),
    })
}

impl<'a> Trial<'a> {
    /// The error relative to the energy of the outputs; `None` where nothing was quantized.
    pub fn error(&self) -> Option<f64> {
        (!self.replaced.is_empty() && self.loss.energy > 0.0).then(|| self.loss.error / self.loss.energy)
    }

    /// The model with these weights.
    pub fn store(&self) -> Perturbed<'_, 'a> {
        Perturbed { trial: self }
    }
}

/// A store in which some weights are replaced.
pub struct Perturbed<'t, 'a> {
    trial: &'t Trial<'a>,
}

/// What a run needs: entries by name, and mapped planes.
impl TensorStore for Perturbed<'_, '_> {
    fn entries(&self) -> &[Entry] {
        self.trial.store.entries()
    }

    fn entry(&self, name: &str) -> Option<&Entry> {
        match self.trial.replaced.get(name) {
            Some((entry, _)) => Some(entry),
            None => self.trial.store.entry(name),
        }
    }

    fn read(&self, entry: &Entry, plane: usize, offset: u64, out: &mut [u8]) -> Result<(), StoreError> {
        let Some((_, planes)) = self.trial.replaced.get(&entry.name) else {
            return self.trial.store.read(entry, plane, offset, out);
        };
        let unknown = || StoreError::Unknown { tensor: entry.name.clone(), plane };
        let bytes = planes.get(plane).ok_or_else(unknown)?;
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let part = start.checked_add(out.len()).and_then(|end| bytes.get(start..end));
        let range = || StoreError::Range {
            tensor: entry.name.clone(),
            plane,
            offset,
            end: offset.saturating_add(out.len() as u64),
            bytes: bytes.len() as u64,
        };
        out.copy_from_slice(part.ok_or_else(range)?);
        Ok(())
    }

    fn map(&self, entry: &Entry, plane: usize) -> Result<Bytes, StoreError> {
        match self.trial.replaced.get(&entry.name) {
            Some((_, planes)) => {
                let unknown = || StoreError::Unknown { tensor: entry.name.clone(), plane };
                planes.get(plane).cloned().ok_or_else(unknown)
            }
            None => self.trial.store.map(entry, plane),
        }
    }
}

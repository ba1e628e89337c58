//! How much the model's predictions suffer from errors in each group of weights (`sensitivity.*` arrays).

use super::write::{Array, Data, Head, stream};
use super::{StatsError, StatsFile};
use ashlar_tensor::Dtype;
use std::collections::BTreeMap;
use std::path::Path;

/// What quantizing something on trial did. Means over tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sensitivity {
    /// Tokens it was measured on.
    pub tokens: f64,
    /// Mean KL divergence from the unquantized model, in nats.
    pub kl: f64,
    /// Of a group: its error, relative to the energy of its outputs. Of all groups jointly: what their own
    /// sensitivities add up to, in nats.
    pub error: f64,
}

/// All that was measured.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sensitivities {
    /// By the name of a group, such as `3.attn.q`, `embed`; a group's share of what its class costs as a whole.
    pub groups: BTreeMap<String, Sensitivity>,
    /// The same groups with smaller errors …
    pub fine: BTreeMap<String, Sensitivity>,
    /// … and with larger ones: how their KL grows.
    pub coarse: BTreeMap<String, Sensitivity>,
    /// All layers quantized at once, by the format.
    pub joint: BTreeMap<String, Sensitivity>,
}

const KIND: &str = "sensitivity.";
const FINE: &str = "fine.";
const COARSE: &str = "coarse.";
const JOINT: &str = "joint.";

impl Sensitivities {
    /// As arrays of a statistics file: sums over tokens, so that files add up.
    #[must_use]
    pub fn arrays(&self) -> Vec<Array> {
        let array = |name: String, s: &Sensitivity| Array {
            name,
            shape: vec![3],
            data: Data::F64(vec![s.tokens, s.tokens * s.kl, s.tokens * s.error]),
        };
        let groups = self.groups.iter().map(|(name, s)| array(format!("{KIND}{name}"), s));
        let coarse = self.coarse.iter().map(|(name, s)| array(format!("{KIND}{COARSE}{name}"), s));
        let fine = self.fine.iter().map(|(name, s)| array(format!("{KIND}{FINE}{name}"), s));
        groups
            .chain(fine)
            .chain(coarse)
            .chain(self.joint.iter().map(|(name, s)| array(format!("{KIND}{JOINT}{name}"), s)))
            .collect()
    }
}

impl StatsFile {
    /// What was measured of the model's sensitivity; `None` if nothing was.
    ///
    /// # Errors
    /// [`StatsError::Array`] unless all values are finite and not negative; a read that fails.
    pub fn sensitivities(&self) -> Result<Option<Sensitivities>, StatsError> {
        let mut all = Sensitivities::default();
        for info in self.arrays() {
            let Some(name) = info.name.strip_prefix(KIND) else { continue };
            let bytes = self.bytes(info)?;
            let sums: Vec<f64> = bytes.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect();
            if let Some(bad) = sums.iter().find(|v| !v.is_finite() || **v < 0.0) {
                return Err(self.array(&info.name, format!("holds {bad}, expected finite values of at least 0")));
            }
            let [tokens, kl, error] = *sums.as_slice() else { continue };
            if tokens == 0.0 {
                continue;
            }
            let measured = Sensitivity { tokens, kl: kl / tokens, error: error / tokens };
            let kinds = [(JOINT, &mut all.joint), (FINE, &mut all.fine), (COARSE, &mut all.coarse)];
            let found = kinds.into_iter().find_map(|(kind, list)| Some((name.strip_prefix(kind)?, list)));
            let (name, list) = found.unwrap_or((name, &mut all.groups));
            list.insert(name.to_owned(), measured);
        }
        Ok((!all.groups.is_empty()).then_some(all))
    }
}

/// Writes `file` again at `out` (which may be its own path), with these sensitivities in the place of any it has.
///
/// # Errors
/// [`StatsError`] if reading or writing fails; `out` is then as it was.
pub fn add_sensitivities(file: &StatsFile, measured: &Sensitivities, out: &Path) -> Result<(), StatsError> {
    let new: BTreeMap<String, Array> = measured.arrays().into_iter().map(|a| (a.name.clone(), a)).collect();
    let kept = file.arrays().iter().filter(|info| !info.name.starts_with(KIND));
    let mut heads: Vec<Head> =
        kept.map(|i| Head { name: i.name.clone(), dtype: i.dtype, shape: i.shape.clone() }).collect();
    heads.extend(new.values().map(|a| Head { name: a.name.clone(), dtype: Dtype::F64, shape: a.shape.clone() }));
    stream(out, file.origin(), file.shares(), heads, |name| match (new.get(name), file.find(name)) {
        (Some(array), _) => Ok(array.data.to_bytes()),
        (None, Some(info)) => file.bytes(info),
        (None, None) => Ok(Vec::new()),
    })
}

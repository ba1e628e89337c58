//! What a conversion cost: errors summed per tensor and class.

use crate::plan::Plan;
use ashlar_pack::Hash;
use ashlar_quantize::TileError;
use serde::Serialize;
use serde_json::{Value, json};

/// What quantizing lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Loss {
    /// Σ (w − ŵ)²
    pub squared_error: f64,
    /// Σ w²
    pub squared_norm: f64,
    /// max |w − ŵ|
    pub max_abs: f64,
    /// Values beyond the outlier threshold that found no slot.
    pub outlier_overflow: u64,
}

impl Loss {
    /// Normalized mean squared error, Σ (w − ŵ)² / Σ w²; 0 where nothing was lost.
    #[must_use]
    pub fn nmse(&self) -> f64 {
        if self.squared_error == 0.0 { 0.0 } else { self.squared_error / self.squared_norm }
    }

    pub(crate) fn add(&mut self, other: Self) {
        self.squared_error += other.squared_error;
        self.squared_norm += other.squared_norm;
        self.max_abs = self.max_abs.max(other.max_abs);
        self.outlier_overflow += other.outlier_overflow;
    }

    pub(crate) fn json(&self) -> Value {
        json!({
            "squared_error": self.squared_error, "squared_norm": self.squared_norm,
            "max_abs": self.max_abs, "outlier_overflow": self.outlier_overflow,
        })
    }
}

impl From<TileError> for Loss {
    fn from(e: TileError) -> Self {
        let (squared_error, squared_norm) = (e.squared_error, e.squared_norm);
        Self { squared_error, squared_norm, max_abs: f64::from(e.max_abs), outlier_overflow: e.outlier_overflow }
    }
}

/// What became known while a tensor was converted. It survives a resume in the journal.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Measured {
    /// `None` where bits are kept.
    pub loss: Option<Loss>,
    /// Of the source's own planes, where they are stored in another order.
    pub source_blake3: Option<Hash>,
}

impl Measured {
    /// Floats go as bits: a resumed run must end with the same sums.
    pub fn to_notes(&self) -> Value {
        let loss = self.loss.map(|l| {
            let bits = |x: f64| format!("{:016x}", x.to_bits());
            json!([bits(l.squared_error), bits(l.squared_norm), bits(l.max_abs), l.outlier_overflow])
        });
        json!([loss, self.source_blake3.map(|h| h.to_hex().to_string())])
    }

    pub fn from_notes(notes: &Value) -> Option<Self> {
        let loss = match notes.get(0)? {
            Value::Null => None,
            l => {
                let float = |i: usize| Some(f64::from_bits(u64::from_str_radix(l.get(i)?.as_str()?, 16).ok()?));
                let (squared_error, squared_norm, max_abs) = (float(0)?, float(1)?, float(2)?);
                Some(Loss { squared_error, squared_norm, max_abs, outlier_overflow: l.get(3)?.as_u64()? })
            }
        };
        let source_blake3 = match notes.get(1)? {
            Value::Null => None,
            h => Some(Hash::from_hex(h.as_str()?).ok()?),
        };
        Some(Self { loss, source_blake3 })
    }
}

/// What a class cost.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClassSummary {
    /// The recipe's class.
    pub class: &'static str,
    /// Tensors.
    pub tensors: usize,
    /// Tensors whose bits were kept.
    pub kept: usize,
    /// Bytes in the pack.
    pub bytes: u64,
    /// Loss of those that were not kept.
    pub loss: Loss,
    /// Its normalized mean squared error.
    pub nmse: f64,
}

/// What a conversion did.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// By class.
    pub classes: Vec<ClassSummary>,
    /// Bytes of all shards.
    pub bytes: u64,
    /// Source bytes read in this run.
    pub source_bytes: u64,
    /// Records that an earlier, interrupted run had finished.
    pub resumed_records: usize,
    /// Records in all.
    pub records: usize,
    /// Wall-clock time of this run.
    pub seconds: f64,
}

/// Sums per class, tensors in file order.
pub(crate) fn classes(plan: &Plan, measured: &[Measured]) -> Vec<ClassSummary> {
    let mut out = Vec::new();
    for total in &plan.classes {
        let (mut loss, mut kept) = (Loss::default(), 0);
        for (_, m) in plan.tensors.iter().zip(measured).filter(|(t, _)| t.class == total.class) {
            match m.loss {
                Some(l) => loss.add(l),
                None => kept += 1,
            }
        }
        let (class, tensors, bytes, nmse) = (total.class, total.tensors, total.bytes, loss.nmse());
        out.push(ClassSummary { class, tensors, kept, bytes, loss, nmse });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_keep_every_bit() {
        let loss = Loss { squared_error: 0.1 + 0.2, squared_norm: 1e300 / 3.0, max_abs: 5e-324, outlier_overflow: 7 };
        let hash = Some(Hash::from_bytes([9; 32]));
        for m in [Measured { loss: Some(loss), source_blake3: None }, Measured { loss: None, source_blake3: hash }] {
            let text = m.to_notes().to_string();
            let back = Measured::from_notes(&serde_json::from_str(&text).unwrap());
            assert_eq!(back, Some(m));
        }
        assert_eq!(Measured::from_notes(&json!({"a": 1})), None);
        assert_eq!(Measured::from_notes(&json!([["zz", "0", "0", 1], null])), None);
    }
}

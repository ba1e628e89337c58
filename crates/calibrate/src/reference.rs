//! [`Reference`]: what the matmuls of one batch read in a run of the source, to be compared with what they read behind
//! quantized layers.

use crate::hessian::Columns;
use ashlar_backend::{MatmulInput, Observer, Routed};
use std::collections::{HashMap, HashSet, VecDeque};

/// The inputs of one batch, by the first weight that reads them. A weight that is used more than once in a part (that of
/// latent keys and values is) has as many, in order.
#[derive(Debug, Default)]
pub struct Reference {
    wanted: HashSet<String>,
    inputs: HashMap<String, VecDeque<Vec<f32>>>,
}

impl Reference {
    /// Watches what `weights` read.
    pub fn of(weights: impl Iterator<Item = String>) -> Self {
        Self { wanted: weights.collect(), inputs: HashMap::new() }
    }

    /// What `columns`, of `k` columns, lack of what `first` read here, each time in turn. `None` if that was not seen.
    pub fn lack(&mut self, first: &str, k: usize, columns: &Columns, threads: usize) -> Option<Columns> {
        let theirs = self.inputs.get_mut(first)?.pop_front()?;
        let theirs = Columns::gather(&MatmulInput::whole(&[], &theirs, k), threads);
        columns.lack(&theirs, threads)
    }
}

impl Observer for Reference {
    fn matmul_input(&mut self, input: &MatmulInput<'_>) {
        let Some(first) = input.weights.first() else { return };
        let whole = input.rows.is_none() && input.gates.is_none();
        if whole && input.weights.iter().any(|name| self.wanted.contains(*name)) {
            self.inputs.entry((*first).to_owned()).or_default().push_back(input.x.to_vec());
        }
    }

    fn routed(&mut self, _routed: &Routed<'_>) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hessian::Hessian;
    use ashlar_simd::Isa;

    /// Σ δ xᵀ of one column, x being 1.
    fn drift(reference: &mut Reference, rows: usize) -> Option<f32> {
        let x = vec![1.0; rows * 8];
        let columns = Columns::gather(&MatmulInput::whole(&["w"], &x, 8), 1);
        let lack = reference.lack("w", 8, &columns, 1)?;
        let (mut h, mut out) = (Hessian::new(8, true)?, vec![0.0; 64]);
        h.add_drift(&lack, &columns, Isa::Portable, 1);
        h.spread_drift(1.0, &mut out);
        Some(out[0])
    }

    #[test]
    fn a_weight_that_is_used_twice_is_compared_use_by_use() {
        let mut reference = Reference::of(["w".to_owned()].into_iter());
        reference.matmul_input(&MatmulInput::whole(&["w"], &[3.0; 2 * 8], 8));
        reference.matmul_input(&MatmulInput::whole(&["other"], &[9.0; 8], 8));
        reference.matmul_input(&MatmulInput::whole(&["w"], &[2.0; 8], 8));
        assert_eq!(drift(&mut reference, 2), Some(4.0));
        assert_eq!(drift(&mut reference, 1), Some(1.0));
        assert_eq!(drift(&mut reference, 1), None, "it was seen twice");
    }

    #[test]
    fn other_rows_are_not_compared() {
        let mut reference = Reference::of(["w".to_owned()].into_iter());
        reference.matmul_input(&MatmulInput::whole(&["w"], &[3.0; 2 * 8], 8));
        assert_eq!(drift(&mut reference, 3), None);
    }
}

//! [`Tally`]: the sums that an observed model adds up to.

use crate::CalibrateError;
use ashlar_backend::{MatmulInput, Observer, Routed};
use ashlar_convert::stats::{Array, Data};
use ashlar_simd::Isa;
use std::collections::BTreeMap;

/// Sums over all tokens that were observed. All sums are f64 and run in the order of the tokens.
#[derive(Debug)]
pub struct Tally {
    isa: Isa,
    layer: usize,
    /// Weights that share their input share a sum.
    weights: BTreeMap<String, usize>,
    moments: Vec<Moments>,
    routing: Option<Routing>,
}

#[derive(Debug)]
struct Moments {
    /// Σ (gate · x)² per column.
    sums: Vec<f64>,
    tokens: u64,
}

#[derive(Debug)]
struct Routing {
    experts: usize,
    counts: Vec<u64>,
    weights: Vec<f64>,
    /// experts × experts
    together: Vec<u64>,
}

impl Tally {
    /// Nothing observed yet; `layer` is what routing is filed under.
    #[must_use]
    pub fn new(isa: Isa, layer: usize) -> Self {
        Self { isa, layer, weights: BTreeMap::new(), moments: Vec::new(), routing: None }
    }

    /// The sums as arrays of a statistics file.
    ///
    /// # Errors
    /// [`CalibrateError::NotFinite`] if an input overflowed.
    pub fn arrays(&self) -> Result<Vec<Array>, CalibrateError> {
        let mut all = Vec::new();
        for (tensor, index) in &self.weights {
            let Some(m) = self.moments.get(*index) else { continue };
            let sums: Vec<f32> = m.sums.iter().map(|s| *s as f32).collect();
            if !sums.iter().all(|s| s.is_finite()) {
                return Err(CalibrateError::NotFinite { tensor: tensor.clone() });
            }
            let array =
                |kind: &str, shape: usize, data| Array { name: format!("{kind}.{tensor}"), shape: vec![shape], data };
            all.push(array("moments", sums.len(), Data::F32(sums)));
            all.push(array("tokens", 1, Data::I64(vec![count(m.tokens)])));
        }
        if let Some(r) = &self.routing {
            let both = r.counts.iter().map(|c| *c as f64).chain(r.weights.iter().copied()).collect();
            let name = |kind: &str| format!("{kind}.{}", self.layer);
            all.push(Array { name: name("routing"), shape: vec![2, r.experts], data: Data::F64(both) });
            let together = r.together.iter().map(|c| count(*c)).collect();
            let shape = vec![r.experts, r.experts];
            all.push(Array { name: name("coactivation"), shape, data: Data::I64(together) });
        }
        Ok(all)
    }
}

fn count(c: u64) -> i64 {
    i64::try_from(c).unwrap_or(i64::MAX)
}

impl Observer for Tally {
    fn matmul_input(&mut self, input: &MatmulInput<'_>) {
        let Some(first) = input.weights.first() else { return };
        let index = self.weights.get(*first).copied().unwrap_or(self.moments.len());
        if index == self.moments.len() {
            self.moments.push(Moments { sums: vec![0.0; input.k], tokens: 0 });
            self.weights.extend(input.weights.iter().map(|name| ((*name).to_owned(), index)));
        }
        if let Some(m) = self.moments.get_mut(index) {
            m.tokens += input.rows().count() as u64;
            self.isa.vectorize(|| add_squares(&mut m.sums, input));
        }
    }

    fn routed(&mut self, routed: &Routed<'_>) {
        let experts = routed.experts;
        let r = self.routing.get_or_insert_with(|| Routing {
            experts,
            counts: vec![0; experts],
            weights: vec![0.0; experts],
            together: vec![0; experts * experts],
        });
        for token in routed.chosen.chunks(routed.top_k.max(1)) {
            for &(e, weight) in token {
                if let (Some(count), Some(sum)) = (r.counts.get_mut(e), r.weights.get_mut(e)) {
                    *count += 1;
                    *sum += f64::from(weight);
                }
                for &(other, _) in token {
                    if let Some(count) = r.together.get_mut(e * experts + other) {
                        *count += 1;
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn add_squares(sums: &mut [f64], input: &MatmulInput<'_>) {
    for (row, gate) in input.rows() {
        let gate = f64::from(gate);
        for (sum, x) in sums.iter_mut().zip(row) {
            let x = f64::from(*x) * gate;
            *sum += x * x;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn array<'a>(all: &'a [Array], name: &str) -> &'a Data {
        &all.iter().find(|a| a.name == name).unwrap().data
    }

    #[test]
    fn moments_are_sums_of_squares_over_the_rows_that_are_read_times_their_gates() {
        let mut tally = Tally::new(Isa::detect().unwrap(), 3);
        let x = [1.0, 2.0, /* row 1 */ 3.0, 4.0, /* row 2 */ 5.0, 6.0];
        tally.matmul_input(&MatmulInput::whole(&["q", "k"], &x, 2));
        let (rows, gates): (Option<&[u32]>, Option<&[f32]>) = (Some(&[2, 0]), Some(&[0.5, 2.0]));
        tally.matmul_input(&MatmulInput { weights: &["down"], x: &x, k: 2, rows, gates });
        let all = tally.arrays().unwrap();
        assert_eq!(array(&all, "moments.q"), &Data::F32(vec![35.0, 56.0]));
        assert_eq!(array(&all, "moments.k"), array(&all, "moments.q"));
        assert_eq!(array(&all, "tokens.q"), &Data::I64(vec![3]));
        assert_eq!(array(&all, "moments.down"), &Data::F32(vec![25.0 / 4.0 + 4.0, 9.0 + 16.0]));
        assert_eq!(array(&all, "tokens.down"), &Data::I64(vec![2]));
    }

    #[test]
    fn routing_counts_tokens_weights_and_pairs() {
        let mut tally = Tally::new(Isa::detect().unwrap(), 3);
        let chosen = [(0, 0.75), (2, 0.25), /* token 1 */ (2, 0.5), (1, 0.5)];
        tally.routed(&Routed { router: "r", experts: 3, top_k: 2, chosen: &chosen });
        let all = tally.arrays().unwrap();
        assert_eq!(array(&all, "routing.3"), &Data::F64(vec![1.0, 1.0, 2.0, 0.75, 0.5, 0.75]));
        assert_eq!(array(&all, "coactivation.3"), &Data::I64(vec![1, 0, 1, 0, 1, 1, 1, 1, 2]));
    }

    #[test]
    fn an_overflow_names_the_weight() {
        let mut tally = Tally::new(Isa::detect().unwrap(), 0);
        tally.matmul_input(&MatmulInput::whole(&["w"], &[f32::INFINITY], 1));
        assert!(tally.arrays().unwrap_err().to_string().contains("`w`"));
    }
}

//! [`Tally`]: the sums that an observed model adds up to.

use crate::CalibrateError;
use crate::hessian::{Columns, Hessian};
use crate::parallel;
use crate::reference::Reference;
use ashlar_backend::{MatmulInput, Observer, Routed};
use ashlar_convert::stats::{Array, Data, Shares};
use ashlar_simd::Isa;
use std::collections::{BTreeMap, HashMap};

/// Which Hessians are summed for the inputs of a weight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Want {
    /// One of its own, shared with the weights that read the same inputs.
    pub own: bool,
    /// That of all down projections of the layer's experts.
    pub experts: bool,
    /// With its own, what the inputs lack of those in a run of the source.
    pub drift: bool,
}

/// By weight; what is not there wants none.
pub type Wanted = HashMap<String, Want>;

/// Sums over all tokens that were observed. Each runs in the order of the tokens: moments in f64, Hessians in blocks of
/// f32. Threads change no bit.
#[derive(Debug)]
pub struct Tally {
    isa: Isa,
    threads: usize,
    layer: usize,
    wanted: Wanted,
    /// Weights that share their input share its sums.
    weights: BTreeMap<String, usize>,
    inputs: Vec<Input>,
    experts: Option<Hessian>,
    routing: Option<Routing>,
    /// What the same matmuls read in a run of the source, where inputs are compared with that.
    reference: Option<Reference>,
    failed: Option<CalibrateError>,
}

/// What the inputs of a weight add up to.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// Σ (gate · x)² per column.
    pub sums: &'a [f64],
    /// Rows.
    pub tokens: u64,
    /// Σ (gate · x)(gate · x)ᵀ, where it was wanted.
    pub hessian: Option<&'a Hessian>,
}

/// What was seen of one input.
#[derive(Debug)]
struct Input {
    /// Σ (gate · x)² per column.
    sums: Vec<f64>,
    tokens: u64,
    /// Under the name of the first weight that reads it.
    hessian: Option<(String, Hessian)>,
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
    pub fn new(isa: Isa, threads: usize, layer: usize, wanted: Wanted) -> Self {
        let (weights, inputs) = (BTreeMap::new(), Vec::new());
        let (experts, routing, reference, failed) = (None, None, None, None);
        Self { isa, threads, layer, wanted, weights, inputs, experts, routing, reference, failed }
    }

    /// What is to watch a run of the source, for [`Tally::compare`].
    #[must_use]
    pub fn reference(&self) -> Reference {
        Reference::of(self.wanted.iter().filter(|(_, want)| want.drift).map(|(name, _)| name.clone()))
    }

    /// What is seen from now on is compared with `reference`, which saw the same tokens on their way through the source.
    pub fn compare(&mut self, reference: Reference) {
        self.reference = Some(reference);
    }

    /// Whether a sum could not be had.
    ///
    /// # Errors
    /// [`CalibrateError::HessianMemory`].
    pub fn check(&mut self) -> Result<(), CalibrateError> {
        self.failed.take().map_or(Ok(()), Err)
    }

    /// What the inputs of a weight add up to.
    #[must_use]
    pub fn seen(&self, tensor: &str) -> Option<Seen<'_>> {
        let Input { sums, tokens, hessian } = self.inputs.get(*self.weights.get(tensor)?)?;
        Some(Seen { sums, tokens: *tokens, hessian: hessian.as_ref().map(|(_, h)| h) })
    }

    /// The Hessian of all down projections.
    #[must_use]
    pub fn experts(&self) -> Option<&Hessian> {
        self.experts.as_ref()
    }

    /// The mean of x² per column over the inputs of all weights that `of` names, by token.
    #[must_use]
    pub fn mean(&self, of: impl Fn(&String) -> bool) -> Option<Vec<f64>> {
        let mut inputs = self.weights.iter().filter(|(name, _)| of(name)).filter_map(|(_, i)| self.inputs.get(*i));
        let first = inputs.next()?;
        let (mut sums, mut tokens) = (first.sums.clone(), first.tokens);
        for input in inputs {
            sums.iter_mut().zip(&input.sums).for_each(|(a, b)| *a += b);
            tokens += input.tokens;
        }
        sums.iter_mut().for_each(|s| *s /= (tokens as f64).max(1.0));
        Some(sums)
    }

    /// Gives back the memory of the Hessians of weights that `of` names.
    pub fn drop_hessians(&mut self, of: impl Fn(&str) -> bool) {
        self.inputs
            .iter_mut()
            .filter(|i| i.hessian.as_ref().is_some_and(|(name, _)| of(name)))
            .for_each(|i| i.hessian = None);
    }

    /// The sums without any Hessian.
    #[must_use]
    pub fn without_hessians(mut self) -> Self {
        self.drop_hessians(|_| true);
        Self { experts: None, ..self }
    }

    /// The sums as arrays of a statistics file, and which weights share a Hessian.
    ///
    /// # Errors
    /// [`CalibrateError::NotFinite`] if an input overflowed; [`CalibrateError::HessianMemory`].
    pub fn arrays(self) -> Result<(Vec<Array>, Shares), CalibrateError> {
        let (layer, mut all, mut shares) = (self.layer, Vec::new(), Shares::new());
        let array = |kind: &str, of: &str, shape, data| Array { name: format!("{kind}.{of}"), shape, data };
        if let Some(failed) = self.failed {
            return Err(failed);
        }
        for (tensor, index) in &self.weights {
            let Some(input) = self.inputs.get(*index) else { continue };
            let sums: Vec<f32> = input.sums.iter().map(|s| *s as f32).collect();
            if !sums.iter().all(|s| s.is_finite()) {
                return Err(CalibrateError::NotFinite { tensor: tensor.clone() });
            }
            all.push(array("moments", tensor, vec![sums.len()], Data::F32(sums)));
            all.push(array("tokens", tensor, vec![1], Data::I64(vec![count(input.tokens)])));
            if let Some((first, _)) = input.hessian.as_ref().filter(|(first, _)| first != tensor) {
                shares.insert(tensor.clone(), first.clone());
            }
        }
        let own = self.inputs.into_iter().filter_map(|i| i.hessian).map(|(first, h)| ("hessian", first, h));
        for (kind, of, h) in own.chain(self.experts.map(|h| ("hessian_experts", layer.to_string(), h))) {
            let upper = h.upper();
            if !upper.iter().all(|s| s.is_finite()) {
                return Err(CalibrateError::NotFinite { tensor: of });
            }
            all.push(array(kind, &of, vec![upper.len()], Data::F32(upper)));
        }
        if let Some(r) = self.routing {
            let both = r.counts.iter().map(|c| *c as f64).chain(r.weights.iter().copied()).collect();
            all.push(array("routing", &layer.to_string(), vec![2, r.experts], Data::F64(both)));
            let together = r.together.iter().map(|c| count(*c)).collect();
            all.push(array("coactivation", &layer.to_string(), vec![r.experts, r.experts], Data::I64(together)));
        }
        Ok((all, shares))
    }

    /// Adds to the Hessians that `input` belongs to.
    fn add_products(&mut self, index: usize, first: &str, input: &MatmulInput<'_>) {
        let wants = || input.weights.iter().filter_map(|name| self.wanted.get(*name));
        let (own, experts, drift) = (wants().any(|w| w.own), wants().any(|w| w.experts), wants().any(|w| w.drift));
        if !(own || experts) || self.failed.is_some() {
            return;
        }
        let columns = Columns::gather(input, self.threads);
        let reference = self.reference.as_mut().filter(|_| drift);
        let lack = reference.and_then(|r| r.lack(first, input.k, &columns, self.threads));
        let (isa, threads) = (self.isa, self.threads);
        let mut add = |h: Option<&mut Hessian>| match h {
            Some(h) => {
                h.add(&columns, isa, threads);
                if let Some(lack) = &lack {
                    h.add_drift(lack, &columns, isa, threads);
                }
            }
            None => {
                let bytes = Hessian::bytes(input.k, drift);
                self.failed = Some(CalibrateError::HessianMemory { tensor: first.into(), bytes });
            }
        };
        if let Some(seen) = self.inputs.get_mut(index).filter(|_| own) {
            let new = || Some((first.to_owned(), Hessian::new(input.k, drift)?));
            seen.hessian = seen.hessian.take().or_else(new);
            add(seen.hessian.as_mut().map(|(_, h)| h));
        }
        if experts {
            self.experts = self.experts.take().or_else(|| Hessian::new(input.k, false));
            add(self.experts.as_mut());
        }
    }
}

fn count(c: u64) -> i64 {
    i64::try_from(c).unwrap_or(i64::MAX)
}

impl Observer for Tally {
    fn matmul_input(&mut self, input: &MatmulInput<'_>) {
        let Some(first) = input.weights.first() else { return };
        let index = self.weights.get(*first).copied().unwrap_or(self.inputs.len());
        if index == self.inputs.len() {
            self.inputs.push(Input { sums: vec![0.0; input.k], tokens: 0, hessian: None });
            self.weights.extend(input.weights.iter().map(|name| ((*name).to_owned(), index)));
        }
        if let Some(seen) = self.inputs.get_mut(index) {
            let rows = input.rows().count();
            seen.tokens += rows as u64;
            parallel::chunks(self.threads, rows * input.k, &mut seen.sums, COLUMNS, |chunk, sums| {
                self.isa.vectorize(|| add_squares(sums, chunk * COLUMNS, input));
            });
        }
        self.add_products(index, first, input);
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

/// Columns whose squares a thread adds up at a time.
const COLUMNS: usize = 512;

/// Adds the squares of the columns from `first` on.
#[inline(always)]
fn add_squares(sums: &mut [f64], first: usize, input: &MatmulInput<'_>) {
    for (row, gate) in input.rows() {
        let gate = f64::from(gate);
        for (sum, x) in sums.iter_mut().zip(row.get(first..).unwrap_or_default()) {
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
        let mut tally = Tally::new(Isa::detect().unwrap(), 1, 3, Wanted::new());
        let x = [1.0, 2.0, /* row 1 */ 3.0, 4.0, /* row 2 */ 5.0, 6.0];
        tally.matmul_input(&MatmulInput::whole(&["q", "k"], &x, 2));
        let (rows, gates): (Option<&[u32]>, Option<&[f32]>) = (Some(&[2, 0]), Some(&[0.5, 2.0]));
        tally.matmul_input(&MatmulInput { weights: &["down"], x: &x, k: 2, rows, gates });
        let (all, _) = tally.arrays().unwrap();
        assert_eq!(array(&all, "moments.q"), &Data::F32(vec![35.0, 56.0]));
        assert_eq!(array(&all, "moments.k"), array(&all, "moments.q"));
        assert_eq!(array(&all, "tokens.q"), &Data::I64(vec![3]));
        assert_eq!(array(&all, "moments.down"), &Data::F32(vec![25.0 / 4.0 + 4.0, 9.0 + 16.0]));
        assert_eq!(array(&all, "tokens.down"), &Data::I64(vec![2]));
    }

    #[test]
    fn weights_that_share_inputs_share_a_hessian_and_downs_add_up_to_their_layer() {
        let want = |own, experts| Want { own, experts, drift: false };
        let names = [("q", want(true, false)), ("a", want(true, true)), ("b", want(false, true))];
        let wanted = names.map(|(n, w)| (n.to_owned(), w)).into();
        let mut tally = Tally::new(Isa::detect().unwrap(), 1, 3, wanted);
        tally.matmul_input(&MatmulInput::whole(&["q", "k"], &[1.0, 2.0, 3.0, 4.0], 2));
        tally.matmul_input(&MatmulInput::whole(&["unwanted"], &[1.0], 1));
        tally.matmul_input(&MatmulInput { gates: Some(&[0.5]), ..MatmulInput::whole(&["a"], &[2.0, 4.0], 2) });
        tally.matmul_input(&MatmulInput::whole(&["b"], &[1.0, 1.0], 2));
        let (all, shares) = tally.arrays().unwrap();
        assert_eq!(shares, Shares::from([("k".to_owned(), "q".to_owned())]));
        assert_eq!(array(&all, "hessian.q"), &Data::F32(vec![10.0, 14.0, 20.0]));
        assert_eq!(array(&all, "hessian.a"), &Data::F32(vec![1.0, 2.0, 4.0]));
        assert_eq!(array(&all, "hessian_experts.3"), &Data::F32(vec![2.0, 3.0, 5.0]));
        let hessians = all.iter().filter(|a| a.name.starts_with("hessian")).count();
        assert_eq!(hessians, 3, "neither k's, nor b's, nor that of what is not wanted");
    }

    #[test]
    fn routing_counts_tokens_weights_and_pairs() {
        let mut tally = Tally::new(Isa::detect().unwrap(), 1, 3, Wanted::new());
        let chosen = [(0, 0.75), (2, 0.25), /* token 1 */ (2, 0.5), (1, 0.5)];
        tally.routed(&Routed { router: "r", experts: 3, top_k: 2, chosen: &chosen });
        let (all, _) = tally.arrays().unwrap();
        assert_eq!(array(&all, "routing.3"), &Data::F64(vec![1.0, 1.0, 2.0, 0.75, 0.5, 0.75]));
        assert_eq!(array(&all, "coactivation.3"), &Data::I64(vec![1, 0, 1, 0, 1, 1, 1, 1, 2]));
    }

    #[test]
    fn an_overflow_names_the_weight() {
        let mut tally = Tally::new(Isa::detect().unwrap(), 1, 0, Wanted::new());
        tally.matmul_input(&MatmulInput::whole(&["w"], &[f32::INFINITY], 1));
        assert!(tally.arrays().unwrap_err().to_string().contains("`w`"));
    }
}

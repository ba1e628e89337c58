//! Matrix kernels alone, on random weights: what `ashlar bench --kernels` measures.
//!
//! Every scheme that serves a format can be timed, whether it would be chosen or not, so that a choice which is not the
//! fastest shows. Inputs are rounded beforehand: a time is that of the product and of writing it.

use crate::cores;
use crate::gemv::{Job, RowSet, table};
use crate::inputs::{Form, Forms, Inputs, Rounded};
use crate::loaded::Loaded;
use crate::ops::matmul::{FirstError, Output, Write, tasks, write_panels};
use crate::pool::Pool;
use ashlar_backend::{ActivationMode, BackendError, Weight};
use ashlar_formats::{Spec, random};
use ashlar_simd::Isa;
use ashlar_tensor::{AlignedBytes, Order};
use std::time::{Duration, Instant};

pub use crate::gemv::Scheme;

/// Some weights of one format and shape, together larger than the caches, and rows to multiply with them.
pub struct KernelBench {
    isa: Isa,
    pool: Pool,
    weights: Vec<Loaded>,
    x: Vec<f32>,
    rounded: Rounded,
    out: Vec<f32>,
    shape: [usize; 2],
    next: usize,
}

impl KernelBench {
    /// Weights of `spec`, [n, k], at least `bytes` of them together, and `rows` rows of inputs.
    ///
    /// # Errors
    /// If the format cannot take that shape, or there is no memory.
    pub fn new(
        spec: &Spec,
        [n, k]: [usize; 2],
        rows: usize,
        bytes: usize,
        threads: Option<usize>,
        (isa, mode): (Isa, ActivationMode),
    ) -> Result<Self, BackendError> {
        let pool = Pool::new(threads.unwrap_or_else(cores::physical).max(1));
        let mut weights = Vec::new();
        let mut held = 0;
        while held < bytes.max(1) {
            let weight = Loaded::new(weight(spec, n, k, weights.len() as u64)?, mode)?;
            held += weight.layout.bytes() as usize;
            weights.push(weight);
        }
        let mut state = 1u32;
        let mut value = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        let x: Vec<f32> = (0..rows * k).map(|_| value()).collect();
        let (rounded, out) = (Rounded::default(), vec![0.0; rows * n]);
        let mut bench = Self { isa, pool, weights, x, rounded, out, shape: [n, k], next: 0 };
        bench.set_isa(isa);
        Ok(bench)
    }

    /// Multiplies with another instruction set from now on.
    pub fn set_isa(&mut self, isa: Isa) {
        self.isa = isa;
        self.rounded.round(&self.pool, isa, &self.x, self.shape[1], Forms::of(&self.weights));
    }

    /// The name of the kernel family; `None` if weights are decoded.
    #[must_use]
    pub fn family(&self) -> Option<&'static str> {
        self.weights.first().and_then(Loaded::family)
    }

    /// How products are made: by integer dot products, by those of bf16, or by f32 multiply-adds.
    #[must_use]
    pub fn arithmetic(&self) -> ActivationMode {
        match self.weights.first().map(Loaded::form) {
            Some(Form::Int8) => ActivationMode::Int8,
            Some(Form::Bf16) => ActivationMode::Bf16,
            _ => ActivationMode::F32,
        }
    }

    /// The schemes that can multiply these weights.
    #[must_use]
    pub fn schemes(&self) -> &'static [Scheme] {
        self.weights.first().map_or(&[], |w| table::schemes(w.form()))
    }

    /// The scheme that is taken for so many rows.
    #[must_use]
    pub fn chosen(&self, rows: usize) -> Scheme {
        self.weights.first().map_or(Scheme::Direct, |w| w.scheme(self.isa, w.form(), rows))
    }

    /// Bytes of one weight.
    #[must_use]
    pub fn weight_bytes(&self) -> usize {
        self.weights.first().map_or(0, |w| w.layout.bytes() as usize)
    }

    /// Number of weights.
    #[must_use]
    pub fn weights(&self) -> usize {
        self.weights.len()
    }

    /// Multiply-adds of a row with one weight.
    #[must_use]
    pub fn multiply_adds(&self) -> usize {
        self.shape[0] * self.shape[1]
    }

    /// Multiplies the first `rows` rows with the next weight, round robin, and says how long that took.
    ///
    /// # Errors
    /// None, with the weights made here.
    pub fn time(&mut self, scheme: Scheme, rows: usize) -> Result<Duration, BackendError> {
        let [n, k] = self.shape;
        let rows = rows.min(self.x.len() / k);
        let Some(weight) = self.weights.get(self.next) else { return Ok(Duration::ZERO) };
        self.next = (self.next + 1) % self.weights.len();
        let inputs = Inputs::new(&self.x, k, Some(&self.rounded));
        let tasks = tasks(&[(weight.panels(), weight.panel_bytes())], rows, self.pool.threads());
        let job = Job { isa: self.isa, weight, inputs, form: weight.form(), rows: RowSet::First(rows), scheme };
        let out = Output::new(&mut self.out, n);
        let errors = FirstError::default();
        let begin = Instant::now();
        self.pool.run(tasks.len(), &|i| {
            // SAFETY: tasks cover every panel once.
            errors.keep(unsafe { write_panels(&job, tasks[i].panels.clone(), &out, 0, Write::Set) });
        });
        let time = begin.elapsed();
        errors.result().map(|()| time)
    }
}

/// A weight of random bits.
fn weight(spec: &Spec, n: usize, k: usize, seed: u64) -> Result<Weight, BackendError> {
    let name = format!("random {spec}");
    let layout = spec.layout(Order::X16, n, k);
    let layout = layout.map_err(|source| BackendError::Format { tensor: name.clone(), source })?;
    let mut planes = Vec::new();
    for (i, plane) in (0..).zip(&layout.planes) {
        let mut bytes = AlignedBytes::zeroed(plane.bytes as usize).ok_or_else(|| BackendError::Memory {
            backend: "cpu",
            what: name.clone(),
            needed: plane.bytes,
            free: 0,
            remedy: "close other programs".into(),
        })?;
        random::fill_plane(spec, plane.kind, 16 * seed + i, 1.0 / (k as f32).sqrt(), &mut bytes);
        planes.push(bytes.into());
    }
    Ok(Weight { name, spec: spec.clone(), order: Order::X16, n, k, planes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{isas, specs};

    /// The outputs of every scheme; they have the same bits on every ISA.
    fn same_everywhere(spec: &Spec, [n, k]: [usize; 2], rows: usize, mode: ActivationMode) {
        let mut first: Option<Vec<f32>> = None;
        for isa in Isa::available() {
            let mut bench = KernelBench::new(spec, [n, k], rows, 1, Some(2), (isa, mode)).unwrap();
            assert!(bench.schemes().contains(&bench.chosen(1)) && bench.schemes().contains(&bench.chosen(rows)));
            for &scheme in bench.schemes() {
                bench.out.fill(f32::NAN);
                bench.time(scheme, rows).unwrap();
                assert!(bench.out.iter().all(|y| y.is_finite()), "{spec} {isa} {scheme:?}");
                let first = first.get_or_insert_with(|| bench.out.clone());
                assert!(bench.out == *first, "{spec} {n} × {k}, {rows} rows, {isa} {scheme:?}");
            }
        }
    }

    #[test]
    fn every_scheme_of_every_format_writes_the_same_bits() {
        for spec in specs() {
            for [n, k] in [[40, 256], [100, 384]] {
                same_everywhere(&spec, [n, k], 7, ActivationMode::Int8);
                same_everywhere(&spec, [n, k], 7, ActivationMode::Bf16);
            }
        }
        isas("schemes");
    }

    #[test]
    fn more_rows_than_a_chunk_and_a_part_of_a_slab_are_no_different() {
        for id in ["i4:g32", "k2", "q6"] {
            same_everywhere(&id.parse().unwrap(), [80, 768], 530, ActivationMode::Int8);
        }
    }
}

//! A device beside the reference: the same operands on both, ops run on both, outputs compared.

use super::random::Random;
use super::weights::{self, Stored};
use super::{Stop, Tolerances};
use crate::{
    Backend, BackendError, Batch, BufferId, CacheId, CacheShape, Op, Reference, Support, Surveyor, Weight, WeightId,
};
use std::ops::Range;

/// An operand on the device and on the reference.
pub type Pair<T> = [T; 2];

pub struct Bench {
    pub device: Box<dyn Backend>,
    pub reference: Reference,
    pub random: Random,
    tolerances: Tolerances,
    worst: f64,
}

impl Bench {
    pub fn new(device: Box<dyn Backend>, tolerances: Tolerances, seed: u64) -> Self {
        Self { device, reference: Reference::default(), random: Random::new(seed), tolerances, worst: 0.0 }
    }

    pub fn worst(&self) -> f64 {
        self.worst
    }

    /// Loads a weight on both; the reference takes the mode the device declares for its format.
    pub fn load(&mut self, weight: Weight) -> Result<Pair<WeightId>, Stop> {
        if let Support::Unsupported(why) = self.device.support(&weight.spec) {
            return Err(Stop::Skip(format!("{}: {why}", weight.spec)));
        }
        self.reference.set_mode(self.device.activations(&weight.spec));
        Ok([self.device.load(weight.clone())?, self.reference.load(weight)?])
    }

    /// A random weight.
    pub fn weight(&mut self, stored: &Stored, n: usize, k: usize) -> Result<Pair<WeightId>, Stop> {
        let weight = weights::random(stored, n, k, "w", &mut self.random);
        self.load(weight.ok_or_else(|| Stop::Fail(format!("cannot make a {n} × {k} weight of {}", stored.name())))?)
    }

    /// A vector of values about `center`.
    pub fn vector(&mut self, len: usize, center: f32) -> Result<Pair<WeightId>, Stop> {
        let values: Vec<f32> = (0..len).map(|_| center + 0.3 * self.random.normal()).collect();
        self.table(1, len, &values)
    }

    fn table(&mut self, n: usize, k: usize, values: &[f32]) -> Result<Pair<WeightId>, Stop> {
        self.load(weights::floats(n, k, values, "t").ok_or_else(|| Stop::Fail("out of memory".into()))?)
    }

    pub fn buffer(&mut self, rows: usize, width: usize) -> Result<Pair<BufferId>, Stop> {
        Ok([self.device.alloc(rows, width)?, self.reference.alloc(rows, width)?])
    }

    pub fn cache(&mut self, shape: &CacheShape) -> Result<Pair<CacheId>, Stop> {
        Ok([self.device.alloc_cache(shape)?, self.reference.alloc_cache(shape)?])
    }

    /// Cuts a slot of all caches back on both.
    pub fn truncate(&mut self, slot: usize, positions: usize) {
        self.device.truncate(slot, positions);
        self.reference.truncate(slot, positions);
    }

    /// Gives one slot of a cache what another holds of a block, by way of bytes, on both; whether one can go on from there.
    pub fn hand_over(
        &mut self,
        cache: Pair<CacheId>,
        [from, to]: [usize; 2],
        range: Range<usize>,
    ) -> Result<bool, Stop> {
        let (mut bytes, mut whole) = (Vec::new(), Vec::new());
        let goes_on = self.device.save(cache[0], from, range.clone(), &mut bytes)?;
        self.reference.save(cache[1], from, range.clone(), &mut whole)?;
        if self.device.restore(cache[0], to, range.clone(), bytes.get(1..).unwrap_or_default()).is_ok() {
            return Err(Stop::Fail("bytes without the first were taken".into()));
        }
        self.device.restore(cache[0], to, range.clone(), &bytes)?;
        self.reference.restore(cache[1], to, range, &whole)?;
        Ok(goes_on)
    }

    /// The device, for what the reference has no op for.
    pub fn surveyor(&mut self) -> Result<&mut dyn Surveyor, Stop> {
        self.device.surveyor().ok_or_else(|| Stop::Fail("it surveys no longer".into()))
    }

    /// A buffer with random rows, one of them with a value far larger than the others.
    pub fn input(&mut self, rows: usize, width: usize) -> Result<Pair<BufferId>, Stop> {
        let buffer = self.buffer(rows.max(1), width)?;
        self.refill(buffer, rows, width)?;
        Ok(buffer)
    }

    /// Gives a buffer new random rows.
    pub fn refill(&mut self, buffer: Pair<BufferId>, rows: usize, width: usize) -> Result<(), Stop> {
        let mut values = self.random.normals(rows * width);
        let outlier = self.random.below(values.len());
        if let Some(v) = values.get_mut(outlier) {
            *v *= 20.0;
        }
        self.write(buffer, &values)
    }

    /// Writes rows to both.
    pub fn write(&mut self, buffer: Pair<BufferId>, values: &[f32]) -> Result<(), Stop> {
        self.device.write(buffer[0], values)?;
        Ok(self.reference.write(buffer[1], values)?)
    }

    /// Asserts that both refuse to be written.
    pub fn refuses_values(&mut self, buffer: Pair<BufferId>, what: &str, values: &[f32]) -> Result<(), Stop> {
        let results = [self.device.write(buffer[0], values), self.reference.write(buffer[1], values)];
        both_refused(results, what)
    }

    /// Runs an op on both; `op` builds it from the side's operands.
    pub fn run(&mut self, batch: &Batch, op: impl Fn(usize) -> Op) -> Result<(), Stop> {
        self.device.run(&op(0), batch, None)?;
        self.reference.run(&op(1), batch, None).map_err(|e| Stop::Fail(format!("the reference refuses: {e}")))
    }

    /// Asserts that both refuse.
    pub fn refuses(&mut self, batch: &Batch, what: &str, op: impl Fn(usize) -> Op) -> Result<(), Stop> {
        let results: [Result<(), BackendError>; 2] =
            [self.device.run(&op(0), batch, None), self.reference.run(&op(1), batch, None)];
        both_refused(results, what)
    }

    /// Compares a buffer of `width` on both sides.
    pub fn compare(&mut self, buffer: Pair<BufferId>, width: usize) -> Result<(), Stop> {
        let (got, want) = (self.device.read(buffer[0])?, self.reference.read(buffer[1])?);
        if got.len() != want.len() {
            return Err(Stop::Fail(format!("{} values, expected {}", got.len(), want.len())));
        }
        let max = want.iter().fold(0.0f64, |m, w| m.max(f64::from(w.abs())));
        for (i, (g, w)) in got.iter().zip(&want).enumerate() {
            let (row, column) = (i / width, i % width);
            let error = (f64::from(*g) - f64::from(*w)).abs();
            let slack = self.reference.slack().get(row).copied().unwrap_or_default() * 1.001;
            let allowed = self.tolerances.relative * max + slack;
            if !g.is_finite() || error > allowed {
                let what = format!("row {row}, column {column}: {g}, expected {w} ± {allowed:.1e} (max |y| {max:.3})");
                return Err(Stop::Fail(what));
            }
            if slack == 0.0 && max > 0.0 {
                self.worst = self.worst.max(error / max);
            }
        }
        Ok(())
    }
}

fn both_refused(results: [Result<(), BackendError>; 2], what: &str) -> Result<(), Stop> {
    match results {
        [Err(_), Err(_)] => Ok(()),
        [Ok(()), _] => Err(Stop::Fail(format!("{what} was accepted"))),
        [_, Ok(())] => Err(Stop::Fail(format!("{what} was accepted by the reference"))),
    }
}

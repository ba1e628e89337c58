//! The conformance suite: one file per op, called by every backend's tests.
//!
//! Each case gives the device and the reference the same random weights and inputs, runs the op on both, the reference
//! in the activation mode the device declares, and compares. Cases are seeded: a failure names its case and repeats.
//! A format that a device does not support is a skip, which the report counts and names.

mod attention;
mod bench;
mod block_linear;
mod compress;
mod copies;
mod embed;
mod gated_linear;
mod head_norm_rope;
mod hyper;
mod linear;
mod moe;
mod qk_norm_rope;
mod random;
mod rms_norm;
mod saved;
mod select_rows;
mod sigmoid_gate;
mod slots;
mod survey;
mod weights;

use crate::Backend;
use bench::Bench;
use std::fmt;

/// What a device promises.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerances {
    /// max |got − want| / max |want| of one output, against the reference in the same activation mode.
    pub relative: f64,
}

impl Default for Tolerances {
    /// DESIGN §10.
    fn default() -> Self {
        Self { relative: 1e-5 }
    }
}

/// What became of one case.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Largest error, relative as in [`Tolerances::relative`].
    Passed(f64),
    /// What differs, or the error the device returned.
    Failed(String),
    /// Why it was not run.
    Skipped(String),
}

/// One case.
#[derive(Clone, Debug, PartialEq)]
pub struct Case {
    /// Op, format, order and shape, such as `linear i4:g32 X16 m=3 n=40 k=96`.
    pub name: String,
    /// What became of it.
    pub outcome: Outcome,
}

/// What became of all cases.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ConformanceReport {
    /// In order of execution.
    pub cases: Vec<Case>,
}

impl ConformanceReport {
    /// Names and reasons of the cases that failed.
    #[must_use]
    pub fn failures(&self) -> Vec<String> {
        self.texts(|o| if let Outcome::Failed(why) = o { Some(why) } else { None })
    }

    /// Names and reasons of the cases that were not run.
    #[must_use]
    pub fn skips(&self) -> Vec<String> {
        self.texts(|o| if let Outcome::Skipped(why) = o { Some(why) } else { None })
    }

    /// Largest relative error of the cases that passed.
    #[must_use]
    pub fn worst(&self) -> f64 {
        let error = |c: &Case| if let Outcome::Passed(e) = c.outcome { e } else { 0.0 };
        self.cases.iter().map(error).fold(0.0, f64::max)
    }

    /// Cases that were run.
    #[must_use]
    pub fn ran(&self) -> usize {
        self.cases.iter().filter(|c| !matches!(c.outcome, Outcome::Skipped(_))).count()
    }

    fn texts(&self, pick: impl Fn(&Outcome) -> Option<&String>) -> Vec<String> {
        self.cases.iter().filter_map(|c| Some(format!("{}: {}", c.name, pick(&c.outcome)?))).collect()
    }
}

impl fmt::Display for ConformanceReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (failures, skips) = (self.failures(), self.skips());
        write!(f, "{} cases run, {} failed, {} skipped, ", self.ran(), failures.len(), skips.len())?;
        write!(f, "worst relative error {:.1e}", self.worst())?;
        failures.iter().try_for_each(|text| write!(f, "\nFAILED {text}"))?;
        skips.iter().try_for_each(|text| write!(f, "\nSKIPPED {text}"))
    }
}

/// Runs every case on devices that `make` creates; each case gets a fresh one.
pub fn run(make: &mut dyn FnMut() -> Box<dyn Backend>, tolerances: &Tolerances) -> ConformanceReport {
    let mut suite = Suite { make, tolerances: *tolerances, report: ConformanceReport::default() };
    embed::cases(&mut suite);
    rms_norm::cases(&mut suite);
    linear::cases(&mut suite);
    gated_linear::cases(&mut suite);
    qk_norm_rope::cases(&mut suite);
    attention::cases(&mut suite);
    moe::cases(&mut suite);
    select_rows::cases(&mut suite);
    attention::options(&mut suite);
    moe::options(&mut suite);
    sigmoid_gate::cases(&mut suite);
    head_norm_rope::cases(&mut suite);
    block_linear::cases(&mut suite);
    hyper::cases(&mut suite);
    compress::cases(&mut suite);
    moe::tables(&mut suite);
    attention::stored(&mut suite);
    attention::long(&mut suite);
    copies::cases(&mut suite);
    saved::cases(&mut suite);
    slots::cases(&mut suite);
    survey::cases(&mut suite);
    suite.report
}

/// Runs the cases of experts in slots alone.
pub fn run_slots(make: &mut dyn FnMut() -> Box<dyn Backend>, tolerances: &Tolerances) -> ConformanceReport {
    let mut suite = Suite { make, tolerances: *tolerances, report: ConformanceReport::default() };
    slots::cases(&mut suite);
    suite.report
}

struct Suite<'m> {
    make: &'m mut dyn FnMut() -> Box<dyn Backend>,
    tolerances: Tolerances,
    report: ConformanceReport,
}

impl Suite<'_> {
    /// Runs one case on a fresh device; the seed is its number.
    fn case(&mut self, name: String, body: impl FnOnce(&mut Bench) -> Result<(), Stop>) {
        let seed = self.report.cases.len() as u64;
        let mut bench = Bench::new((self.make)(), self.tolerances, seed);
        let outcome = match body(&mut bench) {
            Ok(()) => Outcome::Passed(bench.worst()),
            Err(Stop::Skip(why)) => Outcome::Skipped(why),
            Err(Stop::Fail(why)) => Outcome::Failed(why),
        };
        self.report.cases.push(Case { name, outcome });
    }

    /// As [`Suite::case`]; a case that fails where an entry that was stored lay on a tie is tried with other rows: the device may have stored the
    /// other value, and everything after that differs. One that fails without a tie has failed.
    fn case_with_ties(&mut self, name: String, body: impl Fn(&mut Bench) -> Result<(), Stop>) {
        let seed = self.report.cases.len() as u64;
        let mut outcome = Outcome::Failed("every try met a tie".into());
        for turn in 0..TRIES {
            let mut bench = Bench::new((self.make)(), self.tolerances, seed + (turn << 32));
            outcome = match body(&mut bench) {
                Ok(()) => Outcome::Passed(bench.worst()),
                Err(Stop::Skip(why)) => Outcome::Skipped(why),
                Err(Stop::Fail(_)) if bench.reference.met_a_tie() && turn + 1 < TRIES => continue,
                Err(Stop::Fail(why)) => Outcome::Failed(why),
            };
            break;
        }
        self.report.cases.push(Case { name, outcome });
    }
}

/// Tries with other rows where stored values lie on ties.
const TRIES: u64 = 16;

/// Why a case ended early.
enum Stop {
    Skip(String),
    Fail(String),
}

impl From<crate::BackendError> for Stop {
    fn from(e: crate::BackendError) -> Self {
        Self::Fail(e.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ActivationMode, BackendError, Batch, BufferId, CacheId, CacheShape, Memory, Observer, Op, Reference, Support,
        Weight, WeightId,
    };
    use ashlar_formats::Spec;

    #[test]
    fn the_reference_conforms_to_itself_in_every_mode() {
        for mode in [ActivationMode::F32, ActivationMode::Int8, ActivationMode::Bf16] {
            let report = run(&mut || Box::new(Reference::new(mode)), &Tolerances { relative: 0.0 });
            assert!(report.failures().is_empty(), "{report}");
            assert!(report.ran() > 100 && report.skips().is_empty(), "{report}");
        }
    }

    /// A reference with one value of every output a little wrong.
    struct Wrong(Reference);

    impl Backend for Wrong {
        fn describe(&self) -> String {
            "wrong".into()
        }
        fn support(&self, spec: &Spec) -> Support {
            self.0.support(spec)
        }
        fn activations(&self, spec: &Spec) -> ActivationMode {
            self.0.activations(spec)
        }
        fn load(&mut self, weight: Weight) -> Result<WeightId, BackendError> {
            self.0.load(weight)
        }
        fn alloc(&mut self, rows: usize, width: usize) -> Result<BufferId, BackendError> {
            self.0.alloc(rows, width)
        }
        fn alloc_cache(&mut self, shape: &CacheShape) -> Result<CacheId, BackendError> {
            self.0.alloc_cache(shape)
        }
        fn truncate(&mut self, slot: usize, positions: usize) {
            self.0.truncate(slot, positions);
        }
        fn memory(&self) -> Memory {
            self.0.memory()
        }
        fn run(&mut self, op: &Op, batch: &Batch, observer: Option<&mut dyn Observer>) -> Result<(), BackendError> {
            self.0.run(op, batch, observer)
        }
        fn read(&mut self, buffer: BufferId) -> Result<Vec<f32>, BackendError> {
            let mut values = self.0.read(buffer)?;
            let max = values.iter().fold(0.0f32, |m, v| m.max(v.abs()));
            if let Some(last) = values.last_mut() {
                *last += 3e-5 * max;
            }
            Ok(values)
        }
        fn write(&mut self, buffer: BufferId, values: &[f32]) -> Result<(), BackendError> {
            self.0.write(buffer, values)
        }
    }

    #[test]
    fn an_error_of_three_parts_in_a_hundred_thousand_is_found_in_every_op() {
        let report = run(&mut || Box::new(Wrong(Reference::default())), &Tolerances::default());
        let ops = ["embed", "rms_norm", "linear", "gated_linear", "qk_norm_rope", "attention", "moe", "select_rows"];
        for op in ops.into_iter().chain([
            "sigmoid_gate",
            "head_norm_rope",
            "block_linear",
            "block_linear_transposed",
            "repeat",
            "hyper_mix",
            "compress",
            "write",
        ]) {
            assert!(report.failures().iter().any(|f| f.starts_with(op)), "{op}");
        }
    }
}

//! Every kernel of every format against the others that could do its work, and against the machine's ceilings.
//!
//! A *candidate* is an instruction set and a scheme. One of them is what the CPU backend takes; it should be the fastest.
//! Candidates are measured in turn, several rounds, the ceilings in between, since shared machines change from one minute
//! to the next; the least time of each counts.

use crate::devices::{KernelBench, Scheme};
use crate::{ActivationMode, Meter, RuntimeError};
use ashlar_formats::Spec;
use ashlar_simd::Isa;
use ashlar_tensor::Report;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How much slower than the fastest the chosen candidate may be before that counts as a wrong choice.
pub const NOISE: f64 = 0.10;
/// n × k of the weights.
const SHAPE: [usize; 2] = [2048, 2048];
/// Bytes of weights per format: more than caches hold, so that few rows are bound by memory.
const SET: usize = 96 << 20;
/// Rows up to which lesser instruction sets are measured, too: what lags there lags beyond, and takes its time.
const LESSER_ROWS: usize = 16;
/// Time of a candidate in a round.
const SLICE: Duration = Duration::from_millis(6);

/// What to measure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelOptions {
    /// Formats in text form; empty for the first variant of every one.
    pub formats: Vec<String>,
    /// Rows of activations.
    pub rows: Vec<usize>,
    /// Rounds.
    pub rounds: usize,
    /// Threads; `None` for one per core.
    pub threads: Option<usize>,
    /// How inputs are rounded.
    pub activations: ActivationMode,
}

/// One way to multiply.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// Instruction set.
    pub isa: Isa,
    /// How rows walk over the weight.
    pub scheme: &'static str,
    /// Seconds for one weight, the least that was measured.
    pub seconds: f64,
    /// Whether the backend takes it.
    pub chosen: bool,
}

/// The candidates of a format for so many rows.
#[derive(Clone, Debug, PartialEq)]
pub struct KernelLine {
    /// The format.
    pub format: String,
    /// Its kernel family; `None` if weights are decoded.
    pub family: Option<&'static str>,
    /// Rows of activations.
    pub rows: usize,
    /// Bytes of a weight.
    pub bytes: usize,
    /// Multiply-adds of all rows with a weight.
    pub multiply_adds: usize,
    /// Candidates.
    pub candidates: Vec<Candidate>,
    /// Streaming reads, bytes per second, the best round.
    pub read: f64,
    /// What the kernel multiplies with: `int8`, `bf16` or `f32`.
    pub arithmetic: &'static str,
    /// Multiply-adds per second of that arithmetic in registers, the best round.
    pub ceiling: f64,
}

impl KernelLine {
    /// What the backend takes.
    #[must_use]
    pub fn chosen(&self) -> Option<&Candidate> {
        self.candidates.iter().find(|c| c.chosen)
    }

    /// The fastest.
    #[must_use]
    pub fn fastest(&self) -> Option<&Candidate> {
        self.candidates.iter().min_by(|a, b| a.seconds.total_cmp(&b.seconds))
    }

    /// Whether what the backend takes is the fastest, within [`NOISE`].
    #[must_use]
    pub fn is_right(&self) -> bool {
        match (self.chosen(), self.fastest()) {
            (Some(chosen), Some(fastest)) => chosen.seconds <= fastest.seconds * (1.0 + NOISE),
            _ => false,
        }
    }
}

/// Measures; `None` if cancelled.
///
/// # Errors
/// [`RuntimeError::Option`] for an unknown format, no rows or rounds, or an instruction set that is not there.
pub fn measure(
    options: &KernelOptions,
    cancel: &AtomicBool,
    report: &dyn Report,
) -> Result<Option<Vec<KernelLine>>, RuntimeError> {
    let bad = |option, got: String, expected: &str| RuntimeError::Option { option, got, expected: expected.into() };
    if options.rounds == 0 || options.rows.is_empty() || options.rows.contains(&0) {
        return Err(bad("--rows, --rounds", "0 or nothing".into(), "at least 1"));
    }
    let isa = Isa::detect().map_err(|e| bad("ASHLAR_ISA", e.to_string(), "an instruction set of this machine"))?;
    let specs = specs(&options.formats)?;
    let meter = Meter::new(options.threads, isa);
    report.begin("kernels", (specs.len() * options.rows.len()) as u64);
    let mut lines = Vec::new();
    for spec in &specs {
        let most = options.rows.iter().copied().max().unwrap_or(1);
        let mut bench = KernelBench::new(spec, SHAPE, most, SET, options.threads, (isa, options.activations))?;
        for &rows in &options.rows {
            if cancel.load(Ordering::Relaxed) {
                report.end();
                return Ok(None);
            }
            lines.push(line(&mut bench, spec, rows, isa, meter.as_ref(), options.rounds)?);
            report.advance(1, &spec.to_string());
        }
    }
    report.end();
    Ok(Some(lines))
}

/// The formats asked for, or one of each.
fn specs(asked: &[String]) -> Result<Vec<Spec>, RuntimeError> {
    let all = || ashlar_formats::ids().map(str::to_owned).collect();
    let names: Vec<String> = if asked.is_empty() { all() } else { asked.to_vec() };
    let parse = |name: &String| {
        name.parse::<Spec>().or_else(|error| match ashlar_formats::format(name) {
            // An id alone: its first variant.
            Ok(format) => {
                let variant = format.variants().first().map_or("", |v| v.text);
                format!("{name}:{variant}").parse()
            }
            Err(_) => Err(error),
        })
    };
    let bad = |name: &String, e: ashlar_formats::FormatError| RuntimeError::Option {
        option: "--formats",
        got: format!("`{name}`: {e}"),
        expected: "formats such as q8 or i4:g32".into(),
    };
    names.iter().map(|name| parse(name).map_err(|e| bad(name, e))).collect()
}

fn line(
    bench: &mut KernelBench,
    spec: &Spec,
    rows: usize,
    detected: Isa,
    meter: Option<&Meter>,
    rounds: usize,
) -> Result<KernelLine, RuntimeError> {
    // Better ones than ASHLAR_ISA asks for are no candidates.
    let measured = |isa: &Isa| *isa == detected || *isa < detected && rows <= LESSER_ROWS;
    let schemes = bench.schemes();
    let with_schemes = |isa| schemes.iter().map(move |&scheme| (isa, scheme));
    let pairs: Vec<(Isa, Scheme)> = Isa::available().into_iter().filter(measured).flat_map(with_schemes).collect();
    let mut least = vec![f64::INFINITY; pairs.len()];
    let (mut read, mut ceiling) = (0.0f64, 0.0f64);
    let arithmetic = bench.arithmetic();
    for _ in 0..rounds {
        if let Some(meter) = meter {
            read = read.max(meter.read());
            ceiling = ceiling.max(match arithmetic {
                ActivationMode::Int8 => meter.int8(),
                ActivationMode::Bf16 => meter.bf16(),
                ActivationMode::F32 => meter.f32(),
            });
        }
        for (&(isa, scheme), least) in pairs.iter().zip(&mut least) {
            bench.set_isa(isa);
            let begin = Instant::now();
            loop {
                *least = least.min(bench.time(scheme, rows)?.as_secs_f64());
                if begin.elapsed() >= SLICE {
                    break;
                }
            }
        }
    }
    bench.set_isa(detected);
    let chosen = bench.chosen(rows);
    let candidates = pairs.iter().zip(least).map(|(&(isa, scheme), seconds)| Candidate {
        isa,
        scheme: scheme.name(),
        seconds,
        chosen: (isa, scheme) == (detected, chosen),
    });
    Ok(KernelLine {
        format: spec.to_string(),
        family: bench.family(),
        rows,
        bytes: bench.weight_bytes(),
        multiply_adds: rows * bench.multiply_adds(),
        candidates: candidates.collect(),
        read,
        arithmetic: arithmetic.name(),
        ceiling,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(seconds: f64, chosen: bool) -> Candidate {
        Candidate { isa: Isa::Portable, scheme: "direct", seconds, chosen }
    }

    #[test]
    fn a_choice_may_lag_by_the_noise_and_no_more() {
        let line = |candidates| KernelLine {
            format: "q8".into(),
            family: Some("q8"),
            rows: 1,
            bytes: 1,
            multiply_adds: 1,
            candidates,
            read: 1.0,
            arithmetic: "int8",
            ceiling: 1.0,
        };
        assert!(line(vec![candidate(1.0, false), candidate(1.09, true)]).is_right());
        assert!(!line(vec![candidate(1.0, false), candidate(1.2, true)]).is_right());
        assert!(!line(vec![candidate(1.0, false)]).is_right(), "nothing chosen");
    }

    #[test]
    fn every_format_has_a_first_variant_and_nonsense_is_refused() {
        assert_eq!(specs(&[]).unwrap().len(), ashlar_formats::ids().count());
        assert!(specs(&["q9".into()]).unwrap_err().to_string().contains("q9"));
    }
}

//! How tokens are chosen: flags, then the model's `generation_config.json`, then greedy; and saying which.

use crate::exit::Failure;
use anyhow::Context;
use ashlar_runtime::Sampling;
use clap::Args;
use serde_json::Value;
use std::hash::{BuildHasher, RandomState};
use std::path::Path;

const FILE: &str = "generation_config.json";

/// How tokens are chosen. What is not given comes from the model's generation_config.json.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Sampling [default: what generation_config.json says, else greedy]")]
pub struct SamplingArgs {
    /// 0 always takes the most probable token; higher is more varied
    #[arg(long, value_name = "T")]
    pub temperature: Option<f64>,
    /// Choose among the K most probable tokens; 0 for all
    #[arg(long, value_name = "K")]
    pub top_k: Option<usize>,
    /// Choose among the most probable tokens that together reach P
    #[arg(long, value_name = "P")]
    pub top_p: Option<f64>,
    /// Leave out tokens less than P times as probable as the most probable one
    #[arg(long, value_name = "P")]
    pub min_p: Option<f64>,
    /// Make tokens seen lately less probable; 1 for no change
    #[arg(long, value_name = "X", alias = "repeat-penalty")]
    pub repetition_penalty: Option<f64>,
    /// Seed of the random numbers: the same seed gives the same text [default: a new one, told at the end]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
}

/// What was decided, and where from.
#[derive(Clone, Debug, PartialEq)]
pub struct Chosen {
    pub sampling: Sampling,
    /// `temperature 0.6 (generation_config.json), top-p 0.9 (--top-p)`
    pub told: String,
}

impl Chosen {
    /// What a server tells, whose requests have seeds of their own unless `seed` was asked for.
    #[must_use]
    pub fn told_of_requests(&self, seed: Option<u64>) -> String {
        match self.told.strip_suffix(&format!(", seed {}", self.sampling.seed)) {
            Some(told) if seed.is_none() => format!("{told}, another seed each time"),
            _ => self.told.clone(),
        }
    }

    /// Whether the same prompt always gives the same text.
    #[must_use]
    pub fn is_greedy(&self) -> bool {
        self.sampling.temperature == 0.0
    }
}

impl SamplingArgs {
    /// Decides for the model in `dir`.
    ///
    /// # Errors
    /// If the file is no JSON object (a failure), or a value is out of range (a mistake of the user's where it is a flag).
    pub fn choose(&self, dir: &Path) -> Result<Chosen, Failure> {
        let path = dir.join(FILE);
        let config = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).with_context(|| format!("{}: not JSON", path.display()))?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Value::Null,
            Err(e) => return Err(anyhow::Error::new(e).context(format!("cannot read {}", path.display())).into()),
        };
        let chosen = self.merge(&config);
        chosen.sampling.check().map_err(Failure::usage)?;
        Ok(chosen)
    }

    fn merge(&self, config: &Value) -> Chosen {
        let off = Sampling::default();
        let mut told = Vec::new();
        let mut pick = |name: &str, flag: Option<f64>, key: &str, neutral: f64| {
            let (value, from) = match (flag, config.get(key).and_then(Value::as_f64)) {
                (Some(flag), _) => (flag, format!("--{name}")),
                (None, Some(value)) => (value, FILE.to_owned()),
                (None, None) => return neutral,
            };
            if value != neutral {
                told.push(format!("{name} {value} ({from})"));
            }
            value
        };
        // Without `do_sample` the model's authors want the most probable token, whatever else they left in the file.
        let samples = config.get("do_sample").and_then(Value::as_bool).unwrap_or(false);
        let temperature = match (self.temperature, samples) {
            (None, false) => 0.0,
            (flag, _) => pick("temperature", flag, "temperature", 1.0),
        };
        let top_k = pick("top-k", self.top_k.map(|k| k as f64), "top_k", 0.0).max(0.0) as usize;
        let top_p = pick("top-p", self.top_p, "top_p", off.top_p);
        let min_p = pick("min-p", self.min_p, "min_p", off.min_p);
        let repetition_penalty =
            pick("repetition-penalty", self.repetition_penalty, "repetition_penalty", off.repetition_penalty);
        let seed = self.seed.unwrap_or_else(|| RandomState::new().hash_one(0));
        if temperature == 0.0 {
            told.retain(|t| t.starts_with("repetition-penalty"));
            told.insert(0, "greedy".to_owned());
        } else {
            if !told.iter().any(|t| t.starts_with("temperature")) {
                told.insert(0, "temperature 1".to_owned());
            }
            told.push(format!("seed {seed}"));
        }
        let sampling = Sampling { temperature, top_k, top_p, min_p, repetition_penalty, seed, ..off };
        Chosen { sampling, told: told.join(", ") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn without_do_sample_the_choice_is_greedy() {
        let chosen = SamplingArgs::default().merge(&json!({"temperature": 0.6, "top_p": 0.9}));
        assert_eq!(chosen.sampling.temperature, 0.0);
        assert_eq!(chosen.told, "greedy");
        assert_eq!(SamplingArgs::default().merge(&Value::Null).sampling.temperature, 0.0);
    }

    #[test]
    fn the_file_decides_what_flags_leave_open_and_both_are_told() {
        let config = json!({"do_sample": true, "temperature": 0.6, "top_k": 20, "top_p": 0.95});
        let chosen = SamplingArgs { top_p: Some(0.5), seed: Some(7), ..SamplingArgs::default() }.merge(&config);
        let Sampling { temperature, top_k, top_p, seed, .. } = chosen.sampling;
        assert_eq!((temperature, top_k, top_p, seed), (0.6, 20, 0.5, 7));
        let want =
            "temperature 0.6 (generation_config.json), top-k 20 (generation_config.json), top-p 0.5 (--top-p), seed 7";
        assert_eq!(chosen.told, want);
        assert_eq!(chosen.told_of_requests(Some(7)), want);
        assert!(chosen.told_of_requests(None).ends_with("top-p 0.5 (--top-p), another seed each time"));
    }

    #[test]
    fn a_temperature_flag_turns_sampling_on() {
        let chosen = SamplingArgs { temperature: Some(0.8), ..SamplingArgs::default() }.merge(&Value::Null);
        assert_eq!(chosen.sampling.temperature, 0.8);
        assert!(chosen.told.starts_with("temperature 0.8 (--temperature), seed "));
    }

    #[test]
    fn a_value_out_of_range_is_the_users_mistake() {
        let args = SamplingArgs { top_p: Some(1.5), temperature: Some(1.0), ..SamplingArgs::default() };
        assert!(args.choose(Path::new("/nonexistent")).is_err());
    }
}

//! What clients send.

use super::error::ApiError;
use ashlar_runtime::{GenerateOptions, Sampling};
use serde::Deserialize;
use serde_json::{Map, Value};

/// The most choices of one request.
const MOST_CHOICES: usize = 16;
/// The most alternatives per token.
const MOST_ALTERNATIVES: usize = 20;
/// The most stop texts, and the most bytes of one.
const MOST_STOPS: [usize; 2] = [16, 1024];

/// One text or several.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub enum Texts {
    One(String),
    Many(Vec<String>),
}

impl Texts {
    pub fn list(self) -> Vec<String> {
        match self {
            Self::One(text) => vec![text],
            Self::Many(texts) => texts,
        }
    }
}

/// What a stream tells at its end.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub struct StreamOptions {
    #[serde(default)]
    pub include_usage: bool,
}

/// What chat and plain completions have in common.
#[derive(Debug, Deserialize)]
pub struct Common {
    pub model: Option<String>,
    pub max_tokens: Option<usize>,
    pub max_completion_tokens: Option<usize>,
    pub temperature: Option<f64>,
    pub top_p: Option<f64>,
    pub top_k: Option<usize>,
    pub min_p: Option<f64>,
    pub repetition_penalty: Option<f64>,
    pub seed: Option<i64>,
    pub stop: Option<Texts>,
    pub n: Option<usize>,
    /// Go on after the model's stop tokens, as other servers know it; for measuring.
    #[serde(default)]
    pub ignore_eos: bool,
    #[serde(default)]
    pub stream: bool,
    pub stream_options: Option<StreamOptions>,
    /// Fields that are not above: those of the kind of request, and unknown ones.
    #[serde(flatten)]
    pub others: Map<String, Value>,
}

/// Fields of OpenAI's API that mean something this server does not do, unless they are 0.
const NOT_DONE: [&str; 2] = ["presence_penalty", "frequency_penalty"];

impl Common {
    /// Takes a body apart.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let common: Self = serde_json::from_slice(body).map_err(|e| ApiError::bad(format!("the request: {e}")))?;
        for field in NOT_DONE {
            match common.others.get(field).map(|v| (v.is_null(), v.as_f64())) {
                None | Some((true, _) | (_, Some(0.0))) => {}
                Some(_) => {
                    return Err(ApiError::field(
                        field,
                        format!("`{field}` is not supported here; leave it out or send 0"),
                    ));
                }
            }
        }
        if common.others.get("logit_bias").is_some_and(|v| v.as_object().is_none_or(|o| !o.is_empty()) && !v.is_null())
        {
            return Err(ApiError::field("logit_bias", "`logit_bias` is not supported here; leave it out"));
        }
        Ok(common)
    }

    /// Takes a field out, in its type; `None` if it is absent or null.
    pub fn take<T: serde::de::DeserializeOwned>(&mut self, field: &'static str) -> Result<Option<T>, ApiError> {
        match self.others.remove(field) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => {
                serde_json::from_value(value).map(Some).map_err(|e| ApiError::field(field, format!("`{field}`: {e}")))
            }
        }
    }

    /// How many answers.
    pub fn choices(&self) -> Result<usize, ApiError> {
        match self.n.unwrap_or(1) {
            n @ 1..=MOST_CHOICES => Ok(n),
            n => Err(ApiError::field("n", format!("`n` is {n}, expected 1 to {MOST_CHOICES}"))),
        }
    }

    /// How to generate. What the request does not say comes from `defaults`.
    pub fn options(&mut self, defaults: &Sampling) -> Result<GenerateOptions, ApiError> {
        let stop = self.stop.take().map(Texts::list).unwrap_or_default();
        let [count, bytes] = MOST_STOPS;
        if stop.len() > count || stop.iter().any(|s| s.len() > bytes) {
            let message = format!("`stop` may be at most {count} texts of at most {bytes} bytes");
            return Err(ApiError::field("stop", message));
        }
        let sampling = Sampling {
            temperature: self.temperature.unwrap_or(defaults.temperature),
            top_p: self.top_p.unwrap_or(defaults.top_p),
            top_k: self.top_k.unwrap_or(defaults.top_k),
            min_p: self.min_p.unwrap_or(defaults.min_p),
            repetition_penalty: self.repetition_penalty.unwrap_or(defaults.repetition_penalty),
            seed: self.seed.map_or(defaults.seed, i64::cast_unsigned),
            ..defaults.clone()
        };
        sampling.check()?;
        let max_tokens = self.max_completion_tokens.or(self.max_tokens);
        let ignore_stop_tokens = self.ignore_eos;
        Ok(GenerateOptions { max_tokens, stop, sampling, ignore_stop_tokens, ..GenerateOptions::default() })
    }
}

/// The number of alternatives, if it is one that may be asked for.
pub fn alternatives(field: &'static str, asked: usize) -> Result<usize, ApiError> {
    if asked > MOST_ALTERNATIVES {
        return Err(ApiError::field(field, format!("`{field}` is {asked}, expected at most {MOST_ALTERNATIVES}")));
    }
    Ok(asked)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(body: &Value) -> Result<Common, ApiError> {
        Common::parse(body.to_string().as_bytes())
    }

    #[test]
    fn what_is_not_said_comes_from_the_defaults() {
        let defaults = Sampling { temperature: 0.6, seed: 9, ..Sampling::default() };
        let mut request = parse(&json!({"top_p": 0.5, "seed": -1, "stop": "END", "max_tokens": 3})).unwrap();
        let options = request.options(&defaults).unwrap();
        let Sampling { temperature, top_p, seed, .. } = options.sampling;
        assert_eq!((temperature, top_p, seed), (0.6, 0.5, u64::MAX));
        assert_eq!((options.max_tokens, options.stop), (Some(3), vec!["END".to_owned()]));
    }

    #[test]
    fn what_cannot_be_done_is_refused_and_not_ignored() {
        assert!(parse(&json!({"presence_penalty": 0.5})).is_err() && parse(&json!({"logit_bias": {"1": 2}})).is_err());
        assert!(parse(&json!({"presence_penalty": 0, "logit_bias": {}, "frequency_penalty": null})).is_ok());
        assert!(parse(&json!({"temperature": "hot"})).is_err() && parse(&json!([1])).is_err());
        let out = parse(&json!({"temperature": -1})).unwrap().options(&Sampling::default());
        assert!(out.is_err());
        assert!(
            parse(&json!({"n": 0})).unwrap().choices().is_err() && parse(&json!({"n": 17})).unwrap().choices().is_err()
        );
        let many = vec!["x"; 17];
        assert!(parse(&json!({"stop": many})).unwrap().options(&Sampling::default()).is_err());
    }
}

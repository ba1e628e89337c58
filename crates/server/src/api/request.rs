//! What clients send.

use super::error::ApiError;
use crate::Defaults;
use ashlar_runtime::{GenerateOptions, Sampling};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::hash::{BuildHasher, RandomState};

/// The most choices of one request.
const MOST_CHOICES: usize = 16;
/// The most alternatives per token.
const MOST_ALTERNATIVES: usize = 20;
/// The most stop texts, and the most bytes of one.
const MOST_STOPS: [usize; 2] = [16, 1024];

/// One text or several.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected a text or a list of texts")]
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

/// A request's fields. Whoever reads one takes it out; what nobody takes is unknown here and means nothing.
#[derive(Debug)]
pub struct Fields(Map<String, Value>);

/// Whether a value asks for nothing.
type Harmless = fn(&Value) -> bool;

/// Fields of OpenAI's API that mean something this server does not do, unless they ask for nothing.
const NOT_DONE: [(&str, Harmless); 9] = [
    ("presence_penalty", is_zero),
    ("frequency_penalty", is_zero),
    ("logit_bias", is_empty),
    ("functions", is_empty),
    ("function_call", is_no_choice),
    ("best_of", |v| v.as_u64() == Some(1)),
    ("audio", |_| false),
    ("modalities", |v| v.as_array().is_some_and(|m| m.iter().all(|m| m == "text"))),
    ("web_search_options", |_| false),
];

fn is_zero(value: &Value) -> bool {
    value.as_f64() == Some(0.0)
}

fn is_empty(value: &Value) -> bool {
    value.as_object().is_some_and(Map::is_empty) || value.as_array().is_some_and(Vec::is_empty)
}

fn is_no_choice(value: &Value) -> bool {
    value == "none" || value == "auto"
}

impl Fields {
    /// Takes a body apart.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let fields: Map<String, Value> =
            serde_json::from_slice(body).map_err(|e| ApiError::bad(format!("the request is no JSON object: {e}")))?;
        for (field, harmless) in NOT_DONE {
            if fields.get(field).is_some_and(|v| !v.is_null() && !harmless(v)) {
                return Err(ApiError::field(field, format!("`{field}` is not supported here; leave it out")));
            }
        }
        Ok(Self(fields))
    }

    /// Takes a field out, in its type; `None` if it is absent or null.
    pub fn take<T: serde::de::DeserializeOwned>(&mut self, field: &'static str) -> Result<Option<T>, ApiError> {
        match self.0.remove(field) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => {
                serde_json::from_value(value).map(Some).map_err(|e| ApiError::field(field, format!("`{field}`: {e}")))
            }
        }
    }

    /// How many answers to a prompt.
    pub fn choices(&mut self) -> Result<usize, ApiError> {
        match self.take("n")?.unwrap_or(1) {
            n @ 1..=MOST_CHOICES => Ok(n),
            n => Err(ApiError::field("n", format!("`n` is {n}, expected 1 to {MOST_CHOICES}"))),
        }
    }

    /// How to generate. What the request does not say comes from `defaults`.
    pub fn options(&mut self, defaults: &Defaults) -> Result<GenerateOptions, ApiError> {
        let stop = self.take::<Texts>("stop")?.map(Texts::list).unwrap_or_default();
        let [count, bytes] = MOST_STOPS;
        if stop.len() > count || stop.iter().any(|s| s.len() > bytes) {
            let message = format!("`stop` may be at most {count} texts of at most {bytes} bytes");
            return Err(ApiError::field("stop", message));
        }
        let Defaults { sampling, seed } = defaults;
        let asked = self.take("seed")?.map(i64::cast_unsigned);
        let sampling = Sampling {
            temperature: self.take("temperature")?.unwrap_or(sampling.temperature),
            top_p: self.take("top_p")?.unwrap_or(sampling.top_p),
            top_k: self.take("top_k")?.unwrap_or(sampling.top_k),
            min_p: self.take("min_p")?.unwrap_or(sampling.min_p),
            repetition_penalty: self.take("repetition_penalty")?.unwrap_or(sampling.repetition_penalty),
            // The same question asked again may have another answer.
            seed: asked.or(*seed).unwrap_or_else(|| RandomState::new().hash_one(0)),
            ..sampling.clone()
        };
        sampling.check()?;
        let (new, old) = (self.take("max_completion_tokens")?, self.take("max_tokens")?);
        let max_tokens = new.or(old);
        // As other servers know it; for measuring.
        let ignore_stop_tokens = self.take("ignore_eos")?.unwrap_or(false);
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

    fn parse(body: &Value) -> Result<Fields, ApiError> {
        Fields::parse(body.to_string().as_bytes())
    }

    fn defaults(seed: Option<u64>) -> Defaults {
        Defaults { sampling: Sampling { temperature: 0.6, ..Sampling::default() }, seed }
    }

    #[test]
    fn what_is_not_said_comes_from_the_defaults() {
        let mut request = parse(&json!({"top_p": 0.5, "seed": -1, "stop": "END", "max_tokens": 3})).unwrap();
        let options = request.options(&defaults(Some(9))).unwrap();
        let Sampling { temperature, top_p, seed, .. } = options.sampling;
        assert_eq!((temperature, top_p, seed), (0.6, 0.5, u64::MAX));
        assert_eq!((options.max_tokens, options.stop), (Some(3), vec!["END".to_owned()]));
        assert_eq!(parse(&json!({})).unwrap().options(&defaults(Some(9))).unwrap().sampling.seed, 9);
    }

    #[test]
    fn without_a_seed_every_request_has_its_own() {
        let seed = || parse(&json!({})).unwrap().options(&defaults(None)).unwrap().sampling.seed;
        assert_ne!(seed(), seed());
    }

    #[test]
    fn what_cannot_be_done_is_refused_and_not_ignored() {
        for refused in [
            json!({"presence_penalty": 0.5}),
            json!({"logit_bias": {"1": 2}}),
            json!({"functions": [{"name": "f"}]}),
            json!({"function_call": {"name": "f"}}),
            json!({"best_of": 3}),
            json!({"modalities": ["text", "audio"]}),
            json!([1]),
        ] {
            assert!(parse(&refused).is_err(), "{refused}");
        }
        let harmless = json!({"presence_penalty": 0, "logit_bias": {}, "frequency_penalty": null, "best_of": 1,
            "functions": [], "function_call": "none", "modalities": ["text"], "user": "me", "store": false});
        assert!(parse(&harmless).is_ok());
        assert!(
            parse(&json!({"n": 0})).unwrap().choices().is_err() && parse(&json!({"n": 17})).unwrap().choices().is_err()
        );
        let many = vec!["x"; 17];
        assert!(parse(&json!({"stop": many})).unwrap().options(&defaults(None)).is_err());
    }

    #[test]
    fn an_error_names_its_field() {
        for (field, value) in [
            ("temperature", json!("hot")),
            ("temperature", json!(-1)),
            ("seed", json!(1.5)),
            ("stop", json!([1])),
            ("max_tokens", json!(-1)),
        ] {
            let error = parse(&json!({field: value})).unwrap().options(&defaults(None)).unwrap_err().json();
            assert_eq!(error["error"]["param"], field, "{error}");
            assert!(error["error"]["message"].as_str().unwrap().contains(&format!("`{field}`")), "{error}");
        }
    }
}

//! Rope parameters from either config dialect: `rope_theta` + `rope_scaling{type | rope_type}`, or
//! `rope_parameters{rope_type, rope_theta}` (transformers 5).

use crate::config::{Config, MAX_SIZE};
use crate::{ArchError, Rope, RopeScaling};
use std::ops::RangeInclusive;

const FACTOR: RangeInclusive<f64> = 1.0..=1e6;
const POSITIVE: RangeInclusive<f64> = 1e-6..=1e6;
const THETA: RangeInclusive<f64> = 1.0..=1e15;

/// The rope of a config; `default_theta` is what the family assumes when the config is silent.
///
/// # Errors
/// [`ArchError`] for kinds of scaling that are not implemented, and for parameters out of bounds.
pub fn rope(config: &Config<'_>, default_theta: f64) -> Result<Rope, ArchError> {
    if config.optional_number("partial_rotary_factor", 0.0..=1.0)?.is_some_and(|f| f < 1.0) {
        return Err(config.unsupported("partial_rotary_factor", "only rotation of the whole head (1.0) is supported"));
    }
    let Some(key) = config.first(&["rope_parameters", "rope_scaling"]) else {
        return Ok(Rope { theta: theta(config)?.unwrap_or(default_theta), scaling: RopeScaling::Plain });
    };
    let Some(section) = config.object(key)? else { return Err(config.error(key, "an object", None)) };
    let theta = match theta(&section)? {
        Some(theta) => theta,
        None => theta(config)?.unwrap_or(default_theta),
    };
    Ok(Rope { theta, scaling: scaling(config, &section)? })
}

/// Multiplier of the scores of latent attention: width^-½ · m², with m = 0.1 · mscale_all_dim · ln(factor) + 1 where YaRN
/// stretches the context (DeepSeek-V2's `modeling_deepseek.py`).
///
/// # Errors
/// [`ArchError`] for parameters out of bounds.
pub fn softmax_scale(config: &Config<'_>, width: usize) -> Result<f32, ArchError> {
    let plain = (width as f64).sqrt().recip();
    let section = config.first(&["rope_parameters", "rope_scaling"]).map(|key| config.object(key)).transpose()?;
    let Some(section) = section.flatten() else { return Ok(plain as f32) };
    let all = section.optional_number("mscale_all_dim", 0.0..=1e3)?.unwrap_or(0.0);
    let factor = section.optional_number("factor", FACTOR)?.unwrap_or(1.0);
    let m = 0.1 * all * factor.ln() + 1.0;
    Ok((plain * m * m) as f32)
}

fn theta(config: &Config<'_>) -> Result<Option<f64>, ArchError> {
    config.optional_number("rope_theta", THETA)
}

fn scaling(config: &Config<'_>, section: &Config<'_>) -> Result<RopeScaling, ArchError> {
    let key = section.first(&["rope_type", "type"]).unwrap_or("rope_type");
    match section.text(key)? {
        Some("default") => Ok(RopeScaling::Plain),
        Some("linear") => Ok(RopeScaling::Linear { factor: section.number("factor", FACTOR)? }),
        Some("llama3") => llama3(config, section),
        Some("yarn") => yarn(config, section),
        Some(other) => Err(section.unsupported(
            key,
            format!("rope scaling `{other}` is not supported; supported are default, linear, llama3, yarn"),
        )),
        None => Err(section.error(key, "one of default, linear, llama3, yarn", None)),
    }
}

/// Context length of pre-training; configs that do not say were not extended.
fn original_max_position(config: &Config<'_>, section: &Config<'_>) -> Result<f64, ArchError> {
    let key = "original_max_position_embeddings";
    let found = match section.optional_size(key, 1..=MAX_SIZE)? {
        Some(found) => found,
        None => match config.optional_size(key, 1..=MAX_SIZE)? {
            Some(found) => found,
            None => config.size("max_position_embeddings", 1..=MAX_SIZE)?,
        },
    };
    Ok(found as f64)
}

fn llama3(config: &Config<'_>, section: &Config<'_>) -> Result<RopeScaling, ArchError> {
    let low = section.number("low_freq_factor", POSITIVE)?;
    let high = section.number("high_freq_factor", POSITIVE)?;
    if high <= low {
        return Err(section.error(
            "high_freq_factor",
            "a number above low_freq_factor",
            section.get("high_freq_factor"),
        ));
    }
    Ok(RopeScaling::Llama3 {
        factor: section.number("factor", FACTOR)?,
        low_freq_factor: low,
        high_freq_factor: high,
        original_max_position: original_max_position(config, section)?,
    })
}

/// Without an explicit `attention_factor` it is m(mscale) / m(mscale_all_dim) where both are given, else m(1), with
/// m(s) = 0.1 · s · ln(factor) + 1 (Peng et al. 2023, eq. 22, and its use in transformers).
fn yarn(config: &Config<'_>, section: &Config<'_>) -> Result<RopeScaling, ArchError> {
    let factor = section.number("factor", FACTOR)?;
    let beta_fast = section.optional_number("beta_fast", POSITIVE)?.unwrap_or(32.0);
    let beta_slow = section.optional_number("beta_slow", POSITIVE)?.unwrap_or(1.0);
    // Kimi-K2 has both equal: all pairs beyond that one are divided.
    if beta_fast < beta_slow {
        return Err(section.error("beta_fast", "a number not below beta_slow", section.get("beta_fast")));
    }
    let m = |scale: f64| 0.1 * scale * factor.ln() + 1.0;
    let mscale = section.optional_number("mscale", 0.0..=1e3)?.filter(|s| *s > 0.0);
    let mscale_all_dim = section.optional_number("mscale_all_dim", 0.0..=1e3)?.filter(|s| *s > 0.0);
    let attention_factor = match section.optional_number("attention_factor", POSITIVE)? {
        Some(given) => given,
        None => match (mscale, mscale_all_dim) {
            (Some(one), Some(all)) => m(one) / m(all),
            _ => m(1.0),
        },
    };
    Ok(RopeScaling::Yarn {
        factor,
        beta_fast,
        beta_slow,
        original_max_position: original_max_position(config, section)?,
        truncate: section.bool_or("truncate", true)?,
        attention_factor,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn of(value: &Value) -> Result<Rope, ArchError> {
        rope(&Config::new(value)?, 10_000.0)
    }

    #[test]
    fn both_dialects_give_the_same_rope() -> Result<(), ArchError> {
        let old = of(&json!({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2}}))?;
        let new = of(&json!({"rope_parameters": {"rope_theta": 5e5, "rope_type": "linear", "factor": 2.0}}))?;
        assert_eq!(old, new);
        assert_eq!(old, Rope { theta: 5e5, scaling: RopeScaling::Linear { factor: 2.0 } });
        Ok(())
    }

    #[test]
    fn silence_means_the_families_default() -> Result<(), ArchError> {
        let plain = Rope { theta: 10_000.0, scaling: RopeScaling::Plain };
        assert_eq!(of(&json!({"rope_scaling": null}))?, plain);
        assert_eq!(of(&json!({"rope_parameters": {"rope_type": "default"}}))?, plain);
        Ok(())
    }

    /// The figures of gpt-oss (0.1 ln 32 + 1 = 1.346574) and DeepSeek-V3 (mscale = mscale_all_dim → 1).
    #[test]
    fn yarn_attention_factor_follows_mscale() -> Result<(), ArchError> {
        let factor =
            |section: Value| match of(&json!({"max_position_embeddings": 4096, "rope_scaling": section}))?.scaling {
                RopeScaling::Yarn { attention_factor, .. } => Ok(attention_factor),
                other => panic!("{other:?}"),
            };
        assert!((factor(json!({"type": "yarn", "factor": 32}))? - 1.346_574).abs() < 1e-6);
        assert_eq!(factor(json!({"type": "yarn", "factor": 40, "mscale": 1, "mscale_all_dim": 1}))?, 1.0);
        assert_eq!(factor(json!({"type": "yarn", "factor": 40, "attention_factor": 1.25}))?, 1.25);
        Ok::<(), ArchError>(())
    }

    #[test]
    fn errors_name_key_expected_and_got() {
        let text = |v: Value| of(&v).unwrap_err().to_string();
        assert_eq!(
            text(json!({"rope_scaling": {"rope_type": "linear", "factor": "two"}})),
            "config.json: `rope_scaling.factor`: expected a number from 1 to 1000000, got \"two\""
        );
        assert_eq!(
            text(json!({"rope_scaling": {"rope_type": "dynamic", "factor": 2}})),
            "config.json: `rope_scaling.rope_type`: rope scaling `dynamic` is not supported; supported are default, \
             linear, llama3, yarn"
        );
        assert!(text(json!({"rope_scaling": 7})).contains("`rope_scaling`: expected an object or null, got 7"));
        assert!(text(json!({"rope_theta": -1.0})).contains("`rope_theta`"));
        let bands = json!({"factor": 8, "rope_type": "llama3", "low_freq_factor": 4, "high_freq_factor": 1});
        assert!(text(json!({"max_position_embeddings": 9, "rope_scaling": bands})).contains("above low_freq_factor"));
    }
}

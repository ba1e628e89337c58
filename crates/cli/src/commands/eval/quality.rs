//! `quality.json`: what was measured on a pack, beside it. Deterministic: no time, no path, no host. Several evaluations
//! (texts, window lengths, references) live side by side; measuring the same again replaces the old one.

use super::show::Evaluated;
use crate::output;
use ashlar_runtime::ActivationMode;
use ashlar_runtime::eval::Windows;
use serde_json::{Map, Value, json};
use std::io::Read;
use std::path::Path;

/// The file's name in a pack.
pub const FILE: &str = "quality.json";
/// The version of its form.
const VERSION: u64 = 1;
/// Far more than any number of evaluations takes.
const MAX_BYTES: u64 = 64 << 20;
/// What tells evaluations apart.
const KEY: &[&str] = &["text", "ctx", "tokens", "reference", "device", "activations"];

/// How it was measured.
pub struct About<'a> {
    /// BLAKE3 of the text.
    pub text: &'a str,
    pub windows: &'a Windows,
    pub max_tokens: Option<usize>,
    pub device: &'a str,
    pub activations: ActivationMode,
}

/// An entry of the file.
#[must_use]
pub fn evaluation(about: &About<'_>, one: &Evaluated) -> Value {
    let mut entry = json!({
        "text": {"blake3": about.text, "max_tokens": about.max_tokens},
        "ctx": about.windows.ctx(),
        "tokens": one.comparison.model.tokens,
        "reference": {"identity": one.facts.reference_identity, "is_source": one.facts.is_from_reference()},
        "device": about.device,
        "activations": about.activations.name(),
        "generator": concat!("ashlar ", env!("CARGO_PKG_VERSION")),
    });
    if let (Some(entry), Value::Object(figures)) = (entry.as_object_mut(), one.figures()) {
        entry.extend(figures.into_iter().filter(|(key, _)| key != "tokens"));
    }
    entry
}

/// Adds an evaluation to the file of the pack `dir`, whose identity is `identity`. Evaluations of another pack that lay
/// there before are removed; returns how many.
///
/// # Errors
/// If the file there is not of this form, or cannot be written.
pub fn add(dir: &Path, identity: &str, evaluation: Value) -> anyhow::Result<usize> {
    let path = dir.join(FILE);
    let old = match read(dir) {
        Ok(old) => old,
        Err(why) => anyhow::bail!("{}: {why}; remove it, then measure again", path.display()),
    };
    let (mut list, dropped) = match old {
        Some(file) if file.pack == identity => (file.evaluations, 0),
        Some(file) => (Vec::new(), file.evaluations.len()),
        None => (Vec::new(), 0),
    };
    list.retain(|e| key(e) != key(&evaluation));
    list.push(evaluation);
    list.sort_by_key(key);
    let file = rounded(json!({"version": VERSION, "pack": identity, "evaluations": list}));
    output::write_atomic(&path, format!("{file:#}\n").as_bytes())?;
    Ok(dropped)
}

/// Numbers with twelve digits. The parser of JSON may miss the last bit of a longer one, which then would change each time
/// the file is written anew.
#[must_use]
pub fn rounded(value: Value) -> Value {
    match value {
        Value::Number(n) if n.is_f64() => {
            let twelve = n.as_f64().and_then(|v| format!("{v:.11e}").parse::<f64>().ok());
            twelve.map_or(Value::Number(n), Value::from)
        }
        Value::Array(list) => list.into_iter().map(rounded).collect(),
        Value::Object(map) => map.into_iter().map(|(k, v)| (k, rounded(v))).collect(),
        other => other,
    }
}

fn key(evaluation: &Value) -> String {
    let part = |k: &&str| ((*k).to_owned(), evaluation.get(*k).cloned().unwrap_or_default());
    Value::Object(KEY.iter().map(part).collect::<Map<_, _>>()).to_string()
}

/// What the file holds.
pub struct Quality {
    /// The pack that was measured.
    pub pack: String,
    /// One object each.
    pub evaluations: Vec<Value>,
}

/// Reads the file of a pack; `None` if there is none.
///
/// # Errors
/// A sentence, if it is not of this form.
pub fn read(dir: &Path) -> Result<Option<Quality>, String> {
    let file = match std::fs::File::open(dir.join(FILE)) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e.to_string()),
    };
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(format!("more than {MAX_BYTES} bytes"));
    }
    let value: Value = serde_json::from_slice(&bytes).map_err(|e| format!("no JSON: {e}"))?;
    let version = value.get("version").and_then(Value::as_u64);
    let pack = value.get("pack").and_then(Value::as_str);
    match (version, pack, value.get("evaluations").and_then(Value::as_array)) {
        (Some(VERSION), Some(pack), Some(list)) => {
            Ok(Some(Quality { pack: pack.to_owned(), evaluations: list.clone() }))
        }
        (Some(other), ..) if other != VERSION => Err(format!("version {other}; this program reads {VERSION}")),
        _ => Err("it is no quality.json of this program".to_owned()),
    }
}

/// One line for people.
#[must_use]
pub fn line(evaluation: &Value) -> String {
    let text = |pointer: &str| evaluation.pointer(pointer).and_then(Value::as_str).unwrap_or("?").to_owned();
    let number = |pointer: &str| evaluation.pointer(pointer).and_then(Value::as_f64).unwrap_or(f64::NAN);
    let reference = match evaluation.pointer("/reference/is_source").and_then(Value::as_bool) {
        Some(true) => "its source",
        _ => "another model",
    };
    let hash: String = text("/text/blake3").chars().take(8).collect();
    format!(
        "{}: KL {:.5} (99.9 % below {:.3}) to {reference}, same top token {:.2} %, perplexity {:+.2} %; \
         {} tokens of text {hash}, ctx {}, {} activations",
        text("/verdict/quality"),
        number("/kl/mean"),
        number("/kl/p999"),
        100.0 * number("/top1"),
        100.0 * (number("/perplexity_ratio/value") - 1.0),
        number("/tokens"),
        number("/ctx"),
        text("/activations"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(text: &str, ctx: u64, mean: f64) -> Value {
        json!({"text": {"blake3": text}, "ctx": ctx, "tokens": 9, "kl": {"mean": mean}})
    }

    #[test]
    fn evaluations_live_side_by_side_and_the_same_one_is_replaced() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        for e in [entry("b", 256, 1.0), entry("a", 256, 2.0), entry("b", 512, 3.0), entry("b", 256, 4.0)] {
            assert_eq!(add(dir.path(), "p", e)?, 0);
        }
        let file = read(dir.path()).map_err(anyhow::Error::msg)?.expect("a file");
        assert_eq!(file.evaluations, [entry("a", 256, 2.0), entry("b", 256, 4.0), entry("b", 512, 3.0)]);
        let bytes = std::fs::read(dir.path().join(FILE))?;
        add(dir.path(), "p", entry("a", 256, 2.0))?;
        assert_eq!(bytes, std::fs::read(dir.path().join(FILE))?, "the same again changes nothing");
        Ok(())
    }

    #[test]
    fn numbers_do_not_drift_when_the_file_is_written_again() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        // The middle one is read back one bit off when written with all its digits.
        for (i, mean) in [1.0 / 3.0, 0.958_525_764_594_571_6, 1.234_567_890_123_456_7e-25].into_iter().enumerate() {
            add(dir.path(), "p", entry("a", i as u64, mean))?;
        }
        let first = std::fs::read_to_string(dir.path().join(FILE))?;
        for _ in 0..3 {
            add(dir.path(), "p", entry("a", 0, 1.0 / 3.0))?;
            assert_eq!(first, std::fs::read_to_string(dir.path().join(FILE))?);
        }
        assert!(first.contains("0.333333333333,") || first.contains("0.333333333333\n"), "{first}");
        Ok(())
    }

    #[test]
    fn evaluations_of_another_pack_do_not_stay() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        add(dir.path(), "p", entry("a", 1, 1.0))?;
        assert_eq!(add(dir.path(), "q", entry("b", 1, 1.0))?, 1);
        let file = read(dir.path()).map_err(anyhow::Error::msg)?.expect("a file");
        assert_eq!((file.pack.as_str(), file.evaluations.len()), ("q", 1));
        Ok(())
    }

    #[test]
    fn a_file_of_another_form_is_refused_not_overwritten() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        for bad in ["", "{}", "{\"version\": 2, \"pack\": \"p\", \"evaluations\": []}", "[1]"] {
            std::fs::write(dir.path().join(FILE), bad)?;
            let error = add(dir.path(), "p", entry("a", 1, 1.0)).expect_err(bad).to_string();
            assert!(error.contains(FILE) && error.contains("remove it"), "{error}");
            assert_eq!(std::fs::read_to_string(dir.path().join(FILE))?, bad);
        }
        Ok(())
    }
}

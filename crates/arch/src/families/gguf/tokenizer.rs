//! `tokenizer.json` and its companions from `tokenizer.ggml.*`.
//!
//! Two kinds: byte-pair merges over GPT-2's byte alphabet (`gpt2`), split first as [`splits`](super::splits) says; and
//! SentencePiece pieces with scores (`llama`), which become byte-pair merges as transformers makes them: every way to put a
//! piece together from two others, the highest score first.

use super::splits::{SPLITS, Split, split};
use super::{GgufError, metadata};
use serde_json::{Map, Value, json};
use std::collections::HashMap;

/// The files that a checkpoint has beside its weights.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenizerFiles {
    /// `tokenizer.json`.
    pub tokenizer: Value,
    /// `tokenizer_config.json`, with the chat template where there is one.
    pub config: Value,
    /// `generation_config.json`.
    pub generation: Value,
}

/// Token types of GGUF.
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER: i64 = 4;

/// Longest piece that is taken apart, in characters. Real ones are below 100.
const MAX_PIECE: usize = 256;

/// The tokenizer of a GGUF file; `None` if it holds none.
///
/// # Errors
/// [`GgufError`] if a key is malformed, or the kind of tokenizer is not supported.
pub fn tokenizer(metadata: &Map<String, Value>) -> Result<Option<TokenizerFiles>, GgufError> {
    let keys = Keys(metadata);
    let Some(kind) = keys.text("model")? else { return Ok(None) };
    let tokens = keys.list("tokens", Value::as_str, "a list of texts")?;
    let types = keys.list("token_type", Value::as_i64, "a list of whole numbers")?;
    let vocabulary = Vocabulary { keys, tokens, types };
    let (body, begin) = match kind {
        "gpt2" => byte_pairs(&vocabulary)?,
        "llama" => (pieces(&vocabulary)?, true),
        "no_vocab" | "none" => return Ok(None),
        other => {
            let other: String = other.chars().take(40).collect();
            let what = format!("`tokenizer.ggml.model` `{other}` is not supported; supported are gpt2 and llama");
            return Err(GgufError::Tokenizer { what });
        }
    };
    Ok(Some(vocabulary.files(body, begin)?))
}

/// The keys `tokenizer.ggml.…`.
#[derive(Clone, Copy)]
struct Keys<'a>(&'a Map<String, Value>);

impl<'a> Keys<'a> {
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.0.get(&format!("tokenizer.ggml.{key}"))
    }

    fn error(key: &str, expected: &'static str, got: Option<&Value>) -> GgufError {
        GgufError::Key { key: format!("tokenizer.ggml.{key}"), expected, got: metadata::show(got) }
    }

    fn text(&self, key: &str) -> Result<Option<&'a str>, GgufError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| Self::error(key, "a text", Some(value)))
    }

    fn flag(&self, key: &str) -> Result<Option<bool>, GgufError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| Self::error(key, "true or false", Some(value)))
    }

    /// A list, empty where there is none.
    fn list<T>(
        &self,
        key: &str,
        read: impl Fn(&'a Value) -> Option<T>,
        expected: &'static str,
    ) -> Result<Vec<T>, GgufError> {
        let Some(value) = self.get(key) else { return Ok(Vec::new()) };
        let read = |list: &'a Vec<Value>| list.iter().map(&read).collect::<Option<Vec<T>>>();
        value.as_array().and_then(read).ok_or_else(|| Self::error(key, expected, Some(value)))
    }
}

/// Tokens and what they are.
struct Vocabulary<'a> {
    keys: Keys<'a>,
    tokens: Vec<&'a str>,
    types: Vec<i64>,
}

/// The parts of tokenizer.json that differ by kind.
struct Body {
    normalizer: Value,
    pre_tokenizer: Value,
    decoder: Value,
    model: Value,
}

impl Vocabulary<'_> {
    fn kind(&self, id: usize) -> i64 {
        self.types.get(id).copied().unwrap_or(1)
    }

    /// Texts that are found before anything else is split.
    fn is_added(&self, id: usize) -> bool {
        matches!(self.kind(id), CONTROL | USER | UNKNOWN)
    }

    /// The token whose id is at that key, with its id.
    fn named(&self, key: &str) -> Option<(usize, &str)> {
        let id = self.keys.get(key)?.as_u64().and_then(|id| usize::try_from(id).ok())?;
        Some((id, self.tokens.get(id)?))
    }

    /// Ids of all tokens. Added ones are among them: merges may speak of them.
    fn vocab(&self) -> Map<String, Value> {
        self.tokens.iter().enumerate().map(|(id, token)| ((*token).to_owned(), id.into())).collect()
    }

    fn files(&self, body: Body, begin: bool) -> Result<TokenizerFiles, GgufError> {
        let added = |(id, token): (usize, &&str)| {
            let special = self.kind(id) != USER;
            json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": special})
        };
        let all = self.tokens.iter().enumerate();
        let added: Vec<Value> = all.filter(|(id, t)| self.is_added(*id) && !t.is_empty()).map(added).collect();
        let begin = self.keys.flag("add_bos_token")?.unwrap_or(begin);
        let end = self.keys.flag("add_eos_token")?.unwrap_or(false);
        let tokenizer = json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": added,
            "normalizer": body.normalizer,
            "pre_tokenizer": body.pre_tokenizer,
            "post_processor": self.around(begin, end),
            "decoder": body.decoder,
            "model": body.model,
        });
        let name = |key: &str| self.named(key).map(|(_, token)| token);
        let mut config = json!({
            "bos_token": name("bos_token_id"),
            "eos_token": name("eos_token_id"),
            "clean_up_tokenization_spaces": false,
            "add_bos_token": begin,
            "add_eos_token": end,
        });
        if let (Some(Value::String(template)), Some(map)) =
            (self.keys.0.get("tokenizer.chat_template"), config.as_object_mut())
        {
            map.insert("chat_template".into(), template.as_str().into());
        }
        let id = |key: &str| self.named(key).map(|(id, _)| id);
        let mut ends: Vec<usize> =
            ["eos_token_id", "eot_token_id", "eom_token_id"].into_iter().filter_map(id).collect();
        ends.dedup();
        let generation = json!({"bos_token_id": id("bos_token_id"), "eos_token_id": ends});
        Ok(TokenizerFiles { tokenizer, config, generation })
    }

    /// What is put around every text.
    fn around(&self, begin: bool, end: bool) -> Value {
        let token = |wanted: bool, key: &str| self.named(key).filter(|_| wanted);
        let (begin, end) = (token(begin, "bos_token_id"), token(end, "eos_token_id"));
        if begin.is_none() && end.is_none() {
            return Value::Null;
        }
        let piece = |(_, token): (usize, &str), text: usize| json!({"SpecialToken": {"id": token, "type_id": text}});
        let text = |name: &str, text: usize| {
            let middle = json!({"Sequence": {"id": name, "type_id": text}});
            [begin.map(|b| piece(b, text)), Some(middle), end.map(|e| piece(e, text))]
                .into_iter()
                .flatten()
                .collect::<Vec<_>>()
        };
        let both = begin.into_iter().chain(end);
        let specials: Map<String, Value> =
            both.map(|(id, t)| (t.to_owned(), json!({"id": t, "ids": [id], "tokens": [t]}))).collect();
        let pair: Vec<Value> = text("A", 0).into_iter().chain(text("B", 1)).collect();
        json!({"type": "TemplateProcessing", "single": text("A", 0), "pair": pair, "special_tokens": specials})
    }
}

/// Merges over GPT-2's byte alphabet, and whether a beginning is added by default.
fn byte_pairs(vocabulary: &Vocabulary<'_>) -> Result<(Body, bool), GgufError> {
    let pre = vocabulary.keys.text("pre")?.unwrap_or("default");
    let Split { patterns, ignore_merges, begin, nfc, .. } = split(pre).ok_or_else(|| {
        let known: Vec<&str> = SPLITS.iter().flat_map(|s| s.names.iter().copied()).collect();
        let pre: String = pre.chars().take(40).collect();
        let what = format!("`tokenizer.ggml.pre` `{pre}` is not supported; supported are {}", known.join(", "));
        GgufError::Tokenizer { what }
    })?;
    let merges = vocabulary.keys.list("merges", Value::as_str, "a list of texts")?;
    let bad = |m: &str| GgufError::Key {
        key: "tokenizer.ggml.merges".into(),
        expected: "two tokens with a space between",
        got: metadata::show(Some(&m.into())),
    };
    // A token never holds a space, and never begins with the one between.
    let pair = |m: &&str| m.split_once(' ').map(|(a, b)| json!([a, b])).ok_or_else(|| bad(m));
    let merges = merges.iter().map(pair).collect::<Result<Vec<Value>, _>>()?;
    let isolate = |pattern: &&str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
    let bytes = |prefix: bool, whole: bool| json!({"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": true, "use_regex": whole});
    let steps: Vec<Value> = patterns.iter().map(isolate).chain([bytes(false, false)]).collect();
    let body = Body {
        normalizer: if *nfc { json!({"type": "NFC"}) } else { Value::Null },
        pre_tokenizer: json!({"type": "Sequence", "pretokenizers": steps}),
        decoder: bytes(true, true),
        model: json!({"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                      "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                      "ignore_merges": ignore_merges, "vocab": vocabulary.vocab(), "merges": merges}),
    };
    Ok((body, *begin))
}

/// SentencePiece pieces.
fn pieces(vocabulary: &Vocabulary<'_>) -> Result<Body, GgufError> {
    let scores = vocabulary.keys.list("scores", Value::as_f64, "a list of numbers")?;
    if scores.len() != vocabulary.tokens.len() {
        let got = format!("{} scores for {} tokens", scores.len(), vocabulary.tokens.len());
        return Err(GgufError::Key { key: "tokenizer.ggml.scores".into(), expected: "one for each token", got });
    }
    let prefix = vocabulary.keys.flag("add_space_prefix")?.unwrap_or(true);
    let spaces = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    let begin = prefix.then(|| json!({"type": "Prepend", "prepend": "▁"}));
    let normalizers: Vec<Value> = begin.into_iter().chain([spaces]).collect();
    let strip = prefix.then(|| json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    let decoders = [
        json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    let decoders: Vec<Value> = decoders.into_iter().chain(strip).collect();
    let unknown = vocabulary.tokens.iter().enumerate().find(|(id, _)| vocabulary.kind(*id) == UNKNOWN).map(|(_, t)| *t);
    Ok(Body {
        normalizer: json!({"type": "Sequence", "normalizers": normalizers}),
        pre_tokenizer: Value::Null,
        decoder: json!({"type": "Sequence", "decoders": decoders}),
        model: json!({"type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
                      "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
                      "vocab": vocabulary.vocab(), "merges": merges(&vocabulary.tokens, &scores)}),
    })
}

/// Every pair of pieces that makes up a third, the highest score of the third first; of equal ones the longer pieces
/// first, as `generate_merges` of transformers orders them.
fn merges(tokens: &[&str], scores: &[f64]) -> Vec<Value> {
    let ids: HashMap<&str, usize> = tokens.iter().enumerate().map(|(id, t)| (*t, id)).collect();
    let mut found: Vec<(f64, usize, usize, &str, &str)> = Vec::new();
    for (token, score) in tokens.iter().zip(scores) {
        if token.len() > 4 * MAX_PIECE || token.chars().count() > MAX_PIECE {
            continue;
        }
        let first = found.len();
        for (at, _) in token.char_indices().skip(1) {
            let (a, b) = token.split_at(at);
            if ids.contains_key(a) && ids.contains_key(b) {
                found.push((*score, a.chars().count(), b.chars().count(), a, b));
            }
        }
        if let Some(own) = found.get_mut(first..) {
            own.sort_by_key(|(_, _, _, a, b)| (ids.get(a), ids.get(b)));
        }
    }
    // Stable and descending, as Python's sort with `reverse` is.
    found.sort_by(|x, y| y.0.total_cmp(&x.0).then((y.1, y.2).cmp(&(x.1, x.2))));
    found.into_iter().map(|(_, _, _, a, b)| json!([a, b])).collect()
}

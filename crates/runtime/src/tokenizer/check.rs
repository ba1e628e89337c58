//! What the `tokenizers` crate takes on faith in `tokenizer.json`, and would panic on.

use serde::Deserialize;
use serde_json::Value;

/// The parts that crate reads by way of a JSON value, whose syntax errors it does not expect.
#[derive(Deserialize)]
struct Steps {
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    #[serde(default)]
    decoder: Value,
}

/// Refuses a file on which tokenizers 0.23 would panic: syntax errors inside a decoder, templates that use special
/// tokens they do not define or a second text they do not have.
///
/// # Errors
/// What is wrong, with line and column or the token's name.
pub fn check(json: &[u8]) -> Result<(), String> {
    let steps: Steps = serde_json::from_slice(json).map_err(|e| format!("is not valid JSON: {e}"))?;
    [&steps.normalizer, &steps.pre_tokenizer, &steps.post_processor, &steps.decoder].into_iter().try_for_each(templates)
}

/// Checks every template below `value`. Depth is bounded by the JSON parser.
fn templates(value: &Value) -> Result<(), String> {
    match value {
        Value::Array(list) => list.iter().try_for_each(templates),
        Value::Object(map) => {
            if map.get("type").and_then(Value::as_str) == Some("TemplateProcessing") {
                template(value)?;
            }
            map.values().try_for_each(templates)
        }
        _ => Ok(()),
    }
}

fn template(value: &Value) -> Result<(), String> {
    let pieces = |key: &str| value.get(key).and_then(Value::as_array).into_iter().flatten();
    let id = |piece: &Value, kind: &str| piece.get(kind)?.get("id")?.as_str().map(str::to_owned);
    let defined = |token: &str| value.get("special_tokens").is_some_and(|t| t.get(token).is_some());
    for token in pieces("single").chain(pieces("pair")).filter_map(|p| id(p, "SpecialToken")) {
        if !defined(&token) {
            return Err(format!("post_processor: the template uses `{token}`, which its special_tokens do not define"));
        }
    }
    match pieces("single").find_map(|p| id(p, "Sequence").filter(|s| s != "A")) {
        Some(other) => Err(format!("post_processor: the template for one text uses text `{other}`, expected only `A`")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(post_processor: &str, decoder: &str) -> String {
        format!(
            r#"{{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,"pre_tokenizer":null,
            "post_processor":{post_processor},"decoder":{decoder},
            "model":{{"type":"WordLevel","vocab":{{"<s>":0,"a":1}},"unk_token":"a"}}}}"#
        )
    }

    fn template(single: &str, special: &str) -> String {
        format!(r#"{{"type":"TemplateProcessing","single":{single},"pair":[],"special_tokens":{special}}}"#)
    }

    const A: &str = r#"{"Sequence":{"id":"A","type_id":0}}"#;
    const BOS: &str = r#"{"SpecialToken":{"id":"<s>","type_id":0}}"#;
    const DEFINED: &str = r#"{"<s>":{"id":"<s>","ids":[0],"tokens":["<s>"]}}"#;

    #[test]
    fn what_is_accepted_encodes() {
        let json = with(&template(&format!("[{BOS},{A}]"), DEFINED), "null");
        assert_eq!(check(json.as_bytes()), Ok(()));
        let tokenizer = tokenizers::Tokenizer::from_bytes(json.as_bytes()).expect("a tokenizer");
        assert_eq!(tokenizer.encode("a", true).expect("encodes").get_ids(), [0, 1]);
    }

    #[test]
    fn a_template_without_its_special_token_is_refused() {
        let bare = template(&format!("[{BOS},{A}]"), "{}");
        let sequence = format!(r#"{{"type":"Sequence","processors":[{bare}]}}"#);
        for post_processor in [bare, sequence] {
            let message = check(with(&post_processor, "null").as_bytes()).expect_err("refused");
            assert!(message.contains("`<s>`") && message.contains("special_tokens"), "{message}");
        }
    }

    #[test]
    fn a_template_for_one_text_that_uses_a_second_is_refused() {
        let b = A.replace("\"A\"", "\"B\"");
        let message = check(with(&template(&format!("[{b}]"), "{}"), "null").as_bytes()).expect_err("refused");
        assert!(message.contains("text `B`"), "{message}");
    }

    #[test]
    fn syntax_errors_in_the_decoder_are_refused_with_their_place() {
        for decoder in ["{1:2}", "{\"type\":\"\\ud800\"}", "{\"type\":}", &"[".repeat(10_000)] {
            let message = check(with("null", decoder).as_bytes()).expect_err("refused");
            assert!(message.contains("line "), "{message}");
        }
    }
}

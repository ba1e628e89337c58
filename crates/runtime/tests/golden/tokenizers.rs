//! Token ids of awkward texts, with and without special tokens, against the Python tokenizers.

use crate::fixtures::{MODELS, dir};
use ashlar_runtime::Tokenizer;
use serde_json::Value;

#[test]
fn ids_match_the_golden_ones_and_decode_to_the_text() {
    let mut texts = 0;
    for name in MODELS.iter().filter(|name| dir(name).join("tokenizer_golden.json").exists()) {
        let tokenizer = Tokenizer::open(&dir(name)).unwrap();
        let golden: Vec<Value> =
            serde_json::from_slice(&std::fs::read(dir(name).join("tokenizer_golden.json")).unwrap()).unwrap();
        for case in &golden {
            let text = case["text"].as_str().unwrap();
            for (key, special) in [("ids", true), ("ids_no_special", false)] {
                let want: Vec<u32> = serde_json::from_value(case[key].clone()).unwrap();
                assert_eq!(tokenizer.encode(text, special).unwrap(), want, "{name}: {text:?}, special {special}");
            }
            let ids = tokenizer.encode(text, false).unwrap();
            // Some tokenizers normalize (é as one code point), so the text may differ, but not its tokens.
            let decoded = tokenizer.decode(&ids, false).unwrap();
            assert_eq!(tokenizer.encode(&decoded, false).unwrap(), ids, "{name}");
            texts += 1;
        }
    }
    assert!(texts >= 25, "only {texts} golden texts were found");
}

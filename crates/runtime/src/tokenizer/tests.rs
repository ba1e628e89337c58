//! Streams over a byte-level and a byte-fallback vocabulary.

use super::*;
use std::path::PathBuf;
use std::sync::Arc;

fn fixture(name: &str) -> Arc<Tokenizer> {
    Arc::new(
        Tokenizer::open(&PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name)).unwrap(),
    )
}

/// A SentencePiece-like vocabulary: "▁" for spaces, all 256 byte tokens, one special token.
fn byte_fallback() -> Arc<Tokenizer> {
    let mut vocab = serde_json::Map::new();
    let words = ["<unk>", "<s>", "▁", "▁the", "▁a", "cat", "s"];
    let names = words.iter().map(|w| (*w).to_owned()).chain((0..256).map(|b| format!("<0x{b:02X}>")));
    for (i, name) in names.enumerate() {
        vocab.insert(name, i.into());
    }
    let json = serde_json::json!({
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0},
        "padding": null, "pre_tokenizer": null, "post_processor": null,
        "added_tokens": [{"id": 1, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
                          "normalized": false, "special": true}],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
                  "vocab": vocab, "merges": []}
    });
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("tokenizer.json"), json.to_string()).unwrap();
    Arc::new(Tokenizer::open(dir.path()).unwrap())
}

fn stream(tokenizer: &Arc<Tokenizer>, ids: &[u32]) -> (Vec<String>, String) {
    let mut s = TextStream::new(Arc::clone(tokenizer), true);
    let parts: Vec<String> = ids.iter().map(|id| s.push(*id).unwrap()).collect();
    let whole = parts.concat() + &s.finish();
    (parts, whole)
}

const TEXTS: &[&str] = &["Hello, world!", "人工智能 推理 🙂 é", "  two  spaces\n\n\ttab  ", "é🙂🙂é人"];

#[test]
fn a_byte_level_stream_says_what_decode_says_in_whole_characters() {
    for name in ["tiny/llama", "tiny/qwen3", "demo-moe"] {
        let tokenizer = fixture(name);
        for text in TEXTS {
            let ids = tokenizer.encode(text, true).unwrap();
            let (parts, whole) = stream(&tokenizer, &ids);
            assert_eq!(whole, tokenizer.decode(&ids, true).unwrap());
            assert_eq!(&whole, text);
            assert!(parts.iter().all(|p| !p.contains('\u{fffd}')), "{parts:?}");
        }
    }
}

#[test]
fn a_byte_fallback_stream_says_what_decode_says_in_whole_characters() {
    let tokenizer = byte_fallback();
    for text in ["the cats é🙂 a cat", "🙂🙂", " the", "a\n人人人人人人人人人人人人人人人人人人人人 the"]
    {
        let ids = tokenizer.encode(text, false).unwrap();
        let (parts, whole) = stream(&tokenizer, &ids);
        assert_eq!(whole, tokenizer.decode(&ids, true).unwrap());
        assert_eq!(whole, text);
        assert!(parts.iter().all(|p| !p.contains('\u{fffd}')), "{parts:?}");
    }
}

#[test]
fn a_spoiled_stream_loses_no_good_text_and_holds_nothing_back_for_ever() {
    let tokenizer = byte_fallback();
    let byte = |b: u32| 7 + b;
    let cat = tokenizer.id("cat").unwrap();
    let mut ids = vec![cat, byte(0xf0), byte(0x9f)];
    ids.extend([byte(0xff); 20]);
    ids.push(cat);
    let (parts, whole) = stream(&tokenizer, &ids);
    assert!(whole.starts_with("cat\u{fffd}") && whole.ends_with("\u{fffd}cat"), "{whole:?}");
    assert!(parts[3..23].iter().all(|p| !p.is_empty()), "bytes that are no character are shown at once: {parts:?}");
    let (_, cut) = stream(&tokenizer, &[cat, byte(0xe4), byte(0xb8)]);
    assert!(cut.starts_with("cat\u{fffd}"), "an incomplete end is shown as such: {cut:?}");
}

#[test]
fn a_tokens_bytes_have_the_space_before_a_word() {
    let tokenizer = byte_fallback();
    for text in ["the cats é🙂 a cat", " the"] {
        let ids = tokenizer.encode(text, false).unwrap();
        let bytes: Vec<u8> = ids.iter().flat_map(|id| tokenizer.token_bytes(*id).unwrap()).collect();
        // The vocabulary writes a space before every text.
        assert_eq!(String::from_utf8(bytes).unwrap(), format!(" {text}"));
    }
}

#[test]
fn truncation_in_the_file_is_switched_off() {
    let text = "the cat the cat the cat";
    let tokenizer = byte_fallback();
    assert_eq!(tokenizer.decode(&tokenizer.encode(text, true).unwrap(), true).unwrap(), text);
}

#[test]
fn a_missing_or_broken_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let e = Tokenizer::open(dir.path()).err().unwrap().to_string();
    assert!(e.contains("tokenizer.json") && e.contains("download"), "{e}");
    std::fs::write(dir.path().join("tokenizer.json"), "{\"version\": 1}").unwrap();
    let e = Tokenizer::open(dir.path()).err().unwrap().to_string();
    assert!(e.contains("tokenizer.json") && e.contains("not a tokenizer"), "{e}");
}

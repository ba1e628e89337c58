//! Decoding token by token: every character is handed out once, whole, as soon as its last byte is known.
//!
//! Tokens that are bytes (all of a byte-level vocabulary, `<0xE4>` of a byte-fallback one) are decoded byte by byte.
//! Others go through the tokenizer's own decoder together with the tokens before them, and what they add is the new
//! text.

use super::{Bytes, Tokenizer};
use crate::RuntimeError;
use std::sync::Arc;

/// Tokens of context that the tokenizer's decoder sees: it strips a space at the very beginning of a text.
const WINDOW: usize = 8;

/// Text of a growing sequence of tokens.
pub struct TextStream {
    tokenizer: Arc<Tokenizer>,
    skip_special: bool,
    /// Special tokens that have a text nevertheless.
    kept: Vec<u32>,
    /// Bytes of an incomplete character. At most three between calls.
    bytes: Vec<u8>,
    /// The last few tokens, of a vocabulary that is not byte-level.
    recent: Vec<u32>,
}

impl TextStream {
    /// An empty stream. With `skip_special`, special tokens have no text.
    #[must_use]
    pub fn new(tokenizer: Arc<Tokenizer>, skip_special: bool) -> Self {
        Self { tokenizer, skip_special, kept: Vec::new(), bytes: Vec::new(), recent: Vec::new() }
    }

    /// Special tokens that are part of one of these marks have a text.
    #[must_use]
    pub fn keeping(self, marks: &[&str]) -> Self {
        Self { kept: self.tokenizer.special_within(marks), ..self }
    }

    /// The text that is certain after this token; empty while a character is incomplete.
    ///
    /// # Errors
    /// [`RuntimeError::Tokenizer`] if the tokenizer's decoder refuses.
    pub fn push(&mut self, id: u32) -> Result<String, RuntimeError> {
        let token = self.tokenizer.token(id).unwrap_or_default();
        if self.skip_special && self.tokenizer.is_special(id) {
            return Ok(if self.kept.contains(&id) { self.finish() + &token } else { String::new() });
        }
        if self.tokenizer.bytes == Bytes::Level {
            self.bytes.extend(bytes_of(&token));
            return Ok(take_characters(&mut self.bytes));
        }
        let before = self.tokenizer.decode(&self.recent, self.skip_special)?;
        self.recent.push(id);
        let text = match fallback_byte(&token).filter(|_| self.tokenizer.bytes == Bytes::Fallback) {
            Some(byte) => {
                self.bytes.push(byte);
                take_characters(&mut self.bytes)
            }
            None => {
                let cut = self.finish();
                let now = self.tokenizer.decode(&self.recent, self.skip_special)?;
                cut + now.strip_prefix(&before).unwrap_or(&now)
            }
        };
        if self.recent.len() > 2 * WINDOW {
            self.recent.drain(..self.recent.len() - WINDOW);
        }
        Ok(text)
    }

    /// What is left when no more tokens come: an incomplete character becomes U+FFFD.
    pub fn finish(&mut self) -> String {
        let rest = String::from_utf8_lossy(&self.bytes).into_owned();
        self.bytes.clear();
        rest
    }
}

impl Tokenizer {
    /// The bytes of a token's text, which need not be whole characters; special tokens stand for themselves.
    ///
    /// # Errors
    /// [`RuntimeError::Tokenizer`] if the decoder refuses.
    pub fn token_bytes(&self, id: u32) -> Result<Vec<u8>, RuntimeError> {
        let token = self.token(id).unwrap_or_default();
        match self.bytes {
            Bytes::Level => Ok(bytes_of(&token)),
            Bytes::Fallback if fallback_byte(&token).is_some() => Ok(fallback_byte(&token).into_iter().collect()),
            _ => {
                // At the very beginning of a text the decoder strips a space: what a second one adds is the whole of it.
                let (once, twice) = (self.decode(&[id], false)?, self.decode(&[id, id], false)?);
                Ok(twice.strip_prefix(&once).map_or_else(|| once.clone(), str::to_owned).into_bytes())
            }
        }
    }
}

/// The byte of a token such as `<0xE4>`.
fn fallback_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}

/// Takes all complete characters from the front; invalid bytes become U+FFFD, an incomplete end stays.
fn take_characters(bytes: &mut Vec<u8>) -> String {
    let mut text = String::new();
    let mut used = 0;
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        used += chunk.valid().len();
        let rest = chunk.invalid();
        let at_end = used + rest.len() == bytes.len();
        let incomplete = at_end && may_continue(rest);
        if !rest.is_empty() && !incomplete {
            text.push(char::REPLACEMENT_CHARACTER);
            used += rest.len();
        }
    }
    bytes.drain(..used);
    text
}

/// Whether more bytes could make this a character.
fn may_continue(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|e| e.error_len().is_none())
}

/// The bytes of a token written in GPT-2's byte alphabet; a token outside it (an added one) stands for itself.
fn bytes_of(token: &str) -> Vec<u8> {
    token.chars().map(byte_of).collect::<Option<_>>().unwrap_or_else(|| token.as_bytes().to_vec())
}

/// GPT-2 writes printable Latin-1 as itself and the other 68 bytes, in order, as U+0100 and following.
fn byte_of(c: char) -> Option<u8> {
    let printable = |b: u32| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    match u32::from(c) {
        b if printable(b) => u8::try_from(b).ok(),
        b if b >= 0x100 => (0..=255u8).filter(|b| !printable(u32::from(*b))).nth((b - 0x100) as usize),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_byte_alphabet_is_gpt2s() {
        // From the published table: space is Ġ, newline Ċ, tab ĉ, 0x00 Ā, 0x7f ġ, 0xa0 ł, 0xad Ń.
        for (c, b) in
            [('Ġ', 0x20), ('Ċ', 0x0a), ('ĉ', 0x09), ('Ā', 0), ('ġ', 0x7f), ('ł', 0xa0), ('Ń', 0xad), ('~', 0x7e)]
        {
            assert_eq!(byte_of(c), Some(b), "{c}");
        }
        assert_eq!([byte_of(' '), byte_of('ń'), byte_of('人')], [None; 3]);
        assert_eq!(bytes_of("<|x y|>"), b"<|x y|>", "an added token stands for itself");
    }

    #[test]
    fn characters_come_whole_and_bad_bytes_at_once() {
        let mut pending = Vec::new();
        let mut said = Vec::new();
        for b in "é人🙂".bytes().chain([0xff, b'a', 0xe4, 0xb8, b'b', 0xf0]) {
            pending.push(b);
            said.push(take_characters(&mut pending));
        }
        let want = ["", "é", "", "", "人", "", "", "", "🙂", "\u{fffd}", "a", "", "", "\u{fffd}b", ""];
        assert_eq!(said, want);
        assert_eq!(pending, [0xf0]);
    }
}

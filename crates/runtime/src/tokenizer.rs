//! Text to tokens and back: `tokenizer.json`, and decoding of a stream without broken characters.

mod check;
mod stream;

pub use stream::TextStream;

use crate::RuntimeError;
use std::collections::HashSet;
use std::path::Path;

/// No tokenizer of a published model comes near this size.
const MAX_FILE_BYTES: u64 = 256 << 20;

/// A tokenizer as `tokenizer.json` describes it. Truncation and padding that the file may ask for are switched off.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    file: String,
    special: HashSet<u32>,
    bytes: Bytes,
}

/// How a vocabulary writes bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bytes {
    /// Every token is a string of bytes in GPT-2's byte alphabet.
    Level,
    /// Bytes that are part of no other token are tokens such as `<0xE4>`.
    Fallback,
    /// Tokens are whole characters.
    None,
}

impl Bytes {
    /// From the decoder the file names, which may be a sequence of steps.
    fn of(decoder: Option<&tokenizers::DecoderWrapper>) -> Self {
        let steps = decoder.and_then(|d| serde_json::to_string(d).ok()).unwrap_or_default();
        if steps.contains("\"ByteLevel\"") {
            Self::Level
        } else if steps.contains("\"ByteFallback\"") {
            Self::Fallback
        } else {
            Self::None
        }
    }
}

impl Tokenizer {
    /// Reads `tokenizer.json` of a model directory.
    ///
    /// # Errors
    /// [`RuntimeError::Tokenizer`] if it is absent, too large, or malformed.
    pub fn open(dir: &Path) -> Result<Self, RuntimeError> {
        let path = dir.join("tokenizer.json");
        let file = path.display().to_string();
        let bad = |what: String| RuntimeError::Tokenizer { file: file.clone(), what };
        let size = std::fs::metadata(&path).map_err(|e| bad(missing(dir, &e)))?.len();
        if size > MAX_FILE_BYTES {
            return Err(bad(format!("{size} bytes, expected at most {MAX_FILE_BYTES}")));
        }
        let json = std::fs::read(&path).map_err(|e| bad(format!("cannot be read: {e}")))?;
        check::check(&json).map_err(bad)?;
        let mut inner = tokenizers::Tokenizer::from_bytes(&json)
            .map_err(|e| bad(format!("is not a tokenizer this program understands: {e}")))?;
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| bad(e.to_string()))?;
        let special = inner.get_added_tokens_decoder().iter().filter(|(_, t)| t.special).map(|(id, _)| *id).collect();
        let bytes = Bytes::of(inner.get_decoder());
        Ok(Self { inner, file, special, bytes })
    }

    /// Tokens of a text. With `special`, what the tokenizer adds to every text (often one beginning-of-text token) is
    /// added. Special tokens written in the text are recognised either way, as chat templates need.
    ///
    /// # Errors
    /// [`RuntimeError::Tokenizer`] if the text has parts the vocabulary cannot express.
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>, RuntimeError> {
        let encoding = self.inner.encode_fast(text, special).map_err(|e| self.error(&*e))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of tokens, all at once. Bytes that are not UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// [`RuntimeError::Tokenizer`] if the decoder refuses.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, RuntimeError> {
        self.inner.decode(ids, skip_special).map_err(|e| self.error(&*e))
    }

    /// What is added before every text: tokens of the empty text that [`Tokenizer::encode`] makes with `special`.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn prefix(&self) -> Result<Vec<u32>, RuntimeError> {
        self.encode("", true)
    }

    /// The id of a token.
    #[must_use]
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The token of an id, as the vocabulary writes it.
    #[must_use]
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Whether a token is special: control, not text.
    #[must_use]
    pub fn is_special(&self, id: u32) -> bool {
        self.special.contains(&id)
    }

    /// Special tokens whose text is part of one of these marks.
    #[must_use]
    pub fn special_within(&self, marks: &[&str]) -> Vec<u32> {
        let within = |id: &u32| self.token(*id).is_some_and(|t| marks.iter().any(|mark| mark.contains(&t)));
        self.special.iter().copied().filter(within).collect()
    }

    /// Tokens there are, added ones included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Whether there are no tokens at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn error(&self, e: &(dyn std::error::Error + Send + Sync)) -> RuntimeError {
        RuntimeError::Tokenizer { file: self.file.clone(), what: e.to_string() }
    }
}

fn missing(dir: &Path, e: &std::io::Error) -> String {
    if dir.join("tokenizer.model").exists() || dir.join("tiktoken.model").exists() {
        return "there is only a tokenizer.model here; save it with transformers' `AutoTokenizer.from_pretrained(…)\
                .save_pretrained(…)`, which writes tokenizer.json"
            .into();
    }
    format!("cannot be read: {e}; download tokenizer.json of the same model into this directory")
}

#[cfg(test)]
mod tests;

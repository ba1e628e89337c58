//! The texts: ours by default, cut into windows.

use crate::CalibrateError;
use ashlar_convert::stats::Text;
use ashlar_runtime::Tokenizer;
use ashlar_runtime::eval::Windows;

/// A text to run through the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Input {
    /// File name, no directories; it is written into the statistics.
    pub name: String,
    /// The text.
    pub text: String,
}

const DEFAULT: &[(&str, &str)] = &[
    ("01-fiction.txt", include_str!("../../../calibration/01-fiction.txt")),
    ("02-essays-letters.txt", include_str!("../../../calibration/02-essays-letters.txt")),
    ("03-news-howto.txt", include_str!("../../../calibration/03-news-howto.txt")),
    ("04-dialogue.txt", include_str!("../../../calibration/04-dialogue.txt")),
    ("05-assistant-chats.txt", include_str!("../../../calibration/05-assistant-chats.txt")),
    ("06-code-python-rust.txt", include_str!("../../../calibration/06-code-python-rust.txt")),
    ("07-code-c-js-sql-shell.txt", include_str!("../../../calibration/07-code-c-js-sql-shell.txt")),
    ("08-config-diffs-logs.txt", include_str!("../../../calibration/08-config-diffs-logs.txt")),
    ("09-mathematics.txt", include_str!("../../../calibration/09-mathematics.txt")),
    ("10-science-technical.txt", include_str!("../../../calibration/10-science-technical.txt")),
    ("11-tables-markdown.txt", include_str!("../../../calibration/11-tables-markdown.txt")),
    ("12-languages-european.txt", include_str!("../../../calibration/12-languages-european.txt")),
    ("13-languages-asia-africa.txt", include_str!("../../../calibration/13-languages-asia-africa.txt")),
    ("14-legal-medical-business.txt", include_str!("../../../calibration/14-legal-medical-business.txt")),
    ("15-noise-and-fragments.txt", include_str!("../../../calibration/15-noise-and-fragments.txt")),
    ("16-reasoning-and-reference.txt", include_str!("../../../calibration/16-reasoning-and-reference.txt")),
];

/// The calibration text of this project (`calibration/README.md`).
#[must_use]
pub fn default_texts() -> Vec<Input> {
    DEFAULT.iter().map(|(name, text)| Input { name: (*name).to_owned(), text: (*text).to_owned() }).collect()
}

impl Input {
    pub(crate) fn text(&self) -> Text {
        Text { name: self.name.clone(), blake3: blake3::hash(self.text.as_bytes()).to_hex().to_string() }
    }
}

/// Windows of `ctx` tokens over all texts, one after the other; where that is more than `tokens`, windows at even
/// distances, so that every text has its share.
pub(crate) fn windows(
    tokenizer: &Tokenizer,
    inputs: &[Input],
    ctx: usize,
    tokens: Option<usize>,
) -> Result<Vec<Vec<u32>>, CalibrateError> {
    if let Some(input) = inputs.iter().find(|i| i.text.trim().is_empty()) {
        return Err(CalibrateError::Text { name: input.name.clone(), what: "is empty".into() });
    }
    let all = inputs.iter().map(|i| i.text.as_str()).collect::<Vec<_>>().join("\n\n");
    let all: Vec<Vec<u32>> = Windows::of(tokenizer, &all, ctx, None)?.iter().map(<[u32]>::to_vec).collect();
    let wanted = tokens.map_or(all.len(), |t| (t / ctx.max(1)).clamp(1, all.len()));
    Ok((0..wanted).filter_map(|i| all.get(i * all.len() / wanted).cloned()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_of_the_folder_is_there() {
        let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../calibration");
        let mut files: Vec<String> = std::fs::read_dir(dir)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.ends_with(".txt"))
            .collect();
        files.sort();
        assert_eq!(files, default_texts().into_iter().map(|i| i.name).collect::<Vec<_>>());
    }
}

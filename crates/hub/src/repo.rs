//! `ORG/NAME[@REV][:GGUF]`: which repository, which state of it, and which of its GGUF files.

use std::fmt;
use std::str::FromStr;

/// Longest name of an organisation, a model or a revision.
const MAX_NAME: usize = 96;
/// Longest path of a GGUF file.
const MAX_PATH: usize = 255;
/// The revision where none is named.
const MAIN: &str = "main";

/// A model's repository at a revision: a branch, a tag or a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repo {
    /// `ORG/NAME`, or `NAME` for the few old models without an organisation.
    pub id: String,
    /// Branch, tag or commit.
    pub revision: String,
    /// Which GGUF file: its path or name, with `.gguf` or not, or what the name ends with, such as `Q4_K_M`.
    pub gguf: Option<String>,
}

impl FromStr for Repo {
    type Err = String;

    /// Reads `ORG/NAME`, `ORG/NAME@REV`, each with `:GGUF` behind it or not, with `hf:` before it or not.
    fn from_str(text: &str) -> Result<Self, String> {
        let bare = text.strip_prefix("hf:").unwrap_or(text);
        let (bare, gguf) = bare.split_once(':').map_or((bare, None), |(bare, gguf)| (bare, Some(gguf)));
        let (id, revision) = bare.split_once('@').unwrap_or((bare, MAIN));
        let refuse =
            || format!("`{text}` names no repository; write ORG/NAME, ORG/NAME@REVISION or ORG/NAME:GGUF-FILE");
        let parts: Vec<&str> = id.split('/').collect();
        let id_is_one = (1..=2).contains(&parts.len()) && parts.iter().all(|p| is_name(p, MAX_NAME, false));
        if !id_is_one || !is_name(revision, MAX_NAME, true) || !gguf.is_none_or(|g| is_name(g, MAX_PATH, true)) {
            return Err(refuse());
        }
        Ok(Self { id: id.to_owned(), revision: revision.to_owned(), gguf: gguf.map(str::to_owned) })
    }
}

impl fmt::Display for Repo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.id)?;
        if self.revision != MAIN {
            write!(f, "@{}", self.revision)?;
        }
        self.gguf.iter().try_for_each(|gguf| write!(f, ":{gguf}"))
    }
}

impl Repo {
    /// The directory of the cache: `models--ORG--NAME`.
    pub(crate) fn folder(&self) -> String {
        format!("models--{}", self.id.replace('/', "--"))
    }

    /// Whether the revision is a commit, which never changes.
    pub(crate) fn is_pinned(&self) -> bool {
        is_commit(&self.revision)
    }

    /// The revision as part of a URL's path: the hub wants slashes of branch names escaped.
    pub(crate) fn escaped_revision(&self) -> String {
        self.revision.replace('/', "%2F")
    }
}

/// Whether it is a full commit hash.
pub(crate) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase())
}

/// Whether it can stand in a URL and in a path: no way out of a directory.
fn is_name(text: &str, longest: usize, slashes: bool) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') || (slashes && c == '/');
    let inside = text.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
    !text.is_empty() && text.len() <= longest && text.chars().all(allowed) && inside
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_are_read_with_and_without_prefix_and_revision() {
        for (text, id, revision) in [
            ("hf:deepseek-ai/DeepSeek-V4-Flash", "deepseek-ai/DeepSeek-V4-Flash", "main"),
            ("Qwen/Qwen3-0.6B@v1.0", "Qwen/Qwen3-0.6B", "v1.0"),
            ("a/b@refs/pr/3", "a/b", "refs/pr/3"),
            ("gpt2", "gpt2", "main"),
            ("hf:a/b-GGUF:Q4_K_M", "a/b-GGUF", "main"),
            ("a/b@v1:Q4_K_M/b-00001-of-00002.gguf", "a/b", "v1"),
        ] {
            let repo: Repo = text.parse().unwrap();
            assert_eq!((repo.id.as_str(), repo.revision.as_str()), (id, revision));
        }
        for text in ["a/b@v1", "a/b:Q8_0", "a/b@v1:Q8_0"] {
            assert_eq!(format!("hf:{text}").parse::<Repo>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn names_that_could_leave_the_cache_or_the_url_are_refused() {
        for text in [
            "", "hf:", "a/b/c", "../x", "a/..", "a//b", "a/b@", "a/b@..", "a b/c", "a/b?x", "a/b@x%2f", "/a", "a/b:",
            "a/b:../c", "a/b:c:d",
        ] {
            assert!(text.parse::<Repo>().is_err(), "{text}");
        }
    }
}

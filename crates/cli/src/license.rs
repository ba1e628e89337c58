//! A model's licence: what its card calls it, and where its text differs from the standard text of that name.
//!
//! Compared are sentences, in lower case, without punctuation, blanks and copyright lines, so that a changed year, name or
//! line break is no difference, and an added condition is. There are two standard texts here, MIT and Apache 2.0; of others only the
//! name is told.

use crate::model::Source;
use ashlar_source::SideDir;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::io::Read;
use std::path::Path;

/// Standard texts, by the name that cards use.
const STANDARD: [(&str, &str); 2] =
    [("mit", include_str!("../../../LICENSE-MIT")), ("apache-2.0", include_str!("../assets/licenses/apache-2.0.txt"))];
/// Files that hold a licence, by what their names begin with.
const NAMES: [&str; 4] = ["LICENSE", "LICENCE", "COPYING", "MODEL_LICENSE"];
/// No licence is longer.
const MAX_BYTES: u64 = 256 << 10;
/// Share of a standard text's sentences from which a text counts as a version of it.
const ALIKE: f64 = 0.6;
/// Differences that are shown, and characters of each.
const SHOWN: usize = 3;
const LENGTH: usize = 240;

/// What is known of a licence.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct License {
    /// As the model's card says: `license_name`, else `license`.
    pub name: Option<String>,
    /// The file that holds its text.
    pub file: Option<String>,
    /// The standard text that it is a version of.
    pub standard: Option<&'static str>,
    /// Sentences that the standard text does not have.
    pub adds: Vec<String>,
    /// Sentences of the standard text that are not there.
    pub lacks: Vec<String>,
}

impl License {
    /// Of a model that lies in `dir`.
    #[must_use]
    pub fn of(dir: &Path) -> Self {
        let name = beginning(&dir.join("README.md")).and_then(|card| stated(&card));
        let mut license = Self { name, ..Self::default() };
        let Some(file) = file_in(dir) else { return license };
        if let Some(text) = beginning(&dir.join(&file)) {
            license.compare(&text);
        }
        license.file = Some(file);
        license
    }

    /// Of an opened model.
    #[must_use]
    pub fn of_source(source: &Source) -> Self {
        match source {
            Source::Catalogue(release) => Self::named(&release.license),
            source => dir_of(source).map_or_else(Self::default, |dir| Self::of(&dir)),
        }
    }

    /// By a name alone.
    #[must_use]
    pub fn named(name: &str) -> Self {
        Self { name: Some(name.to_owned()), ..Self::default() }
    }

    /// All of it.
    #[must_use]
    pub fn json(&self) -> Value {
        let Self { file, standard, adds, lacks, .. } = self;
        json!({ "file": file, "standard": standard, "adds": adds, "lacks": lacks })
    }

    /// Finds the standard text that this one is a version of, and what it changes.
    fn compare(&mut self, text: &str) {
        let own = sentences(text);
        let have: HashSet<&str> = own.iter().map(|s| s.plain.as_str()).collect();
        let best = STANDARD.iter().filter_map(|(name, text)| {
            let standard = sentences(text);
            let shared = standard.iter().filter(|s| have.contains(s.plain.as_str())).count();
            let share = shared as f64 / standard.len().max(1) as f64;
            (share >= ALIKE).then_some((share, *name, standard))
        });
        let Some((_, name, standard)) = best.max_by(|a, b| a.0.total_cmp(&b.0)) else { return };
        let wanted: HashSet<&str> = standard.iter().map(|s| s.plain.as_str()).collect();
        self.standard = Some(name);
        self.adds = own.iter().filter(|s| !wanted.contains(s.plain.as_str())).map(|s| s.text.clone()).collect();
        self.lacks = standard.iter().filter(|s| !have.contains(s.plain.as_str())).map(|s| s.text.clone()).collect();
    }

    /// One line, and one for every difference.
    #[must_use]
    pub fn text(&self) -> String {
        let named = self.name.as_deref();
        let mut out = match (named, &self.file) {
            (Some(name), _) => format!("licence: {name}"),
            (None, Some(file)) => format!("licence: see {file}"),
            (None, None) => return "licence: not stated in the folder\n".into(),
        };
        match (&self.file, self.standard) {
            (Some(file), Some(standard)) if self.adds.is_empty() && self.lacks.is_empty() => {
                out += &format!("; {file} is the standard text of {standard}{}", mismatch(named, standard));
            }
            (Some(file), Some(standard)) => {
                out += &format!("; {file} differs from the standard text of {standard}{}:", mismatch(named, standard));
                out += &differences("adds", &self.adds);
                out += &differences("lacks", &self.lacks);
            }
            (Some(file), None) if named.is_some() => {
                out += &format!("; read {file}: there is no standard text here to compare")
            }
            (Some(_), None) => {}
            (None, _) => out += "; its text is not in the folder",
        }
        out + "\n"
    }
}

/// The folder of a model's licence and card.
pub fn dir_of(source: &Source) -> Option<SideDir> {
    match source {
        Source::Catalogue(_) => None,
        Source::Headers(h) => Some(h.checkpoint().side_dir()),
        Source::Stream(s) => Some(s.checkpoint().side_dir()),
        Source::Checkpoint(c) => Some(c.side_dir()),
        Source::Pack(p) => Some(p.dir().to_owned().into()),
    }
}

/// A card that calls a licence otherwise than its text is.
fn mismatch(name: Option<&str>, standard: &str) -> String {
    match name {
        Some(name) if !name.to_lowercase().contains(standard.split('-').next().unwrap_or(standard)) => {
            format!(", which is not what the card says ({name})")
        }
        _ => String::new(),
    }
}

fn differences(verb: &str, all: &[String]) -> String {
    let mut out = String::new();
    for text in all.iter().take(SHOWN) {
        let cut: String = text.chars().take(LENGTH).collect();
        let dots = if cut.len() < text.len() { " …" } else { "" };
        out += &format!("\n  {verb}: {cut}{dots}");
    }
    if all.len() > SHOWN {
        out += &format!("\n  and {verb} {} more sentences", all.len() - SHOWN);
    }
    out
}

/// A card's front matter, without the lines around it, and what follows.
pub fn front_matter(card: &str) -> (&str, &str) {
    let card = card.trim_start_matches('\u{feff}');
    let Some(rest) = card.strip_prefix("---\n") else { return ("", card) };
    match rest.split_once("\n---") {
        Some((front, body)) => (front, body.split_once('\n').map_or("", |(_, body)| body)),
        None => (rest.strip_prefix("---").unwrap_or(rest), ""),
    }
}

/// `license_name`, else `license`, of a card's front matter.
fn stated(card: &str) -> Option<String> {
    let (front, _) = front_matter(card);
    let key = |key: &str| {
        let value = front.lines().find_map(|l| l.strip_prefix(key)?.trim_start().strip_prefix(':'))?;
        let value = value.trim().trim_matches(['"', '\'']);
        (!value.is_empty()).then(|| value.to_owned())
    };
    key("license_name").or_else(|| key("license"))
}

fn file_in(dir: &Path) -> Option<String> {
    let names = std::fs::read_dir(dir).ok()?.filter_map(|e| e.ok()?.file_name().into_string().ok());
    let holds = |name: &String| NAMES.iter().any(|n| name.to_ascii_uppercase().starts_with(n));
    let mut files: Vec<String> = names.filter(holds).collect();
    files.sort();
    files.into_iter().next()
}

struct Sentence {
    /// As it is written, on one line.
    text: String,
    /// What is compared.
    plain: String,
}

/// Sentences, list items and clauses; copyright lines, titles and the appendix that tells how to apply a licence are left out.
fn sentences(text: &str) -> Vec<Sentence> {
    let text = text.split("END OF TERMS AND CONDITIONS").next().unwrap_or(text);
    let kept = text.lines().filter(|line| !is_notice(&line.trim().to_lowercase()));
    let joined = kept.map(|line| if line.trim().is_empty() { "\n" } else { line }).collect::<Vec<_>>().join(" ");
    let mut all = Vec::new();
    for part in joined.split_inclusive(['.', ';', ':', '\n']) {
        let text = part.split_whitespace().collect::<Vec<_>>().join(" ");
        let letters = text.chars().map(|c| if c.is_alphanumeric() { c.to_ascii_lowercase() } else { ' ' });
        let plain = letters.collect::<String>().split_whitespace().collect::<Vec<_>>().join(" ");
        // Titles, numbers and addresses are no sentences.
        if plain.split(' ').count() >= 5 {
            all.push(Sentence { text, plain });
        }
    }
    all
}

/// Whether a line says whose the copyright is; lines of a licence may begin with that word too.
fn is_notice(line: &str) -> bool {
    let mark = line.strip_prefix("copyright").map_or(line, str::trim_start);
    let dated = |rest: &str| rest.trim_start().starts_with(|c: char| c.is_ascii_digit() || c == '[');
    let marked = ["(c)", "©"].iter().find_map(|m| mark.strip_prefix(m));
    marked.map_or(mark.len() < line.len() && dated(mark), |rest| mark.len() < line.len() || dated(rest))
}

/// A file, as far as it is text.
pub fn beginning(path: &Path) -> Option<String> {
    let mut bytes = Vec::new();
    std::fs::File::open(path).ok()?.take(MAX_BYTES).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(card: &str, text: Option<&str>) -> License {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("README.md"), card).unwrap();
        if let Some(text) = text {
            std::fs::write(dir.path().join("LICENSE"), text).unwrap();
        }
        License::of(dir.path())
    }

    fn mit() -> String {
        STANDARD[0].1.to_owned()
    }

    #[test]
    fn another_year_name_and_line_break_are_no_difference() {
        let copy = mit()
            .replace("Copyright", "Copyright (c) 2023 DeepSeek,")
            .replace(" of this software", "\nof this  software");
        let license = of("---\nlicense: mit\n---\n", Some(&copy));
        assert_eq!((license.standard, license.adds.len(), license.lacks.len()), (Some("mit"), 0, 0));
        assert_eq!(license.text(), "licence: mit; LICENSE is the standard text of mit\n");
    }

    #[test]
    fn an_added_condition_is_told() {
        let more = "\nOur only modification part is that, if the Software is used for products that have more than 100 million \
                    monthly active users, you shall prominently display its name.\n";
        let license = of("---\nlicense: other\nlicense_name: modified-mit\n---\n", Some(&(mit() + more)));
        assert_eq!((license.standard, license.adds.len(), license.lacks.len()), (Some("mit"), 1, 0));
        let text = license.text();
        assert!(
            text.contains("modified-mit")
                && text.contains("adds: Our only modification")
                && text.contains("100 million"),
            "{text}"
        );
    }

    #[test]
    fn a_missing_condition_and_another_name_than_the_text_are_told() {
        let apache = STANDARD[1].1;
        let cut = apache.replace("Grant of Patent License.", "Grant.").replacen("worldwide", "European", 1);
        let license = of("---\nlicense: mit\n---\n", Some(&cut));
        assert_eq!(license.standard, Some("apache-2.0"));
        assert!(!license.adds.is_empty() && !license.lacks.is_empty());
        let text = license.text();
        assert!(text.contains("not what the card says (mit)") && text.contains("European"), "{text}");
        let whole = of("---\nlicense: apache-2.0\n---\n", Some(apache));
        assert!(whole.adds.is_empty() && whole.lacks.is_empty(), "{whole:?}");
    }

    #[test]
    fn what_cannot_be_compared_is_said_to_be_so() {
        let own = of(
            "---\nlicense: llama3.1\n---\n",
            Some("LLAMA 3.1 COMMUNITY LICENSE AGREEMENT. You agree to everything that follows here."),
        );
        assert!(own.standard.is_none() && own.text().contains("read LICENSE"), "{}", own.text());
        assert!(of("---\nlicense: mit\n---\n", None).text().contains("not in the folder"));
        assert_eq!(of("no front matter", None).text(), "licence: not stated in the folder\n");
        assert_eq!(of("", Some("as you like")).text(), "licence: see LICENSE\n");
    }
}

//! Repositories of GGUF files, which hold one model in many quantizations: which file is meant.
//!
//! A file is named by its path or name, with `.gguf` or not, by the folder it lies in, or by what its name ends with behind a
//! `-` or `.`: `Q4_K_M`. Case does not matter. Without a name the only file is taken. Projectors (`mmproj`) and importance
//! matrices are no models.

use crate::{HubError, Repo};
use ashlar_source::gguf_parts;
use std::collections::BTreeMap;

/// Files that a message lists.
const SHOWN: usize = 60;

/// Whether a path is that of a GGUF file.
pub fn is_gguf(path: &str) -> bool {
    path.to_ascii_lowercase().ends_with(".gguf")
}

/// A model: its first file, all its files, their bytes.
struct Model<'a> {
    first: &'a str,
    parts: Vec<String>,
    bytes: u64,
}

/// The paths of all parts of the file that `repo` means, among files given by path and size.
///
/// # Errors
/// [`HubError::Missing`] that lists the files, if none or several are meant, or a part is not there.
pub fn choose(repo: &Repo, files: &[(&str, u64)]) -> Result<Vec<String>, HubError> {
    let missing = |what: String| HubError::Missing { repo: repo.to_string(), what };
    let sizes: BTreeMap<&str, u64> = files.iter().copied().collect();
    let mut models: BTreeMap<String, Model<'_>> = BTreeMap::new();
    for (path, bytes) in files.iter().filter(|(path, _)| is_model(path)) {
        let parts = gguf_parts(path);
        let key = parts.first().cloned().unwrap_or_default();
        let model = models.entry(key).or_insert(Model { first: path, parts, bytes: 0 });
        model.bytes = model.bytes.saturating_add(*bytes);
    }
    if models.is_empty() {
        return Err(missing("it has no GGUF file of a model".into()));
    }
    let wanted = repo.gguf.as_deref().map(str::to_ascii_lowercase);
    let meant = |model: &&Model<'_>| wanted.as_deref().is_none_or(|w| names(w, &model.first.to_ascii_lowercase()));
    let found: Vec<&Model<'_>> = models.values().filter(meant).collect();
    let (what, listed) = match found.as_slice() {
        [one] => {
            if let Some(absent) = one.parts.iter().find(|p| !sizes.contains_key(p.as_str())) {
                return Err(missing(format!("`{}` lacks its part `{absent}`; is the upload complete?", one.first)));
            }
            return Ok(one.parts.clone());
        }
        [] => ("no GGUF file of that name", models.values().collect()),
        _ if repo.gguf.is_some() => ("several GGUF files with names that end like that", found),
        _ => ("several GGUF files", found),
    };
    Err(missing(format!("it has {what}; name one, such as `hf:{}`: {}", with(repo, listed.first()), list(&listed))))
}

/// How the repository is written with that file named.
fn with(repo: &Repo, model: Option<&&Model<'_>>) -> String {
    Repo { gguf: model.map(|m| stem(m.first).to_owned()), ..repo.clone() }.to_string()
}

fn list(models: &[&Model<'_>]) -> String {
    let one = |m: &&Model<'_>| format!("{} ({:.1} GB)", stem(m.first), m.bytes as f64 / 1e9);
    let shown = models.iter().take(SHOWN).map(one).collect::<Vec<_>>().join(", ");
    let more = models.len().saturating_sub(SHOWN);
    if more == 0 { shown } else { format!("{shown} and {more} more") }
}

fn is_model(path: &str) -> bool {
    let name = name(path).to_ascii_lowercase();
    is_gguf(path) && !name.starts_with("mmproj") && !name.starts_with("imatrix")
}

fn name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// A file's name without its ending and its number among parts.
fn stem(path: &str) -> &str {
    let name = name(path);
    let name = name.get(..name.len().saturating_sub(".gguf".len())).unwrap_or(name);
    let number = name.rsplit_once("-of-").and_then(|(stem, count)| {
        let (stem, number) = stem.rsplit_once('-')?;
        let digits = |text: &str| text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
        (digits(count) && digits(number)).then_some(stem)
    });
    number.unwrap_or(name)
}

/// Whether `wanted` names the file of that path; both in lower case.
fn names(wanted: &str, path: &str) -> bool {
    let (name, stem) = (name(path), stem(path));
    let folder = path.rsplit_once('/').map(|(folder, _)| folder);
    let end = stem.strip_suffix(wanted).is_some_and(|start| start.ends_with(['-', '.', '_']));
    wanted == path || wanted == name || wanted == stem || Some(wanted) == folder || end
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILES: &[(&str, u64)] = &[
        ("README.md", 10),
        ("Big/Model-UD-Q2_K_XL-00001-of-00002.gguf", 3_000_000_000),
        ("Big/Model-UD-Q2_K_XL-00002-of-00002.gguf", 2_000_000_000),
        ("Model-Q4_K_M.gguf", 4_900_000_000),
        ("Model-Q8_0.gguf", 8_500_000_000),
        ("imatrix_model.gguf", 1),
        ("mmproj-F16.gguf", 1),
    ];

    fn chosen(text: &str, files: &[(&str, u64)]) -> Result<Vec<String>, String> {
        choose(&text.parse().unwrap(), files).map_err(|e| e.to_string())
    }

    #[test]
    fn a_file_is_named_by_path_name_stem_folder_or_end() {
        let big = vec![FILES[1].0.to_owned(), FILES[2].0.to_owned()];
        for name in
            ["UD-Q2_K_XL", "q2_k_xl", "Big", "Model-UD-Q2_K_XL", FILES[1].0, "big/model-ud-q2_k_xl-00001-of-00002.gguf"]
        {
            assert_eq!(chosen(&format!("a/b:{name}"), FILES), Ok(big.clone()), "{name}");
        }
        for name in ["Q4_K_M", "model-q4_k_m.gguf", "Model-Q4_K_M"] {
            assert_eq!(chosen(&format!("a/b:{name}"), FILES), Ok(vec!["Model-Q4_K_M.gguf".to_owned()]), "{name}");
        }
        assert_eq!(chosen("a/b", &FILES[3..4]), Ok(vec!["Model-Q4_K_M.gguf".to_owned()]));
    }

    #[test]
    fn a_choice_that_is_open_lists_what_there_is_and_how_to_name_it() {
        let open = chosen("a/b@v1", FILES).unwrap_err();
        for part in ["hf:a/b@v1:Model-UD-Q2_K_XL`", "Model-UD-Q2_K_XL (5.0 GB)", "Model-Q4_K_M (4.9 GB)", "Model-Q8_0"]
        {
            assert!(open.contains(part), "{part}: {open}");
        }
        assert!(!open.contains("mmproj") && !open.contains("imatrix"), "{open}");
        let none = chosen("a/b:Q5_0", FILES).unwrap_err();
        assert!(none.contains("no GGUF file of that name") && none.contains("Model-Q8_0"), "{none}");
        let several = chosen("a/b:Q8_0", &[("x-Q8_0.gguf", 1), ("y-Q8_0.gguf", 1)]).unwrap_err();
        assert!(several.contains("several") && several.contains("x-Q8_0"), "{several}");
        let torn = chosen("a/b:UD-Q2_K_XL", &FILES[..2]).unwrap_err();
        assert!(torn.contains("Model-UD-Q2_K_XL-00002-of-00002.gguf") && torn.contains("complete?"), "{torn}");
        assert!(chosen("a/b:x", &FILES[..1]).unwrap_err().contains("no GGUF file"));
    }
}

//! `xtask lint`: the invariants that no compiler checks.

mod arrows;
mod places;
mod sizes;

use crate::{metadata, tokens};
use std::path::{Path, PathBuf};

/// A Rust file of this repository.
pub struct File {
    /// Relative to the root, with `/`.
    pub path: String,
    pub lines: usize,
    pub tokens: Vec<tokens::Token>,
    /// The whole file is test code.
    pub test: bool,
}

impl File {
    /// A file from its text.
    pub fn new(path: &str, text: &str) -> Self {
        let folders = ["tests/", "fuzz/"].iter().any(|d| path.starts_with(d));
        let inner = ["/tests/", "/benches/", "/examples/", "/conformance/"].iter().any(|d| path.contains(d));
        let test = folders || inner || path.ends_with("/tests.rs");
        Self { path: path.to_owned(), lines: text.lines().count(), tokens: tokens::tokens(text), test }
    }

    /// Files that this one declares as `#[cfg(test)] mod name;`, as the beginning of their path.
    fn test_modules(&self) -> impl Iterator<Item = String> {
        let (dir, stem) = self.path.trim_end_matches(".rs").rsplit_once('/').unwrap_or(("", &self.path));
        let home = if matches!(stem, "lib" | "main" | "mod") { dir.to_owned() } else { format!("{dir}/{stem}") };
        self.tokens.windows(3).filter_map(move |w| match w {
            [word, name, end] if word.test && word.is_word("mod") && end.is(';') => match &name.kind {
                tokens::Kind::Word(name) => Some(format!("{home}/{name}")),
                _ => None,
            },
            _ => None,
        })
    }

    /// The directory under `crates/`, if there is one.
    pub fn krate(&self) -> Option<&str> {
        self.path.strip_prefix("crates/")?.split('/').next()
    }
}

/// All problems found.
pub fn run(root: &Path) -> Result<Vec<String>, String> {
    let files = rust_files(root)?;
    let formats: Vec<_> = ashlar_formats::ids().collect();
    let families: Vec<_> = ashlar_arch::families().collect();
    let mut problems = arrows::check(&metadata::workspace(root)?);
    for file in &files {
        problems.extend(places::check(file, &formats, &families));
    }
    problems.extend(places::forbids_unsafe(&files));
    problems.extend(sizes::check(&files));
    for id in formats {
        let page = format!("docs/formats/{id}.md");
        if !root.join(&page).is_file() {
            problems.push(format!("format `{id}` has no page; write {page}"));
        }
    }
    Ok(problems)
}

fn rust_files(root: &Path) -> Result<Vec<File>, String> {
    let mut files = Vec::new();
    let mut todo: Vec<PathBuf> = ["crates", "tests", "xtask", "fuzz"].iter().map(|d| root.join(d)).collect();
    while let Some(dir) = todo.pop() {
        let Ok(entries) = std::fs::read_dir(&dir) else { continue };
        for entry in entries {
            let path = entry.map_err(|e| format!("{}: {e}", dir.display()))?.path();
            if path.is_dir() {
                if path.file_name().is_some_and(|n| n != "target") {
                    todo.push(path);
                }
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
                let relative = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().replace('\\', "/");
                files.push(File::new(&relative, &text));
            }
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    mark_test_modules(&mut files);
    Ok(files)
}

/// Marks modules declared under `#[cfg(test)]`, and what lies below them.
fn mark_test_modules(files: &mut [File]) {
    let modules: Vec<String> = files.iter().flat_map(File::test_modules).collect();
    for file in files {
        file.test |= modules
            .iter()
            .filter_map(|m| file.path.strip_prefix(m.as_str()))
            .any(|rest| rest == ".rs" || rest.starts_with('/'));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_declared_for_tests_is_test_code() {
        let mut files = [
            File::new("crates/a/src/lib.rs", "mod real; #[cfg(test)] mod testing;"),
            File::new("crates/a/src/real.rs", "#[cfg(test)] mod cases;"),
            File::new("crates/a/src/real/cases.rs", ""),
            File::new("crates/a/src/testing.rs", ""),
            File::new("crates/a/src/testing/more.rs", ""),
            File::new("crates/a/src/testing_ground.rs", ""),
            File::new("crates/a/examples/x.rs", ""),
        ];
        mark_test_modules(&mut files);
        let test: Vec<bool> = files.iter().map(|f| f.test).collect();
        assert_eq!(test, [false, false, true, true, true, false, true]);
    }
}

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
}

impl File {
    /// A file from its text.
    pub fn new(path: &str, text: &str) -> Self {
        Self { path: path.to_owned(), lines: text.lines().count(), tokens: tokens::tokens(text) }
    }

    /// Whether the whole file is test code.
    pub fn is_test(&self) -> bool {
        self.path.starts_with("tests/")
            || self.path.contains("/tests/")
            || self.path.contains("/benches/")
            || self.path.ends_with("/tests.rs")
            || self.path.starts_with("fuzz/")
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
    Ok(files)
}

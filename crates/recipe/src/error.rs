//! Everything that is wrong with a recipe, each with its line.

use std::fmt;

/// Problems that are printed; the others are counted.
const PRINTED: usize = 20;
/// Problems that are collected; a hostile file could hold millions.
const COLLECTED: usize = 1000;

/// One thing that is wrong with a recipe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The recipe file, as the caller named it.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// Column, from 1.
    pub column: usize,
    /// The rule it is about.
    pub rule: Option<String>,
    /// What is wrong, and what would be right.
    pub message: String,
    /// The nearest valid name.
    pub suggestion: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: ", self.file, self.line)?;
        if let Some(rule) = &self.rule {
            write!(f, "rule `{rule}`")?;
            // A message that starts with a word goes on with the sentence; others are about a part of the rule.
            f.write_str(if self.message.starts_with("matches ") { " " } else { ": " })?;
        }
        f.write_str(&self.message)?;
        match &self.suggestion {
            Some(name) => write!(f, "; did you mean `{name}`?"),
            None => Ok(()),
        }
    }
}

/// Why a recipe is refused: all problems found, in the order of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecipeError {
    /// At least one.
    pub problems: Vec<Problem>,
    /// How many there were; more than `problems` holds when there were very many.
    pub total: usize,
}

impl fmt::Display for RecipeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.problems.iter().take(PRINTED).enumerate() {
            write!(f, "{}{problem}", if i > 0 { "\n" } else { "" })?;
        }
        match self.total.saturating_sub(PRINTED) {
            0 => Ok(()),
            more => write!(f, "\n… and {more} more"),
        }
    }
}

impl std::error::Error for RecipeError {}

/// A place in the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct At {
    pub line: usize,
    pub column: usize,
}

/// Collects problems.
#[derive(Debug)]
pub(crate) struct Problems {
    file: String,
    /// The rule that is being read.
    pub rule: Option<String>,
    list: Vec<Problem>,
    total: usize,
}

impl Problems {
    pub fn new(file: &str) -> Self {
        Self { file: file.to_owned(), rule: None, list: Vec::new(), total: 0 }
    }

    /// Whether more problems are there than anybody reads: looking for nearest names is not worth it any more.
    pub fn many(&self) -> bool {
        self.total >= PRINTED
    }

    pub fn add(&mut self, at: At, message: impl Into<String>) {
        self.add_near(at, message, None);
    }

    pub fn add_near(&mut self, at: At, message: impl Into<String>, suggestion: Option<&str>) {
        self.total += 1;
        if self.list.len() < COLLECTED {
            self.list.push(Problem {
                file: self.file.clone(),
                line: at.line,
                column: at.column,
                rule: self.rule.clone(),
                message: message.into(),
                suggestion: suggestion.map(str::to_owned),
            });
        }
    }

    /// `value`, unless something was wrong.
    pub fn finish<T>(mut self, value: T) -> Result<T, RecipeError> {
        if self.total == 0 {
            return Ok(value);
        }
        self.list.sort_by_key(|p| (p.line, p.column));
        Err(RecipeError { problems: self.list, total: self.total })
    }
}

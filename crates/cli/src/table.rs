//! Aligned tables for people: text to the left, numbers to the right.

use std::fmt::Write;

/// A table that is filled row by row.
#[derive(Clone, Debug)]
pub struct Table {
    head: Vec<&'static str>,
    right: Vec<bool>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Columns by title; a title that starts with `>` aligns to the right.
    #[must_use]
    pub fn new(columns: &[&'static str]) -> Self {
        Self {
            head: columns.iter().map(|c| c.trim_start_matches('>')).collect(),
            right: columns.iter().map(|c| c.starts_with('>')).collect(),
            rows: Vec::new(),
        }
    }

    /// Adds a row; missing cells are empty.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// The lines, each indented by two spaces and ended by a newline.
    #[must_use]
    pub fn render(&self) -> String {
        let head: Vec<String> = self.head.iter().map(|h| (*h).to_owned()).collect();
        let all = || std::iter::once(&head).chain(&self.rows);
        let width = |c: usize| all().filter_map(|r| r.get(c)).map(|s| s.chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..head.len()).map(width).collect();
        let mut out = String::new();
        for row in all() {
            let mut line = String::new();
            for (c, (width, right)) in widths.iter().zip(&self.right).enumerate() {
                let cell = row.get(c).map_or("", String::as_str);
                let gap = width.saturating_sub(cell.chars().count());
                let (before, after) = if *right { (gap, 0) } else { (0, gap) };
                let _ = write!(line, "  {:before$}{cell}{:after$}", "", "");
            }
            out.push_str(line.trim_end());
            out.push('\n');
        }
        out
    }

    /// As a Markdown table.
    #[must_use]
    pub fn markdown(&self) -> String {
        let line = |cells: &mut dyn Iterator<Item = String>| format!("| {} |\n", cells.collect::<Vec<_>>().join(" | "));
        let mut out = line(&mut self.head.iter().map(|h| (*h).to_owned()));
        out += &line(&mut self.right.iter().map(|right| if *right { "---:" } else { "---" }.to_owned()));
        for row in &self.rows {
            out += &line(&mut row.iter().map(|cell| cell.replace('|', "\\|")));
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_lines_have_no_trailing_space() {
        let mut table = Table::new(&["class", ">bytes", "format"]);
        table.row(["attn".into(), "12".into(), "q8".into()]);
        table.row(["σ".into(), "12345".into()]);
        assert_eq!(table.render(), "  class  bytes  format\n  attn      12  q8\n  σ      12345\n");
    }
}

//! File sizes: median, p90 and max are printed; more than 1000 lines asks for a split.

use super::File;

const MAX_LINES: usize = 1000;

/// Prints the distribution; tells files that are too long.
pub fn check(files: &[File]) -> Vec<String> {
    let mut lines: Vec<usize> = files.iter().map(|f| f.lines).collect();
    lines.sort_unstable();
    let at = |share: usize| lines.get((lines.len().saturating_sub(1)) * share / 100).copied().unwrap_or(0);
    println!(
        "{} Rust files, {} lines: median {}, p90 {}, max {}",
        lines.len(),
        lines.iter().sum::<usize>(),
        at(50),
        at(90),
        at(100)
    );
    let long = files.iter().filter(|f| f.lines > MAX_LINES);
    long.map(|f| format!("{}: {} lines, at most {MAX_LINES}; split it", f.path, f.lines)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_beyond_the_limit_are_told() {
        let file = |lines: usize| File::new("crates/cli/src/x.rs", &"\n".repeat(lines));
        assert_eq!(check(&[file(10), file(MAX_LINES), file(MAX_LINES + 1)]).len(), 1);
        assert!(check(&[]).is_empty());
    }
}

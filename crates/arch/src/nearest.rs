//! The most similar known name, for error messages.

/// The longest name that is compared; hostile input may hold longer ones.
const LONGEST: usize = 256;

/// The candidate most similar to `name`, if any is similar enough to be what was meant: at most one edit, and one
/// more per four characters.
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if name.len() > LONGEST {
        return None;
    }
    let allowed = 1 + name.chars().count() / 4;
    candidates
        .into_iter()
        .filter(|c| c.len().abs_diff(name.len()) <= 4 * allowed && c.len() <= LONGEST)
        .map(|c| (strsim::damerau_levenshtein(name, c), c))
        .filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, c)| c)
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn a_transposition_is_found() {
        assert_eq!(nearest("experst", ["attn", "experts", "embed"]), Some("experts"));
    }

    #[test]
    fn nothing_similar_gives_nothing() {
        assert_eq!(nearest("zz", ["q8", "i4"]), None);
        assert_eq!(nearest(&"x".repeat(100_000), ["q8"]), None);
    }
}

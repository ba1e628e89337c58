//! Layer and expert selections: `5`, `0-2`, `-2..-1`, `0-2,-2..-1`. Inclusive; negatives count from the end.

use std::fmt;

/// One inclusive range; negative bounds count from the end (-1 is the last).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    first: i64,
    last: i64,
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.first, self.last) {
            (a, b) if a == b => write!(f, "{a}"),
            (a, b) if a < 0 || b < 0 => write!(f, "{a}..{b}"),
            (a, b) => write!(f, "{a}-{b}"),
        }
    }
}

impl Range {
    /// A single index.
    pub fn one(index: i64) -> Self {
        Self { first: index, last: index }
    }

    /// The indices of `count` it stands for, or `None` if it lies outside, wholly or in part.
    fn within(self, count: usize) -> Option<(usize, usize)> {
        let index = |i: i64| usize::try_from(if i < 0 { i.checked_add_unsigned(count as u64)? } else { i }).ok();
        let (first, last) = (index(self.first)?, index(self.last)?);
        (first <= last && last < count).then_some((first, last))
    }

    /// As `within`, cut to what exists.
    fn clipped(self, count: usize) -> Option<(usize, usize)> {
        let end = i64::try_from(count).ok()?;
        let index = |i: i64| if i < 0 { i.saturating_add(end) } else { i };
        let (first, last) = (index(self.first).max(0), index(self.last).min(end - 1));
        (first <= last).then_some((usize::try_from(first).ok()?, usize::try_from(last).ok()?))
    }
}

/// Reads `0-2,-2..-1`.
///
/// # Errors
/// What is wrong with it.
pub fn parse(text: &str) -> Result<Vec<Range>, String> {
    text.split(',').map(|item| one(item.trim())).collect()
}

fn one(item: &str) -> Result<Range, String> {
    let number = |t: &str| {
        let t = t.trim();
        t.parse::<i64>().ok().filter(|v| v.unsigned_abs() < 1 << 32).ok_or_else(|| {
            format!("`{}` is no number or range; write `5`, `0-2`, `-2..-1`", item.chars().take(60).collect::<String>())
        })
    };
    if let Some((first, last)) = item.split_once("..") {
        return ordered(number(first)?, number(last)?);
    }
    // The first character may be a sign.
    match item.get(1..).and_then(|rest| rest.find('-')) {
        Some(dash) => {
            let (first, last) = item.split_at(dash + 1);
            let last = last.get(1..).unwrap_or_default();
            if first.starts_with('-') || last.starts_with('-') {
                return Err(format!("`{item}`: write `..` between negative numbers, as in `-2..-1`"));
            }
            ordered(number(first)?, number(last)?)
        }
        None => Ok(Range::one(number(item)?)),
    }
}

fn ordered(first: i64, last: i64) -> Result<Range, String> {
    let range = Range { first, last };
    if first > last && (first < 0) == (last < 0) {
        return Err(format!("`{range}` runs backwards; ranges are inclusive, first to last"));
    }
    Ok(range)
}

/// Ranges against a known number of layers or experts.
#[derive(Clone, Debug, Default)]
pub struct Spans {
    /// Sorted, disjoint, inclusive.
    spans: Vec<(usize, usize)>,
    /// Ranges that are not wholly inside.
    pub outside: Vec<Range>,
}

impl Spans {
    /// The parts of `ranges` that exist among `count`.
    pub fn new(ranges: &[Range], count: usize) -> Self {
        let mut all: Vec<_> = ranges.iter().filter_map(|r| r.clipped(count)).collect();
        all.sort_unstable();
        let mut spans: Vec<(usize, usize)> = Vec::with_capacity(all.len());
        for (first, last) in all {
            match spans.last_mut() {
                Some(previous) if first <= previous.1 + 1 => previous.1 = previous.1.max(last),
                _ => spans.push((first, last)),
            }
        }
        let outside = ranges.iter().copied().filter(|r| r.within(count).is_none()).collect();
        Self { spans, outside }
    }

    /// Whether `index` is in one of them.
    pub fn contains(&self, index: usize) -> bool {
        let after = self.spans.partition_point(|(first, _)| *first <= index);
        after.checked_sub(1).and_then(|i| self.spans.get(i)).is_some_and(|(_, last)| index <= *last)
    }
}

/// Sorted indices as text: `0-2,5`.
pub fn compress(indices: &[usize]) -> String {
    let mut spans: Vec<(usize, usize)> = Vec::new();
    for &index in indices {
        match spans.last_mut() {
            Some(span) if span.1 + 1 == index => span.1 = index,
            _ => spans.push((index, index)),
        }
    }
    let text = |(a, b): &(usize, usize)| if a == b { a.to_string() } else { format!("{a}-{b}") };
    spans.iter().map(text).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str, count: usize) -> Vec<usize> {
        let spans = Spans::new(&parse(text).unwrap(), count);
        (0..count).filter(|i| spans.contains(*i)).collect()
    }

    #[test]
    fn ranges_are_inclusive_and_negatives_count_from_the_end() {
        assert_eq!(of("0-2,-2..-1", 10), [0, 1, 2, 8, 9]);
        assert_eq!(of("5", 10), [5]);
        assert_eq!(of("-1", 10), [9]);
        assert_eq!(of("2..-3", 6), [2, 3]);
        assert_eq!(of("7..9, 0", 10), [0, 7, 8, 9]);
        assert_eq!(of("3-5,4-8,1", 10), [1, 3, 4, 5, 6, 7, 8]);
    }

    #[test]
    fn what_does_not_exist_is_told() {
        let outside = |text: &str, count| -> Vec<String> {
            Spans::new(&parse(text).unwrap(), count).outside.iter().map(ToString::to_string).collect()
        };
        assert_eq!(outside("0-2,30-40,-3..-1", 28), ["30-40"]);
        assert_eq!(outside("20-40", 28), ["20-40"]);
        assert_eq!(outside("-5", 3), ["-5"]);
        assert_eq!(outside("2..-3", 4), ["2..-3"]);
        assert_eq!(of("20-40", 28), (20..28).collect::<Vec<_>>());
        assert_eq!(of("0-5", 0), [0; 0]);
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "a", "1-", "-", "..", "1..", "3-1", "-1..-2", "-3--1", "1,,2", "0x1", "99999999999999999999"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn compressed_indices_read_back() {
        for set in [vec![], vec![0], vec![0, 1, 2, 5, 7, 8], vec![3, 9]] {
            if !set.is_empty() {
                assert_eq!(of(&compress(&set), 10), set);
            }
        }
        assert_eq!(compress(&[0, 1, 2, 5, 7, 8]), "0-2,5,7-8");
    }
}

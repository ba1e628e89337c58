//! How much there is of something per second, lately.

use std::time::Instant;

/// Whole seconds that count.
const SECONDS: u64 = 10;

/// Counts of the last seconds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rate {
    begin: Option<Instant>,
    /// By second since the beginning, in turns: the one that is not over yet, and those that count.
    counts: [u64; SECONDS as usize + 1],
    /// The last second in which anything was counted.
    newest: u64,
}

impl Rate {
    /// There was so much more. Times never go back.
    pub fn add(&mut self, count: u64, now: Instant) {
        let second = self.second(now);
        // Whole turns of silence leave nothing of what was there.
        for empty in (self.newest + 1..=second).rev().take(self.counts.len()) {
            if let Some(old) = self.counts.get_mut(place(empty)) {
                *old = 0;
            }
        }
        self.newest = second.max(self.newest);
        self.begin.get_or_insert(now);
        if let Some(sum) = self.counts.get_mut(place(second)) {
            *sum += count;
        }
    }

    /// The mean of the last ten whole seconds, or of as many as there were.
    #[must_use]
    pub fn per_second(&self, now: Instant) -> f64 {
        let second = self.second(now);
        let first = second.saturating_sub(SECONDS);
        let counted = (first..second).filter(|s| *s <= self.newest);
        let sum: u64 = counted.filter_map(|s| self.counts.get(place(s))).sum();
        sum as f64 / (second - first).max(1) as f64
    }

    fn second(&self, now: Instant) -> u64 {
        self.begin.map_or(0, |begin| now.saturating_duration_since(begin).as_secs())
    }
}

fn place(second: u64) -> usize {
    (second % (SECONDS + 1)) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_rate_is_that_of_the_last_ten_seconds_and_falls_to_nothing() {
        let begin = Instant::now();
        let at = |ms| begin + Duration::from_millis(ms);
        let mut rate = Rate::default();
        assert_eq!(rate.per_second(begin), 0.0);
        for tenth in 0..250 {
            rate.add(3, at(100 * tenth));
            // As many seconds as there were count.
            let want = if tenth < 10 { 0.0 } else { 30.0 };
            assert_eq!(rate.per_second(at(100 * tenth)), want, "{tenth}");
        }
        assert_eq!(rate.per_second(at(30_000)), 15.0);
        assert_eq!(rate.per_second(at(35_000)), 0.0);
        assert_eq!(rate.per_second(at(3_600_000)), 0.0);
        // What was before a long silence is forgotten.
        rate.add(20, at(3_600_500));
        assert_eq!(rate.per_second(at(3_601_500)), 2.0);
    }
}

//! Means over the tokens of windows, and how far chance could have moved them.

use crate::sampler::Xoshiro;

const RESAMPLES: usize = 1000;
const SEED: u64 = 0;

/// A quantity summed per window.
pub struct Means {
    /// Sum and number of tokens.
    sums: Vec<(f64, f64)>,
}

impl Means {
    /// Of what `part` says of every item; items for which it says nothing do not count.
    pub fn of<T>(windows: &[Vec<T>], part: impl Fn(&T) -> Option<f64>) -> Self {
        let sum = |w: &Vec<T>| w.iter().filter_map(&part).fold((0.0, 0.0), |acc, v| (acc.0 + v, acc.1 + 1.0));
        Self { sums: windows.iter().map(sum).collect() }
    }

    /// Mean over the tokens of the picked windows.
    pub fn mean(&self, pick: &[usize]) -> f64 {
        let picked = pick.iter().filter_map(|&i| self.sums.get(i));
        let (sum, count) = picked.fold((0.0, 0.0), |acc, w| (acc.0 + w.0, acc.1 + w.1));
        sum / count
    }

    /// Mean over all tokens.
    pub fn all(&self) -> f64 {
        self.mean(&(0..self.sums.len()).collect::<Vec<_>>())
    }

    /// Number of tokens.
    pub fn count(&self) -> usize {
        self.sums.iter().map(|w| w.1 as usize).sum()
    }

    /// The interval of a function of the mean.
    pub fn ci95(&self, of: impl Fn(f64) -> f64) -> [f64; 2] {
        ci95(self.sums.len(), |pick| of(self.mean(pick)))
    }
}

/// The 2.5th and 97.5th percentile of a statistic over windows drawn with replacement; the same draws for every
/// statistic. One window says nothing about spread: both ends are then the statistic itself.
pub fn ci95(windows: usize, statistic: impl Fn(&[usize]) -> f64) -> [f64; 2] {
    let mut random = Xoshiro::new(SEED);
    let mut draw = || (random.unit() * windows as f64) as usize;
    let mut values: Vec<f64> =
        (0..RESAMPLES).map(|_| statistic(&(0..windows).map(|_| draw()).collect::<Vec<_>>())).collect();
    values.sort_unstable_by(f64::total_cmp);
    [quantile(&values, 0.025), quantile(&values, 0.975)]
}

/// Linear interpolation between the order statistics, as numpy does by default.
pub fn quantile(sorted: &[f64], q: f64) -> f64 {
    let at = q * sorted.len().saturating_sub(1) as f64;
    let value = |i: usize| sorted.get(i).or(sorted.last()).copied().unwrap_or(f64::NAN);
    let low = at.floor() as usize;
    value(low) + (value(low + 1) - value(low)) * (at - at.floor())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_numpys() {
        let v = [1.0, 2.0, 4.0, 8.0];
        for (q, want) in [(0.0, 1.0), (0.5, 3.0), (0.9, 6.8), (1.0, 8.0)] {
            assert!((quantile(&v, q) - want).abs() < 1e-12);
        }
    }

    #[test]
    fn the_interval_is_about_two_standard_errors_wide() {
        let mut random = Xoshiro::new(1);
        let windows: Vec<Vec<f64>> = (0..400).map(|_| vec![random.unit(); 10]).collect();
        let means = Means::of(&windows, |v| Some(*v));
        let [low, high] = means.ci95(|m| m);
        // Uniform on 0..1 by window: standard error of the mean 0.2887 / sqrt(400).
        let width = high - low;
        assert!((width / (2.0 * 1.96 * 0.2887 / 20.0) - 1.0).abs() < 0.1, "{width}");
        assert!(low < means.all() && means.all() < high);
        assert_eq!(means.count(), 4000);
    }

    #[test]
    fn one_window_has_no_spread() {
        let means = Means::of(&[vec![1.0, 2.0]], |v| Some(*v));
        assert_eq!((means.all(), means.ci95(f64::exp)), (1.5, [1.5f64.exp(); 2]));
    }
}

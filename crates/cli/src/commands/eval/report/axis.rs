//! Axes: from values to places, and ticks that people can read.

/// One axis of a chart.
#[derive(Clone, Debug, PartialEq)]
pub struct Axis {
    /// What it shows, with its unit.
    pub label: String,
    low: f64,
    high: f64,
    log: bool,
    /// Value and text.
    pub ticks: Vec<(f64, String)>,
}

impl Axis {
    /// A linear axis that holds the values, and zero if `from_zero`.
    #[must_use]
    pub fn linear(label: &str, values: impl IntoIterator<Item = f64>, from_zero: bool) -> Self {
        let start = if from_zero { Some((0.0, 0.0)) } else { None };
        let (low, high) = range(values, start).unwrap_or((0.0, 1.0));
        let (low, high) = if high > low { (low, high) } else { (low, low + if low == 0.0 { 1.0 } else { low.abs() }) };
        let step = step((high - low) / 5.0);
        let (first, last) = ((low / step).floor() as i64, (high / step).ceil() as i64);
        let digits = (-step.log10().floor()).max(0.0) as usize;
        let ticks = (first..=last).map(|i| (i as f64 * step, format!("{:.digits$}", i as f64 * step))).collect();
        Self { label: label.to_owned(), low: first as f64 * step, high: last as f64 * step, log: false, ticks }
    }

    /// A logarithmic axis that holds the values above zero; linear if there is none.
    #[must_use]
    pub fn log(label: &str, values: impl IntoIterator<Item = f64>) -> Self {
        let Some((low, high)) = range(values.into_iter().filter(|v| *v > 0.0), None) else {
            return Self::linear(label, [], true);
        };
        let (low, high) = (low * 0.9, high * 1.1);
        let decades = high.log10() - low.log10();
        let steps: &[f64] = if decades < 2.5 { &[1.0, 2.0, 5.0] } else { &[1.0] };
        let mut ticks = Vec::new();
        for e in low.log10().floor() as i32..=high.log10().ceil() as i32 {
            ticks.extend(steps.iter().map(|s| s * 10f64.powi(e)));
        }
        let low = ticks.iter().copied().rfind(|t| *t <= low).unwrap_or(low);
        let high = ticks.iter().copied().find(|t| *t >= high).unwrap_or(high);
        // Far apart, every decade would be too many.
        let every = ticks.len().div_ceil(12).max(1);
        ticks.retain(|t| (low..=high).contains(t));
        let ticks = ticks.into_iter().step_by(every).map(|t| (t, plain(t))).collect();
        Self { label: label.to_owned(), low, high, log: true, ticks }
    }

    /// An axis with places that have names: 0, 1, 2…
    #[must_use]
    pub fn named(label: &str, names: &[String]) -> Self {
        let ticks = names.iter().enumerate().map(|(i, n)| (i as f64, n.clone())).collect();
        let high = names.len().saturating_sub(1) as f64;
        Self { label: label.to_owned(), low: -0.3, high: high + 0.3, log: false, ticks }
    }

    /// Where a value lies, 0 to 1; values outside lie at the ends.
    #[must_use]
    pub fn at(&self, value: f64) -> f64 {
        let place = if self.log {
            (value.max(f64::MIN_POSITIVE).ln() - self.low.ln()) / (self.high.ln() - self.low.ln())
        } else {
            (value - self.low) / (self.high - self.low)
        };
        if place.is_finite() { place.clamp(0.0, 1.0) } else { 0.0 }
    }
}

fn range(values: impl IntoIterator<Item = f64>, start: Option<(f64, f64)>) -> Option<(f64, f64)> {
    let wider = |r: Option<(f64, f64)>, v: f64| Some(r.map_or((v, v), |(low, high)| (low.min(v), high.max(v))));
    values.into_iter().filter(|v| v.is_finite()).fold(start, wider)
}

/// The next larger of 1, 2, 5 · 10ⁿ.
fn step(about: f64) -> f64 {
    let power = 10f64.powf(about.log10().floor());
    [1.0, 2.0, 5.0].into_iter().map(|s| s * power).find(|s| *s >= about * 0.999).unwrap_or(10.0 * power)
}

/// A number in as few characters as say it: `0.002`, `3e-6`, `12,000`.
#[must_use]
pub fn plain(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        a if a < 0.0009995 => format!("{value:.0e}"),
        a if a < 9.995 => {
            let digits = (2.0 - a.log10().floor()).max(0.0) as usize;
            let text = format!("{value:.digits$}");
            if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
        }
        a if a < 999.5 => format!("{value:.0}"),
        _ => crate::units::thousands(value.abs().round() as u64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(axis: &Axis) -> Vec<&str> {
        axis.ticks.iter().map(|t| t.1.as_str()).collect()
    }

    #[test]
    fn linear_ticks_are_round_and_hold_the_values() {
        let a = Axis::linear("x", [0.93, 0.991], false);
        assert_eq!(texts(&a), ["0.92", "0.94", "0.96", "0.98", "1.00"]);
        assert!(a.at(0.93) > 0.0 && a.at(0.991) < 1.0);
        assert_eq!(texts(&Axis::linear("x", [7.0], true)), ["0", "2", "4", "6", "8"]);
    }

    #[test]
    fn logarithmic_ticks_are_decades_or_finer() {
        assert_eq!(texts(&Axis::log("x", [0.0, 0.011, 0.04])), ["0.005", "0.01", "0.02", "0.05"]);
        assert_eq!(texts(&Axis::log("x", [2e-5, 0.3])), ["1e-5", "1e-4", "0.001", "0.01", "0.1", "1"]);
        let a = Axis::log("x", [0.01, 1.0]);
        assert!((a.at(0.1) - 0.5).abs() < 0.05);
        assert_eq!(a.at(0.0), 0.0);
    }

    #[test]
    fn axes_of_nothing_or_of_what_is_no_number_still_place_values() {
        for a in [Axis::log("x", []), Axis::log("x", [f64::NAN, 0.0]), Axis::linear("x", [f64::INFINITY], false)] {
            assert!((0.0..=1.0).contains(&a.at(0.5)) && !a.ticks.is_empty(), "{a:?}");
            assert!((0.0..=1.0).contains(&a.at(f64::NAN)));
        }
    }

    #[test]
    fn numbers_are_short() {
        let shown: Vec<_> = [0.0, 3e-6, 0.0123, 0.5, 1.0, 4.25, 87.3, 12345.0].map(plain).into();
        assert_eq!(shown, ["0", "3e-6", "0.0123", "0.5", "1", "4.25", "87", "12,345"]);
    }
}

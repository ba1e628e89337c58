//! Prometheus' text format.

use std::fmt::{Display, Write};

/// Upper bounds of the histograms' buckets, seconds.
const BOUNDS: [f64; 14] = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0];

/// How a figure behaves.
#[derive(Clone, Copy)]
pub enum Kind {
    /// It only grows.
    Counter,
    /// It goes up and down.
    Gauge,
}

/// Figures as text; all names begin with `ashlar_`.
#[derive(Default)]
pub struct Text(pub String);

impl Text {
    /// A figure of its own.
    pub fn one(&mut self, kind: Kind, name: &str, help: &str, value: impl Display) {
        self.many(kind, name, help, [(String::new(), value)]);
    }

    /// Figures of one name, told apart by labels; nothing where there are none.
    pub fn many<V: Display>(&mut self, kind: Kind, name: &str, help: &str, all: impl IntoIterator<Item = (String, V)>) {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
        };
        let mut all = all.into_iter().peekable();
        if all.peek().is_some() {
            self.head(kind, name, help);
        }
        for (labels, value) in all {
            let labels = if labels.is_empty() { labels } else { format!("{{{labels}}}") };
            let _ = writeln!(self.0, "ashlar_{name}{labels} {value}");
        }
    }

    /// A distribution.
    pub fn histogram(&mut self, name: &str, help: &str, of: &Histogram) {
        self.head("histogram", name, help);
        for (bound, count) in BOUNDS.iter().zip(of.counts) {
            let _ = writeln!(self.0, "ashlar_{name}_bucket{{le=\"{bound}\"}} {count}");
        }
        let Histogram { count, sum, .. } = of;
        let _ = writeln!(self.0, "ashlar_{name}_bucket{{le=\"+Inf\"}} {count}");
        let _ = writeln!(self.0, "ashlar_{name}_sum {sum}\nashlar_{name}_count {count}");
    }

    fn head(&mut self, kind: &str, name: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP ashlar_{name} {help}\n# TYPE ashlar_{name} {kind}");
    }
}

/// How often something took how long.
#[derive(Clone, Default)]
pub struct Histogram {
    counts: [u64; BOUNDS.len()],
    count: u64,
    sum: f64,
}

impl Histogram {
    /// Once more.
    pub fn add(&mut self, seconds: f64) {
        for (count, bound) in self.counts.iter_mut().zip(BOUNDS) {
            *count += u64::from(seconds <= bound);
        }
        self.count += 1;
        self.sum += seconds;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative() {
        let mut histogram = Histogram::default();
        [0.004, 0.015, 0.015, 400.0].into_iter().for_each(|s| histogram.add(s));
        let mut text = Text::default();
        text.histogram("t", "help", &histogram);
        for line in [
            "# TYPE ashlar_t histogram",
            "ashlar_t_bucket{le=\"0.005\"} 1",
            "ashlar_t_bucket{le=\"0.02\"} 3",
            "ashlar_t_bucket{le=\"+Inf\"} 4",
            "ashlar_t_count 4",
        ] {
            assert!(text.0.lines().any(|l| l == line), "{line}\n{}", text.0);
        }
    }

    #[test]
    fn a_name_is_explained_once_and_not_at_all_without_figures() {
        let mut text = Text::default();
        text.many(Kind::Gauge, "none", "help", Vec::<(String, u64)>::new());
        text.many(Kind::Gauge, "two", "help", [("a=\"1\"".to_owned(), 2), ("a=\"2\"".to_owned(), 3)]);
        assert_eq!(
            text.0,
            "# HELP ashlar_two help\n# TYPE ashlar_two gauge\nashlar_two{a=\"1\"} 2\nashlar_two{a=\"2\"} 3\n"
        );
    }
}

//! `/metrics`, in Prometheus' text format.

use ashlar_runtime::engine::EngineStats;
use std::fmt::Write;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Upper bounds of the histograms' buckets, seconds.
const BOUNDS: [f64; 14] = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0];

/// What is measured at the edge, where clients see it.
#[derive(Default)]
pub struct Metrics {
    first: Mutex<Histogram>,
    between: Mutex<Histogram>,
    waiting: Mutex<Histogram>,
}

#[derive(Clone, Default)]
struct Histogram {
    counts: [u64; BOUNDS.len()],
    count: u64,
    sum: f64,
}

impl Histogram {
    fn add(&mut self, seconds: f64) {
        for (count, bound) in self.counts.iter_mut().zip(BOUNDS) {
            *count += u64::from(seconds <= bound);
        }
        self.count += 1;
        self.sum += seconds;
    }

    fn write(&self, out: &mut String, name: &str, help: &str) {
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} histogram");
        for (bound, count) in BOUNDS.iter().zip(self.counts) {
            let _ = writeln!(out, "{name}_bucket{{le=\"{bound}\"}} {count}");
        }
        let _ = writeln!(out, "{name}_bucket{{le=\"+Inf\"}} {}", self.count);
        let _ = writeln!(out, "{name}_sum {}\n{name}_count {}", self.sum, self.count);
    }
}

impl Metrics {
    /// From a request's arrival to its first token.
    pub fn first_token(&self, after: Duration) {
        add(&self.first, after);
    }

    /// From one token of a request to its next.
    pub fn next_token(&self, after: Duration) {
        add(&self.between, after);
    }

    /// From a request's arrival to its start.
    pub fn waited(&self, time: Duration) {
        add(&self.waiting, time);
    }

    /// Everything as text.
    pub fn render(&self, stats: &EngineStats) -> String {
        let mut out = String::new();
        let mut one = |name: &str, kind: &str, help: &str, value: u64| {
            let _ = writeln!(out, "# HELP ashlar_{name} {help}\n# TYPE ashlar_{name} {kind}\nashlar_{name} {value}");
        };
        one("requests_running", "gauge", "Requests that hold a slot", stats.running as u64);
        one("requests_waiting", "gauge", "Requests in the queue", stats.waiting as u64);
        one("requests_ended_total", "counter", "Requests that ended in any way", stats.ended);
        one("requests_refused_total", "counter", "Requests refused", stats.refused);
        one(
            "requests_preempted_total",
            "counter",
            "Running requests that had to wait again for memory",
            stats.preempted,
        );
        one("tokens_in_total", "counter", "Tokens of prompts computed", stats.tokens_in);
        one("tokens_out_total", "counter", "Tokens generated", stats.tokens_out);
        one("prefix_hits_total", "counter", "Requests whose prompt began like an earlier one", stats.prefix_hits);
        one("prefix_tokens_total", "counter", "Tokens not computed because of that", stats.prefix_tokens);
        one("steps_total", "counter", "Batches", stats.steps);
        one("kv_bytes", "gauge", "Keys and values in use, bytes", stats.kv_used);
        if let Some(budget) = stats.kv_budget {
            one("kv_budget_bytes", "gauge", "Bytes that keys and values may take", budget);
        }
        if let Some(nvme) = &stats.nvme {
            let waited = (nvme.waited * 1e3) as u64;
            one("nvme_read_bytes_total", "counter", "Bytes of experts read from the disk", nvme.bytes);
            one("nvme_hits_total", "counter", "Uses of experts that were in memory or on their way", nvme.hits);
            one("nvme_misses_total", "counter", "Uses of experts that were not", nvme.misses);
            one("nvme_evictions_total", "counter", "Experts that left memory for others", nvme.evictions);
            one("nvme_retries_total", "counter", "Reads that were tried again", nvme.retries);
            one("nvme_waited_milliseconds_total", "counter", "Time that was spent waiting for the disk", waited);
            one("nvme_slots", "gauge", "Experts that memory holds", nvme.slots as u64);
            one("nvme_ahead_useful_total", "counter", "Experts read ahead of their turn and used", nvme.ahead.useful);
            one("nvme_ahead_wasted_total", "counter", "Experts read ahead of their turn in vain", nvme.ahead.wasted);
        }
        let of = |h: &Mutex<Histogram>| h.lock().unwrap_or_else(PoisonError::into_inner).clone();
        of(&self.first).write(
            &mut out,
            "ashlar_time_to_first_token_seconds",
            "From a request's arrival to its first token",
        );
        of(&self.between).write(
            &mut out,
            "ashlar_time_between_tokens_seconds",
            "From one token of a request to its next",
        );
        of(&self.waiting).write(&mut out, "ashlar_time_in_queue_seconds", "From a request's arrival to its start");
        out
    }
}

fn add(histogram: &Mutex<Histogram>, time: Duration) {
    histogram.lock().unwrap_or_else(PoisonError::into_inner).add(time.as_secs_f64());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative_and_every_line_has_a_value() {
        let metrics = Metrics::default();
        for ms in [4, 15, 15, 400_000] {
            metrics.first_token(Duration::from_millis(ms));
        }
        let text = metrics.render(&EngineStats { tokens_out: 7, ..EngineStats::default() });
        for line in [
            "ashlar_tokens_out_total 7",
            "ashlar_time_to_first_token_seconds_bucket{le=\"0.005\"} 1",
            "ashlar_time_to_first_token_seconds_bucket{le=\"0.02\"} 3",
            "ashlar_time_to_first_token_seconds_bucket{le=\"+Inf\"} 4",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
        let values = text.lines().filter(|l| !l.starts_with('#'));
        assert!(
            values.clone().count() > 50 && values.clone().all(|l| l.rsplit(' ').next().unwrap().parse::<f64>().is_ok())
        );
    }
}

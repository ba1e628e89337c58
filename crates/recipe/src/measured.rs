//! `measured:`, what `ashlar doctor` found out about a machine beyond its memory: threads, and what kernels reach.

use crate::error::Problems;
use crate::read;
use crate::size::parse_rate;
use crate::tree::{Node, Value};

const KEYS: &[&str] = &["threads", "kernels"];
/// More threads than any machine has.
const MOST_THREADS: i64 = 4096;

/// What a machine's processor reaches.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Measured {
    /// Threads that it computes with.
    pub threads: usize,
    /// By format.
    pub kernels: Vec<KernelRate>,
}

/// What the kernels of a format reach with all threads.
#[derive(Clone, Debug, PartialEq)]
pub struct KernelRate {
    /// The format's id.
    pub format: String,
    /// Bytes of weights per second, one row at a time.
    pub read: f64,
    /// Multiply-adds per second, many rows at a time.
    pub multiply: f64,
}

impl Measured {
    /// As the section of a file.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = format!("measured:\n  threads: {}\n  kernels:\n", self.threads);
        for KernelRate { format, read, multiply } in &self.kernels {
            text.push_str(&format!("    - \"{format} {:.2}GB/s {:.1}G/s\"\n", read / 1e9, multiply / 1e9));
        }
        text
    }

    /// What the kernels of a format reach; of one that was not measured, what the slowest do.
    #[must_use]
    pub fn kernel(&self, format: &str) -> Option<&KernelRate> {
        let slowest = || self.kernels.iter().min_by(|a, b| a.read.total_cmp(&b.read));
        self.kernels.iter().find(|rate| rate.format == format).or_else(slowest)
    }
}

/// Reads `measured:`.
pub fn read(node: &Node, problems: &mut Problems) -> Measured {
    let entries = read::map(node, "`measured`", KEYS, problems);
    let mut all = Measured::default();
    for (key, value) in entries {
        match (key.name.as_str(), &value.value) {
            ("threads", Value::Int(n)) if (1..=MOST_THREADS).contains(n) => all.threads = *n as usize,
            ("threads", _) => {
                problems.add(value.at, format!("`threads` is {}; expected 1 to {MOST_THREADS}", value.show()));
            }
            _ => all.kernels.extend(read::items(value).iter().filter_map(|item| kernel(item, problems))),
        }
    }
    all
}

/// `k4 9.1GB/s 210G/s`
fn kernel(node: &Node, problems: &mut Problems) -> Option<KernelRate> {
    let text = read::text(node, "kernels", problems)?;
    let parse = || {
        let mut words = text.split_whitespace();
        let [format, read, multiply] = [words.next()?, words.next()?, words.next()?];
        let multiply = multiply.strip_suffix("G/s")?.parse::<f64>().ok().filter(|v| v.is_finite() && *v > 0.0)?;
        let read = parse_rate(read).ok()?;
        words.next().is_none().then(|| KernelRate { format: format.to_owned(), read, multiply: multiply * 1e9 })
    };
    let found = parse();
    if found.is_none() {
        problems.add(node.at, format!("`{text}` is no rate of a kernel; write e.g. `k4 9.1GB/s 210G/s`"));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Recipe;

    #[test]
    fn what_is_written_is_read_again_and_nonsense_has_its_line() {
        let rate = |format: &str, read, multiply| KernelRate { format: format.into(), read, multiply };
        let measured = Measured { threads: 2, kernels: vec![rate("q8", 9.25e9, 210e9), rate("k4", 8.5e9, 1.5e11)] };
        let file = |text: &str| Recipe::parse(&format!("version: 1\nhardware: {{ram: 8GiB}}\n{text}"), "m.yaml");
        let recipe = file(&measured.text()).unwrap();
        assert_eq!(recipe.measured(), Some(&measured));
        assert_eq!(measured.kernel("q8").unwrap().read, 9.25e9);
        assert_eq!(measured.kernel("k2").unwrap().format, "k4", "the slowest stands for what was not measured");
        for bad in [
            "measured: {threads: 0}",
            "measured: {kernels: [\"q8 fast\"]}",
            "measured: {kernels: [\"q8 1GB/s -1G/s\"]}",
        ] {
            assert!(file(bad).is_err(), "{bad}");
        }
    }
}

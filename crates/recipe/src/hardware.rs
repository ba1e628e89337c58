//! `hardware:`, the machine that a placement is made for, and `resolved:`, what a placement came to there.

use crate::error::Problems;
use crate::read;
use crate::size::{parse_bytes, parse_rate};
use crate::tree::{Node, Value};

/// More accelerators than any machine has.
const MAX_GPUS: i64 = 64;
const HARDWARE: &[&str] =
    &["gpus", "vram", "ram", "nvme", "unified", "vram_bandwidth", "ram_bandwidth", "link_bandwidth", "nvme_bandwidth"];
const RESOLVED: &[&str] = &["context", "chunk", "sequences", "kv", "devices"];
const SHARE: &[&str] = &["device", "budget", "weights", "caches", "activations", "slots"];

/// A machine: how much memory of each kind it has and how fast that is. Bytes, and bytes per second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Hardware {
    /// Accelerators, all alike: `cuda:0`, `cuda:1`, …
    pub gpus: usize,
    /// Memory of each of them; 0 where they have none of their own.
    pub vram: u64,
    /// Memory of the host.
    pub ram: u64,
    /// Room for packs on a fast disk, which weights may be read from while the model runs; 0 for none.
    pub nvme: u64,
    /// Whether accelerators use the host's memory.
    pub unified: bool,
    /// Reading memory of an accelerator.
    pub vram_bandwidth: Option<f64>,
    /// Reading memory of the host.
    pub ram_bandwidth: Option<f64>,
    /// From the host to an accelerator.
    pub link_bandwidth: Option<f64>,
    /// Reading the disk.
    pub nvme_bandwidth: Option<f64>,
}

/// What a placement came to: a run of the same placement must come to the same.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolved {
    /// Positions per sequence.
    pub context: usize,
    /// Rows of a batch at most.
    pub chunk: usize,
    /// Sequences held at the same time.
    pub sequences: usize,
    /// How keys and values are stored.
    pub kv: String,
    /// Bytes on every device.
    pub devices: Vec<DeviceShare>,
}

/// What a device holds of a placed model, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceShare {
    /// Its name.
    pub device: String,
    /// The most it may hold; `None` where nothing bounds it.
    pub budget: Option<u64>,
    /// Weights.
    pub weights: u64,
    /// Keys and values at full context.
    pub caches: u64,
    /// Activations at full batches.
    pub activations: u64,
    /// Slots that experts take turns in.
    pub slots: u64,
}

impl DeviceShare {
    /// All it holds.
    #[must_use]
    pub fn total(&self) -> u64 {
        [self.caches, self.activations, self.slots].into_iter().fold(self.weights, u64::saturating_add)
    }
}

impl Resolved {
    /// As the section of a placement file.
    #[must_use]
    pub fn text(&self) -> String {
        let Self { context, chunk, sequences, kv, devices } = self;
        let mut text = format!(
            "resolved:\n  context: {context}\n  chunk: {chunk}\n  sequences: {sequences}\n  kv: {kv}\n  devices:\n"
        );
        for DeviceShare { device, budget, weights, caches, activations, slots } in devices {
            let slots = if *slots > 0 { format!(", slots: {slots}") } else { String::new() };
            let budget = budget.map(|b| format!("budget: {b}, ")).unwrap_or_default();
            text.push_str(&format!(
                "    - {{device: \"{device}\", {budget}weights: {weights}, caches: {caches}, activations: {activations}{slots}}}\n"
            ));
        }
        text
    }
}

/// Reads `hardware:`.
pub fn read(node: &Node, problems: &mut Problems) -> Hardware {
    let entries = read::map(node, "`hardware`", HARDWARE, problems);
    let mut all = Hardware::default();
    for (key, value) in entries {
        let mut rate = || measured(value, &key.name, parse_rate, problems);
        match key.name.as_str() {
            "vram_bandwidth" => all.vram_bandwidth = rate(),
            "ram_bandwidth" => all.ram_bandwidth = rate(),
            "link_bandwidth" => all.link_bandwidth = rate(),
            "nvme_bandwidth" => all.nvme_bandwidth = rate(),
            "gpus" => all.gpus = count(value, "gpus", MAX_GPUS, problems).unwrap_or_default(),
            "unified" => all.unified = read::boolean(value, "unified", problems).unwrap_or_default(),
            "vram" => all.vram = bytes(value, "vram", problems).unwrap_or_default(),
            "ram" => all.ram = bytes(value, "ram", problems).unwrap_or_default(),
            "nvme" => all.nvme = bytes(value, "nvme", problems).unwrap_or_default(),
            _ => {}
        }
    }
    if all.ram == 0 {
        problems.add(node.at, "`hardware` needs `ram`, such as 64GiB");
    }
    match (all.gpus, all.vram, all.unified) {
        (0, 0, false) | (1.., 0, true) | (1.., 1.., false) => {}
        (0, ..) => problems.add(node.at, "`vram` and `unified` are about accelerators; say how many `gpus` there are"),
        (_, 0, false) => problems.add(node.at, "`gpus` need `vram`, such as 10GiB each, or `unified: true`"),
        (_, _, true) => problems.add(node.at, "`unified: true` says that gpus use `ram`; leave `vram` out"),
    }
    all
}

/// Reads `resolved:`.
pub fn resolved(node: &Node, problems: &mut Problems) -> Resolved {
    let entries = read::map(node, "`resolved`", RESOLVED, problems);
    let mut number = |name: &str| match read::get(entries, name) {
        Some(node) => count(node, name, i64::from(u32::MAX), problems).unwrap_or_default(),
        None => {
            problems.add(node.at, format!("`resolved` needs `{name}`"));
            0
        }
    };
    let (context, chunk, sequences) = (number("context"), number("chunk"), number("sequences"));
    let kv = read::get(entries, "kv").and_then(|n| read::text(n, "kv", problems)).unwrap_or_default();
    let devices = read::get(entries, "devices").map(read::items).unwrap_or_default();
    let devices = devices.iter().map(|item| share(item, problems)).collect();
    Resolved { context, chunk, sequences, kv, devices }
}

fn share(node: &Node, problems: &mut Problems) -> DeviceShare {
    let entries = read::map(node, "a device", SHARE, problems);
    let device = match read::get(entries, "device") {
        Some(node) => read::text(node, "device", problems).unwrap_or_default(),
        None => {
            problems.add(node.at, "`device` is missing");
            String::new()
        }
    };
    let mut part = |name: &str| read::get(entries, name).and_then(|n| bytes(n, name, problems));
    let (budget, [weights, caches, activations, slots]) =
        (part("budget"), ["weights", "caches", "activations", "slots"].map(&mut part));
    DeviceShare {
        device,
        budget,
        weights: weights.unwrap_or_default(),
        caches: caches.unwrap_or_default(),
        activations: activations.unwrap_or_default(),
        slots: slots.unwrap_or_default(),
    }
}

fn count(node: &Node, what: &str, most: i64, problems: &mut Problems) -> Option<usize> {
    let value = if let Value::Int(v) = node.value { Some(v).filter(|v| (0..=most).contains(v)) } else { None };
    if value.is_none() {
        problems.add(node.at, format!("`{what}` is {}; expected a number from 0 to {most}", node.show()));
    }
    value.and_then(|v| usize::try_from(v).ok())
}

fn bytes(node: &Node, what: &str, problems: &mut Problems) -> Option<u64> {
    measured(node, what, parse_bytes, problems)
}

fn measured<T>(
    node: &Node,
    what: &str,
    parse: impl Fn(&str) -> Result<T, String>,
    problems: &mut Problems,
) -> Option<T> {
    let text = read::text(node, what, problems)?;
    match parse(&text) {
        Ok(value) => Some(value),
        Err(why) => {
            problems.add(node.at, format!("`{what}`: {why}"));
            None
        }
    }
}

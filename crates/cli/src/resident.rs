//! How much memory this process really takes, as the system counts it.

use crate::units;
use ashlar_runtime::{AheadUse, Model, ModelledUse, NvmeUse, Residency, SlotUse};

/// Bytes in memory: of mapped files, and of the process itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resident {
    /// Pages of files, which the system may drop and read again.
    pub files: u64,
    /// All others.
    pub own: u64,
}

impl Resident {
    /// Of this process; `None` where the system does not say.
    #[must_use]
    pub fn now() -> Option<Self> {
        Self::parse(&std::fs::read_to_string("/proc/self/status").ok()?)
    }

    fn parse(status: &str) -> Option<Self> {
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib.saturating_mul(1024))
        };
        Some(Self { files: field("RssFile:")?, own: field("RssAnon:")? })
    }
}

/// One line: what is resident, and what of it the model accounts for.
#[must_use]
pub fn told(model: &Model) -> String {
    let memory = model.memory();
    let parts = format!(
        "weights {} ({}), keys and values {} ({}), activations {}",
        units::bytes(model.weight_bytes()),
        residency(model),
        units::bytes(memory.caches),
        model.kv().format().name(),
        units::bytes(memory.activations)
    );
    match Resident::now() {
        Some(Resident { files, own }) => format!(
            "memory: {parts}; resident: {} ({} of mapped files, {} of its own)",
            units::bytes(files + own),
            units::bytes(files),
            units::bytes(own)
        ),
        None => format!("memory: {parts}"),
    }
}

/// One line: what came from the disk so far.
#[must_use]
pub fn disk(used: &NvmeUse) -> String {
    let accesses = used.hits + used.misses;
    format!(
        "disk: {} read ({} at the start), {} of {} experts in {} of memory; {accesses} uses, {:.1} % there, {} evicted, {} read \
         again, {:.2} s waited; {} reads at once, {}/s at the start",
        units::bytes(used.bytes),
        units::bytes(used.warm_bytes),
        used.slots,
        used.experts,
        units::memory(used.slot_bytes),
        100.0 * used.hits as f64 / (accesses as f64).max(1.0),
        used.evictions,
        used.retries,
        used.waited,
        used.depth,
        units::bytes(used.rate as u64)
    )
}

/// One line: what the run would have been on the machine of its placement; nothing before the first token.
#[must_use]
pub fn modelled(used: &ModelledUse) -> Option<String> {
    let rate = used.tokens_per_s()?;
    let (tokens, seconds) = used.prompt;
    let prompt = if tokens > 0 { format!("; {tokens} tokens of prompts in {seconds:.2} s") } else { String::new() };
    Some(format!("modelled: {rate:.1} tokens/s on {}{prompt}", used.machine))
}

/// One line: what came of reading ahead; nothing where nothing was guessed.
#[must_use]
pub fn ahead(used: &AheadUse) -> Option<String> {
    let share = |part: u64, of: u64| 100.0 * part as f64 / (of as f64).max(1.0);
    (used.uses + used.certain > 0).then(|| {
        format!(
            "look-ahead: {:.0} % of experts named, {:.0} % of those that were missing read ahead; {} useful, {} in vain ({} known for \
             certain), given up {} times",
            share(used.named, used.uses),
            share(used.covered, used.absent),
            used.useful,
            used.wasted,
            used.certain,
            used.pauses
        )
    })
}

/// What slots of an accelerator were good for.
#[must_use]
pub fn slots(device: &str, used: &SlotUse) -> String {
    let share = |hits: u64, misses: u64| 100.0 * hits as f64 / ((hits + misses) as f64).max(1.0);
    let streamed = match used.streams_from {
        Some(tokens) if used.streamed > 0 => format!(", {} streamed (from {tokens} tokens on)", used.streamed),
        _ => String::new(),
    };
    let released = match used.released {
        0 => String::new(),
        slots => format!(" ({slots} of them lent to keys and values now)"),
    };
    format!(
        "{device}: {} slots{released} of {} experts, {}; decoding found {:.1} % of {} uses there, prompts {:.1} % of {}; {} brought in{streamed}, {} copied",
        used.slots,
        used.experts,
        units::bytes(used.bytes),
        share(used.hits, used.misses),
        used.hits + used.misses,
        share(used.prompt_hits, used.prompt_misses),
        used.prompt_hits + used.prompt_misses,
        used.fills,
        units::bytes(used.copied)
    )
}

fn residency(model: &Model) -> String {
    match model.residency() {
        Residency::Kept if model.nvme().is_some() => "kept in memory but for experts on disk".into(),
        Residency::Kept => "kept in memory".into(),
        Residency::OnDemand { free } => format!("read as they are used: {} of memory are free", units::bytes(free)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_of_a_process_is_read_and_nonsense_is_not() {
        let status = "Name:\tashlar\nVmRSS:\t     300 kB\nRssAnon:\t     100 kB\nRssFile:\t     200 kB\n";
        assert_eq!(Resident::parse(status), Some(Resident { files: 200 * 1024, own: 100 * 1024 }));
        assert_eq!(Resident::parse("RssAnon: 1 kB\n"), None);
        assert_eq!(Resident::parse("RssAnon: much\nRssFile: 1 kB"), None);
    }
}

//! Where a placement does not fit: how many bytes are missing, and what would help.

use super::assign::Placer;
use super::group::{Groups, Turn};
use super::{Placement, Wanted};
use ashlar_backend::{CacheShape, KvFormat, Reserved, Stored};
use ashlar_recipe::Device;
use std::collections::BTreeSet;
use std::fmt;

/// Shortest context and smallest chunk that are worth proposing.
const LEAST_CONTEXT: usize = 256;
const LEAST_CHUNK: usize = 16;

/// Too much for a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misfit {
    /// The device.
    pub device: Device,
    /// What it would have to hold.
    pub needed: Reserved,
    /// Of its weights, those that may stay on disk.
    pub on_disk: u64,
    /// The most it may hold.
    pub budget: u64,
    /// What would help, each alone.
    pub options: Vec<String>,
}

impl Misfit {
    /// Bytes that are missing.
    #[must_use]
    pub fn missing(&self) -> u64 {
        self.needed.total().saturating_sub(self.on_disk).saturating_sub(self.budget)
    }
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { device, needed, on_disk, budget, options } = self;
        let total = needed.total().saturating_sub(*on_disk);
        let Reserved { weights, caches, activations, .. } = *needed;
        let weights = weights.saturating_sub(*on_disk);
        write!(
            f,
            "{device} would have to hold {} (weights {}, keys and values {}, activations {}) and may hold {}: {} bytes are \
             missing",
            size(total),
            size(weights),
            size(caches),
            size(activations),
            size(*budget),
            self.missing()
        )?;
        if options.is_empty() {
            return f.write_str("; it takes a device with more memory, or a pack of fewer bits");
        }
        write!(f, "; what would help: {}", options.join("; or "))
    }
}

impl std::error::Error for Misfit {}

/// `1.50 GiB`.
pub fn size(bytes: u64) -> String {
    let units = ["bytes", "KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 1023.5 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = if unit == 0 { 0 } else { 2 };
    format!("{value:.digits$} {}", units[unit])
}

/// What is wrong with the device `over` of a placement.
pub fn explain(
    wanted: &Wanted<'_>,
    groups: &Groups,
    asked: &[Option<usize>],
    found: &Placement,
    over: usize,
) -> Misfit {
    let share = &found.devices[over];
    let device = share.offer.device;
    let misfit = Misfit {
        device,
        needed: share.bytes,
        on_disk: share.on_disk,
        budget: share.offer.budget.unwrap_or(u64::MAX),
        options: Vec::new(),
    };
    let mut options = Vec::new();
    if device.is_accelerator() {
        options.extend(fewer_layers(wanted, groups, asked, device));
    } else if wanted.disk == 0 {
        options.push("a machine with a fast disk that weights may stay on (`hardware: {nvme: …}`)".to_owned());
    }
    let caches: Vec<CacheShape> =
        wanted.draft.caches.iter().zip(&found.caches).filter(|(_, d)| **d == over).map(|(shape, _)| *shape).collect();
    options.extend(shorter_context(wanted, &misfit, &caches));
    options.extend(smaller_kv(&misfit, &caches));
    options.extend(smaller_chunk(wanted, &misfit));
    Misfit { options, ..misfit }
}

/// Which layers would have to leave an accelerator.
fn fewer_layers(wanted: &Wanted<'_>, groups: &Groups, asked: &[Option<usize>], device: Device) -> Option<String> {
    let placer =
        Placer { draft: wanted.draft, groups, offers: wanted.offers, bytes: wanted.bytes, slots: !wanted.unified };
    let index = wanted.offers.iter().position(|o| o.device == device)?;
    let budget = wanted.offers.get(index)?.budget?;
    let mut left = asked.to_vec();
    let turns: BTreeSet<Turn> =
        groups.list.iter().zip(asked).filter(|(_, d)| **d == Some(index)).filter_map(|(g, _)| g.turn).collect();
    let mut leaving = BTreeSet::new();
    for turn in turns.into_iter().rev() {
        for (group, device) in groups.list.iter().zip(&mut left) {
            if group.turn == Some(turn) && *device == Some(index) {
                *device = None;
            }
        }
        leaving.insert(turn);
        if placer.usage(&placer.follow(&left))[index].total() <= budget {
            return Some(format!("leave {} to the host (--emit writes such a placement)", Turn::told(&leaving)));
        }
    }
    None
}

fn shorter_context(wanted: &Wanted<'_>, misfit: &Misfit, caches: &[CacheShape]) -> Option<String> {
    let full = wanted.draft.sizes.context;
    let of = |context: usize| {
        let shrunk = |c: &CacheShape| CacheShape { capacity: c.capacity * context / full.max(1), ..*c };
        let bytes: u64 = caches.iter().map(|c| shrunk(c).reserved()).sum();
        misfit.needed.caches.saturating_sub(bytes) >= misfit.missing()
    };
    // A shorter context never takes more: halve the interval.
    let (mut good, mut bad) = (LEAST_CONTEXT, full);
    if full <= LEAST_CONTEXT || !of(good) {
        return None;
    }
    while good + 1 < bad {
        let middle = good.midpoint(bad);
        if of(middle) { good = middle } else { bad = middle }
    }
    Some(format!("--context {good}"))
}

fn smaller_kv(misfit: &Misfit, caches: &[CacheShape]) -> Option<String> {
    let smaller = |c: &CacheShape| match c.stored {
        Stored::Heads(heads, _) => CacheShape { stored: Stored::Heads(heads, KvFormat::Q8), ..*c },
        Stored::Tokens { .. } | Stored::Entries { .. } => *c,
    };
    let bytes: u64 = caches.iter().map(|c| smaller(c).reserved()).sum();
    (misfit.needed.caches.saturating_sub(bytes) >= misfit.missing()).then(|| "--kv q8".to_owned())
}

fn smaller_chunk(wanted: &Wanted<'_>, misfit: &Misfit) -> Option<String> {
    let rows = wanted.draft.sizes.rows;
    let each = misfit.needed.activations / rows.max(1) as u64;
    let fewer = usize::try_from(misfit.missing().div_ceil(each.max(1))).ok()?;
    // Alignment of every buffer takes a little.
    let chunk = rows.checked_sub(fewer)?.checked_sub(1)?;
    (chunk >= LEAST_CHUNK).then(|| format!("--chunk {chunk}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_told_in_binary_units() {
        assert_eq!(
            [0, 1023, 1536, 10 << 30, u64::MAX].map(size)[..4],
            ["0 bytes", "1023 bytes", "1.50 KiB", "10.00 GiB"]
        );
    }
}

//! `--placement`: where weights go, and what is told about that.

use crate::exit::{Failure, OrUsage};
use crate::table::Table;
use crate::units;
use anyhow::{Context, anyhow};
use ashlar_recipe::{Choices, tier, tiers};
use ashlar_runtime::OpenOptions;
use ashlar_runtime::placement::{Placement, PlacementText, Planned, Tier};
use clap::Args;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::num::NonZeroUsize;
use std::path::Path;

/// Where weights go.
#[derive(Args, Clone, Debug, Default)]
pub struct PlacementArgs {
    /// Where weights go: a file of rules, or a kind of machine such as rtx3080-10gb-64gb (`plan --list-tiers`) [default: all
    /// on the device, or as a pack says]
    #[arg(long, value_name = "P")]
    pub placement: Option<String>,
    /// The most memory that an accelerator may take, such as 10GiB [default: what it has]
    #[arg(long, value_name = "BYTES", value_parser = ashlar_recipe::parse_bytes)]
    pub vram_limit: Option<u64>,
    /// The most memory of the host that weights, keys and values and activations may take, such as 24GiB; experts beyond it stay
    /// on disk and are read as they are used [default: what is free]
    #[arg(long, value_name = "BYTES", value_parser = ashlar_recipe::parse_bytes)]
    pub ram_limit: Option<u64>,
}

impl PlacementArgs {
    /// The rules. A file wins over a kind of machine of the same name.
    ///
    /// # Errors
    /// A file that cannot be read, or a name that is none, is the user's mistake.
    pub fn read(&self) -> Result<Option<PlacementText>, Failure> {
        let Some(name) = &self.placement else { return Ok(None) };
        let path = Path::new(name);
        let text = if path.is_file() {
            std::fs::read_to_string(path).with_context(|| format!("cannot read the placement {name}")).or_usage()?
        } else {
            tier(name).ok_or_else(|| Failure::usage(unknown(name)))?.to_owned()
        };
        Ok(Some(PlacementText { name: name.clone(), text }))
    }
}

fn unknown(name: &str) -> anyhow::Error {
    let nearest = ashlar_arch::nearest(name, tiers());
    let hint = nearest.map(|n| format!("; did you mean `{n}`?")).unwrap_or_default();
    anyhow!(
        "there is neither a placement file nor a kind of machine `{name}`{hint} (`ashlar plan --list-tiers` shows these)"
    )
}

/// Every kind of machine with the comment that its file starts with.
#[must_use]
pub fn list() -> String {
    let width = tiers().map(str::len).max().unwrap_or(0);
    let about = |name| tier(name).and_then(|text| text.lines().next()?.strip_prefix("# ")).unwrap_or_default();
    tiers().map(|name| format!("  {name:width$}  {}\n", about(name))).collect()
}

/// What `plan` places a model by.
#[derive(Args, Clone, Debug)]
pub struct PlanPlacementArgs {
    #[command(flatten)]
    pub placement: PlacementArgs,
    /// Place the whole model on this device; beside --placement: the accelerator that it may fill
    #[arg(long, value_name = "D", value_parser = crate::device::word)]
    pub device: Option<String>,
    /// Tokens of a prompt that go through the model at once, for which activations are counted [default: 256; up to 4096 where experts
    /// are read from disk or copied to slots]
    #[arg(long, value_name = "N")]
    pub chunk: Option<NonZeroUsize>,
    /// How keys and values are stored
    #[arg(long, value_name = "K", value_enum)]
    pub kv: Option<crate::device::Kv>,
}

impl PlanPlacementArgs {
    /// Whether a placement is asked for.
    #[must_use]
    pub fn asked(&self) -> bool {
        self.placement.placement.is_some() || self.placement.ram_limit.is_some() || self.device.is_some()
    }

    /// Options for [`ashlar_runtime::placement::plan`], for so many positions.
    ///
    /// # Errors
    /// As [`PlacementArgs::read`].
    pub fn options(&self, context: Option<usize>) -> Result<OpenOptions, Failure> {
        Ok(OpenOptions {
            device: self.device.clone().unwrap_or_else(|| "auto".into()),
            placement: self.placement.read()?,
            vram_limit: self.placement.vram_limit,
            ram_limit: self.placement.ram_limit,
            context,
            chunk: self.chunk.map_or(ashlar_runtime::DEFAULT_CHUNK, NonZeroUsize::get),
            larger_chunks: self.chunk.is_none(),
            kv: self.kv.map(Into::into),
            ..OpenOptions::default()
        })
    }
}

/// One line: what every device holds.
#[must_use]
pub fn shares(placement: &Placement) -> String {
    let one = |s: &ashlar_runtime::placement::Share| {
        let turns = match s.expert_slots {
            Some(plan) => format!(" ({} slots for {} experts)", plan.count, plan.experts),
            None => String::new(),
        };
        let of = s.offer.budget.map(|b| format!(" of {}", units::memory(b))).unwrap_or_default();
        let disk = if s.on_disk > 0 { format!(", {} on disk", units::memory(s.on_disk)) } else { String::new() };
        let slots =
            if s.slots > 0 { format!(", {} for experts on disk", units::memory(s.slots)) } else { String::new() };
        format!("{} {}{of}{turns}{slots}{disk}", s.offer.device, units::memory(s.in_memory()))
    };
    format!("placement: {}", placement.devices.iter().map(one).collect::<Vec<_>>().join(", "))
}

/// Tables of a placement: devices, and which classes lie where.
#[must_use]
pub fn text(planned: &Planned) -> String {
    let Planned { draft, placement, misfit, .. } = planned;
    let mut devices = Table::new(&[
        "device",
        ">weights",
        ">on disk",
        ">keys and values",
        ">activations",
        ">slots",
        ">in memory",
        ">may hold",
        ">free",
    ]);
    for s in &placement.devices {
        let (used, budget) = (s.in_memory(), s.offer.budget);
        devices.row([
            s.offer.device.to_string(),
            units::memory(s.bytes.weights - s.on_disk),
            units::memory(s.on_disk),
            units::memory(s.bytes.caches),
            units::memory(s.bytes.activations),
            units::memory(s.bytes.slots),
            units::memory(used),
            budget.map_or("any".into(), units::memory),
            budget.map_or(String::new(), |b| units::memory(b.saturating_sub(used))),
        ]);
    }
    let slots = placement.devices.iter().filter(|s| s.slots > 0);
    let slots: Vec<String> = slots
        .map(|s| format!("experts on disk take turns in {} that {} has left", units::memory(s.slots), s.offer.device))
        .collect();
    let (sizes, (copies, bytes)) = (draft.sizes, placement.crossings(draft));
    let mut out = devices.render();
    let _ = writeln!(
        out,
        "\n{} positions, {} keys and values, chunks of {}; {copies} copies between devices per batch, {} per row",
        sizes.context,
        sizes.kv.name(),
        sizes.rows,
        units::memory(bytes)
    );
    for (place, classes) in classes(planned) {
        let _ = writeln!(out, "{place}: {}", classes.join(", "));
    }
    for note in slots.iter().chain(&placement.notes) {
        let _ = writeln!(out, "note: {note}");
    }
    if let Some(misfit) = misfit {
        let _ = writeln!(out, "does not fit: {misfit}\nshown is the nearest placement that fits");
    }
    out
}

/// `cuda:0 vram` and the classes that lie there, with their layers where these are not all.
fn classes(planned: &Planned) -> BTreeMap<String, Vec<String>> {
    let Planned { draft, placement, .. } = planned;
    let mut all: BTreeMap<&str, usize> = BTreeMap::new();
    let mut here: BTreeMap<(usize, Tier, &str), (usize, u64)> = BTreeMap::new();
    for (leaf, (device, tier)) in draft.leaves.iter().zip(&placement.weights) {
        let class = leaf.role.class.name();
        *all.entry(class).or_default() += 1;
        let (count, parameters) = here.entry((*device, *tier, class)).or_default();
        *count += 1;
        *parameters += leaf.params();
    }
    let mut lines: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for ((device, tier, class), (count, parameters)) in here {
        let name = placement.devices.get(device).map(|s| s.offer.device.to_string()).unwrap_or_default();
        let part = if all.get(class) == Some(&count) { String::new() } else { format!(", {count} tensors") };
        let what = format!("{class} ({} parameters{part})", units::count(parameters));
        lines.entry(format!("{name} {}", tier.name())).or_default().push(what);
    }
    lines
}

/// As JSON.
#[must_use]
pub fn json(planned: &Planned) -> Value {
    let Planned { draft, placement, misfit, .. } = planned;
    let devices = placement.devices.iter().map(|s| {
        json!({
            "device": s.offer.device.to_string(),
            "budget": s.offer.budget,
            "weights": s.bytes.weights,
            "on_disk": s.on_disk,
            "slots": s.slots,
            "caches": s.bytes.caches,
            "activations": s.bytes.activations,
            "expert_slots": s.expert_slots.map(|p| json!({"count": p.count, "lent": p.lent, "bytes": p.bytes, "experts": p.experts})),
        })
    });
    let (copies, bytes) = placement.crossings(draft);
    json!({
        "fits": misfit.is_none(),
        "misfit": misfit.as_ref().map(ToString::to_string),
        "context": draft.sizes.context,
        "chunk": draft.sizes.rows,
        "kv": draft.sizes.kv.name(),
        "devices": devices.collect::<Vec<_>>(),
        "copies": copies,
        "copied_bytes_per_row": bytes,
        "notes": placement.notes,
    })
}

/// The choices with their places, and what these come to: a recipe that converts to this placement, and a placement that
/// runs exactly so.
#[must_use]
pub fn emit(mut choices: Choices, planned: &Planned) -> String {
    let Planned { draft, placement, .. } = planned;
    // Experts that take turns lie on the host too, in memory or on disk, which follows from what memory there is.
    let place = |(&(device, tier), slotted): (&(usize, Tier), &Option<usize>)| match slotted {
        Some(device) => (*device, "cached"),
        None => (device, tier.name()),
    };
    let weights = draft.leaves.iter().zip(placement.weights.iter().zip(&placement.slotted).map(place));
    let places: HashMap<&str, (usize, &str)> = weights.map(|(leaf, place)| (leaf.name.as_str(), place)).collect();
    for choice in &mut choices.list {
        let place = places.get(choice.leaf.name.as_str());
        choice.tier = place.map(|(_, tier)| (*tier).to_owned());
        choice.device =
            place.and_then(|(device, _)| placement.devices.get(*device)).map(|s| s.offer.device.to_string());
    }
    format!("{}{}", ashlar_recipe::emit(&choices), placement.resolved(draft).text())
}

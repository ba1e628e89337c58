//! Verdicts for people and for programs.

use super::Row;
use super::builds::Build;
use super::machine::Machine;
use crate::table::Table;
use crate::units;
use ashlar_runtime::fit::{Fit, Prediction, Verdict};
use serde_json::{Value, json};
use std::fmt::Write;

/// Weights that one core quantizes per second, by the search for scales on AVX2 (`docs/benchmarks/convert.md`: 50 to 74 million for
/// 2 and 3 bits, 35 for 4).
const WEIGHTS_PER_CORE: f64 = 40e6;
/// Bytes per second of a disk that is no NVMe.
const OTHER_DISK: f64 = 500e6;

/// Seconds that a conversion takes: arithmetic on all cores, or one read of the source and one write of the pack.
fn convert_seconds(build: &Build, machine: &Machine, source: u64) -> f64 {
    let disk = machine.hardware.nvme_bandwidth.unwrap_or(OTHER_DISK);
    let arithmetic = build.quantized as f64 / (WEIGHTS_PER_CORE * machine.cores as f64);
    arithmetic.max((source + build.bytes) as f64 / disk)
}

pub fn json(row: &Row, source: u64) -> Value {
    let Row { machine, build, fit, prediction, instead } = row;
    let h = &machine.hardware;
    json!({
        "tier": machine.name,
        "title": machine.title,
        "hardware": {
            "gpus": h.gpus, "vram": h.vram, "ram": h.ram, "nvme": h.nvme, "unified": h.unified, "cores": machine.cores,
            "vram_bandwidth": h.vram_bandwidth, "ram_bandwidth": h.ram_bandwidth, "nvme_bandwidth": h.nvme_bandwidth,
        },
        "build": build.recipe,
        "fits": fit.verdict != Verdict::No,
        "fit": fit,
        "prediction": prediction,
        "needs": build.needs,
        "pack_bytes": build.bytes,
        "disk_bytes": build.bytes + source,
        "convert_seconds": convert_seconds(build, machine, source).ceil(),
        "instead": instead.as_ref().map(|(model, build)| json!({
            "model": model,
            "build": build.recipe,
            "pack_bytes": build.bytes,
        })),
    })
}

/// The table, and what its words mean.
pub fn text(rows: &[Row], context: usize, source: u64) -> String {
    let mut table =
        Table::new(&["machine", "verdict", "best build", ">pack", ">card", ">RAM", ">NVMe", ">tokens/s", ">convert"]);
    for row in rows {
        let Row { machine, build, fit, .. } = row;
        let bytes = |n: u64| if n == 0 { String::new() } else { units::bytes(n) };
        table.row([
            machine.name.clone(),
            verdict(fit),
            build.recipe.clone(),
            units::bytes(build.bytes),
            bytes(fit.vram),
            bytes(fit.ram),
            bytes(fit.nvme),
            row.prediction.as_ref().map_or(String::new(), |p| speed(p.tokens_per_s)),
            units::duration(convert_seconds(build, machine, source)),
        ]);
    }
    let mut out = table.render();
    let instead: Vec<_> = rows.iter().filter_map(|row| row.instead.as_ref().map(|i| (&row.machine.name, i))).collect();
    if !instead.is_empty() {
        out.push_str("\nfrom memory alone instead:\n");
        let mut table = Table::new(&["machine", "model", "build", ">pack"]);
        for (tier, (model, build)) in instead {
            table.row([tier.clone(), model.clone(), build.recipe.clone(), units::bytes(build.bytes)]);
        }
        out.push_str(&table.render());
    }
    if let [row] = rows
        && let Some(prediction) = &row.prediction
    {
        let _ = write!(out, "\n{}", predicted(&row.machine.name, prediction));
    }
    let _ = write!(out, "\n{}", notes(rows, context, source));
    out
}

/// What is predicted for a machine.
pub fn predicted(name: &str, prediction: &Prediction) -> String {
    let by = if prediction.measured { "as measured" } else { "by its bandwidths" };
    let mut out = format!("{name}, {by}: {} tokens/s", speed(prediction.tokens_per_s));
    let share = |[least, most]: [f64; 2]| match (100.0 * least, 100.0 * most) {
        (least, most) if most - least < 0.5 => format!("{most:.0} %"),
        (least, most) => format!("{least:.0} - {most:.0} %"),
    };
    let mut found = Vec::new();
    if prediction.slots[1] > 0.0 {
        found.push(format!("{} of used experts in slots of the card", share(prediction.slots)));
    }
    if prediction.hits[0] < 1.0 {
        found.push(format!("{} of used experts in memory", share(prediction.hits)));
    }
    if !found.is_empty() {
        let _ = write!(out, " with {}", found.join(", "));
    }
    let _ = writeln!(out, "; most of a token's time goes to {}", prediction.bottleneck);
    if prediction.full_context[1] < 0.97 * prediction.tokens_per_s[1] {
        let _ = writeln!(out, "  with a full context: {} tokens/s", speed(prediction.full_context));
    }
    for (tokens, [least, most]) in &prediction.first_token_s {
        let tokens = units::thousands(*tokens as u64);
        let _ = writeln!(out, "  first token of a prompt of {tokens}: {least:.1} - {most:.1} s");
    }
    for (what, gain) in &prediction.marginal {
        let _ = writeln!(out, "  {what}: {gain:+.1} tokens/s");
    }
    out
}

fn notes(rows: &[Row], context: usize, source: u64) -> String {
    let largest = rows.iter().map(|row| row.build.bytes).max().unwrap_or_default();
    let mut out = format!(
        "context {} tokens, keys and values included. Disk: the pack, and {} of the source beside it while converting (up to {} \
         together; `--stream` keeps only a few of its files). Next-token layers are left out.\n",
        units::thousands(context as u64),
        units::bytes(source),
        units::bytes(source + largest)
    );
    if rows.iter().any(|row| row.machine.measured.is_none()) {
        out.push_str(
            "note: tokens/s follow from bandwidths, from a cautious to a hopeful guess; nothing was measured on these machines\n",
        );
    }
    out
}

fn verdict(fit: &Fit) -> String {
    match fit.verdict {
        Verdict::Card => "fits on the card".into(),
        Verdict::Memory => "fits".into(),
        Verdict::Nvme => "fits with NVMe".into(),
        Verdict::No => format!("lacks {}", units::bytes(fit.lacks)),
    }
}

/// `4.4 - 14`
fn speed([low, high]: [f64; 2]) -> String {
    let number = |v: f64| if v < 9.95 { format!("{v:.1}") } else { format!("{v:.0}") };
    format!("{} - {}", number(low), number(high))
}

//! `ashlar bench --kernels`: every way to multiply, beside the machine's ceilings.

use super::{Bench, GIGA};
use crate::args::Globals;
use crate::device;
use crate::exit::{CommandResult, Outcome};
use crate::interrupt::Interrupt;
use crate::output;
use crate::progress::{Progress, Unit};
use crate::table::Table;
use ashlar_runtime::kernels::{KernelLine, KernelOptions, NOISE, measure};
use serde_json::{Value, json};
use std::fmt::Write;
use std::num::NonZeroUsize;

/// Measures and prints.
///
/// # Errors
/// A bad option; an interrupt.
pub fn run(asked: &Bench, globals: Globals) -> CommandResult {
    let options = KernelOptions {
        formats: asked.formats.clone(),
        rows: asked.rows.clone(),
        rounds: asked.rounds.get(),
        threads: asked.device.threads.map(NonZeroUsize::get),
        activations: ashlar_runtime::activation_mode("cpu", asked.device.activations.map(Into::into)),
    };
    let interrupt = Interrupt::install()?;
    let progress = Progress::new(globals.quiet, Unit::Rounds);
    let Some(lines) = measure(&options, interrupt.flag(), &progress).map_err(device::failure)? else {
        return Err(anyhow::anyhow!("interrupted; nothing was measured").into());
    };
    if asked.json {
        output::print_json(&Value::Array(lines.iter().map(json).collect()))?;
    } else {
        output::print(&text(&lines))?;
    }
    Ok(if lines.iter().all(KernelLine::is_right) { Outcome::Done } else { Outcome::Wanting })
}

fn json(line: &KernelLine) -> Value {
    let candidates: Vec<Value> = line
        .candidates
        .iter()
        .map(|c| json!({"isa": c.isa.name(), "scheme": c.scheme, "seconds": c.seconds, "chosen": c.chosen}))
        .collect();
    json!({
        "format": line.format, "family": line.family, "rows": line.rows, "bytes": line.bytes,
        "multiply_adds": line.multiply_adds, "read_bytes_per_s": line.read, "arithmetic": line.arithmetic, "ceiling_mac_per_s": line.ceiling,
        "candidates": candidates, "right": line.is_right(),
    })
}

fn text(lines: &[KernelLine]) -> String {
    let columns = [
        "format",
        ">rows",
        "kernel",
        "chosen",
        ">µs",
        ">GMAC/s",
        ">of ceiling",
        ">GB/s",
        ">of reads",
        "others: time ÷ chosen",
    ];
    let mut table = Table::new(&columns);
    for line in lines {
        let Some(chosen) = line.chosen() else { continue };
        let (macs, bytes) = (line.multiply_adds as f64 / chosen.seconds, line.bytes as f64 / chosen.seconds);
        let share =
            |part: f64, whole: f64| if whole > 0.0 { format!("{:.0} %", 100.0 * part / whole) } else { String::new() };
        let others: Vec<String> = line
            .candidates
            .iter()
            .filter(|c| !c.chosen)
            .map(|c| format!("{} {} {:.2}", c.isa, c.scheme, c.seconds / chosen.seconds))
            .collect();
        table.row([
            line.format.clone(),
            line.rows.to_string(),
            line.family.unwrap_or("decoded").to_owned(),
            format!("{} {}", chosen.isa, chosen.scheme),
            format!("{:.1}", 1e6 * chosen.seconds),
            format!("{:.1}", macs / GIGA),
            format!("{} {}", share(macs, line.ceiling), line.arithmetic),
            format!("{:.1}", bytes / GIGA),
            share(bytes, line.read),
            others.join(", "),
        ]);
    }
    let mut out = table.render();
    for line in lines.iter().filter(|l| !l.is_right()) {
        let fastest = line.fastest().map_or_else(String::new, |f| format!("{} {}", f.isa, f.scheme));
        let rows = line.rows;
        let _ = writeln!(
            out,
            "WRONG CHOICE: {} at {rows} rows: {fastest} is faster by more than {:.0} %",
            line.format,
            100.0 * NOISE
        );
    }
    out
}

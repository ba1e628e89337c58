//! `ashlar doctor`: what this machine has, how fast it is, and a description of it that `plan --hardware` takes.

use crate::args::Globals;
use crate::device::failure;
use crate::exit::{CommandResult, Outcome};
use crate::progress::{Progress, Unit};
use crate::table::Table;
use crate::{output, units};
use ashlar_recipe::Measured;
use ashlar_runtime::doctor::{DiskSpeed, Examined, examine};
use clap::Args;
use serde_json::{Value, json};
use std::fmt::Write;
use std::num::NonZeroUsize;
use std::path::PathBuf;

/// Measure this machine: processor, memory, disk, accelerators
///
/// Measures how fast memory is read by one thread and by all, what kernels reach per format, and, with --disk, how fast a disk is
/// read past the page cache with more and more reads at once. Accelerators are named, or what is missing for them. Takes
/// about half a minute; other work on the machine makes figures smaller. What -o writes is a machine for `plan --hardware` and a
/// placement for `run --placement`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  ashlar doctor
  ashlar doctor --disk ~/models -o mine.yaml
  ashlar plan qwen3-235b-a22b --hardware mine.yaml --context 32768")]
pub struct Doctor {
    /// Measure the disk under this folder, or this file: the largest file there is read; where there is none of 256 MiB, one of 512 MiB is
    /// written and removed again
    #[arg(long, value_name = "PATH")]
    pub disk: Option<PathBuf>,
    /// Write the machine to a file
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Threads [default: one per core]
    #[arg(long, value_name = "N")]
    pub threads: Option<NonZeroUsize>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

impl Doctor {
    /// Measures and prints.
    ///
    /// # Errors
    /// If the disk cannot be read or the file not be written.
    pub fn run(&self, globals: Globals) -> CommandResult {
        let progress = Progress::new(globals.quiet, Unit::Rounds);
        let threads = self.threads.map(NonZeroUsize::get);
        let found = examine(threads, self.disk.as_deref(), &progress).map_err(failure)?;
        if let Some(path) = &self.output {
            output::write_atomic(path, file(&found).as_bytes())?;
        }
        if self.json {
            output::print_json(&json(&found))?;
        } else {
            output::print(&text(&found))?;
        }
        Ok(Outcome::Done)
    }
}

fn rate(bytes: f64) -> String {
    format!("{:.2} GB/s", bytes / 1e9)
}

fn text(found: &Examined) -> String {
    let mut out = format!("processor: {} threads, {}\n", found.threads, found.isa);
    let group = found.group.map_or(String::new(), |g| format!(", {} allowed by its control group", units::memory(g)));
    let free = found.free.map_or(String::new(), |free| format!(", {} free{group}", units::memory(free)));
    let [one, all] = found.read;
    let _ = writeln!(
        out,
        "memory: {}{free}; read at {} by one thread, {} by all",
        units::memory(found.ram),
        rate(one),
        rate(all)
    );
    let [int8, f32] = found.arithmetic;
    let _ = writeln!(out, "arithmetic: {:.0} G int8 and {:.0} G f32 multiply-adds per second", int8 / 1e9, f32 / 1e9);
    if let Some(why) = &found.no_cards {
        let _ = writeln!(out, "accelerators: none ({why})");
    }
    for (i, bytes) in found.cards.iter().enumerate() {
        let _ = writeln!(out, "cuda:{i}: {} to fill", units::memory(*bytes));
    }
    if let Some(disk) = &found.disk {
        let _ = write!(out, "{}", disk_text(disk));
    }
    let mut table = Table::new(&["format", ">one row", ">of memory", ">256 rows, multiply-adds"]);
    for kernel in &found.kernels {
        table.row([
            kernel.format.clone(),
            rate(kernel.read),
            format!("{:.0} %", 100.0 * kernel.read / all.max(1.0)),
            format!("{:.0} G/s", kernel.multiply / 1e9),
        ]);
    }
    out + &table.render()
}

fn disk_text(disk: &DiskSpeed) -> String {
    let one = |(depth, rate): &(usize, f64)| format!("{depth}: {:.2}", rate / 1e9);
    let through = if disk.direct { "" } else { " through the page cache, so this says nothing about the disk" };
    format!(
        "disk: {} at best, {} reads at once are enough{through} (GB/s by reads at once: {}; {})\n",
        rate(disk.best()),
        disk.depth(),
        disk.rates.iter().map(one).collect::<Vec<_>>().join(", "),
        disk.file.display()
    )
}

/// The machine as a file.
fn file(found: &Examined) -> String {
    let mut hardware = vec![format!("ram: {}", found.group.map_or(found.ram, |group| group.min(found.ram)))];
    hardware.push(format!("ram_bandwidth: {:.2}GB/s", found.read[1] / 1e9));
    if let Some(least) = found.cards.iter().min() {
        hardware.push(format!("gpus: {}, vram: {least}", found.cards.len()));
    }
    if let Some(disk) = found.disk.as_ref().filter(|disk| disk.direct) {
        hardware.push(format!("nvme: 1TB, nvme_bandwidth: {:.2}GB/s", disk.best() / 1e9));
    }
    let measured = Measured { threads: found.threads, kernels: found.kernels.clone() };
    format!(
        "# {} threads, {}, {} of memory: measured by `ashlar doctor`\nversion: 1\nhardware: {{{}}}\n{}rules:\n  - {{id: experts, match: \
         {{class: experts}}, set: {{tier: cached}}, optional: true}}\n",
        found.threads,
        found.isa,
        units::memory(found.ram),
        hardware.join(", "),
        measured.text()
    )
}

fn json(found: &Examined) -> Value {
    let disk = found.disk.as_ref().map(|disk| {
        let rates = disk.rates.iter().map(|(depth, rate)| json!({"reads": depth, "bytes_per_s": rate}));
        json!({
            "file": disk.file, "direct": disk.direct, "bytes_per_s": disk.best(), "reads": disk.depth(),
            "rates": rates.collect::<Vec<_>>(),
        })
    });
    let kernels = found
        .kernels
        .iter()
        .map(|k| json!({"format": k.format, "bytes_per_s": k.read, "multiply_adds_per_s": k.multiply}));
    json!({
        "threads": found.threads,
        "isa": found.isa,
        "ram": found.ram,
        "free": found.free,
        "group": found.group,
        "read": {"one": found.read[0], "all": found.read[1]},
        "multiply_adds": {"int8": found.arithmetic[0], "f32": found.arithmetic[1]},
        "kernels": kernels.collect::<Vec<_>>(),
        "disk": disk,
        "cards": found.cards,
        "no_cards": found.no_cards,
    })
}

//! Is a conversion nearly as fast as a copy? Alternates a plain copy, which reads the checkpoint and writes as many
//! bytes as the pack has, with the conversion itself; both end with their bytes on the disk. Prints every run, the
//! medians, their ratio and the peak memory of the conversion. How to use it: `docs/benchmarks/convert.md`.
//!
//! ```text
//! copy_baseline CHECKPOINT OUT RUNS -- COMMAND…      (the command must convert CHECKPOINT to OUT)
//! ```
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program")]

use std::error::Error;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const BUFFER: usize = 1 << 20;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [checkpoint, out, runs, dashes, command @ ..] = args.as_slice() else {
        return Err("see the head of this file".into());
    };
    if dashes != "--" || command.is_empty() {
        return Err("see the head of this file".into());
    }
    let (checkpoint, out, runs) = (Path::new(checkpoint), Path::new(out), runs.parse::<usize>()?);
    // Once for the size of the pack, and so that every measured run finds the source in the same state.
    convert(command, out)?;
    let (read, write) = (size(checkpoint)?, size(out)?);
    println!("reads {:.3} GB, writes {:.3} GB", read as f64 / 1e9, write as f64 / 1e9);
    let (mut copies, mut conversions, mut peak) = (Vec::new(), Vec::new(), 0);
    for run in 1..=runs {
        let copy = copy(checkpoint, out, read, write)?;
        let (conversion, memory) = convert(command, out)?;
        println!(
            "{run}: copy {:.2} s, conversion {:.2} s, peak memory {} MiB",
            copy.as_secs_f64(),
            conversion.as_secs_f64(),
            memory >> 10
        );
        copies.push(copy);
        conversions.push(conversion);
        peak = peak.max(memory);
    }
    let (copy, conversion) = (median(copies), median(conversions));
    println!(
        "medians of {runs}: copy {copy:.2} s, conversion {conversion:.2} s: {:.0} % of the copy's rate; peak memory {} MiB",
        100.0 * copy / conversion,
        peak >> 10
    );
    clear(out)
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times.get(times.len() / 2).map_or(0.0, Duration::as_secs_f64)
}

fn shards(dir: &Path) -> Result<Vec<PathBuf>, Box<dyn Error>> {
    let mut files: Vec<PathBuf> = fs::read_dir(dir)?.map(|e| e.map(|e| e.path())).collect::<Result<_, _>>()?;
    files.retain(|p| p.extension().is_some_and(|e| e == "safetensors"));
    files.sort();
    Ok(files)
}

fn size(dir: &Path) -> Result<u64, Box<dyn Error>> {
    shards(dir)?.iter().try_fold(0, |sum, p| Ok(sum + fs::metadata(p)?.len()))
}

fn clear(out: &Path) -> Result<(), Box<dyn Error>> {
    if out.exists() {
        fs::remove_dir_all(out)?;
    }
    // What was deleted or written before must not be on the clock.
    Command::new("sync").status()?;
    Ok(())
}

/// Reads all shards and writes the same share of every buffer, one thread, as `cp` does.
fn copy(checkpoint: &Path, out: &Path, read: u64, write: u64) -> Result<Duration, Box<dyn Error>> {
    clear(out)?;
    fs::create_dir(out)?;
    let started = Instant::now();
    let (mut buffer, mut done, mut written) = (vec![0; BUFFER], 0u64, 0u64);
    let mut to = File::create(out.join("copy"))?;
    for path in shards(checkpoint)? {
        let mut from = File::open(path)?;
        loop {
            let got = from.read(&mut buffer)?;
            if got == 0 {
                break;
            }
            done += got as u64;
            let due = (u128::from(done) * u128::from(write) / u128::from(read)) as u64 - written;
            to.write_all(buffer.get(..due as usize).ok_or("a pack larger than its source")?)?;
            written += due;
        }
    }
    to.sync_all()?;
    File::open(out)?.sync_all()?;
    Ok(started.elapsed())
}

/// Runs the command; returns its time and peak resident memory in KiB.
fn convert(command: &[String], out: &Path) -> Result<(Duration, u64), Box<dyn Error>> {
    clear(out)?;
    let (program, args) = command.split_first().ok_or("no command")?;
    let started = Instant::now();
    let mut child = Command::new(program).args(args).spawn()?;
    let (status, mut peak) = (PathBuf::from(format!("/proc/{}/status", child.id())), 0);
    let code = loop {
        if let Some(code) = child.try_wait()? {
            break code;
        }
        peak = peak.max(high_water(&status).unwrap_or(0));
        std::thread::sleep(Duration::from_millis(5));
    };
    let elapsed = started.elapsed();
    if !code.success() {
        return Err(format!("the conversion failed: {code}").into());
    }
    Ok((elapsed, peak))
}

fn high_water(status: &Path) -> Option<u64> {
    let text = fs::read_to_string(status).ok()?;
    text.lines().find_map(|l| l.strip_prefix("VmHWM:"))?.split_whitespace().next()?.parse().ok()
}

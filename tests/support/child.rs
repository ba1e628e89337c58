//! Watching a child process.

use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

/// What a child used at most.
#[derive(Debug)]
pub struct Peak {
    pub status: ExitStatus,
    /// Peak resident bytes, or `None` where the system does not tell.
    pub resident: Option<u64>,
    /// Processor time in seconds, which other processes do not lengthen as they do a wait; to a hundredth.
    pub processor: Option<f64>,
}

/// Runs `command` to its end and tells its peak resident memory, from `VmHWM` in /proc, read until the end. The
/// counter never falls, so only growth within the last interval could be missed.
pub fn peak_of(command: &mut Command) -> std::io::Result<Peak> {
    let mut child = command.stdout(Stdio::null()).spawn()?;
    let (mut resident, mut processor) = (None, None);
    loop {
        resident = high_water(&child).or(resident);
        processor = processor_time(&child).or(processor);
        if let Some(status) = child.try_wait()? {
            return Ok(Peak { status, resident, processor });
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// User and system time, in ticks of a hundredth: fields 14 and 15, counted behind the name in brackets.
fn processor_time(child: &Child) -> Option<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).ok()?;
    let mut ticks = stat.rsplit_once(") ")?.1.split(' ').skip(11).map(|t| t.parse::<u64>().ok());
    Some((ticks.next()?? + ticks.next()??) as f64 / 100.0)
}

fn high_water(child: &Child) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).ok()?;
    let line = status.lines().find(|l| l.starts_with("VmHWM:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

//! Watching a child process.

use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

/// What a child used at most.
#[derive(Debug)]
pub struct Peak {
    pub status: ExitStatus,
    /// Peak resident bytes, or `None` where the system does not tell.
    pub resident: Option<u64>,
}

/// Runs `command` to its end and tells its peak resident memory, from `VmHWM` in /proc, read until the end. The
/// counter never falls, so only growth within the last interval could be missed.
pub fn peak_of(command: &mut Command) -> std::io::Result<Peak> {
    let mut child = command.stdout(Stdio::null()).spawn()?;
    let mut resident = None;
    loop {
        resident = high_water(&child).or(resident);
        if let Some(status) = child.try_wait()? {
            return Ok(Peak { status, resident });
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn high_water(child: &Child) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).ok()?;
    let line = status.lines().find(|l| l.starts_with("VmHWM:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

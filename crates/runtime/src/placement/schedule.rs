//! From a draft and an assignment to steps: ops with their devices, and a copy wherever an op reads what another device
//! wrote last.

use super::assign::{Assignment, HOST};
use super::group::{Groups, split};
use crate::program::Draft;
use ashlar_backend::{BufferId, Op, Projection};

/// One step of a placed program. Operands are those of the draft; devices are numbers.
#[derive(Clone, Debug)]
pub enum Step {
    /// An op on a device.
    Run {
        /// The device.
        device: usize,
        /// The op.
        op: Op,
    },
    /// A mixture of experts that a device computes together with the host, where its experts lie.
    Shared {
        /// The device.
        device: usize,
        /// The host.
        host: usize,
        /// The op.
        op: Op,
    },
    /// A buffer's rows from one device to the buffer of the same number on another.
    Copy {
        /// Where they were written last.
        from: usize,
        /// Where they are read next.
        to: usize,
        /// The buffer.
        buffer: BufferId,
    },
}

/// The steps of a draft, and the device that holds the logits.
#[must_use]
pub fn schedule(draft: &Draft, groups: &Groups, assignment: &Assignment) -> (Vec<Step>, usize) {
    let mut steps = Vec::new();
    // On which devices a buffer holds what was written last.
    let mut current: Vec<Vec<usize>> = vec![Vec::new(); draft.widths.len()];
    for ((op, units), devices) in draft.program.ops.iter().zip(&groups.units).zip(&assignment.units) {
        for ((parts, units), device) in runs(op, units, devices) {
            for &buffer in units.iter().flat_map(|u| &u.reads) {
                let there = &mut current[buffer];
                if let (Some(&from), false) = (there.first(), there.contains(&device)) {
                    steps.push(Step::Copy { from, to: device, buffer: BufferId(buffer as u32) });
                    there.push(device);
                }
            }
            for &buffer in units.iter().flat_map(|u| &u.writes) {
                current[buffer] = vec![device];
            }
            let shared = units.iter().any(|u| u.group.is_some_and(|g| assignment.shares(g)));
            steps.push(match shared {
                true => Step::Shared { device, host: HOST, op: parts },
                false => Step::Run { device, op: parts },
            });
        }
    }
    let logits = current.get(draft.program.logits.0 as usize).and_then(|d| d.first());
    (steps, logits.copied().unwrap_or(0))
}

/// Neighbouring parts of an op that run on the same device, as one op.
fn runs<'u, U>(op: &Op, units: &'u [U], devices: &[usize]) -> Vec<((Op, &'u [U]), usize)> {
    let parts = split(op);
    let mut all = Vec::new();
    let mut begin = 0;
    for end in 1..=devices.len() {
        let device = devices[begin];
        if devices.get(end) == Some(&device) {
            continue;
        }
        let whole = begin == 0 && end == devices.len();
        let run = if whole { op.clone() } else { join(&parts[begin..end]) };
        all.push(((run, &units[begin..end]), device));
        begin = end;
    }
    all
}

/// Parts of a linear op as one.
fn join(parts: &[Op]) -> Op {
    let mut all: Vec<Projection> = Vec::new();
    for part in parts {
        if let Op::Linear { parts, .. } = part {
            all.extend(parts);
        }
    }
    match parts.first() {
        Some(Op::Linear { x, accumulate, .. }) => Op::Linear { x: *x, parts: all, accumulate: *accumulate },
        Some(other) => other.clone(),
        // Never asked for: a run has a part.
        None => Op::Linear { x: BufferId(0), parts: all, accumulate: false },
    }
}

//! What the machine says of the energy it used: the package counters of Linux' power capping interface.
//!
//! Source: the kernel's `Documentation/power/powercap/powercap.rst`. Virtual machines and most kernels for people other
//! than root do not tell; nothing is estimated then.

use std::fs;
use std::path::{Path, PathBuf};

/// The counters of all packages.
#[derive(Clone, Debug)]
pub struct Energy {
    zones: Vec<Zone>,
}

#[derive(Clone, Debug)]
struct Zone {
    counter: PathBuf,
    /// Where the counter starts again, µJ.
    range: u64,
    last: u64,
}

impl Energy {
    /// Counters from now on; `None` if the machine has none that can be read.
    #[must_use]
    pub fn start() -> Option<Self> {
        Self::of(Path::new("/sys/class/powercap"))
    }

    fn of(root: &Path) -> Option<Self> {
        let mut zones = Vec::new();
        for zone in fs::read_dir(root).ok()?.flatten() {
            let name = zone.file_name();
            // `intel-rapl:0` is a package (AMD's too); `intel-rapl:0:0` a part of it.
            let package = name.to_str().and_then(|n| n.strip_prefix("intel-rapl:")).is_some_and(|n| !n.contains(':'));
            if package {
                let counter = zone.path().join("energy_uj");
                let last = number(&counter)?;
                let range = number(&zone.path().join("max_energy_range_uj")).unwrap_or(u64::MAX);
                zones.push(Zone { counter, range, last });
            }
        }
        (!zones.is_empty()).then_some(Self { zones })
    }

    /// Joules since the last call, or since the start. A counter that started again is counted on; if more than once,
    /// energy is missed.
    pub fn joules(&mut self) -> Option<f64> {
        let mut sum = 0;
        for zone in &mut self.zones {
            let now = number(&zone.counter)?;
            sum += if now >= zone.last { now - zone.last } else { now + zone.range.saturating_sub(zone.last) };
            zone.last = now;
        }
        Some(sum as f64 * 1e-6)
    }
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_added_up_parts_are_not_and_counters_may_start_again() {
        let root = tempfile::tempdir().unwrap();
        let write = |zone: &str, file: &str, value: u64| {
            fs::create_dir_all(root.path().join(zone)).unwrap();
            fs::write(root.path().join(zone).join(file), format!("{value}\n")).unwrap();
        };
        for zone in ["intel-rapl:0", "intel-rapl:1", "intel-rapl:0:0"] {
            write(zone, "energy_uj", 9_000_000);
            write(zone, "max_energy_range_uj", 10_000_000);
        }
        let mut energy = Energy::of(root.path()).unwrap();
        write("intel-rapl:0", "energy_uj", 9_500_000);
        write("intel-rapl:1", "energy_uj", 2_000_000);
        assert_eq!(energy.joules(), Some(3.5));
        assert_eq!(energy.joules(), Some(0.0));
    }

    #[test]
    fn a_machine_without_counters_says_nothing() {
        assert!(Energy::of(tempfile::tempdir().unwrap().path()).is_none());
        assert!(Energy::of(Path::new("/nonexistent")).is_none());
    }
}

//! How many threads to use by default: the physical cores that this process may run on.

use std::collections::BTreeSet;

/// Physical cores among the CPUs of the affinity mask, at least 1. Where the system does not say, its idea of the
/// available parallelism.
pub fn physical() -> usize {
    let logical = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let siblings = |cpu: usize| {
        let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
        std::fs::read_to_string(path).ok()
    };
    let cores: Option<BTreeSet<String>> = allowed().into_iter().map(siblings).collect();
    // A container's CPU quota can be below its mask: `logical` knows it.
    cores.map_or(logical, |c| c.len()).clamp(1, logical)
}

/// The CPUs of the affinity mask; empty where that is unknown.
#[cfg(target_os = "linux")]
fn allowed() -> Vec<usize> {
    // SAFETY: an all-zero `cpu_set_t` is a valid (empty) set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer and the size describe `set`.
    if unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set) } != 0 {
        return vec![usize::MAX];
    }
    // SAFETY: every index is below `CPU_SETSIZE`.
    (0..libc::CPU_SETSIZE as usize).filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, &set) }).collect()
}

/// Unknown: a CPU that does not exist, so that the count falls back.
#[cfg(not(target_os = "linux"))]
fn allowed() -> Vec<usize> {
    vec![usize::MAX]
}

#[cfg(test)]
mod tests {
    #[test]
    fn there_is_a_core_and_no_more_than_the_system_offers() {
        let logical = std::thread::available_parallelism().unwrap().get();
        assert!((1..=logical).contains(&super::physical()));
    }
}

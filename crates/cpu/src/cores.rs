//! How many threads to use by default: the physical cores that this process may run on; and on how many NUMA nodes.

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

/// NUMA nodes that have processors; 1 where the system does not say.
pub fn numa_nodes() -> usize {
    std::fs::read_to_string("/sys/devices/system/node/has_cpu").map_or(1, |list| listed(&list)).max(1)
}

/// How many numbers a list such as `0-1,4` names.
fn listed(list: &str) -> usize {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.trim().parse::<usize>().ok()?, last.trim().parse::<usize>().ok()?);
        last.checked_sub(first)?.checked_add(1)
    };
    list.split(',').filter_map(range).fold(0, usize::saturating_add)
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
    fn node_lists_are_counted_and_nonsense_is_not() {
        assert_eq!(["0", "0-1", "0-3,8,10-11", "", "x", "3-1"].map(super::listed), [1, 2, 7, 0, 0, 0]);
        assert!(super::numa_nodes() >= 1);
    }

    #[test]
    fn there_is_a_core_and_no_more_than_the_system_offers() {
        let logical = std::thread::available_parallelism().unwrap().get();
        assert!((1..=logical).contains(&super::physical()));
    }
}

//! Whether mapped weights stay in memory, and bringing them there.
//!
//! Owns: the choice between keeping all weights mapped and reading them as they are used, by the memory that is free; the
//! thread that maps them ahead of the first token. Weights stay in the mapping either way: nothing is copied.

use ashlar_tensor::Bytes;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// Bytes that are mapped between two looks at whether to stop.
const STRIDE: usize = 64 << 20;

/// What happens to the weights of a model while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residency {
    /// They fit: huge pages are asked for, and all of them are mapped ahead.
    Kept,
    /// They are more than the memory that is free: pages are read as they are touched, and given up again.
    OnDemand {
        /// Free memory, bytes, pages of files that can be given up included.
        free: u64,
    },
}

impl Residency {
    /// For so many bytes of weights. Where the system does not tell what is free, they are taken to fit.
    #[must_use]
    pub fn of(weights: u64, free: Option<u64>) -> Self {
        match free {
            Some(free) if weights > usable(free) => Self::OnDemand { free },
            _ => Self::Kept,
        }
    }
}

/// What of free memory may be filled: a sixteenth is left for activations, keys and values, and everyone else.
pub(crate) fn usable(free: u64) -> u64 {
    free - free / 16
}

/// Memory this process may still use, bytes: what the system calls available, or less if its control group allows less.
/// `None` where the system does not say.
#[must_use]
pub fn free_memory() -> Option<u64> {
    let read = |path: &Path| std::fs::read_to_string(path).ok();
    let available = kilobytes(&read(Path::new("/proc/meminfo"))?, "MemAvailable:")?;
    let group = read(Path::new("/proc/self/cgroup")).and_then(|text| group_free(&text, &read));
    Some(available.min(group.unwrap_or(u64::MAX)))
}

/// All memory of the machine, bytes.
pub(crate) fn total_memory() -> Option<u64> {
    kilobytes(&std::fs::read_to_string("/proc/meminfo").ok()?, "MemTotal:")
}

/// What the control groups of this process leave it, bytes; `None` if none limits memory.
pub(crate) fn group_free_memory() -> Option<u64> {
    let read = |path: &Path| std::fs::read_to_string(path).ok();
    // A limit beyond any memory is version 1's way to say that there is none.
    read(Path::new("/proc/self/cgroup")).and_then(|text| group_free(&text, &read)).filter(|free| *free < 1 << 60)
}

fn kilobytes(text: &str, field: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(field))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The least that a control group above this process leaves: its limit, less what cannot be given up.
fn group_free(own: &str, read: &dyn Fn(&Path) -> Option<String>) -> Option<u64> {
    let unified = own.lines().find_map(|line| line.strip_prefix("0::/"));
    let memory = own.lines().find_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        controllers.split(',').any(|c| c == "memory").then(|| path.trim_start_matches('/'))
    });
    // Version 2 counts in `memory.max`, version 1, where the controller is still there, in `memory.limit_in_bytes`.
    let versions = [
        (unified, "/sys/fs/cgroup", "memory.max", "anon "),
        (memory, "/sys/fs/cgroup/memory", "memory.limit_in_bytes", "total_rss "),
    ];
    let left = |group: &Path, limit: &str, taken: &str| {
        let limit: u64 = read(&group.join(limit))?.trim().parse().ok()?;
        let stat = read(&group.join("memory.stat"))?;
        let taken: u64 = stat.lines().find_map(|line| line.strip_prefix(taken))?.trim().parse().ok()?;
        Some(limit.saturating_sub(taken))
    };
    let all = versions.iter().filter_map(|(path, root, limit, taken)| Some(((*path)?, root, limit, taken)));
    all.flat_map(|(path, root, limit, taken)| {
        let groups = Path::new(path).ancestors().map(move |group| Path::new(root).join(group));
        groups.filter_map(|group| left(&group, limit, taken)).collect::<Vec<_>>()
    })
    .min()
}

/// A thread that maps weights in the order in which a model reads them; dropping it stops it.
pub(crate) struct Populate {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Populate {
    /// Starts with `planes`. If no thread can be had, pages are mapped when they are touched, as without this.
    pub(crate) fn start(planes: Vec<Bytes>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stop);
        let work = move || {
            for part in planes.iter().flat_map(parts) {
                if seen.load(Ordering::Relaxed) || part.populate().is_err() {
                    return;
                }
            }
        };
        Self { stop, thread: std::thread::Builder::new().name("populate".into()).spawn(work).ok() }
    }
}

fn parts(plane: &Bytes) -> impl Iterator<Item = Bytes> + '_ {
    (0..plane.len()).step_by(STRIDE).filter_map(|start| plane.slice(start, STRIDE.min(plane.len() - start)))
}

impl Drop for Populate {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ashlar_tensor::AlignedBytes;

    #[test]
    fn weights_are_kept_if_they_fit_with_room_to_spare() {
        assert_eq!(Residency::of(15 << 30, Some(16 << 30)), Residency::Kept);
        assert_eq!(Residency::of((15 << 30) + 1, Some(16 << 30)), Residency::OnDemand { free: 16 << 30 });
        assert_eq!(Residency::of(u64::MAX, None), Residency::Kept);
        assert_eq!(Residency::of(1, Some(0)), Residency::OnDemand { free: 0 });
    }

    #[test]
    fn the_tightest_control_group_above_counts_and_one_without_limit_does_not() {
        let files = |path: &Path| {
            let text = match path.to_str()? {
                "/sys/fs/cgroup/a/b/memory.max" => "max\n",
                "/sys/fs/cgroup/a/memory.max" => "1000\n",
                "/sys/fs/cgroup/a/memory.stat" => "file 5\nanon 300\n",
                "/sys/fs/cgroup/a/b/memory.stat" => "anon 1\n",
                _ => return None,
            };
            Some(text.to_owned())
        };
        assert_eq!(group_free("0::/a/b\n", &files), Some(700));
        assert_eq!((group_free("0::/\n", &files), group_free("1:cpu:/a\n", &files)), (None, None));
        let first = |path: &Path| {
            let text = match path.to_str()? {
                "/sys/fs/cgroup/memory/a/memory.limit_in_bytes" => "500\n",
                "/sys/fs/cgroup/memory/a/memory.stat" => "rss 1\ntotal_rss 120\n",
                "/sys/fs/cgroup/memory/memory.limit_in_bytes" => "9223372036854771712\n",
                "/sys/fs/cgroup/memory/memory.stat" => "total_rss 120\n",
                _ => return None,
            };
            Some(text.to_owned())
        };
        assert_eq!(group_free("4:cpu,memory:/a/b\n0::/\n", &first), Some(380));
        if cfg!(target_os = "linux") {
            assert!(free_memory().is_some_and(|free| free > 0));
        }
    }

    #[test]
    fn parts_cover_a_plane_once() {
        let plane: Bytes = AlignedBytes::zeroed(STRIDE + 3).unwrap().into();
        assert_eq!(parts(&plane).map(|p| p.len()).collect::<Vec<_>>(), [STRIDE, 3]);
        drop(Populate::start(vec![plane]));
    }
}

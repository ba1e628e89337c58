//! What this machine has and how fast it is, measured with the threads and kernels that run models.
//!
//! Owns: the measurements and how often they are repeated; the best of several counts, since others use a shared machine too.
//! Refuses: what to do about it, which is the planner's (`fit`).

use crate::devices;
use crate::kernels::{self, KernelOptions};
use crate::residency::{group_free_memory, total_memory};
use crate::{Meter, RuntimeError, free_memory};
use ashlar_pack::{DirectFile, PageBuffer};
use ashlar_recipe::KernelRate;
use ashlar_simd::Isa;
use ashlar_tensor::Report;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Rounds of a ceiling.
const ROUNDS: usize = 5;
/// Reads at once that are tried.
const DEPTHS: [usize; 6] = [1, 2, 4, 8, 16, 32];
/// Bytes of one read of the disk: about an expert.
const READ: usize = 4 << 20;
/// How long each depth is measured.
const SLICE: Duration = Duration::from_millis(400);
/// Bytes of the file that is written where there is none to read.
const FILE: u64 = 512 << 20;
/// Formats whose kernels are measured: those of the presets.
const FORMATS: [&str; 8] = ["q8", "i4", "k4", "k3", "k2", "mxfp4", "iq4nl", "bf16"];
/// Rows at prefill.
const ROWS: usize = 256;

/// A machine.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Examined {
    /// Threads that the processor would compute with.
    pub threads: usize,
    /// Its instruction set.
    pub isa: String,
    /// Memory, bytes; 0 where the system does not say.
    pub ram: u64,
    /// Memory that is free.
    pub free: Option<u64>,
    /// Memory that the control group leaves, if it limits that.
    pub group: Option<u64>,
    /// Reading memory with one thread and with all, bytes per second.
    pub read: [f64; 2],
    /// int8 and f32 multiply-adds per second in registers, all threads.
    pub arithmetic: [f64; 2],
    /// What kernels reach.
    pub kernels: Vec<KernelRate>,
    /// The disk that was asked about.
    pub disk: Option<DiskSpeed>,
    /// Memory of every accelerator, bytes.
    pub cards: Vec<u64>,
    /// Why there are none, in the words of the driver's loader.
    pub no_cards: Option<String>,
}

/// A disk.
#[derive(Clone, Debug, PartialEq)]
pub struct DiskSpeed {
    /// What was read.
    pub file: PathBuf,
    /// Whether reads went past the page cache; else they tell nothing about the disk.
    pub direct: bool,
    /// Reads at once and bytes per second.
    pub rates: Vec<(usize, f64)>,
}

impl DiskSpeed {
    /// The most that any depth reached.
    #[must_use]
    pub fn best(&self) -> f64 {
        self.rates.iter().map(|(_, rate)| *rate).fold(0.0, f64::max)
    }

    /// The fewest reads at once within 5 % of the best.
    #[must_use]
    pub fn depth(&self) -> usize {
        let enough = self.best() / 1.05;
        self.rates.iter().find(|(_, rate)| *rate >= enough).map_or(1, |(depth, _)| *depth)
    }
}

/// Examines this machine. `disk`: a file to read, or a folder where one is read, or written and removed again.
///
/// # Errors
/// [`RuntimeError::Option`] for no threads; [`RuntimeError::Nvme`] for a disk that cannot be read.
pub fn examine(threads: Option<usize>, disk: Option<&Path>, report: &dyn Report) -> Result<Examined, RuntimeError> {
    let isa = Isa::detect().map_err(|e| RuntimeError::Option {
        option: "ASHLAR_ISA",
        got: e.to_string(),
        expected: "an instruction set of this machine".into(),
    })?;
    let mut found = Examined {
        threads: devices::threads(threads),
        isa: isa.name().to_owned(),
        ram: total_memory().unwrap_or_default(),
        free: free_memory(),
        group: group_free_memory(),
        ..Examined::default()
    };
    match devices::cards() {
        Ok(cards) => found.cards = cards,
        Err(why) => found.no_cards = Some(why),
    }
    let best = |meter: Option<Meter>, measure: fn(&Meter) -> f64| {
        meter.map_or(0.0, |meter| (0..ROUNDS).map(|_| measure(&meter)).fold(0.0, f64::max))
    };
    let meter = |threads| Meter::new(threads, isa);
    found.read = [best(meter(Some(1)), Meter::read), best(meter(threads), Meter::read)];
    found.arithmetic = [best(meter(threads), Meter::int8), best(meter(threads), Meter::f32)];
    found.kernels = kernel_rates(threads, report)?;
    found.disk = disk.map(measure_disk).transpose()?;
    Ok(found)
}

fn kernel_rates(threads: Option<usize>, report: &dyn Report) -> Result<Vec<KernelRate>, RuntimeError> {
    let formats = FORMATS.map(str::to_owned).to_vec();
    let activations = devices::activation_mode("cpu", None);
    let options = KernelOptions { formats, rows: vec![1, ROWS], rounds: 2, threads, activations };
    let lines = kernels::measure(&options, &AtomicBool::new(false), report)?.unwrap_or_default();
    let mut rates: Vec<KernelRate> = Vec::new();
    for line in &lines {
        let Some(chosen) = line.chosen().filter(|c| c.seconds > 0.0) else { continue };
        let format = id(&line.format);
        match rates.iter_mut().find(|rate| rate.format == format) {
            Some(rate) => rate.multiply = line.multiply_adds as f64 / chosen.seconds,
            None => rates.push(KernelRate { format, read: line.bytes as f64 / chosen.seconds, multiply: 0.0 }),
        }
    }
    Ok(rates)
}

/// `k4` of `k4:…`.
fn id(format: &str) -> String {
    format.split(':').next().unwrap_or(format).to_owned()
}

/// How fast a disk reads what lies anywhere in a file, by reads at once.
///
/// # Errors
/// [`RuntimeError::Nvme`] with the path.
pub fn measure_disk(path: &Path) -> Result<DiskSpeed, RuntimeError> {
    let told = |error: std::io::Error| RuntimeError::Nvme(format!("{}: {error}", path.display()));
    let (file, temporary) = match path.is_dir() {
        true => match largest_file(path).map_err(told)? {
            Some(file) => (file, None),
            None => {
                let file = path.join("ashlar-doctor.tmp");
                let guard = Removed(file.clone());
                write_file(&file).map_err(told)?;
                (file, Some(guard))
            }
        },
        false => (path.to_owned(), None),
    };
    let opened = DirectFile::open(&file).map_err(told)?;
    let bytes = std::fs::metadata(&file).map_err(told)?.len();
    let blocks = bytes / READ as u64;
    if blocks == 0 {
        let what = format!("{}: has {bytes} bytes; give a file of at least {READ}, or a folder", file.display());
        return Err(RuntimeError::Nvme(what));
    }
    let mut rates = Vec::new();
    for depth in DEPTHS {
        rates.push((depth, read_at_depth(&opened, blocks, depth).map_err(told)?));
    }
    drop(temporary);
    Ok(DiskSpeed { file, direct: opened.is_direct(), rates })
}

/// Bytes per second with so many reads at once.
fn read_at_depth(file: &DirectFile, blocks: u64, depth: usize) -> std::io::Result<f64> {
    let (done, begin) = (AtomicU64::new(0), Instant::now());
    let one = |number: u64| -> std::io::Result<()> {
        let mut buffer = PageBuffer::default();
        buffer.resize(READ);
        // An odd stride over the blocks: far apart, and seldom the same twice.
        let mut block = number * (blocks / depth as u64 + 1);
        while begin.elapsed() < SLICE {
            block = (block + ((blocks * 5 / 8) | 1)) % blocks;
            let read = file.read(block * READ as u64, &mut buffer)?;
            done.fetch_add(read as u64, Ordering::Relaxed);
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..depth as u64).map(|number| scope.spawn(move || one(number))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or(Ok(()))).collect::<std::io::Result<Vec<()>>>()
    })?;
    Ok(done.load(Ordering::Relaxed) as f64 / begin.elapsed().as_secs_f64())
}

/// The largest file of a folder, if it is large enough to measure with: a pack's shard, say.
fn largest_file(folder: &Path) -> std::io::Result<Option<PathBuf>> {
    let mut best: Option<(u64, PathBuf)> = None;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let meta = std::fs::metadata(entry.path());
        if let Ok(meta) = meta
            && meta.is_file()
            && meta.len() >= FILE / 2
            && best.as_ref().is_none_or(|(len, _)| meta.len() > *len)
        {
            best = Some((meta.len(), entry.path()));
        }
    }
    Ok(best.map(|(_, path)| path))
}

/// Removes a file in the end.
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Writes bytes that no disk or file system can leave out.
fn write_file(path: &Path) -> std::io::Result<()> {
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).open(path)?;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut block = vec![0u8; 1 << 20];
    for _ in 0..FILE / block.len() as u64 {
        for word in block.chunks_exact_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
        file.write_all(&block)?;
    }
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_without_files_gets_one_that_is_gone_afterwards_and_a_small_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let small = dir.path().join("small");
        std::fs::write(&small, vec![1; 4096]).unwrap();
        assert!(measure_disk(&small).unwrap_err().to_string().contains("4096 bytes; give a file"));
        let file = dir.path().join("file");
        std::fs::write(&file, vec![1; 3 * READ + 5]).unwrap();
        let speed = measure_disk(&file).unwrap();
        assert_eq!(speed.rates.len(), DEPTHS.len());
        assert!(speed.best() > 0.0 && DEPTHS.contains(&speed.depth()));
        assert!(measure_disk(&dir.path().join("none")).is_err());
    }

    #[test]
    fn the_depth_is_the_lowest_that_is_nearly_best() {
        let rates = vec![(1, 1.0), (2, 1.8), (4, 1.95), (8, 2.0)];
        let speed = DiskSpeed { file: PathBuf::new(), direct: true, rates };
        assert_eq!((speed.depth(), speed.best()), (4, 2.0));
    }
}

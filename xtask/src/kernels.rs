//! `cargo xtask kernels`: CUDA C++ to PTX with NVRTC, and a table of what the assembler makes of it, without a GPU.

mod resources;
mod toolchain;

use ashlar_cuda::modules::{MODULES, Module};
use ashlar_cuda::nvrtc::Nvrtc;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use toolchain::Toolchain;

/// The virtual architecture of the PTX: what it runs on is this and everything newer.
const ARCHITECTURE: &str = "compute_80";
const TABLE: &str = "docs/kernels.md";

/// Writes PTX and table, or compares them if `check`.
pub fn run(root: &Path, check: bool) -> Result<Vec<String>, String> {
    let tools = match Toolchain::get(root) {
        Ok(tools) => tools,
        Err(why) if check && !required() => {
            println!("SKIPPED kernels: {why}");
            return Ok(Vec::new());
        }
        Err(why) => return Err(why),
    };
    let mut problems = Vec::new();
    let compiled = in_parallel(MODULES, |module| compile(&tools, module))?;
    for (module, ptx) in MODULES.iter().zip(&compiled) {
        let name = format!("kernels/ptx/{}.ptx", module.name);
        keep(&root.join(&name), &name, ptx, check, &mut problems)?;
    }
    let table = resources::table(&tools, MODULES, &compiled)?;
    keep(&root.join(TABLE), TABLE, &table, check, &mut problems)?;
    Ok(problems)
}

/// Whether a skip is a failure.
fn required() -> bool {
    std::env::var("ASHLAR_REQUIRE").is_ok_and(|r| r.split(',').any(|name| name == "kernels"))
}

fn compile(tools: &Toolchain, module: &Module) -> Result<String, String> {
    // One library per call: NVRTC compiles one program at a time per handle of ours, and opening it again is cheap.
    let nvrtc = Nvrtc::open(&tools.nvrtc).map_err(|e| e.to_string())?;
    nvrtc.compile(module, ARCHITECTURE).map_err(|e| e.to_string())
}

/// Writes a generated file, or tells that it is not current.
fn keep(path: &Path, name: &str, text: &str, check: bool, problems: &mut Vec<String>) -> Result<(), String> {
    if !check {
        return std::fs::write(path, text).map_err(|e| format!("{name}: {e}"));
    }
    if std::fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    problems.push(format!("{name} is not what the sources make; run `cargo xtask kernels`"));
    Ok(())
}

/// The results of `work` for all items, in order, on all cores.
fn in_parallel<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> Result<R, String> + Sync) -> Result<Vec<R>, String> {
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(i) else { break };
                    let result = work(item);
                    if let Ok(mut done) = done.lock() {
                        done.push((i, result));
                    }
                }
            });
        }
    });
    let mut done = done.into_inner().map_err(|e| e.to_string())?;
    done.sort_by_key(|(i, _)| *i);
    done.into_iter().map(|(_, result)| result).collect()
}

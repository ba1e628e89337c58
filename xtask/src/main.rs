//! Checks of this repository that cargo does not do: `cargo xtask lint` (invariants of ARCHITECTURE.md) and
//! `cargo xtask deny` (licences, banned and duplicate dependencies, offline); and what it generates: `cargo xtask sizes`.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool")]

mod deny;
mod gpu;
mod kernels;
mod lint;
mod metadata;
mod sizes;
mod tokens;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

const USAGE: &str = "usage: cargo xtask <gpu|kernels|lint|deny|sizes>

  gpu      everything that wants a GPU: conformance, golden logits, sanitizers, speed; writes target/gpu-report.md
           --shim: the same on the host shim, small, to see that it runs; --collect DIR: only puts the programs it needs into DIR,
           without symbols; --binaries DIR: uses those, for a machine without cargo
  kernels  PTX of the CUDA sources and docs/kernels.md; with --check only say whether they are current
  lint     dependency arrows, places where formats and families may be named, unsafe, file sizes
  deny     licences, banned crates and duplicate versions of all dependencies, by the lists in deny.toml
  sizes    write docs/sizes.md from the model catalogue; with --check only say whether it is current";

fn main() -> ExitCode {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(|| PathBuf::from("."), Path::to_path_buf);
    let task = std::env::args().nth(1).unwrap_or_default();
    let problems = match task.as_str() {
        "gpu" => gpu::Options::parse(std::env::args().skip(2)).and_then(|options| gpu::run(&root, &options)),
        "kernels" => kernels::run(&root, std::env::args().nth(2).as_deref() == Some("--check")),
        "lint" => lint::run(&root),
        "deny" => deny::run(&root),
        "sizes" => sizes::run(&root, std::env::args().nth(2).as_deref() == Some("--check")),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match problems {
        Ok(problems) if problems.is_empty() => {
            println!("xtask {task}: ok");
            ExitCode::SUCCESS
        }
        Ok(problems) => {
            for problem in &problems {
                eprintln!("error: {problem}");
            }
            eprintln!("xtask {task}: {} problems", problems.len());
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

//! The compiler and the assembler: Python wheels of fixed content, fetched once by pip into `target/`.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Pinned versions and hashes.
const PINS: &str = "kernels/toolchain.txt";

/// Where the tools lie.
pub struct Toolchain {
    /// `libnvrtc.so.12`
    pub nvrtc: PathBuf,
    /// `ptxas`
    pub ptxas: PathBuf,
}

impl Toolchain {
    /// Finds the tools in `target/`, or fetches them.
    pub fn get(root: &Path) -> Result<Self, String> {
        let home = root.join("target/cuda-toolchain");
        let tools = Self {
            nvrtc: home.join("nvidia/cuda_nvrtc/lib/libnvrtc.so.12"),
            ptxas: home.join("nvidia/cuda_nvcc/bin/ptxas"),
        };
        let pins = root.join(PINS);
        let text = std::fs::read_to_string(&pins).map_err(|e| format!("{PINS}: {e}"))?;
        let marker = home.join("pins");
        let current = std::fs::read_to_string(&marker).is_ok_and(|old| old == text);
        if current && tools.nvrtc.is_file() && tools.ptxas.is_file() {
            return Ok(tools);
        }
        if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
            return Err("the pinned wheels are for Linux on x86-64".into());
        }
        let _ = std::fs::remove_dir_all(&home);
        std::fs::create_dir_all(&home).map_err(|e| format!("{}: {e}", home.display()))?;
        let wheels = home.join("wheels");
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--require-hashes"]);
        run(pip.args(["--only-binary", ":all:", "-d"]).arg(&wheels).arg("-r").arg(&pins))?;
        let entries = std::fs::read_dir(&wheels).map_err(|e| format!("{}: {e}", wheels.display()))?;
        for wheel in entries.filter_map(Result::ok) {
            run(Command::new("python3").args(["-m", "zipfile", "-e"]).arg(wheel.path()).arg(&home))?;
        }
        let _ = std::fs::remove_dir_all(&wheels);
        executable(&tools.ptxas)?;
        std::fs::write(&marker, text).map_err(|e| format!("{}: {e}", marker.display()))?;
        Ok(tools)
    }
}

/// `zipfile` leaves the mode out.
#[cfg(unix)]
fn executable(path: &Path) -> Result<(), String> {
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(path, mode).map_err(|e| format!("{}: {e}", path.display()))
}

#[cfg(not(unix))]
fn executable(_path: &Path) -> Result<(), String> {
    Ok(())
}

fn run(command: &mut Command) -> Result<(), String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|e| format!("`{name}`: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let last: Vec<&str> = text.lines().rev().take(3).collect();
    Err(format!("`{name}`: {}", last.into_iter().rev().collect::<Vec<_>>().join(" ")))
}

//! `cargo metadata`, as far as the checks need it.

use serde_json::Value;
use std::path::Path;
use std::process::Command;

/// One package of the graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Package {
    pub name: String,
    pub version: String,
    /// SPDX expression; empty when the manifest has none.
    pub license: String,
    /// Names in `[dependencies]`, `[build-dependencies]` and `[dev-dependencies]`.
    pub dependencies: Vec<String>,
    /// Path of the manifest.
    pub manifest: String,
}

/// Packages of this workspace alone; needs no network.
pub fn workspace(root: &Path) -> Result<Vec<Package>, String> {
    query(root, &["--no-deps"])
}

/// Packages of this workspace and all their dependencies on every platform.
pub fn all(root: &Path) -> Result<Vec<Package>, String> {
    query(root, &["--locked"])
}

fn query(root: &Path, extra: &[&str]) -> Result<Vec<Package>, String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1"])
        .args(extra)
        .current_dir(root)
        .output()
        .map_err(|e| format!("cannot run cargo metadata: {e}"))?;
    if !output.status.success() {
        return Err(format!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr).trim()));
    }
    let value: Value = serde_json::from_slice(&output.stdout).map_err(|e| format!("cargo metadata: {e}"))?;
    Ok(value["packages"].as_array().into_iter().flatten().map(package).collect())
}

fn package(value: &Value) -> Package {
    let text = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
    let dependencies = value["dependencies"].as_array().into_iter().flatten();
    Package {
        name: text("name"),
        version: text("version"),
        license: text("license"),
        dependencies: dependencies.filter_map(|d| d["name"].as_str()).map(str::to_owned).collect(),
        manifest: text("manifest_path"),
    }
}

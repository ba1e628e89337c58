//! What the steps start: by cargo, or from a folder of programs for a machine without it.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Package, test, name in the folder.
const TESTS: [(&str, &str); 2] = [("ashlar-cuda", "conformance"), ("ashlar-runtime", "golden")];

/// Where programs come from.
pub struct Programs {
    folder: Option<PathBuf>,
}

impl Programs {
    /// From a folder that [`collect`] filled, or built by cargo.
    pub fn new(folder: Option<PathBuf>) -> Self {
        Self { folder }
    }

    /// The command that runs a test binary of a package, only the tests whose names hold all of `filter`.
    pub fn test(&self, package: &str, test: &str, filter: &[&str]) -> Vec<String> {
        let start: Vec<String> = match &self.folder {
            Some(folder) => vec![folder.join(test).display().to_string()],
            None => ["cargo", "test", "--release", "-p", package, "--test", test, "--"].map(str::to_owned).to_vec(),
        };
        start.into_iter().chain(filter.iter().map(|f| (*f).to_owned())).collect()
    }

    /// The command that runs ashlar.
    pub fn ashlar(&self) -> Vec<String> {
        match &self.folder {
            Some(folder) => vec![folder.join("ashlar").display().to_string()],
            None => ["cargo", "run", "--release", "--quiet", "-p", "ashlar-cli", "--"].map(str::to_owned).to_vec(),
        }
    }
}

/// Builds the programs and copies them into `dir`, without symbols; this one as `xtask`.
pub fn collect(root: &Path, dir: &Path) -> Result<(), String> {
    std::fs::create_dir_all(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    for (package, test) in TESTS {
        let arguments = ["test", "--release", "-p", package, "--test", test, "--no-run"];
        copy(&built(root, &arguments, test)?, &dir.join(test))?;
    }
    copy(&built(root, &["build", "--release", "-p", "ashlar-cli"], "ashlar")?, &dir.join("ashlar"))?;
    let this = std::env::current_exe().map_err(|e| e.to_string())?;
    copy(&this, &dir.join("xtask"))?;
    println!("{0}: copy it beside a checkout and run `{0}/xtask gpu --binaries {0}` in it", dir.display());
    Ok(())
}

/// The executable of that name that cargo says it made.
fn built(root: &Path, arguments: &[&str], name: &str) -> Result<PathBuf, String> {
    let mut cargo = Command::new("cargo");
    cargo.current_dir(root).args(arguments).arg("--message-format=json").stderr(Stdio::inherit());
    let output = cargo.output().map_err(|e| format!("cargo: {e}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let made = text.lines().filter_map(|line| executable(line, name)).next_back();
    made.filter(|_| output.status.success()).ok_or_else(|| format!("cargo {}: no program", arguments.join(" ")))
}

/// The executable of the target of that name, of a line of cargo's messages.
fn executable(line: &str, name: &str) -> Option<PathBuf> {
    let message: Value = serde_json::from_str(line).ok()?;
    let target = message.get("target")?.get("name")?.as_str()?;
    message.get("executable")?.as_str().filter(|_| target == name).map(PathBuf::from)
}

fn copy(from: &Path, to: &Path) -> Result<(), String> {
    // strip is a convenience: without it the copy is larger.
    let stripped = Command::new("strip").arg("-o").args([to, from]).stderr(Stdio::null()).status();
    if stripped.is_ok_and(|status| status.success()) {
        return Ok(());
    }
    std::fs::copy(from, to).map(drop).map_err(|e| format!("{}: {e}", from.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_cargo_s_or_of_the_folder() {
        let cargo = Programs::new(None).test("ashlar-cuda", "conformance", &["x"]);
        assert_eq!(cargo.join(" "), "cargo test --release -p ashlar-cuda --test conformance -- x");
        let folder = Programs::new(Some(PathBuf::from("bin")));
        assert_eq!(folder.test("ashlar-cuda", "conformance", &["x"]), ["bin/conformance", "x"]);
        assert_eq!(folder.ashlar(), ["bin/ashlar"]);
    }

    #[test]
    fn the_program_of_a_message_is_found() {
        let line = r#"{"reason":"compiler-artifact","target":{"name":"golden"},"executable":"/t/golden-1"}"#;
        assert_eq!(executable(line, "golden"), Some(PathBuf::from("/t/golden-1")));
        assert_eq!(executable(line, "conformance"), None);
        assert_eq!(executable(r#"{"target":{"name":"golden"},"executable":null}"#, "golden"), None);
        assert_eq!(executable("no json", "golden"), None);
    }
}

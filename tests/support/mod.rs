//! Running the binary, and the things tests compare.

mod checkpoint;
mod child;
mod files;
mod sparse;

pub use checkpoint::{Shape, write_checkpoint};
pub use child::peak_of;
pub use sparse::write_release;

pub use files::{assert_same_files, listing, logits, max_error_of_range, mean_kl, tensor_i64, write_ids};

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Runs `ashlar ARGS` to its end: `ashlar!["inspect", path]`.
macro_rules! ashlar {
    ($($arg:expr),* $(,)?) => {
        $crate::support::finish($crate::support::ashlar()$(.arg(&$arg))*)
    };
}

/// What tests return.
pub type Test = Result<(), Box<dyn std::error::Error>>;

/// Checkpoints with golden logits, smallest first; the last is really trained.
pub const FIXTURES: &[&str] = &[
    "tiny/llama",
    "tiny/qwen2",
    "tiny/gpt_oss",
    "tiny/qwen3",
    "tiny/qwen2_moe",
    "tiny/mixtral",
    "tiny/deepseek_v3_bf16",
    "tiny/deepseek_v2",
    "tiny/deepseek_v3",
    "tiny/deepseek_v4_bf16",
    "tiny/deepseek_v4",
    "tiny/qwen3_moe",
    "demo-moe",
];

/// The repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// A bundled checkpoint by its name in [`FIXTURES`].
pub fn fixture(name: &str) -> PathBuf {
    root().join("tests/fixtures").join(name)
}

/// The binary under test, with no environment of the developer's that could change its behaviour.
pub fn ashlar() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ashlar"));
    command.env_remove("ASHLAR_ISA").stdin(Stdio::null());
    command
}

/// How a run ended.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
    line: String,
}

/// Runs a prepared command to its end.
pub fn finish(command: &mut Command) -> Ran {
    let line = format!("{command:?}");
    let output = command.output().expect("the binary starts");
    Ran {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        line,
    }
}

impl Ran {
    /// Fails the test unless the exit code is `code`.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{}\nstdout:\n{}\nstderr:\n{}", self.line, self.stdout, self.stderr);
        self
    }

    /// Fails the test unless stderr contains each of `parts`.
    #[track_caller]
    pub fn says(self, parts: &[&str]) -> Self {
        for part in parts {
            assert!(self.stderr.contains(part), "{}\nno `{part}` in stderr:\n{}", self.line, self.stderr);
        }
        self
    }

    /// The one JSON object on stdout.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{}: {e}: {}", self.line, self.stdout))
    }
}

/// Tells that a test could not run here. Goes past the capture of `cargo test`, so that `.ci/run` can count it;
/// `REQUIRE=disk-full,…` turns the skip of that name into a failure.
pub fn skip(name: &str, why: &str) {
    let required = std::env::var("REQUIRE").unwrap_or_default();
    assert!(!required.split(',').any(|r| r == name), "{name} is required but cannot run: {why}");
    let _ = writeln!(std::io::stderr(), "SKIPPED {name}: {why}");
}

//! `cargo xtask gpu`: everything that wants a GPU, in one command: correctness first, then speed. Writes a report.

use std::fmt::Write;
use std::path::Path;
use std::process::Command;

const REPORT: &str = "target/gpu-report.md";
/// The shape whose layers are measured, and the formats.
const SHAPE: [&str; 4] = ["--shape", "llama-3.1-70b", "--layers", "8"];
const FORMATS: [&str; 5] = ["k4", "q8", "k2", "mxfp4", "bf16"];

/// Runs all steps on `cuda:0`; problems are steps that failed.
pub fn run(root: &Path) -> Result<Vec<String>, String> {
    if ashlar_cuda::count() == 0 {
        let why = ashlar_cuda::open(0, ashlar_cuda::ActivationMode::Int8, None).err();
        return Err(why.map_or_else(|| "no device".to_owned(), |e| e.to_string()));
    }
    let mut report = Report { root, text: "# GPU report\n".to_owned(), problems: Vec::new() };
    let required = [("ASHLAR_REQUIRE", "cuda"), ("RUST_TEST_NOCAPTURE", "1")];
    let tests = |krate: &'static str, filter: &'static [&'static str]| {
        ["test", "--release", "-p", krate].into_iter().chain(filter.iter().copied()).collect::<Vec<_>>()
    };
    report.step("conformance", "cargo", &tests("ashlar-cuda", &[]), &required);
    report.step("golden logits", "cargo", &tests("ashlar-runtime", &["--test", "golden", "cuda"]), &required);
    if report.problems.is_empty() {
        report.sanitize(&required);
        for format in FORMATS {
            let mut arguments = vec!["run", "--release", "--", "bench", "--device", "cuda:0", "--chunk", "2048"];
            arguments.extend(SHAPE.iter().chain(&[
                "--format",
                format,
                "--prompt-tokens",
                "2048",
                "--gen-tokens",
                "64",
            ]));
            report.step(&format!("{format}, prefill and decoding"), "cargo", &arguments, &[]);
        }
    }
    let path = root.join(REPORT);
    std::fs::write(&path, &report.text).map_err(|e| format!("{}: {e}", path.display()))?;
    println!("{REPORT} holds the outputs; its figures belong into docs/benchmarks/gpu.md");
    Ok(report.problems)
}

struct Report<'r> {
    root: &'r Path,
    text: String,
    problems: Vec<String>,
}

impl Report<'_> {
    /// Runs a command and keeps what it prints.
    fn step(&mut self, title: &str, program: &str, arguments: &[&str], environment: &[(&str, &str)]) {
        println!("== {title}: {program} {}", arguments.join(" "));
        let mut command = Command::new(program);
        command.current_dir(self.root).args(arguments).envs(environment.iter().copied());
        let (printed, failed) = match command.output() {
            Ok(output) => {
                let text = [output.stdout, output.stderr].map(|t| String::from_utf8_lossy(&t).into_owned()).concat();
                (text, !output.status.success())
            }
            Err(error) => (error.to_string(), true),
        };
        print!("{printed}");
        let _ = write!(self.text, "\n## {title}\n\n`{program} {}`\n\n```text\n{printed}\n```\n", arguments.join(" "));
        if failed {
            self.problems.push(format!("{title} failed"));
        }
    }

    /// The conformance suite on the device under the sanitizers, where they are installed.
    fn sanitize(&mut self, environment: &[(&str, &str)]) {
        let tool = "compute-sanitizer";
        if Command::new(tool).arg("--version").output().is_err() {
            println!("SKIPPED {tool}: not installed");
            let _ = write!(self.text, "\n## {tool}\n\nSKIPPED: not installed\n");
            return;
        }
        for check in ["memcheck", "racecheck"] {
            let test = ["cargo", "test", "--release", "-p", "ashlar-cuda", "--test", "conformance", "the_gpu_conforms"];
            let mut arguments = vec!["--tool", check, "--target-processes", "all", "--error-exitcode", "9"];
            arguments.extend(test);
            self.step(&format!("{tool}, {check}"), tool, &arguments, environment);
        }
    }
}

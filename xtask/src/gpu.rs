//! `cargo xtask gpu`: everything that wants a GPU, in one command: correctness first, then speed. Writes a report whose tables
//! are for docs/benchmarks/gpu.md. `--shim` rehearses all of it on the host shim.

mod programs;
mod table;

use ashlar_cuda::bench::{self, Effort, KvFormat, Sizes};
use ashlar_cuda::{ActivationMode, Cuda};
use programs::Programs;
use serde_json::Value;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use table::{Rate, Whole};

/// The formats that are measured.
const FORMATS: [&str; 9] = ["k4", "q8", "k3", "k2", "i4:g32", "mxfp4", "fp8:128x128,f32", "nf4:g64", "bf16"];

/// What is measured where.
struct Plan {
    report: &'static str,
    title: &'static str,
    device: &'static str,
    torch: &'static str,
    effort: Effort,
    /// n, k of the weights: of Llama-3.1-70B.
    shapes: &'static [[usize; 2]],
    rows: &'static [usize],
    /// Key heads, positions, rows of a chunk.
    attention: [usize; 3],
    /// What everything else is measured at, in these formats of experts and with these rows.
    sizes: Sizes,
    experts: &'static [&'static str],
    few_and_many: [usize; 2],
    /// Options of `ashlar bench` for a mixture whose experts do not all lie on the device, and the memory that makes slots of it.
    split: &'static [&'static str],
    limit: &'static str,
    /// Options of `ashlar bench`, and how many of the formats.
    model: &'static [&'static str],
    whole: usize,
}

const GPU: Plan = Plan {
    report: "target/gpu-report.md",
    title: "# GPU report",
    device: "cuda:0",
    torch: "cuda",
    effort: Effort::GPU,
    shapes: &[[8192, 8192], [28672, 8192], [8192, 28672]],
    rows: &[1, 4, 8, 2048],
    attention: [8, 16384, 2048],
    // Llama-3.1-70B; the mixture is Qwen3-30B-A3B's.
    sizes: Sizes { hidden: 8192, heads: [64, 8], middle: 28672, vocab: 128_256, mixture: [2048, 128, 8, 768] },
    experts: &["k4", "q8", "mxfp4"],
    few_and_many: [1, 2048],
    split: &[
        "--shape",
        "qwen3-30b-a3b",
        "--layers",
        "12",
        "--format",
        "k4",
        "--chunk",
        "512",
        "--prompt-tokens",
        "512",
        "--gen-tokens",
        "128",
    ],
    // About half of the experts, beside everything else.
    limit: "3584MiB",
    model: &[
        "--shape",
        "llama-3.1-70b",
        "--layers",
        "8",
        "--chunk",
        "2048",
        "--prompt-tokens",
        "2048",
        "--gen-tokens",
        "64",
    ],
    whole: FORMATS.len(),
};

const SHIM: Plan = Plan {
    report: "target/gpu-rehearsal.md",
    title: "# Rehearsal on the host shim: the figures mean nothing",
    device: "cuda-host:0",
    torch: "cpu",
    effort: Effort::SHIM,
    shapes: &[[128, 256]],
    rows: &[1, 4, 8, 40],
    attention: [1, 128, 32],
    sizes: Sizes { hidden: 64, heads: [2, 1], middle: 96, vocab: 5000, mixture: [64, 8, 2, 32] },
    experts: &["k4"],
    few_and_many: [1, 20],
    split: &["--shape", "tests/fixtures/tiny/qwen3_moe/config.json", "--prompt-tokens", "16", "--gen-tokens", "2"],
    limit: "512KiB",
    model: &["--shape", "tests/fixtures/tiny/llama/config.json", "--prompt-tokens", "16", "--gen-tokens", "2"],
    whole: 1,
};

/// What the command line asks for.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Options {
    shim: bool,
    collect: Option<PathBuf>,
    binaries: Option<PathBuf>,
}

impl Options {
    /// Of the arguments behind `gpu`.
    pub fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Self::default();
        while let Some(argument) = arguments.next() {
            let mut folder = || arguments.next().map(PathBuf::from).ok_or(format!("{argument} wants a folder"));
            match argument.as_str() {
                "--shim" => options.shim = true,
                "--collect" => options.collect = Some(folder()?),
                "--binaries" => options.binaries = Some(folder()?),
                other => return Err(format!("{other}: known are --shim, --collect DIR and --binaries DIR")),
            }
        }
        Ok(options)
    }
}

/// Runs all steps; problems are steps that failed.
pub fn run(root: &Path, options: &Options) -> Result<Vec<String>, String> {
    if let Some(dir) = &options.collect {
        return programs::collect(root, dir).map(|()| Vec::new());
    }
    let plan = if options.shim { &SHIM } else { &GPU };
    let device = open(plan)?;
    let name = ashlar_cuda::Backend::describe(&device);
    drop(device);
    let programs = Programs::new(options.binaries.clone());
    let mut report = Report { root, plan, programs, tables: String::new(), text: String::new(), problems: Vec::new() };
    report.correctness(options.shim);
    if report.problems.is_empty()
        && let Err(why) = report.speed()
    {
        report.problems.push(format!("speed: {why}"));
    }
    let path = root.join(plan.report);
    let text = format!("{}\n\n{name}\n{}\n# Outputs\n{}", plan.title, report.tables, report.text);
    std::fs::write(&path, text).map_err(|e| format!("{}: {e}", path.display()))?;
    println!("{} holds tables and outputs; the tables belong into docs/benchmarks/gpu.md", plan.report);
    Ok(report.problems)
}

fn open(plan: &Plan) -> Result<Cuda, String> {
    let opened = if plan.device == SHIM.device {
        ashlar_cuda::open_host(ActivationMode::Int8, false)
    } else {
        ashlar_cuda::open(0, ActivationMode::Int8, None)
    };
    opened.map_err(|e| e.to_string())
}

struct Report<'r> {
    root: &'r Path,
    plan: &'static Plan,
    programs: Programs,
    tables: String,
    text: String,
    problems: Vec<String>,
}

impl Report<'_> {
    fn correctness(&mut self, shim: bool) {
        // A device that is missing fails; of the shim only what is its own.
        let required: &[(&str, &str)] = if shim { &[] } else { &[("ASHLAR_REQUIRE", "cuda")] };
        let filter: &[&str] = if shim { &["the_host_shim"] } else { &[] };
        let conformance = self.programs.test("ashlar-cuda", "conformance", filter);
        self.step("conformance", &conformance, required);
        let golden = self.programs.test("ashlar-runtime", "golden", &["cuda"]);
        self.step("golden logits", &golden, required);
        let tool = "compute-sanitizer";
        if shim || Command::new(tool).arg("--version").output().is_err() {
            println!("SKIPPED {tool}: not installed");
            let _ = write!(self.text, "\n## {tool}\n\nSKIPPED: not installed\n");
            return;
        }
        for check in ["memcheck", "racecheck"] {
            let test = self.programs.test("ashlar-cuda", "conformance", &["the_gpu_conforms"]);
            let options = ["--tool", check, "--target-processes", "all", "--error-exitcode", "9"];
            let command: Vec<String> = [tool].into_iter().chain(options).map(str::to_owned).chain(test).collect();
            self.step(&format!("{tool}, {check}"), &command, required);
        }
    }

    /// Runs a command and keeps what it prints.
    fn step(&mut self, title: &str, command: &[String], environment: &[(&str, &str)]) -> String {
        let line = command.join(" ");
        println!("== {title}: {line}");
        let Some((program, arguments)) = command.split_first() else { return String::new() };
        let mut child = Command::new(program);
        child.current_dir(self.root).args(arguments).envs(environment.iter().copied()).env("RUST_TEST_NOCAPTURE", "1");
        let (printed, error, failed) = match child.output() {
            Ok(output) => {
                let [out, err] = [&output.stdout, &output.stderr].map(|t| String::from_utf8_lossy(t).into_owned());
                (out, err, !output.status.success())
            }
            Err(error) => (String::new(), error.to_string(), true),
        };
        print!("{printed}{error}");
        let _ = write!(self.text, "\n## {title}\n\n`{line}`\n\n```text\n{printed}{error}\n```\n");
        if failed {
            self.problems.push(format!("{title} failed"));
        }
        printed
    }

    fn speed(&mut self) -> Result<(), String> {
        let plan = self.plan;
        let broken = |e: ashlar_cuda::BackendError| e.to_string();
        let copy = bench::copy_rate(&mut open(plan)?, plan.effort).map_err(broken)?;
        let mut products = Vec::new();
        for format in FORMATS {
            for shape in plan.shapes {
                println!("== products, {format}, {} × {}", shape[0], shape[1]);
                // Weights stay on a device as long as it is open.
                let mut device = open(plan)?;
                products.extend(bench::products(&mut device, format, *shape, plan.rows, plan.effort).map_err(broken)?);
            }
        }
        let mut attended = Vec::new();
        for kv in [KvFormat::F16, KvFormat::Q8] {
            attended.extend(bench::attention(&mut open(plan)?, kv, plan.attention, plan.effort).map_err(broken)?);
        }
        let mut others = Vec::new();
        for rows in plan.few_and_many {
            println!("== other ops, {rows} rows");
            others.extend(bench::rows(&mut open(plan)?, plan.sizes, rows, plan.effort).map_err(broken)?);
        }
        for format in plan.experts {
            let (rows, mixture) = (&plan.few_and_many, plan.sizes.mixture);
            println!("== experts, {format}");
            others.extend(bench::mixture(&mut open(plan)?, format, mixture, rows, plan.effort).map_err(broken)?);
        }
        let mut shared = Vec::new();
        for format in plan.experts {
            shared.extend(bench::shared(&mut open(plan)?, format, plan.sizes.mixture, plan.effort).map_err(broken)?);
        }
        let torch = self.torch();
        let split = self.split()?;
        let whole = FORMATS.iter().take(plan.whole).map(|format| self.model(format)).collect::<Result<Vec<_>, _>>()?;
        let _ = write!(
            self.tables,
            "\nCopying within the device moves {:.1} GB/s, reads and writes both counted.\n\n## Products at decoding\n\n{}\n\
             ## Products at prefill\n\n{}\n## Attention\n\n{}\n## Experts, norms, rotations, gates, sampling\n\n{}\n## Experts in slots\n\nOne layer, one row; of the handshake alone the \
             goal is 40 µs.\n\n{}\n`ashlar bench {}`\n\n{}\n## Layers as a whole\n\n`ashlar bench {}`\n\n{}",
            copy / 1e9,
            table::decoding(&products, copy),
            table::prefill(&products, &torch),
            table::attention(&attended, copy),
            table::others(&others, copy, &torch),
            table::shared(&shared),
            plan.split.join(" "),
            table::whole(&split, copy),
            plan.model.join(" "),
            table::whole(&whole, copy)
        );
        Ok(())
    }

    /// PyTorch's rates for the same products; none where it is not installed, which the report says.
    fn torch(&mut self) -> Vec<Rate> {
        let rows = self.plan.rows.last().copied().unwrap_or(1).to_string();
        let script = "xtask/bench/gpu/torch_rate.py";
        let mut command: Vec<String> = ["python3", script, self.plan.torch, &rows].map(str::to_owned).to_vec();
        command.extend(self.plan.shapes.iter().map(|[n, k]| format!("{n},{k}")));
        // Without Python there is no rate, which is no problem of ours.
        let before = self.problems.len();
        let printed = self.step("PyTorch", &command, &[]);
        self.problems.truncate(before);
        rates(&printed)
    }

    fn model(&mut self, format: &str) -> Result<Whole, String> {
        self.bench(format, self.plan.model, &["--device", self.plan.device, "--format", format])
    }

    /// A mixture all on the processor, with a part of its experts in slots, and all on the device.
    fn split(&mut self) -> Result<Vec<Whole>, String> {
        let path = self.root.join("target/gpu-cached.yaml");
        let rules = "version: 1\nrules:\n  - {match: {class: experts}, set: {tier: cached}}\n";
        std::fs::write(&path, rules).map_err(|e| format!("{}: {e}", path.display()))?;
        let Plan { device, limit, split, .. } = *self.plan;
        let file = path.display().to_string();
        let slots = ["--device", device, "--placement", &file, "--vram-limit", limit];
        let ways: [(&str, &[&str]); 3] =
            [("all on the processor", &["--device", "cpu"]), ("in slots", &slots), ("all on the device", &slots[..2])];
        ways.into_iter().map(|(name, options)| self.bench(name, split, options)).collect()
    }

    fn bench(&mut self, name: &str, model: &[&str], options: &[&str]) -> Result<Whole, String> {
        let mut command = self.programs.ashlar();
        let all = ["bench"].iter().chain(model).chain(options).chain(&["--json"]);
        command.extend(all.map(|a| (*a).to_owned()));
        let printed = self.step(&format!("{name}, prefill and decoding"), &command, &[]);
        whole(name, &printed).ok_or_else(|| format!("`ashlar bench`, {name}, printed no figures"))
    }
}

/// What `torch_rate.py` printed.
fn rates(printed: &str) -> Vec<Rate> {
    let json: Value = serde_json::from_str(printed).unwrap_or_default();
    let rate = |r: &Value| {
        let size = |key: &str| r.get(key).and_then(Value::as_u64).and_then(|v| usize::try_from(v).ok());
        Some(([size("rows")?, size("n")?, size("k")?], r.get("flops")?.as_f64()?))
    };
    json.get("rates").and_then(Value::as_array).into_iter().flatten().filter_map(rate).collect()
}

/// What `ashlar bench --json` printed.
fn whole(format: &str, printed: &str) -> Option<Whole> {
    let json: Value = serde_json::from_str(printed).ok()?;
    let figure = |part: &str, key: &str| json.get(part)?.get(0)?.get(key)?.as_f64();
    let [prefill, decode, read] = [
        figure("prefill", "tokens_per_s")?,
        figure("decode", "tokens_per_s")?,
        figure("decode", "gb_per_s").map_or(0.0, |gb| 1e9 * gb),
    ];
    Some(Whole { format: format.to_owned(), prefill, decode, read })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_programs_print_becomes_figures() {
        let printed = r#"{"version": "2.6", "rates": [{"rows": 2048, "n": 10, "k": 20, "flops": 5e14}, {"rows": 1}]}"#;
        assert_eq!(rates(printed), [([2048, 10, 20], 5e14)]);
        assert!(rates(r#"{"why": "No module named 'torch'"}"#).is_empty() && rates("").is_empty());
        let printed = r#"{"prefill": [{"tokens_per_s": 100.0}], "decode": [{"tokens_per_s": 7.5, "gb_per_s": 2.0}]}"#;
        let expected = Whole { format: "k4".into(), prefill: 100.0, decode: 7.5, read: 2e9 };
        assert_eq!(whole("k4", printed), Some(expected));
        assert_eq!(whole("k4", "error: no"), None);
    }

    #[test]
    fn options_are_read_and_unknown_ones_refused() {
        let of = |text: &str| Options::parse(text.split_whitespace().map(str::to_owned));
        assert_eq!(of(""), Ok(Options::default()));
        let folder = Some(PathBuf::from("d"));
        assert_eq!(of("--shim --binaries d"), Ok(Options { shim: true, binaries: folder, ..Options::default() }));
        assert!(of("--binaries").is_err() && of("--fast").is_err());
    }
}

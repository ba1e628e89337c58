//! Machines by name, by file, or in one line.

use crate::exit::{Failure, OrUsage};
use anyhow::anyhow;
use ashlar_recipe::{Hardware, Measured, Recipe, tier, tiers};
use std::path::Path;

/// Cores where a machine's description does not tell.
const CORES: usize = 8;
/// Room on a disk of which only the speed is given.
const DISK: &str = "1TB";

/// A machine with a name.
pub struct Machine {
    pub name: String,
    /// What it is, for people: the first line of its file.
    pub title: String,
    pub hardware: Hardware,
    /// What its kernels reach, if `ashlar doctor` measured that.
    pub measured: Option<Measured>,
    pub cores: usize,
}

impl Machine {
    /// All that come with the program.
    ///
    /// # Errors
    /// If one of their files is malformed, which tests rule out.
    pub fn all() -> Result<Vec<Self>, Failure> {
        tiers().filter_map(|name| Some(Self::of(name, name, tier(name)?))).collect()
    }

    /// `this`, the name of a machine, a file, or `vram=24GiB,ram=64GiB,nvme=7GB/s`.
    ///
    /// # Errors
    /// The user's mistake, with the remedy.
    pub fn named(text: &str) -> Result<Self, Failure> {
        if let Some(yaml) = tier(text) {
            return Self::of(text, text, yaml);
        }
        if text == "this" {
            return this();
        }
        if text.contains('=') {
            return Self::of(text, &format!("--hardware {text}"), &described(text)?);
        }
        match std::fs::read_to_string(text) {
            Ok(yaml) => {
                let name = Path::new(text).file_stem().map_or(text.into(), |stem| stem.to_string_lossy().into_owned());
                Self::of(&name, text, &yaml)
            }
            Err(error) => {
                let near =
                    ashlar_arch::nearest(text, tiers()).map_or(String::new(), |n| format!("; did you mean `{n}`?"));
                Err(Failure::usage(anyhow!(
                    "--hardware {text}: is no machine of `plan --list-tiers` and no file ({error}){near} Give `this`, a file, or \
                     `vram=24GiB,ram=64GiB,nvme=7GB/s`"
                )))
            }
        }
    }

    /// The same machine, of whose memory a model may take so much.
    pub fn limited(mut self, ram: u64) -> Self {
        self.hardware.ram = ashlar_runtime::fit::with_usable_ram(ram);
        if self.hardware.nvme == 0 {
            self.hardware.nvme = 1 << 40;
        }
        self
    }

    /// The same machine, of each of whose cards a model may take so much.
    pub fn with_vram(mut self, vram: u64) -> Self {
        if self.hardware.gpus > 0 && !self.hardware.unified {
            self.hardware.vram = self.hardware.vram.min(ashlar_runtime::fit::with_usable_vram(vram));
        }
        self
    }

    /// `place` is what messages call it.
    fn of(name: &str, place: &str, yaml: &str) -> Result<Self, Failure> {
        let recipe = Recipe::parse(yaml, place).or_usage()?;
        let none = || Failure::usage(anyhow!("{place}: has no `hardware`, such as `hardware: {{ram: 64GiB}}`"));
        let hardware = recipe.hardware().ok_or_else(none)?;
        let title = yaml.lines().next().and_then(|line| line.strip_prefix("# ")).unwrap_or(name).to_owned();
        let measured = recipe.measured().cloned();
        let cores = measured.as_ref().map_or(CORES, |m| m.threads.max(1));
        Ok(Self { name: name.to_owned(), title, hardware, measured, cores })
    }
}

/// A description in one line as the file that says the same. Several cards: `vram=48GiB+48GiB`, all alike.
fn described(text: &str) -> Result<String, Failure> {
    let refuse = |what: String| Failure::usage(anyhow!("--hardware {text}: {what}"));
    let mut all: Vec<String> = Vec::new();
    for part in text.split(',') {
        let (key, value) = part.split_once('=').ok_or_else(|| refuse(format!("`{part}` is no `key=value`")))?;
        let (key, value) = (key.trim(), value.trim());
        match key {
            "vram" => {
                let cards: Vec<&str> = value.split('+').collect();
                if cards.windows(2).any(|pair| pair[0] != pair[1]) {
                    return Err(refuse("cards of different size; plan for the smallest of them".into()));
                }
                all.push(format!("gpus: {}, vram: {}", cards.len(), cards.first().unwrap_or(&value)));
            }
            "nvme" if value.ends_with("/s") => all.push(format!("nvme: {DISK}, nvme_bandwidth: {value}")),
            "unified" => all.push(format!("gpus: 1, unified: {value}")),
            _ => all.push(format!("{key}: {value}")),
        }
    }
    let rules = "rules: [{id: all, match: {name: \"*\"}, set: {tier: ram}}]";
    Ok(format!("version: 1\nhardware: {{{}}}\n{rules}\n", all.join(", ")))
}

/// This machine, as far as it can be asked: its memory and cores. Cards and disks have to be given.
fn this() -> Result<Machine, Failure> {
    let refuse =
        |what: &str| Failure::usage(anyhow!("--hardware this: {what}; describe the machine, such as `ram=64GiB`"));
    let info = std::fs::read_to_string("/proc/meminfo").map_err(|_| refuse("this system does not tell its memory"))?;
    let kib =
        info.lines().find_map(|l| l.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    let ram = kib.ok_or_else(|| refuse("/proc/meminfo has no MemTotal"))?.saturating_mul(1024);
    Ok(Machine {
        name: "this".into(),
        title: "This machine: its memory and cores; `ashlar doctor` measures the rest.".into(),
        hardware: Hardware { ram, ..Hardware::default() },
        measured: None,
        cores: std::thread::available_parallelism().map_or(CORES, usize::from),
    })
}

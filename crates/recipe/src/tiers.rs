//! Machines that models are planned for: the files of `recipes/tiers/`, files of users, and `vram=24GiB,ram=64GiB,nvme=7GB/s`.
//!
//! Owns: what a machine has. Refuses: what fits on it, which is `runtime::fit`'s. Other keys of a tier's file say how weights
//! are placed on it, and are none of this module's.

use crate::parse_bytes;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Names and texts, from the smallest machine to the largest of each kind.
const TIERS: &[(&str, &str)] = &[
    ("gpu8-ram32", include_str!("../../../recipes/tiers/gpu8-ram32.yaml")),
    ("gpu8-ram32-nvme", include_str!("../../../recipes/tiers/gpu8-ram32-nvme.yaml")),
    ("gpu10-ram64-nvme", include_str!("../../../recipes/tiers/gpu10-ram64-nvme.yaml")),
    ("gpu12-ram64", include_str!("../../../recipes/tiers/gpu12-ram64.yaml")),
    ("gpu12-ram64-nvme", include_str!("../../../recipes/tiers/gpu12-ram64-nvme.yaml")),
    ("gpu16-ram64-nvme", include_str!("../../../recipes/tiers/gpu16-ram64-nvme.yaml")),
    ("gpu16-ram96-nvme", include_str!("../../../recipes/tiers/gpu16-ram96-nvme.yaml")),
    ("gpu24-ram64-nvme", include_str!("../../../recipes/tiers/gpu24-ram64-nvme.yaml")),
    ("gpu24-ram128", include_str!("../../../recipes/tiers/gpu24-ram128.yaml")),
    ("gpu24-ram128-nvme", include_str!("../../../recipes/tiers/gpu24-ram128-nvme.yaml")),
    ("gpu32-ram128-nvme", include_str!("../../../recipes/tiers/gpu32-ram128-nvme.yaml")),
    ("dual48-ram256-nvme", include_str!("../../../recipes/tiers/dual48-ram256-nvme.yaml")),
    ("gpu96-ram256-nvme", include_str!("../../../recipes/tiers/gpu96-ram256-nvme.yaml")),
    ("unified128-nvme", include_str!("../../../recipes/tiers/unified128-nvme.yaml")),
    ("unified192-nvme", include_str!("../../../recipes/tiers/unified192-nvme.yaml")),
    ("unified256-nvme", include_str!("../../../recipes/tiers/unified256-nvme.yaml")),
    ("cpu32", include_str!("../../../recipes/tiers/cpu32.yaml")),
    ("cpu64-nvme", include_str!("../../../recipes/tiers/cpu64-nvme.yaml")),
    ("cpu128-nvme", include_str!("../../../recipes/tiers/cpu128-nvme.yaml")),
];

/// Bytes per second where a machine's description leaves them out: those of a common card, of two channels of DDR5, of PCIe 4 with 16
/// lanes.
const VRAM_BANDWIDTH: u64 = 500_000_000_000;
const RAM_BANDWIDTH: u64 = 60_000_000_000;
const PCIE: u64 = 25_000_000_000;

/// What a machine has. Bandwidths are in bytes per second.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Hardware {
    /// Bytes of every card's memory.
    pub vram: Vec<u64>,
    /// Reading a card's memory.
    pub vram_bandwidth: u64,
    /// Bytes of memory.
    pub ram: u64,
    /// Reading it, by the processor or, where it is shared, by graphics.
    pub ram_bandwidth: u64,
    /// Between memory and a card.
    pub pcie: u64,
    /// Reading the disk, if it is fast enough to read weights from while a model runs.
    pub nvme: Option<u64>,
    /// Processor and graphics share the memory.
    pub unified: bool,
    /// Processor cores.
    pub cores: usize,
}

/// A machine with a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Tier {
    /// By which it is asked for.
    pub name: String,
    /// What it is, for people.
    pub title: String,
    /// What it has.
    pub hardware: Hardware,
}

/// Why a machine cannot be understood.
#[derive(Debug, thiserror::Error)]
#[error("{place}: {what}")]
pub struct TierError {
    /// The file, or the text that was given.
    pub place: String,
    /// What is wrong, and what would be right.
    pub what: String,
}

#[derive(Deserialize)]
struct Raw {
    #[serde(default)]
    title: Option<String>,
    hardware: RawHardware,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawHardware {
    #[serde(default)]
    vram: Option<OneOrMore>,
    #[serde(default)]
    vram_bandwidth: Option<String>,
    ram: Option<String>,
    #[serde(default)]
    ram_bandwidth: Option<String>,
    #[serde(default)]
    pcie: Option<String>,
    #[serde(default)]
    nvme: Option<String>,
    #[serde(default)]
    unified: bool,
    #[serde(default)]
    cores: Option<usize>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

/// All machines that come with the program.
///
/// # Errors
/// [`TierError`] if a file is malformed, which a test rules out.
pub fn tiers() -> Result<Vec<Tier>, TierError> {
    TIERS.iter().map(|(name, text)| parse(name, name, text)).collect()
}

/// The machine of that name, of a file, of a description such as `vram=24GiB,ram=64GiB,nvme=7GB/s`, or `this` one.
///
/// # Errors
/// [`TierError`].
pub fn tier(text: &str) -> Result<Tier, TierError> {
    if let Some((name, yaml)) = TIERS.iter().find(|(name, _)| *name == text) {
        return parse(name, name, yaml);
    }
    if text == "this" {
        return this();
    }
    if text.contains('=') {
        return described(text);
    }
    let refuse = |what: String| TierError { place: format!("--hardware {text}"), what };
    match std::fs::read_to_string(text) {
        Ok(yaml) => {
            let name = Path::new(text).file_stem().map_or(text.into(), |stem| stem.to_string_lossy().into_owned());
            parse(text, &name, &yaml)
        }
        Err(error) => {
            let names: Vec<&str> = TIERS.iter().map(|(name, _)| *name).collect();
            let near = ashlar_arch::nearest(text, names.iter().copied());
            let near = near.map_or(String::new(), |n| format!("; did you mean `{n}`?"));
            Err(refuse(format!(
                "is no machine of the catalogue and no file ({error}){near} Give `this`, a file, `vram=24GiB,ram=64GiB,\
                 nvme=7GB/s`, or one of {}",
                names.join(", ")
            )))
        }
    }
}

fn parse(place: &str, name: &str, yaml: &str) -> Result<Tier, TierError> {
    let refuse = |what: String| TierError { place: place.to_owned(), what };
    let raw: Raw = serde_saphyr::from_str(yaml).map_err(|e| refuse(e.to_string()))?;
    let hardware = raw.hardware.check().map_err(refuse)?;
    Ok(Tier { name: name.to_owned(), title: raw.title.unwrap_or_else(|| name.to_owned()), hardware })
}

/// `vram=24GiB,ram=64GiB,nvme=7GB/s`; several cards as `vram=48GiB+48GiB`.
fn described(text: &str) -> Result<Tier, TierError> {
    let refuse = |what: String| TierError { place: format!("--hardware {text}"), what };
    let mut raw = RawHardware::default();
    for part in text.split(',') {
        let (key, value) = part.split_once('=').unwrap_or((part, ""));
        let value = value.trim().to_owned();
        match key.trim() {
            "vram" => raw.vram = Some(OneOrMore::More(value.split('+').map(str::to_owned).collect())),
            "vram_bandwidth" => raw.vram_bandwidth = Some(value),
            "ram" => raw.ram = Some(value),
            "ram_bandwidth" => raw.ram_bandwidth = Some(value),
            "pcie" => raw.pcie = Some(value),
            "nvme" => raw.nvme = Some(value),
            "unified" => raw.unified = value == "true",
            "cores" => raw.cores = Some(value.parse().map_err(|_| refuse(format!("`cores={value}` is no number")))?),
            other => {
                return Err(refuse(format!(
                    "there is no `{other}`; there are vram, vram_bandwidth, ram, ram_bandwidth, pcie, nvme, unified, cores"
                )));
            }
        }
    }
    let hardware = raw.check().map_err(refuse)?;
    Ok(Tier { name: text.to_owned(), title: text.to_owned(), hardware })
}

/// This machine, as far as it can be asked: its memory and cores. Cards and disks have to be given.
fn this() -> Result<Tier, TierError> {
    let refuse = |what: &str| TierError { place: "--hardware this".into(), what: what.to_owned() };
    let info = std::fs::read_to_string("/proc/meminfo")
        .map_err(|_| refuse("this system does not tell its memory; describe it, such as `ram=64GiB`"))?;
    let total =
        info.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?.trim().parse().ok());
    let kib: u64 =
        total.ok_or_else(|| refuse("/proc/meminfo has no MemTotal; describe the machine, such as `ram=64GiB`"))?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let raw = RawHardware { ram: Some(format!("{kib}KiB")), cores: Some(cores), ..RawHardware::default() };
    let hardware = raw.check().map_err(|what| refuse(&what))?;
    Ok(Tier { name: "this".into(), title: "this machine, its memory and cores alone".into(), hardware })
}

impl RawHardware {
    fn check(self) -> Result<Hardware, String> {
        let vram = match self.vram {
            None => Vec::new(),
            Some(OneOrMore::One(one)) => vec![one],
            Some(OneOrMore::More(more)) => more,
        };
        let vram: Vec<u64> = vram.iter().map(|text| parse_bytes(text)).collect::<Result<_, _>>()?;
        let ram = parse_bytes(&self.ram.ok_or("`ram` is missing, such as `ram: 64GiB`")?)?;
        let nvme = self.nvme.map(|text| rate(&text)).transpose()?;
        let or = |text: Option<String>, usual| text.map_or(Ok(usual), |text| rate(&text));
        let cores = self.cores.unwrap_or(8);
        if ram == 0 || cores == 0 || vram.contains(&0) {
            return Err(
                "a machine has memory, cores, and cards with memory or none; leave out what it does not have".into()
            );
        }
        Ok(Hardware {
            vram,
            vram_bandwidth: or(self.vram_bandwidth, VRAM_BANDWIDTH)?,
            ram,
            ram_bandwidth: or(self.ram_bandwidth, RAM_BANDWIDTH)?,
            pcie: or(self.pcie, PCIE)?,
            nvme,
            unified: self.unified,
            cores,
        })
    }
}

/// `7GB/s` in bytes per second.
fn rate(text: &str) -> Result<u64, String> {
    let bytes = text.trim().strip_suffix("/s").ok_or_else(|| format!("`{text}` is no bandwidth; write e.g. 7GB/s"))?;
    match parse_bytes(bytes)? {
        0 => Err(format!("`{text}` is no bandwidth; leave it out if there is none")),
        rate => Ok(rate),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_machine_of_the_catalogue_is_understood_and_says_what_it_has() {
        let tiers = tiers().unwrap();
        assert!(tiers.len() >= 15);
        for t in &tiers {
            assert!(t.title.len() > 10 && t.hardware.ram >= 32 << 30, "{t:?}");
            assert_eq!(t.name.contains("nvme"), t.hardware.nvme.is_some(), "{}", t.name);
            assert_eq!(t.name.starts_with("unified"), t.hardware.unified);
            assert_eq!(t.name.contains("gpu") || t.name.contains("dual"), !t.hardware.vram.is_empty(), "{}", t.name);
            assert_eq!(&tier(&t.name).unwrap(), t);
        }
    }

    #[test]
    fn a_machine_can_be_described_in_one_line() {
        let t = tier("vram=48GiB+48GiB,ram=256GiB,nvme=7GB/s,cores=24").unwrap();
        let Hardware { vram, ram, nvme, cores, ram_bandwidth, .. } = t.hardware;
        assert_eq!((vram, ram, nvme, cores), (vec![48 << 30; 2], 256 << 30, Some(7_000_000_000), 24));
        assert_eq!(ram_bandwidth, RAM_BANDWIDTH);
    }

    #[test]
    fn what_is_no_machine_is_refused_with_the_remedy() {
        for (text, told) in [
            ("gpu24-ram128-nmve", "did you mean `gpu24-ram128-nvme`"),
            ("vram=24GiB", "`ram` is missing"),
            ("ram=64GiB,disk=1TB", "there is no `disk`"),
            ("ram=64GiB,nvme=7GB", "7GB/s"),
            ("ram=64GiB,cores=many", "no number"),
            ("ram=0GiB", "leave out"),
            ("ram=lots", "no size"),
        ] {
            let refused = tier(text).unwrap_err().to_string();
            assert!(refused.contains(told) && refused.contains("--hardware"), "{text}: {refused}");
        }
    }

    #[test]
    fn a_file_of_placement_is_a_machine_too() {
        let yaml =
            "version: 1\nhardware: {vram: 24GiB, ram: 96GiB}\nrules: [{id: a, match: {}, set: {}}]\nkv: {dtype: q8}\n";
        let t = parse("mine.yaml", "mine", yaml).unwrap();
        assert_eq!((t.title.as_str(), t.hardware.vram.len()), ("mine", 1));
        let refused = parse("mine.yaml", "mine", "hardware: {ram: 96GiB, vrma: 1GiB}").unwrap_err().to_string();
        assert!(refused.contains("mine.yaml") && refused.contains("vrma"), "{refused}");
    }
}

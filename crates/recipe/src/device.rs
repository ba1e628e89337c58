//! Names of devices: `cpu`, `cuda:0`.

use std::fmt;

/// Kinds of devices, and whether there may be several of a kind. Which of them a machine has is not known here.
const KINDS: &[(&str, bool)] =
    &[("cpu", false), ("cuda", true), ("cuda-host", true), ("reference", false), ("virtual", true)];

/// What messages show.
pub const EXAMPLES: [&str; 5] = ["auto", "cpu", "cuda:0", "reference", "virtual:0"];

/// Devices of a kind are numbered below this.
const MOST: usize = 64;

/// The name of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Device {
    /// `cpu`, `cuda`, `cuda-host`, `reference` or `virtual`.
    pub kind: &'static str,
    /// Which of its kind, where there may be several.
    pub index: Option<usize>,
}

impl Device {
    /// The processor of the host.
    pub const CPU: Self = Self { kind: "cpu", index: None };

    /// Whether it has memory of its own, which weights are brought into before the first token.
    #[must_use]
    pub fn is_accelerator(&self) -> bool {
        self.index.is_some()
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.index {
            Some(index) => write!(f, "{}:{index}", self.kind),
            None => f.write_str(self.kind),
        }
    }
}

/// Reads `cpu`, `cuda:1`; `cuda` is `cuda:0`. `None` for anything else.
#[must_use]
pub fn parse(text: &str) -> Option<Device> {
    let (name, number) = text.split_once(':').map_or((text, None), |(name, number)| (name, Some(number)));
    let &(kind, several) = KINDS.iter().find(|(kind, _)| *kind == name)?;
    let index = match (several, number) {
        (false, None) => return Some(Device { kind, index: None }),
        (false, Some(_)) => return None,
        (true, None) => 0,
        (true, Some(digits)) if digits.bytes().all(|b| b.is_ascii_digit()) => digits.parse().ok()?,
        (true, Some(_)) => return None,
    };
    (index < MOST).then_some(Device { kind, index: Some(index) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_written_alike() {
        for name in ["cpu", "cuda:0", "cuda:13", "reference", "virtual:2"] {
            assert_eq!(parse(name).map(|d| d.to_string()).as_deref(), Some(name));
        }
        assert_eq!(parse("cuda"), parse("cuda:0"));
    }

    #[test]
    fn what_is_no_device_is_none() {
        for name in ["", "auto", "cpu:0", "cuda:", "cuda:x", "cuda:+1", "cuda:64", "cuda:99999999999999999999", "gpu"] {
            assert_eq!(parse(name), None, "{name}");
        }
    }
}

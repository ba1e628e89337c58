//! How much a model shall reason before it answers.

use crate::RuntimeError;
use std::fmt;

/// A level of reasoning. Models know some of them or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Think {
    /// Answer at once.
    Off,
    /// A little.
    Low,
    /// Between.
    Medium,
    /// As the model does when it reasons; where there is only on and off, on.
    High,
    /// As much as it can.
    Max,
}

impl Think {
    /// All, in order.
    pub const ALL: [Self; 5] = [Self::Off, Self::Low, Self::Medium, Self::High, Self::Max];

    /// As options and templates write it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
            Self::Max => "max",
        }
    }
}

impl fmt::Display for Think {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Whether a model that knows `levels` can be asked for `level`.
///
/// # Errors
/// [`RuntimeError::Option`], naming what it knows.
pub fn check(level: Think, levels: &[Think]) -> Result<(), RuntimeError> {
    if levels.contains(&level) {
        return Ok(());
    }
    let expected = if levels.is_empty() {
        "none: this model has no switch for reasoning; leave it out".to_owned()
    } else {
        let known: Vec<&str> = levels.iter().map(|l| l.name()).collect();
        format!("one that this model knows: {}", known.join(", "))
    };
    Err(RuntimeError::Option { option: "--think", got: level.to_string(), expected })
}

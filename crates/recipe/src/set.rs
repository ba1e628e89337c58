//! What a rule asks for, and how later rules override earlier ones field by field.

use ashlar_formats::{Options, OutlierRule};
use std::fmt::Write as _;

/// Quantizers a recipe may name. `auto` lets the converter choose by format; the others are the ids of
/// `ashlar-quantize`, which this crate may not depend on (a test of the command line holds the two lists together).
pub const METHODS: &[&str] = &["auto", "gptq", "rtn", "search"];

/// What leaves a tier, a device or a method to the program; undoes what earlier rules said.
pub const AUTO: &str = "auto";

/// No outliers; undoes what earlier rules said.
pub const NONE: &str = "none";

/// Where a tensor is to be held.
pub const TIERS: &[&str] = &[AUTO, "vram", "ram", "nvme", "cached"];

/// The format a rule asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// As it is in the checkpoint.
    Keep,
    /// A format by id; `float` for plain values, which vectors may have too.
    Format { id: &'static str, float: bool },
}

impl Want {
    pub fn name(self) -> &'static str {
        match self {
            Self::Keep => "keep",
            Self::Format { id, .. } => id,
        }
    }
}

/// The fields of `set`; `None` leaves what earlier rules said.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Set {
    pub format: Option<Want>,
    pub group: Option<usize>,
    pub zero_point: Option<bool>,
    /// `Some(None)`: none, whatever earlier rules said.
    pub outliers: Option<Option<OutlierRule>>,
    pub method: Option<&'static str>,
    /// Formats a budget may choose from.
    pub allow: Vec<Want>,
    /// The least format a budget may choose.
    pub min_format: Option<Want>,
    pub is_final: bool,
    pub tier: Option<&'static str>,
    pub device: Option<String>,
}

/// What the rules so far say about one tensor.
#[derive(Clone, Debug)]
pub struct State<'a> {
    pub want: Want,
    pub options: Options,
    pub method: &'static str,
    pub tier: Option<&'static str>,
    pub device: Option<&'a str>,
    /// The rule that set the format; `None` for the defaults.
    pub format_by: Option<usize>,
    /// The last rule that set a parameter of the format.
    pub options_by: Option<usize>,
    /// Formats that a budget may choose from; empty where no rule says.
    pub allow: &'a [Want],
    /// The least format that a budget may choose.
    pub min_format: Option<Want>,
}

impl<'a> State<'a> {
    pub fn new(defaults: &'a Set) -> Self {
        let mut state = Self {
            want: Want::Keep,
            options: Options::default(),
            method: AUTO,
            tier: None,
            device: None,
            format_by: None,
            options_by: None,
            allow: &[],
            min_format: None,
        };
        state.apply(defaults, None);
        state
    }

    /// Overrides what `set` names. `group`, `zero_point` and `outliers` are parameters of the format they were given
    /// for: another format starts without them.
    pub fn apply(&mut self, set: &'a Set, rule: Option<usize>) {
        if let Some(want) = set.format {
            if want != self.want {
                self.options = Options::default();
            }
            self.want = want;
            self.format_by = rule;
            self.options_by = rule;
        }
        if set.group.is_some() || set.zero_point.is_some() || set.outliers.is_some() {
            self.options.group = set.group.or(self.options.group);
            self.options.zero_point = set.zero_point.or(self.options.zero_point);
            self.options.outliers = set.outliers.unwrap_or(self.options.outliers);
            self.options_by = rule;
        }
        if !set.allow.is_empty() {
            self.allow = &set.allow;
        }
        self.min_format = set.min_format.or(self.min_format);
        self.method = set.method.unwrap_or(self.method);
        self.tier = set.tier.or(self.tier);
        self.device = set.device.as_deref().or(self.device);
    }
}

impl Set {
    /// As YAML: `format: nf4, group: 64`.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let mut field = |name: &str, value: String| {
            let _ = write!(text, "{}{name}: {value}", if text.is_empty() { "" } else { ", " });
        };
        if let Some(want) = self.format {
            field("format", want.name().to_owned());
        }
        if let Some(group) = self.group {
            field("group", group.to_string());
        }
        if let Some(zero_point) = self.zero_point {
            field("zero_point", zero_point.to_string());
        }
        if let Some(outliers) = self.outliers {
            let rule = |OutlierRule { share, sigma }| format!("{{share: {share}, sigma: {sigma}}}");
            field("outliers", outliers.map_or(NONE.to_owned(), rule));
        }
        if let Some(method) = self.method {
            field("method", method.to_owned());
        }
        if !self.allow.is_empty() {
            field("allow", format!("[{}]", self.allow.iter().map(|w| w.name()).collect::<Vec<_>>().join(", ")));
        }
        if let Some(want) = self.min_format {
            field("min_format", want.name().to_owned());
        }
        if let Some(tier) = self.tier {
            field("tier", tier.to_owned());
        }
        if let Some(device) = &self.device {
            field("device", if device.contains(':') { format!("\"{device}\"") } else { device.clone() });
        }
        if self.is_final {
            field("final", "true".to_owned());
        }
        text
    }
}

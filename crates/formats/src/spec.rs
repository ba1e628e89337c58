//! A format with its parameters: what a recipe resolves to and what a pack stores as text.

use crate::{Format, FormatError, Grid, Layout, ScaleType, registry};
use ashlar_tensor::Order;
use std::fmt;
use std::str::FromStr;

/// What a recipe may ask for besides the format's id; `None` means the format's default.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Options {
    /// Values per scale along k.
    pub group: Option<usize>,
    /// Whether groups have a zero point.
    pub zero_point: Option<bool>,
    /// Outlier slots on top of the format.
    pub outliers: Option<OutlierRule>,
}

/// How many outliers each row may keep, and which values are outliers.
///
/// The number of slots is part of the [`Spec`]; `sigma` only matters while encoding and reaches a quantizer beside it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OutlierRule {
    /// Slots per row as a share of k, such as 0.005.
    pub share: f64,
    /// A value is an outlier when |w| exceeds this many standard deviations of its row.
    pub sigma: f64,
}

impl OutlierRule {
    /// The cut-off where a recipe names none.
    pub const DEFAULT_SIGMA: f64 = 4.0;

    /// Slots per row of a weight with k inputs: ⌈share · k⌉.
    ///
    /// # Errors
    /// [`FormatError::Parameter`] if share is not in (0, 0.25] or sigma is not a finite number ≥ 0;
    /// [`FormatError::Shape`] if a column does not fit into 16 bits.
    pub fn slots(&self, id: &'static str, n: usize, k: usize) -> Result<usize, FormatError> {
        if !(self.share > 0.0 && self.share <= 0.25) {
            let what =
                format!("outliers: share {} is outside 0 to 0.25 (a slot takes 32 bits; 0.005 is usual)", self.share);
            return Err(FormatError::Parameter { id, what });
        }
        if !(self.sigma >= 0.0 && self.sigma.is_finite()) {
            let what =
                format!("outliers: sigma {} is not a number of standard deviations (3 or 4 is usual)", self.sigma);
            return Err(FormatError::Parameter { id, what });
        }
        let slots = ((self.share * k as f64).ceil() as usize).max(1);
        check_outliers(id, slots, n, k)?;
        Ok(slots)
    }
}

/// Outlier slots hold the column in 16 bits; a row cannot have more of them than columns.
pub(crate) fn check_outliers(id: &'static str, slots: usize, n: usize, k: usize) -> Result<(), FormatError> {
    if slots == 0 || (k <= 1 << 16 && slots <= k) {
        return Ok(());
    }
    let what = format!("{slots} outlier slots per row need at least {slots} and at most 65536 columns");
    Err(FormatError::Shape { id, n, k, what: what + "; leave outliers out for this tensor" })
}

/// One legal set of parameters of a format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Variant {
    /// What follows `id:` in the text form; empty where there is nothing to choose.
    pub text: &'static str,
    /// Values per scale along k; 0 where the format has no groups.
    pub group: usize,
    /// Whether groups have a zero point.
    pub zero_point: bool,
    /// How scales are stored; `None` where there are none.
    pub scale: Option<ScaleType>,
}

/// A format with every parameter decided. Its text form (`q8`, `i4:g64,zp`, `nf4:g64+o13`) is what manifests hold.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Spec {
    /// The format's id.
    pub id: &'static str,
    /// Values per scale along k; 0 where the format has no groups.
    pub group: usize,
    /// Whether groups have a zero point.
    pub zero_point: bool,
    /// How scales are stored; `None` where there are none.
    pub scale: Option<ScaleType>,
    /// Outlier slots per row; 0 for no outlier plane.
    pub outlier_slots: usize,
}

impl Spec {
    /// A spec with no parameters, as floats have.
    #[must_use]
    pub fn plain(id: &'static str) -> Self {
        Self { id, group: 0, zero_point: false, scale: None, outlier_slots: 0 }
    }

    fn of(id: &'static str, variant: &Variant) -> Self {
        let &Variant { group, zero_point, scale, .. } = variant;
        Self { id, group, zero_point, scale, outlier_slots: 0 }
    }

    /// The format named `id` with `options` and its defaults for the rest, for an n × k weight.
    ///
    /// # Errors
    /// [`FormatError`] if the format is unknown, lacks a parameter, or cannot take the shape.
    pub fn resolve(id: &str, options: &Options, n: usize, k: usize) -> Result<Self, FormatError> {
        let format = registry::format(id)?;
        let id = format.id();
        let variants = format.variants();
        let zero_point = options.zero_point.unwrap_or(false);
        let fits = |v: &&Variant| options.group.is_none_or(|g| g == v.group) && v.zero_point == zero_point;
        let variant = variants.iter().find(fits).ok_or_else(|| {
            let asked = match options.group {
                Some(group) => format!("group {group}{}", if zero_point { " with zero points" } else { "" }),
                None => "zero points".to_owned(),
            };
            FormatError::Parameter { id, what: format!("has no {asked}; {}", allowed(format)) }
        })?;
        let mut spec = Self::of(id, variant);
        if let Some(rule) = &options.outliers {
            if !takes_outliers(format) {
                return Err(FormatError::Parameter {
                    id,
                    what: "holds every value already and takes no outliers".into(),
                });
            }
            spec.outlier_slots = rule.slots(id, n, k)?;
        }
        spec.layout(Order::X16, n, k)?;
        Ok(spec)
    }

    /// The format this spec belongs to.
    ///
    /// # Errors
    /// [`FormatError::Unknown`] if the id is not registered, [`FormatError::Parameter`] if the format has no such
    /// parameters (a spec built by hand).
    pub fn format(&self) -> Result<&'static dyn Format, FormatError> {
        let format = registry::format(self.id)?;
        match self.variant() {
            Some(_) => Ok(format),
            None => Err(FormatError::Parameter {
                id: self.id,
                what: format!("no such parameters: {self:?}; {}", allowed(format)),
            }),
        }
    }

    /// Where the planes of an n × k weight lie.
    ///
    /// # Errors
    /// [`FormatError::Shape`] if the shape does not fit.
    pub fn layout(&self, order: Order, n: usize, k: usize) -> Result<Layout, FormatError> {
        self.format()?.layout(self, order, n, k)
    }

    /// What values codes stand for.
    ///
    /// # Errors
    /// As [`Spec::format`].
    pub fn grid(&self) -> Result<Grid, FormatError> {
        Ok(self.format()?.grid(self))
    }

    fn variant(&self) -> Option<&'static Variant> {
        let format = registry::format(self.id).ok()?;
        if self.outlier_slots > 0 && !takes_outliers(format) {
            return None;
        }
        let bare = Self { outlier_slots: 0, ..self.clone() };
        format.variants().iter().find(|v| Self::of(self.id, v) == bare)
    }
}

/// Formats without scales hold every value already.
fn takes_outliers(format: &dyn Format) -> bool {
    format.variants().iter().all(|v| v.scale.is_some())
}

/// The legal forms of a format, for messages.
fn allowed(format: &dyn Format) -> String {
    let id = format.id();
    let form = |v: &Variant| if v.text.is_empty() { id.to_owned() } else { format!("{id}:{}", v.text) };
    format!("there is {}", format.variants().iter().map(form).collect::<Vec<_>>().join(", "))
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.id)?;
        if let Some(variant) = self.variant().filter(|v| !v.text.is_empty()) {
            write!(f, ":{}", variant.text)?;
        }
        if self.outlier_slots > 0 {
            write!(f, "+o{}", self.outlier_slots)?;
        }
        Ok(())
    }
}

impl FromStr for Spec {
    type Err = FormatError;

    /// Reads the text form; `i4` alone means the format's default.
    fn from_str(text: &str) -> Result<Self, FormatError> {
        let (base, slots) = text.split_once("+o").map_or((text, None), |(base, slots)| (base, Some(slots)));
        let (id, parameters) = base.split_once(':').map_or((base, None), |(id, p)| (id, Some(p)));
        let format = registry::format(id)?;
        let id = format.id();
        let bad = |what: String| FormatError::Parameter { id, what };
        let variants = format.variants();
        let found = match parameters {
            None => variants.first(),
            Some(p) => variants.iter().find(|v| v.text == p && !p.is_empty()),
        };
        let variant = found.ok_or_else(|| bad(format!("there is no `{text}`; {}", allowed(format))))?;
        let mut spec = Self::of(id, variant);
        if let Some(slots) = slots {
            let count = slots.parse().ok().filter(|&c: &usize| (1..=1 << 16).contains(&c));
            let canonical = count.filter(|c| c.to_string() == slots);
            spec.outlier_slots =
                canonical.ok_or_else(|| bad(format!("`+o{slots}` is not a number of outlier slots, 1 to 65536")))?;
            if !takes_outliers(format) {
                return Err(bad("holds every value already and takes no outliers".into()));
            }
        }
        Ok(spec)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_variant_survives_its_text_form() -> Result<(), FormatError> {
        for id in crate::ids() {
            for variant in crate::format(id)?.variants() {
                let spec = Spec::of(id, variant);
                assert_eq!(spec.to_string().parse::<Spec>()?, spec);
                if takes_outliers(crate::format(id)?) {
                    let spec = Spec { outlier_slots: 13, ..spec };
                    assert!(spec.to_string().ends_with("+o13"));
                    assert_eq!(spec.to_string().parse::<Spec>()?, spec);
                }
            }
        }
        Ok(())
    }

    #[test]
    fn text_forms_are_those_of_the_documentation() -> Result<(), FormatError> {
        let of = |id: &str, options: &Options| Spec::resolve(id, options, 64, 2560).map(|s| s.to_string());
        let rule = OutlierRule { share: 0.005, sigma: 3.0 };
        assert_eq!(of("q8", &Options::default())?, "q8");
        assert_eq!(of("i4", &Options::default())?, "i4:g32");
        assert_eq!(of("i4", &Options { group: Some(64), zero_point: Some(true), outliers: None })?, "i4:g64,zp");
        assert_eq!(of("nf4", &Options { outliers: Some(rule), ..Options::default() })?, "nf4:g64+o13");
        assert_eq!(of("iq4nl", &Options::default())?, "iq4nl");
        assert_eq!(of("mxfp4", &Options::default())?, "mxfp4");
        assert_eq!(of("fp8", &Options::default())?, "fp8:128x128,f32");
        assert_eq!("i4".parse::<Spec>()?.group, 32);
        assert_eq!("fp8:128x128,e8m0".parse::<Spec>()?.scale, Some(ScaleType::E8M0));
        Ok(())
    }

    #[test]
    fn wrong_parameters_are_refused_with_what_is_allowed() {
        for text in ["i4:g48", "i4:", "q8:g64", "bf16+o3", "nf4:g64+o0", "nf4:g64+o", "nf4:g64+o007", "nf4+o99999999"] {
            assert!(matches!(text.parse::<Spec>(), Err(FormatError::Parameter { .. })), "{text}");
        }
        assert!(matches!("q9".parse::<Spec>(), Err(FormatError::Unknown(_))));
        let e = "i4:g48".parse::<Spec>().unwrap_err().to_string();
        assert!(e.contains("i4:g32") && e.contains("i4:g128,zp"), "{e}");
        let zp = Options { zero_point: Some(true), ..Options::default() };
        assert!(Spec::resolve("nf4", &zp, 16, 64).unwrap_err().to_string().contains("zero points"));
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        let options = Options::default();
        for (id, k) in [("q8", 48), ("i4", 16), ("nf4", 96), ("mxfp4", 0), ("fp8", 40)] {
            assert!(matches!(Spec::resolve(id, &options, 16, k), Err(FormatError::Shape { .. })), "{id} {k}");
        }
        let many: Spec = Spec { outlier_slots: 65, ..Spec::resolve("q8", &options, 16, 64).unwrap() };
        assert!(matches!(many.layout(Order::X16, 16, 64), Err(FormatError::Shape { .. })));
        let outliers = Options { outliers: Some(OutlierRule { share: 0.01, sigma: 3.0 }), ..options };
        assert!(matches!(Spec::resolve("nf4", &outliers, 16, 65536 + 64), Err(FormatError::Shape { .. })));
        assert!(matches!(Spec::resolve("q8", &Options::default(), usize::MAX, 32), Err(FormatError::Shape { .. })));
    }
}

//! Recipes that come with the program: the files of `recipes/`.

/// Names and texts, alphabetical.
const PRESETS: &[(&str, &str)] = &[
    ("4bit", include_str!("../../../recipes/4bit.yaml")),
    ("4bit-best", include_str!("../../../recipes/4bit-best.yaml")),
    ("4bit-experts", include_str!("../../../recipes/4bit-experts.yaml")),
    ("8bit", include_str!("../../../recipes/8bit.yaml")),
    ("auto", include_str!("../../../recipes/auto.yaml")),
    ("fp8", include_str!("../../../recipes/fp8.yaml")),
    ("keep", include_str!("../../../recipes/keep.yaml")),
    ("mxfp4", include_str!("../../../recipes/mxfp4.yaml")),
    ("nf4-outliers", include_str!("../../../recipes/nf4-outliers.yaml")),
];

/// The text of a preset.
#[must_use]
pub fn preset(name: &str) -> Option<&'static str> {
    PRESETS.iter().find(|(n, _)| *n == name).map(|(_, text)| *text)
}

/// The names of all presets.
pub fn presets() -> impl Iterator<Item = &'static str> {
    PRESETS.iter().map(|(name, _)| *name)
}

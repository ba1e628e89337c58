//! Recipes that come with the program: the files of `recipes/`.

/// Names and texts, alphabetical.
const PRESETS: &[(&str, &str)] = &[
    ("2bit-experts", include_str!("../../../recipes/2bit-experts.yaml")),
    ("3bit", include_str!("../../../recipes/3bit.yaml")),
    ("3bit-experts", include_str!("../../../recipes/3bit-experts.yaml")),
    ("4bit", include_str!("../../../recipes/4bit.yaml")),
    ("4bit-best", include_str!("../../../recipes/4bit-best.yaml")),
    ("4bit-experts", include_str!("../../../recipes/4bit-experts.yaml")),
    ("8bit", include_str!("../../../recipes/8bit.yaml")),
    ("auto", include_str!("../../../recipes/auto.yaml")),
    ("deepseek-v3-2bit-experts", include_str!("../../../recipes/deepseek-v3-2bit-experts.yaml")),
    ("deepseek-v3-3bit-experts", include_str!("../../../recipes/deepseek-v3-3bit-experts.yaml")),
    ("deepseek-v3-4bit-experts", include_str!("../../../recipes/deepseek-v3-4bit-experts.yaml")),
    ("fp8", include_str!("../../../recipes/fp8.yaml")),
    ("gpt-oss-2bit-experts", include_str!("../../../recipes/gpt-oss-2bit-experts.yaml")),
    ("gpt-oss-3bit-experts", include_str!("../../../recipes/gpt-oss-3bit-experts.yaml")),
    ("gpt-oss-native-experts", include_str!("../../../recipes/gpt-oss-native-experts.yaml")),
    ("keep", include_str!("../../../recipes/keep.yaml")),
    ("mxfp4", include_str!("../../../recipes/mxfp4.yaml")),
    ("nf4-outliers", include_str!("../../../recipes/nf4-outliers.yaml")),
    ("v4-flash-103gb", include_str!("../../../recipes/v4-flash-103gb.yaml")),
    ("v4-flash-136gb", include_str!("../../../recipes/v4-flash-136gb.yaml")),
    ("v4-flash-2bit-experts", include_str!("../../../recipes/v4-flash-2bit-experts.yaml")),
    ("v4-pro-2bit-experts", include_str!("../../../recipes/v4-pro-2bit-experts.yaml")),
    ("v4-pro-3bit-experts", include_str!("../../../recipes/v4-pro-3bit-experts.yaml")),
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

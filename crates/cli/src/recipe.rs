//! `--recipe`: a file or the name of a preset.

use crate::exit::{Failure, OrUsage};
use anyhow::{Context, anyhow};
use ashlar_recipe::{Recipe, preset, presets};
use std::path::Path;

/// Reads a recipe. A file wins over a preset of the same name.
///
/// # Errors
/// Everything that is wrong with it is the user's mistake: each with its line.
pub fn open(recipe: &str) -> Result<Recipe, Failure> {
    let (text, name) = read(recipe)?;
    Recipe::parse(&text, &name).or_usage()
}

/// The text of a recipe and the name that errors call it by.
fn read(recipe: &str) -> Result<(String, String), Failure> {
    let path = Path::new(recipe);
    if path.is_file() {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read the recipe {recipe}")).or_usage()?;
        return Ok((text, recipe.to_owned()));
    }
    let text = preset(recipe).ok_or_else(|| Failure::usage(unknown(recipe)))?;
    Ok((text.to_owned(), format!("preset {recipe}")))
}

fn unknown(recipe: &str) -> anyhow::Error {
    let nearest = ashlar_arch::nearest(recipe, presets());
    let hint = nearest.map(|n| format!("; did you mean `{n}`?")).unwrap_or_default();
    anyhow!(
        "there is neither a recipe file nor a preset `{recipe}`{hint} (`ashlar plan --list-recipes` shows the presets)"
    )
}

/// Every preset with the comment it starts with.
#[must_use]
pub fn list() -> String {
    let width = presets().map(str::len).max().unwrap_or(0);
    let mut out = String::new();
    for name in presets() {
        let text = preset(name).unwrap_or_default();
        let about = text.lines().map_while(|l| l.strip_prefix("# "));
        for (i, line) in about.enumerate() {
            let name = if i == 0 { name } else { "" };
            out.push_str(&format!("  {name:width$}  {line}\n"));
        }
    }
    out
}

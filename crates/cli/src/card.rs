//! A pack's README.md: what it was made from and how, the licence, and the source's own card below.
//!
//! Its front matter is the source's, so that licence, languages and tasks stay what they are, with what the hub wants to know
//! of a quantized model in the place of what the source said there. No time, path or host is in it.

use crate::license::{License, beginning, dir_of, front_matter};
use crate::model::{Model, Source, format_list};
use crate::table::Table;
use crate::{hub, units};
use ashlar_convert::Plan;
use std::fmt::Write;

/// Between what is ours and the source's card: a pack that is converted again passes on only that.
const BELOW: &str = "<!-- the card of the source -->";
/// Keys of the front matter that are said anew.
const OURS: [&str; 3] = ["base_model", "base_model_relation", "library_name"];

/// The card of the pack that `plan` makes of `model`; `recipe` is what the user calls the recipe.
#[must_use]
pub fn card(model: &Model, plan: &Plan, recipe: &str) -> String {
    let given = dir_of(&model.source).and_then(|dir| beginning(&dir.join("README.md"))).unwrap_or_default();
    let (front, body) = front_matter(&given);
    let body = body.split_once(BELOW).map_or(body, |(_, source)| source).trim();
    let repo = hub::repository(&model.path).ok().flatten();
    let mut out = front_of(front, repo.as_ref().map(|r| r.id.as_str()), &model.source);
    let name = repo.as_ref().map(|r| r.id.rsplit('/').next().unwrap_or(&r.id));
    let title = name.map_or_else(|| "A model".to_owned(), str::to_owned);
    let _ = write!(
        out,
        "# {title} in mixed precision\n\nA *pack*, made by ashlar: `ashlar run` with this \
         folder runs it, `ashlar inspect` shows what is in it.\n\n"
    );
    out.push_str(&facts(model, plan, recipe));
    let _ = write!(out, "\n## Licence\n\n{}\n", license(&License::of_source(&model.source)));
    let _ = write!(out, "\n## What is stored how\n\n{}", classes(plan));
    if !body.is_empty() {
        let _ = write!(out, "\n## The source's card\n\n{BELOW}\n\n{body}\n");
    }
    out
}

/// The source's front matter with our keys.
fn front_of(front: &str, repo: Option<&str>, source: &Source) -> String {
    let mut out = String::from("---\n");
    let mut dropped = false;
    for line in front.lines() {
        // A key's list or block is indented, or begins with a dash.
        let continues = line.starts_with([' ', '\t', '-']);
        let key = line.split(':').next().unwrap_or_default();
        dropped = if continues { dropped } else { OURS.contains(&key) && !(key == "base_model" && repo.is_none()) };
        // What a pack was made from stays what it says.
        if !dropped || matches!(source, Source::Pack(_)) {
            let _ = writeln!(out, "{line}");
        }
    }
    if !matches!(source, Source::Pack(_)) {
        if let Some(repo) = repo {
            let _ = write!(out, "base_model:\n- {repo}\nbase_model_relation: quantized\n");
        }
        out.push_str("library_name: ashlar\n");
    }
    out + "---\n\n"
}

fn facts(model: &Model, plan: &Plan, recipe: &str) -> String {
    let identity = model.source.identity();
    let identity = identity.get(..16).unwrap_or(&identity);
    let source = match (hub::repository(&model.path).ok().flatten(), hub::commit(model)) {
        (Some(repo), Some(commit)) => format!("{} at {commit}, identity {identity}", repo.id),
        _ => format!("identity {identity}"),
    };
    let rows = [
        ["source".to_owned(), source],
        ["recipe".to_owned(), format!("{recipe}; resolved in `ashlar.json`")],
        ["weights".to_owned(), units::count(plan.params)],
        ["size".to_owned(), format!("{}, {:.2} bits per weight", units::bytes(plan.total_bytes), plan.bpw)],
        ["made with".to_owned(), format!("ashlar {}", env!("CARGO_PKG_VERSION"))],
    ];
    let mut table = Table::new(&["", ""]);
    rows.into_iter().for_each(|row| table.row(row));
    table.markdown()
}

/// The licence's lines, differences as a list.
fn license(license: &License) -> String {
    let mut out = String::new();
    for line in license.text().lines() {
        match line.strip_prefix("  ") {
            Some(difference) => {
                let _ = write!(out, "\n- {difference}");
            }
            None => out.push_str(line),
        }
    }
    out
}

fn classes(plan: &Plan) -> String {
    let mut table = Table::new(&["class", ">tensors", ">bytes", ">bits per weight", "formats"]);
    for c in &plan.classes {
        let formats = c.formats.iter().map(|(f, n)| (f.clone(), *n as u64)).collect();
        table.row([
            c.class.to_owned(),
            units::thousands(c.tensors as u64),
            units::bytes(c.bytes),
            format!("{:.2}", c.bpw),
            format_list(&formats),
        ]);
    }
    table.markdown()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn of(dir: &Path) -> String {
        let model = Model::open(dir).unwrap_or_else(|_| panic!("a model"));
        let request = crate::allocation::Request { recipe: Some("8bit"), ..Default::default() };
        let decided = request.decide(&model, &ashlar_tensor::Silent).unwrap_or_else(|_| panic!("a recipe"));
        card(&model, &decided.plan(&model).unwrap_or_else(|_| panic!("a plan")), "8bit")
    }

    fn fixture(readme: &str) -> tempfile::TempDir {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/tiny/llama");
        let dir = tempfile::tempdir().unwrap();
        for file in ["config.json", "model.safetensors"] {
            std::fs::copy(from.join(file), dir.path().join(file)).unwrap();
        }
        std::fs::write(dir.path().join("README.md"), readme).unwrap();
        dir
    }

    #[test]
    fn the_front_matter_stays_and_the_source_s_card_stands_below() {
        let readme = "---\nlicense: other\nlicense_name: mine\nlibrary_name: transformers\nlanguage:\n- en\n---\n\n# Theirs\n\nText.\n";
        let dir = fixture(readme);
        let card = of(dir.path());
        let (front, body) = front_matter(&card);
        assert_eq!(front, "license: other\nlicense_name: mine\nlanguage:\n- en\nlibrary_name: ashlar");
        for part in ["| recipe | 8bit;", "licence: mine", "| size | ", "bits per weight", BELOW, "# Theirs\n\nText."] {
            assert!(body.contains(part), "{part}: {card}");
        }
        assert!(!card.contains(&dir.path().display().to_string()), "{card}");
        // Of a pack that is converted again, only what stood below goes on.
        std::fs::write(dir.path().join("README.md"), &card).unwrap();
        let again = of(dir.path());
        assert_eq!(again.matches(BELOW).count(), 1, "{again}");
        assert!(again.ends_with("# Theirs\n\nText.\n"), "{again}");
    }

    #[test]
    fn a_source_without_a_card_gets_one() {
        let dir = fixture("");
        let card = of(dir.path());
        assert!(card.starts_with("---\nlibrary_name: ashlar\n---\n\n# A model in mixed precision"), "{card}");
        assert!(card.contains("licence: not stated") && !card.contains(BELOW), "{card}");
    }
}

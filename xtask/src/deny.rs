//! `xtask deny`: every dependency has an allowed licence, none is banned, duplicate versions are told.
//!
//! The offline counterpart of `cargo deny check licenses bans`, by the same `deny.toml`.

mod config;
mod spdx;

use crate::metadata::{self, Package};
use config::Config;
use std::collections::BTreeMap;
use std::path::Path;

/// All problems found; duplicate versions are printed, not counted.
pub fn run(root: &Path) -> Result<Vec<String>, String> {
    let file = root.join("deny.toml");
    let text = std::fs::read_to_string(&file).map_err(|e| format!("{}: {e}", file.display()))?;
    let config = Config::parse(&text);
    if config.allow.is_empty() {
        return Err("deny.toml: `[licenses] allow` lists no licence".into());
    }
    let packages = metadata::all(root)?;
    let duplicates = duplicates(&packages);
    println!("{} packages on all platforms; {} crates in more than one version", packages.len(), duplicates.len());
    for (name, versions) in duplicates {
        println!("  {name}: {}", versions.join(", "));
    }
    Ok(problems(&packages, &config))
}

fn problems(packages: &[Package], config: &Config) -> Vec<String> {
    let mut problems = Vec::new();
    for package in packages {
        let Package { name, version, license, .. } = package;
        if config.banned.contains(name) {
            problems.push(format!("{name} {version} is banned by deny.toml"));
        }
        if license.is_empty() {
            problems.push(format!("{name} {version} states no licence"));
            continue;
        }
        match spdx::allowed(license, &config.allow) {
            Ok(true) => {}
            Ok(false) => problems.push(format!("{name} {version}: licence `{license}` is not allowed by deny.toml")),
            Err(what) => problems.push(format!("{name} {version}: licence `{license}`: {what}")),
        }
    }
    problems
}

fn duplicates(packages: &[Package]) -> Vec<(&str, Vec<&str>)> {
    let mut versions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for package in packages {
        versions.entry(&package.name).or_default().push(&package.version);
    }
    versions.into_iter().filter(|(_, v)| v.len() > 1).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, version: &str, license: &str) -> Package {
        Package {
            name: name.into(),
            version: version.into(),
            license: license.into(),
            dependencies: vec![],
            manifest: String::new(),
        }
    }

    #[test]
    fn a_foreign_licence_a_missing_one_and_a_banned_crate_are_told() {
        let config = Config { allow: vec!["MIT".into()], banned: vec!["bad".into()] };
        let all =
            [package("a", "1", "MIT"), package("b", "1", "GPL-3.0"), package("c", "1", ""), package("bad", "1", "MIT")];
        assert_eq!(problems(&all, &config).len(), 3);
    }

    #[test]
    fn two_versions_are_one_duplicate() {
        let all = [package("a", "1", "MIT"), package("b", "1", "MIT"), package("a", "2", "MIT")];
        assert_eq!(duplicates(&all), [("a", vec!["1", "2"])]);
    }
}

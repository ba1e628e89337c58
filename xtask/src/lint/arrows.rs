//! Dependencies between our crates point strictly downward (ARCHITECTURE.md).

use crate::metadata::Package;

/// Crates and their level; an edge may only go to a lower level. `xtask` is exempt.
const LEVELS: &[(&str, u8)] = &[
    ("tensor", 0),
    ("simd", 0),
    ("formats", 1),
    ("arch", 1),
    ("source", 2),
    ("pack", 1),
    ("recipe", 2),
    ("quantize", 2),
    ("backend", 2),
    ("hub", 3),
    ("convert", 3),
    ("cpu", 3),
    ("cuda", 3),
    ("runtime", 4),
    ("calibrate", 5),
    ("server", 5),
    ("cli", 6),
];

/// Edges that break the order, dev-dependencies included.
pub fn check(packages: &[Package]) -> Vec<String> {
    let mut problems = Vec::new();
    for package in packages.iter().filter(|p| p.name != "xtask") {
        let Some(from) = level(&package.name) else {
            problems.push(format!(
                "{}: crate has no level; add it to xtask/src/lint/arrows.rs and ARCHITECTURE.md",
                package.name
            ));
            continue;
        };
        for dependency in package.dependencies.iter().filter(|d| d.starts_with("ashlar-")) {
            if level(dependency).is_none_or(|to| to >= from) {
                problems.push(format!(
                    "{} depends on {dependency}: arrows point strictly downward (ARCHITECTURE.md); move what is shared to a lower crate",
                    package.name
                ));
            }
        }
    }
    problems
}

fn level(package: &str) -> Option<u8> {
    let name = package.strip_prefix("ashlar-")?;
    LEVELS.iter().find(|(n, _)| *n == name).map(|(_, level)| *level)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, dependencies: &[&str]) -> Package {
        Package {
            name: name.into(),
            version: "0.1.0".into(),
            license: String::new(),
            dependencies: dependencies.iter().map(|d| (*d).into()).collect(),
            manifest: String::new(),
        }
    }

    #[test]
    fn a_downward_edge_is_allowed() {
        assert!(check(&[package("ashlar-runtime", &["ashlar-pack", "serde"])]).is_empty());
    }

    #[test]
    fn an_upward_and_a_level_edge_are_told() {
        let problems =
            check(&[package("ashlar-convert", &["ashlar-runtime"]), package("ashlar-pack", &["ashlar-formats"])]);
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(problems[0].contains("ashlar-convert depends on ashlar-runtime"));
    }

    #[test]
    fn a_crate_without_level_is_told() {
        assert_eq!(check(&[package("ashlar-utils", &[])]).len(), 1);
    }

    #[test]
    fn xtask_is_exempt() {
        assert!(check(&[package("xtask", &["ashlar-cli"])]).is_empty());
    }
}

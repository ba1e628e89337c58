//! Where things may be named: formats in their registry and tables, families in `arch/src/families`, device crates in
//! `runtime/src/devices.rs`, `unsafe` in four crates. And what may be nowhere: `todo!`, `unimplemented!`, `#[ignore]`.

use super::File;
use crate::tokens::{Kind, Token};

const UNSAFE_CRATES: &[&str] = &["tensor", "simd", "cpu", "cuda"];
const DEVICE_CRATES: &[&str] = &["ashlar_cpu", "ashlar_cuda"];

/// Problems of one file.
pub fn check(file: &File, formats: &[&str], families: &[&str]) -> Vec<String> {
    let mut problems = Vec::new();
    for (i, token) in file.tokens.iter().enumerate() {
        let near = Near { file, i };
        let found = [
            unsafe_outside(&near, token),
            unfinished(&near, token),
            format_choice(&near, token, formats),
            family(&near, token, families),
            device(&near, token),
        ];
        problems.extend(found.into_iter().flatten().map(|what| format!("{}:{}: {what}", file.path, token.line)));
    }
    problems
}

/// Crates that may not hold `unsafe` must say so to the compiler, in every root file.
pub fn forbids_unsafe(files: &[File]) -> Vec<String> {
    let roots = files.iter().filter(|f| {
        let in_src = f.path.ends_with("/src/lib.rs") || f.path.ends_with("/src/main.rs");
        in_src && !f.krate().is_some_and(|c| UNSAFE_CRATES.contains(&c))
    });
    roots
        .filter(|f| !f.tokens.windows(3).any(|w| w[0].is_word("forbid") && w[1].is('(') && w[2].is_word("unsafe_code")))
        .map(|f| format!("{}: `#![forbid(unsafe_code)]` is missing", f.path))
        .collect()
}

struct Near<'a> {
    file: &'a File,
    i: usize,
}

impl Near<'_> {
    fn is(&self, ahead: isize, c: char) -> bool {
        self.i.checked_add_signed(ahead).and_then(|i| self.file.tokens.get(i)).is_some_and(|t| t.is(c))
    }

    fn in_test(&self, token: &Token) -> bool {
        token.test || self.file.test
    }
}

fn unsafe_outside(near: &Near<'_>, token: &Token) -> Option<String> {
    let allowed = near.file.krate().is_some_and(|c| UNSAFE_CRATES.contains(&c));
    (token.is_word("unsafe") && !allowed).then(|| "`unsafe` may live only in tensor, simd, cpu, cuda".into())
}

fn unfinished(near: &Near<'_>, token: &Token) -> Option<String> {
    for name in ["todo", "unimplemented"] {
        if token.is_word(name) && near.is(1, '!') {
            return Some(format!("`{name}!` is unfinished work; finish it or return an error"));
        }
    }
    let ignored = token.is_word("ignore") && near.is(-1, '[') && near.is(-2, '#');
    ignored.then(|| "`#[ignore]` hides a test; let it print SKIPPED with the reason".into())
}

/// `"q8" =>`, `"q8" |`, `== "q8"` and the like: behaviour belongs on the format.
fn format_choice(near: &Near<'_>, token: &Token, formats: &[&str]) -> Option<String> {
    let Kind::Text(text) = &token.kind else { return None };
    let path = &near.file.path;
    let allowed = path == "crates/formats/src/registry.rs" || path.ends_with("/table.rs");
    if allowed || near.in_test(token) || !formats.contains(&text.as_str()) {
        return None;
    }
    let arm = near.is(1, '=') && near.is(2, '>');
    let alternative = (near.is(1, '|') && !near.is(2, '|')) || (near.is(-1, '|') && !near.is(-2, '|'));
    let compared = near.is(-1, '=') && (near.is(-2, '=') || near.is(-2, '!'));
    let comparing = (near.is(1, '=') || near.is(1, '!')) && near.is(2, '=');
    (arm || alternative || compared || comparing).then(|| {
        format!("chooses by format id `{text}`: put the behaviour on the `Format`, or the choice in a table.rs")
    })
}

fn family(near: &Near<'_>, token: &Token, families: &[&str]) -> Option<String> {
    if near.file.path.starts_with("crates/arch/src/families")
        || near.file.path.starts_with("xtask/")
        || near.in_test(token)
    {
        return None;
    }
    let named = match &token.kind {
        Kind::Word(word) => families.iter().any(|f| f == word),
        Kind::Text(text) => families.iter().any(|f| f == text) || text.ends_with("ForCausalLM"),
        Kind::Punct(_) => false,
    };
    named.then(|| "names a model family; only crates/arch/src/families may".into())
}

fn device(near: &Near<'_>, token: &Token) -> Option<String> {
    let inside = near.file.path.starts_with("crates/runtime/src/") && near.file.path != "crates/runtime/src/devices.rs";
    let named = matches!(&token.kind, Kind::Word(w) if DEVICE_CRATES.contains(&w.as_str()));
    (inside && named && !near.in_test(token)).then(|| "names a device crate; only runtime/src/devices.rs may".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(path: &str, text: &str) -> Vec<String> {
        check(&File::new(path, text), &["q8", "nf4"], &["llama", "qwen3_moe"])
    }

    #[test]
    fn a_choice_by_format_id_is_told() {
        for text in
            ["match x { \"q8\" => 1 }", "matches!(x, \"nf4\" | \"z\")", "if id == \"q8\" {}", "if \"q8\" != id {}"]
        {
            assert_eq!(problems("crates/pack/src/a.rs", text).len(), 1, "{text}");
        }
    }

    #[test]
    fn naming_a_format_without_choosing_is_fine() {
        for text in [
            "let a = f(\"q8\");",
            "const T: &[(&str, &str)] = &[(\"int8\", \"q8\")];",
            "// \"q8\" => 1",
            "a || \"q8\".is_empty()",
        ] {
            assert_eq!(problems("crates/pack/src/a.rs", text), [""; 0], "{text}");
        }
        assert!(problems("crates/cpu/src/gemv/table.rs", "match x { \"q8\" => 1 }").is_empty());
        assert!(problems("crates/pack/src/a.rs", "#[cfg(test)] mod tests { fn f() { x == \"q8\"; } }").is_empty());
    }

    #[test]
    fn families_are_named_only_in_their_folder() {
        assert_eq!(problems("crates/runtime/src/a.rs", "if family == \"qwen3_moe\" {} llama::spec()").len(), 2);
        assert_eq!(problems("crates/runtime/src/a.rs", "x(\"LlamaForCausalLM\")").len(), 1);
        assert!(problems("crates/arch/src/families/llama.rs", "\"llama\"").is_empty());
        assert!(problems("crates/runtime/src/a.rs", "//! like llama and qwen3_moe").is_empty());
    }

    #[test]
    fn unsafe_is_told_outside_the_four_crates() {
        assert_eq!(problems("crates/pack/src/a.rs", "unsafe { x() }").len(), 1);
        assert_eq!(problems("tests/cli/a.rs", "unsafe { x() }").len(), 1);
        assert!(problems("crates/simd/src/a.rs", "unsafe { x() }").is_empty());
    }

    #[test]
    fn a_root_without_forbid_is_told() {
        let bare = [File::new("crates/pack/src/lib.rs", "//! x"), File::new("crates/cpu/src/lib.rs", "//! x")];
        assert_eq!(forbids_unsafe(&bare).len(), 1);
        assert!(forbids_unsafe(&[File::new("crates/pack/src/lib.rs", "#![forbid(unsafe_code)]")]).is_empty());
    }

    #[test]
    fn unfinished_work_and_hidden_tests_are_told() {
        assert_eq!(problems("crates/pack/src/a.rs", "todo!() unimplemented!() #[ignore] #[ignore = \"x\"]").len(), 4);
        assert!(problems("crates/pack/src/a.rs", "let todo = vec![]; let ignore = 1;").is_empty());
    }

    #[test]
    fn device_crates_are_named_only_in_devices() {
        assert_eq!(problems("crates/runtime/src/model.rs", "use ashlar_cpu::Cpu;").len(), 1);
        assert!(problems("crates/runtime/src/devices.rs", "use ashlar_cpu::Cpu;").is_empty());
    }
}

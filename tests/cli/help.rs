//! Help texts and wrong usage.

use crate::support::{ashlar, finish};

const COMMANDS: &[&str] = &[
    "demo",
    "pull",
    "inspect",
    "plan",
    "calibrate",
    "convert",
    "verify",
    "eval",
    "logits",
    "run",
    "serve",
    "bench",
    "doctor",
    "trace",
    "simulate",
    "completions",
    "man",
];

#[test]
fn help_lists_every_command_and_nothing_else() {
    let help = ashlar!["--help"].expect(0).stdout;
    let list = help.split("Commands:\n").nth(1).and_then(|rest| rest.split("\n\n").next()).expect("a list of commands");
    let named: Vec<&str> = list
        .lines()
        .filter(|l| l.starts_with("  ") && !l.starts_with("   "))
        .filter_map(|l| l.split_whitespace().next())
        .collect();
    assert_eq!(named[..named.len() - 1], *COMMANDS);
    assert_eq!(named.last(), Some(&"help"));
}

#[test]
fn every_command_explains_itself_with_an_example() {
    for command in COMMANDS {
        let help = ashlar![command, "--help"].expect(0).stdout;
        assert!(help.contains("Example"), "{command} has no example:\n{help}");
        assert!(help.contains("--quiet"), "{command}:\n{help}");
    }
}

#[test]
fn no_command_is_wrong_usage_and_shows_the_help() {
    finish(&mut ashlar()).expect(2).says(&["Usage:", "Commands:"]);
}

#[test]
fn an_unknown_command_and_an_unknown_option_are_wrong_usage() {
    ashlar!["convertt"].expect(2).says(&["unrecognized subcommand 'convertt'"]);
    ashlar!["inspect", "--jsonn", "x"].expect(2).says(&["--jsonn"]);
}

#[test]
fn a_missing_path_is_wrong_usage_and_named() {
    ashlar!["inspect", "/no/such/model"].expect(2).says(&["/no/such/model"]);
}

#[test]
fn completions_and_manual_pages_cover_every_command() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = ashlar!["completions", shell].expect(0).stdout;
        assert!(COMMANDS.iter().all(|c| script.contains(c)) && script.contains("kv-dir"), "{shell}");
    }
    ashlar!["completions", "csh"].expect(2).says(&["csh", "bash"]);
    let dir = tempfile::tempdir().unwrap();
    ashlar!["man", dir.path().join("man1")].expect(0);
    for command in COMMANDS {
        let page = std::fs::read_to_string(dir.path().join(format!("man1/ashlar-{command}.1"))).unwrap();
        assert!(page.contains(".SH NAME") && page.contains("Example"), "{command}");
    }
    assert!(std::fs::read_to_string(dir.path().join("man1/ashlar.1")).unwrap().contains("ashlar\\-serve"));
}

//! `run`: prompts, sampling, streaming, stopping.

use crate::support::{Ran, Test, ashlar, finish, fixture};
use std::io::{Read, Write};
use std::process::{Command, Stdio};

/// As `tests/fixtures/demo-moe/golden.safetensors` has it: the framework that trained the model decoded greedily.
const PROMPT: &str = "<|begin_of_text|>And it came to pass in those days, that";
const GOLDEN: &str = " the word of the LORD came unto me, saying, Son of man, set thy face against the house of Israel, and prophesy against them,";

fn raw(extra: &[&str]) -> Ran {
    finish(ashlar().arg("run").arg(fixture("demo-moe")).args(["--raw", "-p", PROMPT]).args(extra))
}

#[test]
fn greedy_text_of_the_bundled_model_is_the_golden_one_on_every_device() {
    for device in ["reference", "cpu"] {
        let text = raw(&["--temperature", "0", "--max-tokens", "40", "--device", device]).expect(0).stdout;
        assert!(text.starts_with(GOLDEN), "{device}: {text}");
    }
}

#[test]
fn tokens_per_second_are_told_on_stderr_alone() {
    let ran = raw(&["--temperature", "0", "--max-tokens", "8"]).expect(0).says(&["tokens/s"]);
    assert!(!ran.stdout.contains("tokens/s"));
    assert_eq!(raw(&["--temperature", "0", "--max-tokens", "8", "--quiet"]).expect(0).stderr, "");
}

#[test]
fn the_same_seed_gives_the_same_text_whatever_the_threads() {
    let sample = |extra: &[&str]| {
        let mut all = vec!["--temperature", "1.2", "--top-p", "0.95", "--max-tokens", "24"];
        all.extend(extra);
        raw(&all).expect(0).stdout
    };
    let first = sample(&["--seed", "7", "--threads", "1"]);
    assert_eq!(first, sample(&["--seed", "7", "--threads", "2"]));
    assert_ne!(first, sample(&["--seed", "8", "--threads", "1"]));
}

#[test]
fn a_stop_text_ends_the_text_before_it() {
    let text =
        raw(&["--temperature", "0", "--max-tokens", "40", "--stop", "Israel", "--stop", "LORD"]).expect(0).stdout;
    assert_eq!(text.trim_end(), " the word of the");
}

#[test]
fn a_prompt_may_come_from_a_file_or_from_stdin() -> Test {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("prompt.txt");
    std::fs::write(&file, PROMPT)?;
    let want = raw(&["--temperature", "0", "--max-tokens", "12"]).expect(0).stdout;
    let model = fixture("demo-moe");
    let common = ["--raw", "--temperature", "0", "--max-tokens", "12"];
    let at = format!("@{}", file.display());
    let from_file = finish(ashlar().arg("run").arg(&model).args(["-p", &at]).args(common));
    assert_eq!(from_file.expect(0).stdout, want);
    let mut child = ashlar()
        .arg("run")
        .arg(&model)
        .args(common)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    child.stdin.take().ok_or("stdin")?.write_all(PROMPT.as_bytes())?;
    let output = child.wait_with_output()?;
    assert_eq!(String::from_utf8(output.stdout)?, want);
    Ok(())
}

#[test]
fn a_sampling_option_out_of_range_is_wrong_usage() {
    raw(&["--top-p", "1.5"]).expect(2).says(&["--top-p"]);
    raw(&["--temperature", "-1"]).expect(2);
}

#[test]
fn a_prompt_longer_than_the_context_is_wrong_usage() {
    raw(&["--context", "4"]).expect(2).says(&["--context"]);
}

#[test]
fn a_model_without_chat_template_cannot_chat_and_says_so() {
    let ran = ashlar!["run", fixture("tiny/llama"), "--chat"];
    assert_ne!(ran.code, 0);
    ran.says(&["--raw"]);
}

#[test]
fn chat_answers_line_by_line_and_knows_its_commands() -> Test {
    let mut child = ashlar()
        .arg("run")
        .arg(fixture("demo-moe"))
        .args(["--chat", "--temperature", "0", "--max-tokens", "8"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    child
        .stdin
        .take()
        .ok_or("stdin")?
        .write_all(b"What is a hacker?\n/reset\nWhat is a hacker?\n/nonsense\n/exit\nnever read\n")?;
    let output = child.wait_with_output()?;
    let (stdout, stderr) = (String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    let answers: Vec<&str> = stdout.lines().filter(|l| !l.trim().is_empty()).collect();
    let half = answers.len() / 2;
    assert!(
        half > 0 && answers[..half] == answers[half..],
        "after /reset the same question has the same answer: {stdout}"
    );
    assert!(stderr.contains("/nonsense"), "{stderr}");
    Ok(())
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_the_text_cleanly() -> Test {
    let mut child = ashlar()
        .arg("run")
        .arg(fixture("demo-moe"))
        .args(["--raw", "-p", PROMPT, "--temperature", "1", "--max-tokens", "100000", "--context", "100000"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut first = [0; 1];
    child.stdout.as_mut().ok_or("stdout")?.read_exact(&mut first)?;
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status()?;
    assert!(sent.success());
    let output = child.wait_with_output()?;
    let stderr = String::from_utf8(output.stderr)?;
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    assert!(stderr.contains("tokens/s"), "{stderr}");
    Ok(())
}

#[test]
fn a_reader_that_goes_away_is_no_error() -> Test {
    let mut child = ashlar()
        .arg("run")
        .arg(fixture("demo-moe"))
        .args(["--raw", "-q", "-p", PROMPT, "--temperature", "0", "--max-tokens", "60"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    drop(child.stdout.take());
    let output = child.wait_with_output()?;
    assert_eq!((output.status.code(), String::from_utf8(output.stderr)?), (Some(0), String::new()));
    Ok(())
}

#[test]
fn what_memory_holds_is_told_when_asked() {
    let ran = raw(&["--temperature", "0", "--max-tokens", "4", "--verbose"]).expect(0);
    ran.says(&["memory: weights", "keys and values", "(f16)", "activations", "resident"]);
    let q8 = raw(&["--temperature", "0", "--max-tokens", "4", "--verbose", "--kv", "q8"]).expect(0);
    q8.says(&["(q8)"]);
}

#[test]
fn a_budget_that_cannot_hold_the_answer_is_wrong_usage_with_the_numbers() {
    let ran = raw(&["--max-tokens", "500", "--kv-budget", "100kB"]).expect(2);
    ran.says(&["--kv-budget is 100000", "positions of one sequence", "f16"]);
}

#[test]
fn the_text_does_not_depend_on_how_the_prompt_is_cut() {
    let text = |chunk| raw(&["--temperature", "0", "--max-tokens", "12", "--chunk", chunk]).expect(0).stdout;
    assert_eq!(text("3"), text("512"));
}

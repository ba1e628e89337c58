//! `run --think`, and reasoning apart from answers.

use crate::support::{Ran, Test, ashlar, finish, fixture, listing};
use std::path::Path;

/// The bundled model with a template that asks for `enable_thinking` and, unless it is switched off, ends inside `<think>`.
fn thinker(dir: &Path) -> Test {
    for (name, bytes) in listing(&fixture("demo-moe")) {
        std::fs::write(dir.join(name), bytes)?;
    }
    let template = "{% for m in messages %}{{ m.content }}{% endfor %}{% if enable_thinking is defined and not enable_thinking %} and they{% else %}<think>{% endif %}";
    Ok(std::fs::write(dir.join("chat_template.jinja"), template)?)
}

fn ask(model: &Path, extra: &[&str]) -> Ran {
    let common = ["-p", "And it came to pass", "--temperature", "0", "--max-tokens", "6"];
    finish(ashlar().arg("run").arg(model).args(common).args(extra))
}

#[test]
fn reasoning_goes_to_stderr_and_the_answer_alone_to_stdout() -> Test {
    let dir = tempfile::tempdir()?;
    thinker(dir.path())?;
    let ran = ask(dir.path(), &[]).expect(0);
    assert_eq!(ran.stdout, "\n", "all of it is reasoning");
    ran.says(&[
        "[reasoning]\n",
        "\n[end of reasoning]\n",
        "text: 6 tokens (6 of them reasoning)",
        "before the answer began",
    ]);
    let off = ask(dir.path(), &["--think", "off"]).expect(0);
    assert!(off.stdout.trim().len() > 5 && !off.stderr.contains("reasoning"), "{} {}", off.stdout, off.stderr);
    let quiet = ask(dir.path(), &["--quiet"]).expect(0);
    assert_eq!((quiet.stdout.as_str(), quiet.stderr.as_str()), ("\n", ""));
    Ok(())
}

#[test]
fn a_level_the_model_does_not_know_is_wrong_usage() -> Test {
    let dir = tempfile::tempdir()?;
    thinker(dir.path())?;
    ask(dir.path(), &["--think", "max"]).expect(2).says(&["--think", "off, high"]);
    ask(&fixture("demo-moe"), &["--think", "high"]).expect(2).says(&["no switch for reasoning"]);
    ask(&fixture("demo-moe"), &["--think", "high", "--raw"]).expect(2);
    Ok(())
}

/// Its weights are random: what counts is that the prompt is its family's, though it has no template.
#[test]
fn a_release_without_template_talks_in_the_encoding_of_its_family() {
    let model = fixture("tiny/deepseek_v4");
    let tokens = |ran: &Ran| {
        let told = ran.stderr.split("[prompt: ").nth(1).and_then(|t| t.split(' ').next());
        told.and_then(|n| n.parse::<usize>().ok()).unwrap_or_default()
    };
    let off = ask(&model, &["--system", "Be brief."]).expect(0);
    let high = ask(&model, &["--system", "Be brief.", "--think", "high"]).expect(0).says(&["[reasoning]"]);
    let max = ask(&model, &["--system", "Be brief.", "--think", "max"]).expect(0);
    assert_eq!(tokens(&off), tokens(&high), "one mark instead of another");
    assert!(tokens(&max) > tokens(&high) + 100, "{} {}", tokens(&max), tokens(&high));
    assert!(!off.stderr.contains("[reasoning]") && !off.stderr.contains("continuing the prompt"), "{}", off.stderr);
    ask(&model, &["--think", "low"]).expect(2).says(&["off, high, max"]);
}

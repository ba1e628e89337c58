//! Templates as transformers renders them (expected texts were made with transformers' own settings of Jinja).

use super::*;

fn template(source: &str) -> ChatTemplate {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("chat_template.jinja"), source).unwrap();
    std::fs::write(
        dir.path().join("tokenizer_config.json"),
        r#"{"bos_token": {"content": "<s>"}, "eos_token": "</s>"}"#,
    )
    .unwrap();
    ChatTemplate::open(dir.path()).unwrap()
}

fn turns() -> [Message; 2] {
    [Message::new("system", "Be brief."), Message::new("user", "  Hi & <b>\n")]
}

#[test]
fn blocks_are_trimmed_and_left_stripped() {
    let t = template(
        "{{ bos_token }}\n{% for m in messages %}\n    {% if m.role == 'user' %}\n[U] {{ m['content'].strip() }} {{ eos_token }}\n    {% endif %}\n{% endfor %}\n{% if add_generation_prompt %}\n[A]\n{% endif %}\n",
    );
    assert_eq!(t.render(&turns(), true).unwrap(), "<s>\n[U] Hi & <b> </s>\n[A]\n");
    assert_eq!(t.render(&turns(), false).unwrap(), "<s>\n[U] Hi & <b> </s>\n");
}

#[test]
fn python_methods_and_loop_controls_work() {
    let t = template(
        "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.content.strip().upper().split(' ')[0] }}{{ m.role.startswith('us') }}{% endfor %}",
    );
    assert_eq!(t.render(&turns(), false).unwrap(), "HITrue");
}

#[test]
fn tojson_writes_what_python_writes() {
    let t =
        template("{{ [messages[1].content, 1, 1.5, none, true] | tojson }}{{ [1, [], {'a': 2}] | tojson(indent=2) }}");
    assert_eq!(
        t.render(&turns(), false).unwrap(),
        "[\"  Hi & <b>\\n\", 1, 1.5, null, true][\n  1,\n  [],\n  {\n    \"a\": 2\n  }\n]"
    );
}

#[test]
fn an_exception_of_the_template_is_the_error() {
    let t = template("{{ raise_exception('roles must alternate') }}");
    let e = t.render(&turns(), true).unwrap_err().to_string();
    assert!(e.contains("chat_template.jinja") && e.contains("line 1: roles must alternate"), "{e}");
}

#[test]
fn the_date_is_the_given_one() {
    let t = template("{{ strftime_now('%d %b %Y') }}");
    let now = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_754_006_400);
    assert_eq!(t.render_at(&turns(), true, now).unwrap(), "01 Aug 2025");
}

#[test]
fn an_endless_template_is_stopped() {
    let t = template(
        "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% set x = 1 %}{% endfor %}{% endfor %}{% endfor %}",
    );
    let e = t.render(&turns(), true).unwrap_err().to_string();
    assert!(e.contains("steps"), "{e}");
}

#[test]
fn wrong_syntax_is_found_when_the_model_is_opened() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("chat_template.jinja"), "a\n{% for %}").unwrap();
    let e = ChatTemplate::open(dir.path()).unwrap_err().to_string();
    assert!(e.contains("chat_template.jinja") && e.contains("line 2"), "{e}");
}

#[test]
fn a_model_without_a_template_says_what_to_use_instead() {
    let dir = tempfile::tempdir().unwrap();
    let e = ChatTemplate::open(dir.path()).unwrap_err().to_string();
    assert!(e.contains("-p") && e.contains("--raw"), "{e}");
    let named = r#"{"chat_template": [{"name": "tool", "template": "T"}, {"name": "default", "template": "D"}]}"#;
    std::fs::write(dir.path().join("tokenizer_config.json"), named).unwrap();
    assert_eq!(ChatTemplate::open(dir.path()).unwrap().render(&[], false).unwrap(), "D");
}

#[test]
fn the_template_of_the_bundled_model() {
    let dir = std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/demo-moe");
    let got = ChatTemplate::open(&dir).unwrap().render(&turns(), true).unwrap();
    let want =
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n  Hi & <b>\n<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(got, want);
}

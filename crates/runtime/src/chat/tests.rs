//! Templates as transformers renders them (expected texts were made with transformers' own settings of Jinja).

use super::*;
use serde_json::json;
use std::time::SystemTime;

fn template(source: &str) -> ChatTemplate {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("chat_template.jinja"), source).unwrap();
    std::fs::write(
        dir.path().join("tokenizer_config.json"),
        r#"{"bos_token": {"content": "<s>"}, "eos_token": "</s>"}"#,
    )
    .unwrap();
    ChatTemplate::find(dir.path()).unwrap().unwrap()
}

fn chat(source: &str) -> Chat {
    Chat { form: Form::Template(Box::new(template(source))) }
}

/// With the prompt of an answer, or without.
fn render(t: &ChatTemplate, messages: &[Message], generate: bool) -> Result<String, RuntimeError> {
    t.render_at(&Conversation::of(messages.to_vec()), generate, SystemTime::UNIX_EPOCH)
}

fn turns() -> Vec<Message> {
    vec![Message::new("system", "Be brief."), Message::new("user", "  Hi & <b>\n")]
}

#[test]
fn blocks_are_trimmed_and_left_stripped() {
    let t = template(
        "{{ bos_token }}\n{% for m in messages %}\n    {% if m.role == 'user' %}\n[U] {{ m['content'].strip() }} {{ eos_token }}\n    {% endif %}\n{% endfor %}\n{% if add_generation_prompt %}\n[A]\n{% endif %}\n",
    );
    assert_eq!(render(&t, &turns(), true).unwrap(), "<s>\n[U] Hi & <b> </s>\n[A]\n");
    assert_eq!(render(&t, &turns(), false).unwrap(), "<s>\n[U] Hi & <b> </s>\n");
}

#[test]
fn python_methods_and_loop_controls_work() {
    let t = template(
        "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.content.strip().upper().split(' ')[0] }}{{ m.role.startswith('us') }}{% endfor %}",
    );
    assert_eq!(render(&t, &turns(), false).unwrap(), "HITrue");
}

#[test]
fn tojson_writes_what_python_writes() {
    let t =
        template("{{ [messages[1].content, 1, 1.5, none, true] | tojson }}{{ [1, [], {'a': 2}] | tojson(indent=2) }}");
    assert_eq!(
        render(&t, &turns(), false).unwrap(),
        "[\"  Hi & <b>\\n\", 1, 1.5, null, true][\n  1,\n  [],\n  {\n    \"a\": 2\n  }\n]"
    );
}

#[test]
fn an_exception_of_the_template_is_the_error() {
    let t = template("{{ raise_exception('roles must alternate') }}");
    let e = render(&t, &turns(), true).unwrap_err().to_string();
    assert!(e.contains("chat_template.jinja") && e.contains("line 1: roles must alternate"), "{e}");
}

#[test]
fn the_date_is_the_given_one() {
    let t = template("{{ strftime_now('%d %b %Y') }}");
    let now = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_754_006_400);
    assert_eq!(t.render_at(&Conversation::of(turns()), true, now).unwrap(), "01 Aug 2025");
}

#[test]
fn an_endless_template_is_stopped() {
    let t = template(
        "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% set x = 1 %}{% endfor %}{% endfor %}{% endfor %}",
    );
    let e = render(&t, &turns(), true).unwrap_err().to_string();
    assert!(e.contains("steps"), "{e}");
}

#[test]
fn wrong_syntax_is_found_when_the_model_is_opened() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("chat_template.jinja"), "a\n{% for %}").unwrap();
    let e = ChatTemplate::find(dir.path()).unwrap_err().to_string();
    assert!(e.contains("chat_template.jinja") && e.contains("line 2"), "{e}");
}

#[test]
fn a_model_without_a_template_says_what_to_use_instead() {
    let dir = tempfile::tempdir().unwrap();
    let config = json!({"architectures": ["LlamaForCausalLM"]});
    let e = Chat::open(dir.path(), &config).unwrap_err().to_string();
    assert!(e.contains("-p") && e.contains("--raw"), "{e}");
    let named = r#"{"chat_template": [{"name": "tool", "template": "T"}, {"name": "default", "template": "D"}]}"#;
    std::fs::write(dir.path().join("tokenizer_config.json"), named).unwrap();
    let t = ChatTemplate::find(dir.path()).unwrap().unwrap();
    assert_eq!(render(&t, &[], false).unwrap(), "D");
}

#[test]
fn the_template_of_the_bundled_model() {
    let dir = std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/demo-moe");
    let got = Chat::open(&dir, &json!({})).unwrap().render(&Conversation::of(turns())).unwrap();
    let want =
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n  Hi & <b>\n<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!((got.text.as_str(), got.reply), (want, ReplyForm::Plain));
}

/// As Qwen3's: a switch, and reasoning of earlier turns under a name of its own.
const SWITCHED: &str = "{% for m in messages %}<{{ m.role }}>{% if m.reasoning_content is defined %}({{ m.reasoning_content }}){% endif %}{{ m.content }}{% endfor %}<assistant>{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}";

/// As gpt-oss': a level that is only repeated, and channels.
const LEVELLED: &str = "{% if reasoning_effort is not defined %}{% set reasoning_effort = \"medium\" %}{% endif %}Reasoning: {{ reasoning_effort }}<|start|>assistant{# <|channel|>analysis<|message|> #}";

/// As DeepSeek-V4's in other programs: a switch and levels that are compared.
const BOTH: &str = "{%- if not thinking is defined -%}{%- if enable_thinking is defined -%}{%- set thinking = enable_thinking -%}{%- else -%}{%- set thinking = false -%}{%- endif -%}{%- endif -%}{%- if thinking and reasoning_effort is defined and reasoning_effort == 'max' -%}MAX{%- endif -%}{%- if thinking -%}<think>{%- else -%}</think>{%- endif -%}";

fn asked(source: &str, think: Option<Think>) -> Result<Prompt, RuntimeError> {
    chat(source).render(&Conversation { think, ..Conversation::of(vec![Message::new("user", "Hi")]) })
}

#[test]
fn levels_are_those_a_template_asks_for() {
    assert_eq!(chat(SWITCHED).levels(), [Think::Off, Think::High]);
    assert_eq!(chat(LEVELLED).levels(), [Think::Low, Think::Medium, Think::High]);
    assert_eq!(chat(BOTH).levels(), [Think::Off, Think::High, Think::Max]);
    assert_eq!(chat("{{ messages }}").levels(), []);
}

#[test]
fn a_level_reaches_the_template_and_without_one_it_decides_itself() {
    let text = |source, think| asked(source, think).unwrap().text;
    assert_eq!(text(SWITCHED, Some(Think::Off)), "<user>Hi<assistant><think>\n\n</think>\n\n");
    assert_eq!(text(SWITCHED, Some(Think::High)), text(SWITCHED, None));
    assert_eq!(text(LEVELLED, Some(Think::Low)), "Reasoning: low<|start|>assistant");
    assert_eq!(text(LEVELLED, None), "Reasoning: medium<|start|>assistant");
    assert_eq!(
        [None, Some(Think::Off), Some(Think::High), Some(Think::Max)].map(|t| text(BOTH, t)),
        ["</think>", "</think>", "<think>", "MAX<think>"]
    );
}

#[test]
fn a_level_the_model_does_not_know_is_refused_with_those_it_knows() {
    let refused = |source, think| asked(source, Some(think)).unwrap_err().to_string();
    let text = refused(SWITCHED, Think::Max);
    assert!(text.contains("--think") && text.contains("off, high"), "{text}");
    assert!(refused(LEVELLED, Think::Off).contains("low, medium, high"));
    assert!(refused("{{ messages }}", Think::High).contains("no switch"));
}

#[test]
fn how_a_reply_is_divided_follows_from_the_template_and_the_prompt() {
    let begins_inside = |source, think| match asked(source, think).unwrap().reply {
        ReplyForm::Tags { begins_inside, .. } => begins_inside,
        other => panic!("{other:?}"),
    };
    assert!(!begins_inside(SWITCHED, None) && !begins_inside(SWITCHED, Some(Think::Off)));
    assert!(begins_inside(BOTH, Some(Think::High)) && !begins_inside(BOTH, None));
    assert_eq!(asked(LEVELLED, None).unwrap().reply, ReplyForm::Channels);
    assert_eq!(asked("{{ messages }}", None).unwrap().reply, ReplyForm::Plain);
}

#[test]
fn what_a_message_has_besides_text_is_given_to_the_template_and_nothing_else() {
    let t = template("{% for m in messages %}{{ m | tojson }}\n{% endfor %}{{ tools is defined }}");
    let call = ToolCall { id: Some("a".into()), name: "f".into(), arguments: r#"{"z": 1, "a": "x"}"#.into() };
    let messages = vec![
        Message::new("user", "Hi"),
        Message { reasoning: "r".into(), calls: vec![call], ..Message::new("assistant", "") },
        Message { call_id: Some("a".into()), ..Message::new("tool", "12") },
    ];
    let got = render(&t, &messages, true).unwrap();
    let want = [
        r#"{"content": "Hi", "role": "user"}"#,
        r#"{"content": "", "reasoning_content": "r", "role": "assistant", "thinking": "r", "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": {"z": 1, "a": "x"}}}]}"#,
        r#"{"content": "12", "role": "tool", "tool_call_id": "a"}"#,
        "False",
    ];
    // `context!` has no order of its own.
    let sorted = |text: &str| {
        text.lines().map(|l| serde_json::from_str::<Value>(l).unwrap_or_else(|_| l.into())).collect::<Vec<_>>()
    };
    assert_eq!(sorted(&got), sorted(&want.join("\n")));
    assert!(got.contains(r#"{"z": 1, "a": "x"}"#), "arguments stay in their order: {got}");
}

/// As Qwen's and Hermes': calls between tags.
const TAGGED: &str = "{% if tools %}{{ tools | tojson }}{% endif %}{# <tool_call> #}";

#[test]
fn calls_are_looked_for_where_the_template_has_their_marks_and_tools_were_offered() {
    let offered = |source| {
        let conversation = Conversation { tools: vec![json!({"a": 1})], ..Conversation::of(turns()) };
        chat(source).render(&conversation).unwrap().reply
    };
    let mut parts = Vec::new();
    let mut splitter = Splitter::new(&offered(TAGGED));
    let mut add = |part, text: &str| parts.push((part, text.to_owned()));
    splitter.push("I look.\n<tool_call>\n{\"name\": \"f\", \"arguments\": {}}\n</tool_call>", &mut add);
    splitter.finish(&mut add);
    let said: String = parts.iter().filter(|(p, _)| *p == Part::Answer).map(|(_, t)| t.as_str()).collect();
    let calls: String = parts.iter().filter(|(p, _)| *p == Part::Call).map(|(_, t)| t.as_str()).collect();
    assert_eq!(said, "I look.\n");
    assert_eq!(chat(TAGGED).calls(&calls).unwrap()[0].name, "f");
    assert_eq!(chat(LEVELLED).calls("functions.g {}\n").unwrap()[0].name, "g");
    // Nobody offered a tool: the mark is text.
    assert_eq!(asked(TAGGED, None).unwrap().reply, ReplyForm::Plain);
    assert_eq!(chat("{{ messages }}").calls("x").unwrap(), []);
}

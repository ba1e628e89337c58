//! Against prompts and replies that the release's own program made (`tests/fixtures/chat/make.py`).

use super::*;
use crate::chat::{Part, Splitter};
use serde_json::json;

fn golden() -> Value {
    let path = std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/chat/dsml.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn calls(list: &Value) -> Vec<ToolCall> {
    let one = |c: &Value| ToolCall {
        id: c["id"].as_str().map(str::to_owned),
        name: text(&c["function"]["name"]),
        arguments: text(&c["function"]["arguments"]),
    };
    list.as_array().into_iter().flatten().map(one).collect()
}

fn conversation(case: &Value) -> Conversation {
    let message = |m: &Value| Message {
        role: text(&m["role"]),
        content: text(&m["content"]),
        reasoning: text(&m["reasoning_content"]),
        calls: calls(&m["tool_calls"]),
        call_id: m["tool_call_id"].as_str().map(str::to_owned),
    };
    Conversation {
        messages: case["messages"].as_array().unwrap().iter().map(message).collect(),
        tools: case["tools"].as_array().cloned().unwrap_or_default(),
        response_format: case.get("response_format").cloned(),
        think: Think::ALL.into_iter().find(|t| case["think"] == t.name()),
    }
}

#[test]
fn prompts_are_those_of_the_release() {
    let golden = golden();
    let prompts = golden["prompts"].as_array().unwrap();
    assert!(prompts.len() > 50);
    for case in prompts {
        let dsml = Dsml::new(if case["levels"] == 3 { Efforts::Three } else { Efforts::Two });
        let conversation = conversation(case);
        assert!(dsml.levels().contains(&conversation.think.unwrap()));
        let got = dsml.encode(&conversation).unwrap();
        assert_eq!(got.text, case["prompt"].as_str().unwrap(), "{} {} {}", case["name"], case["levels"], case["think"]);
        let ReplyForm::Tags { begins_inside, .. } = got.reply else { panic!("{:?}", got.reply) };
        assert_eq!(begins_inside, got.text.ends_with("<think>"));
    }
}

#[test]
fn replies_are_divided_and_their_calls_read_as_the_release_does() {
    let golden = golden();
    for case in golden["replies"].as_array().unwrap() {
        let begins_inside = case["think"] == "high";
        let form =
            ReplyForm::Tags { begins_inside, open: OPEN.into(), close: CLOSE.into(), calls: Some(parse::CALLS.into()) };
        for step in [1, 5, 1000] {
            let mut splitter = Splitter::new(&form);
            let mut parts = [String::new(), String::new(), String::new()];
            let mut add = |part, text: &str| parts[part as usize].push_str(text);
            let whole: Vec<char> = case["text"].as_str().unwrap().chars().collect();
            for piece in whole.chunks(step) {
                splitter.push(&piece.iter().collect::<String>(), &mut add);
            }
            splitter.finish(&mut add);
            let want = &case["parsed"];
            assert_eq!(parts[Part::Reasoning as usize], text(&want["reasoning_content"]), "{case}");
            assert_eq!(parts[Part::Answer as usize], text(&want["content"]), "{case}");
            let called = &parts[Part::Call as usize];
            let called = if called.is_empty() { Vec::new() } else { parse(called).unwrap() };
            assert_eq!(called, calls(&want["tool_calls"]), "{case}");
        }
    }
}

#[test]
fn calls_written_otherwise_are_refused_with_what_stands_there() {
    let call = |inner: &str| format!("<｜DSML｜tool_calls>\n{inner}\n</｜DSML｜tool_calls>");
    let parameter = |p: &str| call(&format!("<｜DSML｜invoke name=\"f\">\n{p}\n</｜DSML｜invoke>"));
    let one = "<｜DSML｜parameter name=\"x\" string=\"false\">1</｜DSML｜parameter>";
    assert_eq!(parse(&parameter(one)).unwrap()[0].arguments, r#"{"x": 1}"#);
    for (text, told) in [
        (parameter(&format!("{one}\n{one}")), "once"),
        (parameter(&one.replace("1<", "one<")), "JSON"),
        (parameter(&one.replace("false", "maybe")), "maybe"),
        (parameter("<｜DSML｜parameter name=\"x\""), "string="),
        (call("<｜DSML｜invoke name=f>"), "tool_calls>"),
        (parameter(one) + "and more", "and more"),
        ("<｜DSML｜function_calls>".into(), "tool_calls>"),
    ] {
        let refused = parse(&text).unwrap_err().to_string();
        assert!(refused.contains(told), "{told}: {refused}");
    }
}

#[test]
fn a_role_it_does_not_know_is_named() {
    let c = Conversation::of(vec![Message::new("critic", "no")]);
    let refused = Dsml::new(Efforts::Two).encode(&c).unwrap_err().to_string();
    assert!(refused.contains("critic") && refused.contains("assistant"), "{refused}");
}

#[test]
fn releases_with_a_drafter_know_one_level_more() {
    let config = |key: &str| json!({"architectures": ["DeepseekV4ForCausalLM"], key: 5});
    let levels = |key: &str| match ashlar_arch::chat_encoding(&config(key)) {
        Some(ashlar_arch::ChatEncoding::Dsml(efforts)) => Dsml::new(efforts).levels().len(),
        None => 0,
    };
    assert_eq!((levels("hidden_size"), levels("dspark_block_size")), (3, 4));
}

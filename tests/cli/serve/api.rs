//! OpenAI's API over a socket.

use super::{Server, events, question};
use crate::support::{ashlar, fixture};
use serde_json::{Value, json};
use std::io::Write;

#[test]
fn a_chat_is_answered_whole_or_in_pieces_with_the_same_text_and_usage() {
    let server = Server::start(&[]);
    let (status, whole) = server.post("/v1/chat/completions", &question(&json!({"logprobs": true, "top_logprobs": 2})));
    assert_eq!(status, 200, "{whole}");
    let choice = &whole["choices"][0];
    let text = choice["message"]["content"].as_str().unwrap();
    assert!(!text.is_empty() && choice["message"]["role"] == "assistant" && whole["object"] == "chat.completion");
    let tokens = whole["usage"]["completion_tokens"].as_u64().unwrap();
    let logprobs = choice["logprobs"]["content"].as_array().unwrap();
    assert_eq!(logprobs.len() as u64, tokens);
    assert!(
        logprobs.iter().all(|l| l["top_logprobs"][0]["logprob"] == l["logprob"] && l["top_logprobs"][1].is_object())
    );
    let streamed = question(&json!({"stream": true, "stream_options": {"include_usage": true}}));
    let (status, head, body) = server.ask("POST", "/v1/chat/completions", &[], &streamed.to_string());
    assert!(status == 200 && head.to_lowercase().contains("text/event-stream"), "{head}");
    let events = events(&body);
    let pieces: String = events.iter().filter_map(|e| e["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(pieces, text);
    assert!(events[..events.len() - 1].iter().all(|e| e.get("usage") == Some(&Value::Null)));
    let usage = &events.last().unwrap()["usage"];
    assert_eq!(usage["completion_tokens"], whole["usage"]["completion_tokens"]);
    // The same prompt again: all but its last token was known.
    assert!(usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap() > 0, "{usage}");
    let finish: Vec<&Value> =
        events.iter().map(|e| &e["choices"][0]["finish_reason"]).filter(|f| !f.is_null()).collect();
    assert_eq!(finish, [&choice["finish_reason"]]);
}

#[test]
fn plain_completions_continue_text_and_stop_where_told() {
    let server = Server::start(&[]);
    let ask = |extra: &Value| {
        let mut body = json!({"prompt": "And it came to pass", "temperature": 0, "max_tokens": 20});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let (status, answer) = server.post("/v1/completions", &body);
        assert_eq!(status, 200, "{answer}");
        answer
    };
    let whole = ask(&json!({"logprobs": 1}));
    let text = whole["choices"][0]["text"].as_str().unwrap().to_owned();
    assert_eq!(
        (&whole["choices"][0]["finish_reason"], &whole["usage"]["completion_tokens"]),
        (&json!("length"), &json!(20))
    );
    assert_eq!(whole["choices"][0]["logprobs"]["tokens"].as_array().unwrap().len(), 20);
    let word = text.split_whitespace().nth(3).unwrap();
    let stopped = ask(&json!({"stop": [word]}));
    assert_eq!(stopped["choices"][0]["text"].as_str().unwrap(), text.split(word).next().unwrap());
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop");
    assert!(ask(&json!({"echo": true}))["choices"][0]["text"].as_str().unwrap().starts_with("And it came to pass"));
    let several = ask(&json!({"n": 3, "temperature": 1.5, "seed": 4}));
    let texts: Vec<&Value> = several["choices"].as_array().unwrap().iter().map(|c| &c["text"]).collect();
    assert!(texts.len() == 3 && texts[0] != texts[1], "{several}");
    assert_eq!(several["choices"], ask(&json!({"n": 3, "temperature": 1.5, "seed": 4}))["choices"]);
}

#[test]
fn several_prompts_are_answered_each_with_its_choices() {
    let server = Server::start(&["--max-sequences", "3", "--queue", "3"]);
    let ask = |extra: &Value| {
        let mut body = json!({"temperature": 0, "max_tokens": 6});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        server.post("/v1/completions", &body)
    };
    let prompts = ["And it came to pass", "The"];
    let alone = prompts.map(|p| ask(&json!({"prompt": p})).1);
    let both = ask(&json!({"prompt": prompts, "n": 2})).1;
    let texts: Vec<&Value> = both["choices"].as_array().unwrap().iter().map(|c| &c["text"]).collect();
    let want = |i: usize| &alone[i]["choices"][0]["text"];
    assert_eq!(texts, [want(0), want(0), want(1), want(1)]);
    let tokens = |answer: &Value| answer["usage"]["prompt_tokens"].as_u64().unwrap();
    assert_eq!(tokens(&both), tokens(&alone[0]) + tokens(&alone[1]));
    assert_eq!(both["usage"]["completion_tokens"], 24);
    let (status, as_tokens) = ask(&json!({"prompt": [[5, 6], [7]], "echo": true}));
    assert!(status == 200 && as_tokens["choices"][1]["index"] == 1, "{as_tokens}");
    for (refused, param) in [
        (json!({"prompt": []}), "prompt"),
        (json!({"prompt": vec!["x"; 200]}), "prompt"),
        (json!({"prompt": ["x", 5]}), "prompt"),
        // More than can ever run and wait: trying again would not help.
        (json!({"prompt": "x", "n": 7}), "n"),
    ] {
        let (status, answer) = ask(&refused);
        assert_eq!((status, &answer["error"]["param"]), (400, &json!(param)), "{answer}");
    }
}

#[test]
fn without_a_seed_the_same_question_has_other_answers() {
    let server = Server::start(&[]);
    let ask = |extra: Value| {
        let mut body = json!({"prompt": "The", "temperature": 1.5, "max_tokens": 16});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        server.post("/v1/completions", &body).1["choices"].clone()
    };
    assert_ne!(ask(json!({})), ask(json!({})));
    assert_eq!(ask(json!({"seed": 3})), ask(json!({"seed": 3})));
    let fixed = Server::start(&["--seed", "3"]);
    let body = json!({"prompt": "The", "temperature": 1.5, "max_tokens": 16});
    assert_eq!(fixed.post("/v1/completions", &body).1["choices"], ask(json!({"seed": 3})));
}

#[test]
fn what_a_model_reasons_is_told_apart_as_far_as_it_was_asked_to() {
    let mut command = ashlar();
    let server = Server::spawn(command.arg("serve").arg(fixture("tiny/deepseek_v4")).args(["--context", "512"]));
    let asked = |mut extra: Value| {
        // Its weights are random: it would stop at once.
        extra["ignore_eos"] = json!(true);
        question(&extra)
    };
    let ask = |extra: Value| server.post("/v1/chat/completions", &asked(extra));
    let tokens = |answer: &Value| answer["usage"]["completion_tokens_details"]["reasoning_tokens"].clone();
    for off in [json!({"reasoning_effort": "off"}), json!({"chat_template_kwargs": {"enable_thinking": false}})] {
        let (status, answer) = ask(off);
        let message = &answer["choices"][0]["message"];
        assert!(status == 200 && message.get("reasoning_content").is_none(), "{answer}");
        assert!(message["content"] != "" && tokens(&answer) == 0, "{answer}");
    }
    let mut prompts = Vec::new();
    for effort in ["high", "max"] {
        let (status, answer) = ask(json!({"reasoning_effort": effort}));
        let message = &answer["choices"][0]["message"];
        assert!(status == 200 && message["reasoning_content"] != Value::Null && message["content"] == "", "{answer}");
        assert_eq!(tokens(&answer), answer["usage"]["completion_tokens"]);
        prompts.push(answer["usage"]["prompt_tokens"].as_u64().unwrap());
        let streamed = asked(json!({"reasoning_effort": effort, "stream": true})).to_string();
        let events = events(&server.ask("POST", "/v1/chat/completions", &[], &streamed).2);
        let deltas = events.iter().map(|e| &e["choices"][0]["delta"]);
        let pieces: String = deltas.filter_map(|d| d["reasoning_content"].as_str()).collect();
        assert_eq!(message["reasoning_content"], pieces);
    }
    // The model is told in words to try its best.
    assert!(prompts[1] > prompts[0]);
    let (status, refused) = ask(json!({"reasoning_effort": "low"}));
    assert!(status == 400 && refused["error"]["message"].as_str().unwrap().contains("off, high, max"), "{refused}");
}

#[test]
fn pages_of_other_origins_are_refused_unless_the_server_was_told_of_them() {
    let body = json!({"prompt": "The", "max_tokens": 1}).to_string();
    let (page, foreign) = ("Origin: http://x", "Origin: https://evil.example");
    let server = Server::start(&[]);
    let post = |server: &Server, headers: &[&str]| server.ask("POST", "/v1/completions", headers, &body);
    let (status, _, refused) = post(&server, &[foreign]);
    assert!(status == 403 && refused.contains("--cors"), "{refused}");
    assert_eq!(server.metric("tokens_in_total"), 0.0);
    // Its own page, also behind a proxy that renames the host, and whatever is no browser.
    for headers in [&[page][..], &[foreign, "Sec-Fetch-Site: same-origin"], &[]] {
        assert_eq!(post(&server, headers).0, 200, "{headers:?}");
    }
    let server = Server::start(&["--cors", "https://evil.example"]);
    let preflight = [foreign, "Access-Control-Request-Method: POST", "Access-Control-Request-Headers: x-stainless-os"];
    let (status, head, _) = server.ask("OPTIONS", "/v1/completions", &preflight, "");
    assert!(status == 204 && head.contains("x-stainless-os") && head.contains("https://evil.example"), "{head}");
    let (status, head, _) = post(&server, &[foreign]);
    assert!(status == 200 && head.contains("access-control-expose-headers"), "{head}");
    assert_eq!(post(&server, &["Origin: https://other.example"]).0, 403);
    assert_eq!(post(&Server::start(&["--cors", "*"]), &["Origin: https://other.example"]).0, 200);
}

#[test]
fn texts_do_not_depend_on_what_else_is_answered() {
    let server = Server::start(&["--max-sequences", "16"]);
    let ask = |i: usize| {
        let prompt = format!("{} of the", ["The son", "And the king", "The word", "In the days"][i % 4]);
        let (status, answer) =
            server.post("/v1/completions", &json!({"prompt": prompt, "temperature": 0, "max_tokens": 16}));
        assert_eq!(status, 200, "{answer}");
        answer["choices"][0]["text"].as_str().unwrap().to_owned()
    };
    let alone: Vec<String> = (0..4).map(ask).collect();
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..16).map(|i| scope.spawn(move || ask(i))).collect();
        for (i, one) in all.into_iter().enumerate() {
            assert_eq!(one.join().unwrap(), alone[i % 4]);
        }
    });
    assert_eq!((server.metric("requests_running"), server.metric("requests_ended_total")), (0.0, 20.0));
}

#[test]
fn a_full_queue_answers_429_and_who_waits_or_leaves_is_seen_in_the_metrics() {
    let server = Server::start(&["--max-sequences", "1", "--queue", "1"]);
    let long = json!({"prompt": "The", "temperature": 1, "max_tokens": 450, "stream": true}).to_string();
    let open = || {
        let mut stream = server.connect();
        write!(stream, "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{long}", long.len())
            .unwrap();
        stream
    };
    let first = open();
    server.wait_for("running request", |s| s.metric("requests_running") == 1.0);
    let second = open();
    server.wait_for("waiting request", |s| s.metric("requests_waiting") == 1.0);
    let (status, head, body) = server.ask("POST", "/v1/completions", &[], &long);
    assert_eq!(status, 429, "{body}");
    assert!(head.to_lowercase().contains("retry-after: ") && body.contains("rate_limit_error"), "{head}{body}");
    // Both clients leave: their requests end within a step.
    drop((first, second));
    server.wait_for("idle server", |s| s.metric("requests_running") + s.metric("requests_waiting") == 0.0);
    assert_eq!(server.metric("requests_refused_total"), 1.0);
}

#[test]
fn errors_have_openais_shape() {
    let server = Server::start(&[]);
    let error = |path: &str, body: &Value| {
        let (status, answer) = server.post(path, body);
        assert!(answer["error"]["message"].as_str().is_some_and(|m| !m.is_empty()), "{answer}");
        (status, answer["error"]["type"].as_str().unwrap().to_owned(), answer["error"]["param"].clone())
    };
    let invalid = |param: Value| (400, "invalid_request_error".to_owned(), param);
    assert_eq!(error("/v1/chat/completions", &json!({})), invalid(json!("messages")));
    assert_eq!(error("/v1/chat/completions", &question(&json!({"messages": 3}))), invalid(json!("messages")));
    assert_eq!(error("/v1/chat/completions", &question(&json!({"n": 99}))), invalid(json!("n")));
    assert_eq!(
        error("/v1/chat/completions", &question(&json!({"logit_bias": {"5": 1}}))),
        invalid(json!("logit_bias"))
    );
    assert_eq!(error("/v1/chat/completions", &question(&json!({"temperature": -1}))), invalid(json!("temperature")));
    let effort = question(&json!({"reasoning_effort": "high"}));
    assert_eq!(error("/v1/chat/completions", &effort), invalid(json!("reasoning_effort")));
    let role = question(&json!({"messages": [{"role": "wizard", "content": "x"}]}));
    assert_eq!(error("/v1/chat/completions", &role), invalid(json!("messages")));
    let echo = json!({"prompt": "x", "echo": true, "logprobs": 1});
    assert_eq!(error("/v1/completions", &echo), invalid(json!("logprobs")));
    let switch = question(&json!({"chat_template_kwargs": {"colour": "red"}}));
    assert_eq!(error("/v1/chat/completions", &switch), invalid(json!("chat_template_kwargs")));
    assert_eq!(error("/v1/completions", &json!({"prompt": "word ".repeat(600)})), invalid(Value::Null));
    let (status, _, param) = error("/v1/chat/completions", &question(&json!({"model": "another"})));
    assert_eq!((status, param), (404, json!("model")));
    assert_eq!(error("/v1/nothing", &json!({})).0, 404);
    assert_eq!(error("/v1/models", &json!({})).0, 405);
    assert_eq!(server.ask("GET", "/v1/models/demo%2Dmoe", &[], "").0, 200);
    assert_eq!(server.ask("GET", "/v1/models/other/model", &[], "").0, 404);
    let (status, _, body) = server.ask("POST", "/v1/chat/completions", &[], "{\"messages\": [");
    assert!(status == 400 && body.contains("\"error\""), "{body}");
    let (status, _, models) = server.ask("GET", "/v1/models", &[], "");
    let models: Value = serde_json::from_str(&models).unwrap();
    assert_eq!((status, &models["data"][0]["id"]), (200, &json!("demo-moe")));
    assert!(server.ask("GET", "/", &[], "").2.contains("<title>ashlar</title>"));
}

#[test]
fn with_a_key_only_those_who_know_it_are_answered() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("key");
    std::fs::write(&file, "secret\n").unwrap();
    let server = Server::start(&["--key-file", file.to_str().unwrap()]);
    for headers in [&[][..], &["Authorization: Bearer wrong!"], &["Authorization: secret"]] {
        assert_eq!(server.ask("GET", "/v1/models", headers, "").0, 401);
        assert_eq!(server.ask("GET", "/metrics", headers, "").0, 401);
    }
    assert_eq!(server.ask("GET", "/v1/models", &["Authorization: Bearer secret"], "").0, 200);
    assert_eq!(server.ask("GET", "/health", &[], "").0, 200);
}

#[cfg(unix)]
#[test]
fn a_stopped_server_finishes_what_runs_and_ends_with_success() {
    let mut server = Server::start(&[]);
    let body = json!({"prompt": "The", "temperature": 0, "max_tokens": 200, "stream": true}).to_string();
    let mut stream = server.connect();
    write!(stream, "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
    server.wait_for("running request", |s| s.metric("requests_running") == 1.0);
    let killed = std::process::Command::new("kill").arg(server.child.id().to_string()).status().unwrap();
    assert!(killed.success());
    let (status, _, body) = super::answer_of(stream);
    assert_eq!((status, events(&body).len() > 2), (200, true));
    assert!(server.child.wait().unwrap().success());
}

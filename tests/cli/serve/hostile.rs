//! Clients that behave badly: nothing breaks, memory stays bounded, others are answered.

use super::{Server, answer_of};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

#[test]
fn hostile_clients_do_no_harm() {
    let server = Server::start(&["--max-body", "4KiB", "--read-timeout", "1", "--connections", "40"]);
    assert_eq!(server.ask("POST", "/v1/completions", &[], &"x".repeat(5000)).0, 413);
    let deep = format!("{{\"messages\": {}", "[".repeat(3000));
    assert_eq!(server.ask("POST", "/v1/chat/completions", &[], &deep).0, 400);
    // Headers that never end, a body that never comes, and more connections than there are places.
    let mut idle: Vec<TcpStream> = (0..60).map(|_| server.connect()).collect();
    for (i, stream) in idle.iter_mut().enumerate() {
        let begun = if i % 2 == 0 {
            "POST /v1/completions HTTP/1.1\r\nHo"
        } else {
            "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{"
        };
        stream.write_all(begun.as_bytes()).unwrap();
    }
    // The slow ones are sent away, and the next is answered.
    let (status, answer) = server.post("/v1/completions", &json!({"prompt": "The", "max_tokens": 2}));
    assert_eq!(status, 200, "{answer}");
    let slow = answer_of(idle.swap_remove(1));
    assert!(slow.0 == 408 && slow.2.contains("not complete"), "{slow:?}");
}

/// Bodies of the wrong shape, for every field that is read.
#[test]
fn wrong_types_are_refused_with_a_message_and_nothing_else_happens() {
    let server = Server::start(&["--max-sequences", "2"]);
    let wrong = [
        json!(null),
        json!(-1),
        json!("x"),
        json!([]),
        json!({}),
        json!([[]]),
        json!(1e300),
        json!([1, "a"]),
        json!(true),
    ];
    let chat = json!({"messages": [{"role": "user", "content": "The"}], "max_tokens": 1});
    let plain = json!({"prompt": "The", "max_tokens": 1});
    let fields = [
        "messages",
        "prompt",
        "model",
        "max_tokens",
        "max_completion_tokens",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "seed",
        "stop",
        "n",
        "stream",
        "stream_options",
        "logprobs",
        "top_logprobs",
        "tools",
        "tool_choice",
        "response_format",
        "reasoning_effort",
        "logit_bias",
        "presence_penalty",
        "repetition_penalty",
        "echo",
        "suffix",
        "ignore_eos",
    ];
    let mut refused = 0;
    for (path, body) in [("/v1/chat/completions", &chat), ("/v1/completions", &plain)] {
        for field in fields {
            for value in &wrong {
                let mut body = body.clone();
                body[field] = value.clone();
                let (status, _, answer) = server.ask("POST", path, &[], &body.to_string());
                assert!(matches!(status, 200 | 400 | 404), "{path} {field} {value}: {status} {answer}");
                if status != 200 {
                    let answer: Value = serde_json::from_str(&answer).unwrap();
                    assert!(
                        answer["error"]["message"].as_str().is_some_and(|m| !m.is_empty()),
                        "{field} {value}: {answer}"
                    );
                    refused += 1;
                }
            }
        }
        for whole in ["", "null", "[]", "{", "\"x\"", "{\"messages\"", "\u{0}", "{\"prompt\": \"\\ud800\"}"] {
            assert_eq!(server.ask("POST", path, &[], whole).0, 400, "{whole}");
        }
    }
    assert!(refused > 200, "{refused}");
    assert_eq!(server.post("/v1/completions", &plain).0, 200);
}

#[test]
fn what_never_ends_is_cut_off() {
    let server = Server::start(&["--max-body", "4KiB", "--read-timeout", "1"]);
    let status = |stream: &mut TcpStream| {
        let mut begin = [0; 12];
        stream.read_exact(&mut begin).unwrap();
        String::from_utf8_lossy(&begin)[9..].to_owned()
    };
    // A body in chunks without an end.
    let mut stream = server.connect();
    stream.write_all(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
    for _ in 0..100 {
        // The server may close before all is sent.
        if stream.write_all(format!("400\r\n{}\r\n", "x".repeat(1024)).as_bytes()).is_err() {
            break;
        }
    }
    assert_eq!(status(&mut stream), "413");
    // Headers without an end.
    let mut stream = server.connect();
    stream.write_all(b"GET /health HTTP/1.1\r\n").unwrap();
    for i in 0..5000 {
        if stream.write_all(format!("x-{i}: {}\r\n", "y".repeat(100)).as_bytes()).is_err() {
            break;
        }
    }
    let mut answer = Vec::new();
    // Refused or cut off, but never answered as if all were well.
    let _ = stream.read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    // No HTTP at all.
    let mut stream = server.connect();
    stream.write_all(&[0xff; 4096]).unwrap();
    let _ = stream.read_to_end(&mut Vec::new());
    assert_eq!(server.ask("GET", "/health", &[], "").0, 200);
}

#[test]
fn who_does_not_read_delays_nobody() {
    let server = Server::start(&["--max-sequences", "2"]);
    let body =
        json!({"prompt": "The", "temperature": 1, "max_tokens": 400, "stream": true, "ignore_eos": true}).to_string();
    let deaf: Vec<TcpStream> = (0..2)
        .map(|_| {
            let mut stream = server.connect();
            write!(stream, "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len())
                .unwrap();
            stream
        })
        .collect();
    let (status, answer) = server.post("/v1/completions", &json!({"prompt": "And", "max_tokens": 4}));
    assert_eq!(status, 200, "{answer}");
    drop(deaf);
    server.wait_for("idle server", |s| s.metric("requests_running") + s.metric("requests_waiting") == 0.0);
}

/// Bytes of memory that a process has.
#[cfg(target_os = "linux")]
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

#[cfg(target_os = "linux")]
#[test]
fn thousands_of_connections_take_little_memory_and_leave_room_for_others() {
    let server = Server::start(&["--max-body", "1MiB", "--read-timeout", "2", "--connections", "200"]);
    assert_eq!(server.post("/v1/completions", &json!({"prompt": "The", "max_tokens": 2})).0, 200);
    let before = resident(server.child.id());
    let body = "x".repeat(64 << 10);
    let (address, mut came) = (server.address.parse().unwrap(), 0);
    for _ in 0..10 {
        // A client may have no more than some hundreds of open files: crowds, one after another. Who finds no place in the
        // system's queue goes away.
        let crowd: Vec<TcpStream> = (0..300)
            .filter_map(|i| {
                let mut stream = TcpStream::connect_timeout(&address, Duration::from_millis(20)).ok()?;
                stream.set_write_timeout(Some(Duration::from_millis(50))).unwrap();
                // A third says nothing, a third stops within the head, a third within a body.
                let begun = match i % 3 {
                    0 => return Some(stream),
                    1 => "POST /v1/completions HTTP/1.1\r\nHo".to_owned(),
                    _ => format!("POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 900000\r\n\r\n{body}"),
                };
                // What finds no place is not read: it may be more than the system takes.
                let _ = stream.write_all(begun.as_bytes());
                Some(stream)
            })
            .collect();
        came += crowd.len();
    }
    assert!(came > 1000, "{came}");
    let (status, answer) = server.post("/v1/completions", &json!({"prompt": "The", "max_tokens": 2}));
    assert_eq!(status, 200, "{answer}");
    let grown = resident(server.child.id()).saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes more");
}

#[test]
fn with_memory_for_one_all_are_answered_as_if_they_were_alone_and_the_waiting_is_seen() {
    let ask = |server: &Server, i: usize| {
        let prompt = format!("{} of the", ["The son", "And the king", "The word", "In the days"][i % 4]);
        let (status, answer) = server.post(
            "/v1/completions",
            &json!({"prompt": prompt, "temperature": 0, "max_tokens": 150, "ignore_eos": true}),
        );
        assert_eq!(status, 200, "{answer}");
        answer["choices"][0]["text"].as_str().unwrap().to_owned()
    };
    let alone: Vec<String> = {
        let server = Server::start(&[]);
        (0..4).map(|i| ask(&server, i)).collect()
    };
    // Three pages of 64 positions are what one of them needs.
    let page = 64 * 2 * 2 * 32 * 2 * 8;
    let server = Server::start(&["--max-sequences", "8", "--kv", "f16", "--kv-budget", &format!("{}", 4 * page)]);
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..8)
            .map(|i| {
                scope.spawn({
                    let server = &server;
                    move || ask(server, i)
                })
            })
            .collect();
        server.wait_for("waiting request", |s| s.metric("requests_waiting") > 0.0);
        for (i, one) in all.into_iter().enumerate() {
            assert_eq!(one.join().unwrap(), alone[i % 4]);
        }
    });
    assert_eq!((server.metric("requests_ended_total"), server.metric("requests_waiting")), (8.0, 0.0));
    // What ended requests left gave way, and what is in use stands with its layer.
    assert!(server.metric("prefix_evictions_total") > 0.0);
    assert_eq!(server.metric("kv_budget_bytes"), f64::from(4 * page));
    let layers = (0..4).map(|i| server.metric(&format!("kv_layer_bytes{{device=\"cpu\",tier=\"ram\",layer=\"{i}\"}}")));
    assert_eq!(layers.sum::<f64>(), server.metric("kv_bytes"));
}

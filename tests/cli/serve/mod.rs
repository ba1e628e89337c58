//! `serve`: a server of its own for every test.

mod api;
mod disk;
mod hostile;
mod page;

use crate::support::{ashlar, fixture};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A server on a free port, ended with the test.
struct Server {
    child: Child,
    address: String,
    /// What it logged so far.
    log: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn start(extra: &[&str]) -> Self {
        Self::with_context("512", extra)
    }

    fn with_context(context: &str, extra: &[&str]) -> Self {
        let mut command = ashlar();
        Self::spawn(command.arg("serve").arg(fixture("demo-moe")).args(["--context", context]).args(extra))
    }

    fn spawn(command: &mut std::process::Command) -> Self {
        command.args(["--port", "0", "--threads", "2"]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let log = Arc::new(Mutex::new(Vec::new()));
        let line = loop {
            let line = lines.next().expect("it tells where it listens").unwrap();
            log.lock().unwrap().push(line.clone());
            if line.contains("http://") {
                break line;
            }
        };
        let address = line.split("http://").nth(1).unwrap().split('/').next().unwrap().to_owned();
        // Whatever it tells from now on must not stop it.
        let told = Arc::clone(&log);
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| told.lock().unwrap().push(line)));
        Self { child, address, log }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
        stream
    }

    /// Sends a request; returns status, headers and body.
    fn ask(&self, method: &str, path: &str, headers: &[&str], body: &str) -> (u16, String, String) {
        let mut stream = self.connect();
        let headers: String = headers.iter().map(|h| format!("{h}\r\n")).collect();
        let length = body.len();
        write!(stream, "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n{body}").unwrap();
        answer_of(stream)
    }

    fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let (status, _, body) = self.ask("POST", path, &[], &body.to_string());
        (status, serde_json::from_str(&body).unwrap_or_else(|e| panic!("{e}: {body}")))
    }

    fn metric(&self, name: &str) -> f64 {
        let (_, _, text) = self.ask("GET", "/metrics", &[], "");
        let line = text
            .lines()
            .find(|l| l.starts_with(&format!("ashlar_{name} ")))
            .unwrap_or_else(|| panic!("{name} in {text}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }

    /// Whether a line of the log has all of these.
    fn logged(&self, words: &[&str]) -> bool {
        self.log.lock().unwrap().iter().any(|line| words.iter().all(|word| line.contains(word)))
    }

    fn wait_for(&self, what: &str, is: impl Fn(&Self) -> bool) {
        let begin = Instant::now();
        while !is(self) {
            assert!(begin.elapsed() < Duration::from_secs(60), "still no {what}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn answer_of(mut stream: TcpStream) -> (u16, String, String) {
    let mut raw = Vec::new();
    stream.read_to_end(&mut raw).unwrap();
    let text = String::from_utf8(raw).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let body = if head.to_lowercase().contains("transfer-encoding: chunked") { unchunk(body) } else { body.to_owned() };
    (status, head.to_owned(), body)
}

fn unchunk(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        whole.push_str(&rest[..size]);
        body = &rest[(size + 2).min(rest.len())..];
        if size == 0 {
            break;
        }
    }
    whole
}

fn events(body: &str) -> Vec<Value> {
    let lines: Vec<&str> =
        body.split("\n\n").filter(|l| !l.is_empty()).map(|l| l.strip_prefix("data: ").unwrap()).collect();
    assert_eq!(lines.last(), Some(&"[DONE]"), "{body}");
    lines[..lines.len() - 1].iter().map(|l| serde_json::from_str(l).unwrap()).collect()
}

fn question(extra: &Value) -> Value {
    let mut body =
        json!({"messages": [{"role": "user", "content": "In the beginning"}], "temperature": 0, "max_tokens": 12});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

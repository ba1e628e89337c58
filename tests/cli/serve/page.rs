//! The page at `/`: one file that loads nothing from elsewhere, and does what it is for in a browser.

use super::Server;
use serde_json::{Value, json};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

#[test]
fn the_page_is_one_file_that_may_load_nothing_else() {
    let server = Server::start(&[]);
    let (status, head, page) = server.ask("GET", "/", &[], "");
    let head = head.to_lowercase();
    assert_eq!(status, 200);
    assert!(
        head.contains("content-security-policy: default-src 'none'") && head.contains("connect-src 'self'"),
        "{head}"
    );
    for outside in ["src=", "href=", "@import", "url(", "http:", "https:", "import("] {
        assert!(!page.contains(outside), "{outside}");
    }
    // What the page shows is what the server tells.
    let (_, _, metrics) = server.ask("GET", "/metrics", &[], "");
    for name in ["requests_running", "tokens_out_total", "kv_bytes", "prefix_hits_total", "requests_refused_total"] {
        assert!(page.contains(name) && metrics.contains(&format!("ashlar_{name} ")), "{name}");
    }
}

/// A headless browser, spoken to over two pipes in Chromium's protocol: JSON, each ended by a zero byte.
struct Browser {
    child: Child,
    to: File,
    from: BufReader<File>,
    session: String,
    next: u64,
}

impl Browser {
    fn find() -> Option<&'static str> {
        let there = |name: &&str| {
            Command::new(name).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
        };
        ["chromium", "chromium-browser", "google-chrome"].into_iter().find(there)
    }

    /// Opens a page.
    fn open(program: &str, dir: &Path, url: &str) -> Self {
        let pipe = |name: &str| {
            let path = dir.join(name);
            assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
            path
        };
        let (to, from) = (pipe("to"), pipe("from"));
        // The browser reads from 3 and writes to 4; a pipe is opened when both ends are.
        let script = "exec \"$0\" --headless --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --remote-debugging-pipe \
                      --user-data-dir=\"$1/profile\" about:blank 3<\"$1/to\" 4>\"$1/from\"";
        let mut command = Command::new("sh");
        command.args(["-c", script, program]).arg(dir).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().unwrap();
        let to = File::options().write(true).open(to).unwrap();
        let from = BufReader::new(File::open(from).unwrap());
        let mut browser = Self { child, to, from, session: String::new(), next: 0 };
        let target = browser.call("Target.createTarget", &json!({"url": url}))["targetId"].clone();
        let attached = browser.call("Target.attachToTarget", &json!({"targetId": target, "flatten": true}));
        browser.session = attached["sessionId"].as_str().unwrap().to_owned();
        browser
    }

    fn call(&mut self, method: &str, params: &Value) -> Value {
        self.next += 1;
        let mut message = json!({"id": self.next, "method": method, "params": params});
        if !self.session.is_empty() {
            message["sessionId"] = json!(self.session);
        }
        write!(self.to, "{message}\0").unwrap();
        loop {
            let mut raw = Vec::new();
            self.from.read_until(0, &mut raw).unwrap();
            let message: Value = serde_json::from_slice(raw.strip_suffix(b"\0").expect("the browser ended")).unwrap();
            if message["id"] == self.next {
                assert!(message["error"].is_null(), "{method}: {message}");
                return message["result"].clone();
            }
        }
    }

    /// The value of an expression in the page.
    fn eval(&mut self, expression: &str) -> Value {
        let asked = json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let result = self.call("Runtime.evaluate", &asked);
        assert!(result["exceptionDetails"].is_null(), "{expression}: {result}");
        result["result"]["value"].clone()
    }

    fn wait_for(&mut self, expression: &str) {
        let begin = Instant::now();
        while self.eval(expression) != json!(true) {
            let text = self.eval("document.body && document.body.innerText");
            assert!(begin.elapsed() < Duration::from_secs(60), "still not: {expression}\n{text}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn one_can_chat_on_the_page_and_see_the_figures_move() {
    let Some(program) = Browser::find() else {
        println!("SKIPPED the page in a browser: no chromium on PATH");
        return;
    };
    let server = Server::start(&[]);
    let dir = tempfile::tempdir().unwrap();
    let mut browser = Browser::open(program, dir.path(), &format!("http://{}/", server.address));
    browser.wait_for("document.getElementById('model')?.textContent === 'demo-moe'");
    browser.wait_for("document.querySelectorAll('#figures tr').length >= 10");
    browser.eval("document.getElementById('text').value = 'In the beginning'; document.getElementById('send').click()");
    browser.wait_for("document.querySelectorAll('article.assistant').length === 1 && running === null");
    let answer = browser.eval("document.querySelector('article.assistant').textContent");
    assert!(answer.as_str().is_some_and(|a| !a.is_empty()), "{answer}");
    assert_eq!(browser.eval("messages.length"), 2);
    // The figures are asked for every second.
    browser.wait_for("[...document.querySelectorAll('#figures tr')].some(r => r.cells[0].textContent === 'to first token' && r.cells[1].textContent !== '')");
    // A long answer is stopped; a request that is refused shows why.
    browser.eval("document.getElementById('text').value = 'And God said'; document.getElementById('send').click()");
    browser.wait_for("running !== null || document.querySelectorAll('article.assistant').length === 2");
    browser.eval("document.getElementById('stop').click()");
    browser.wait_for("running === null");
    browser
        .eval("document.getElementById('text').value = 'word '.repeat(3000); document.getElementById('send').click()");
    browser.wait_for("document.querySelector('article.error')?.textContent.includes('512') === true");
    browser.eval("document.getElementById('reset').click()");
    assert_eq!(browser.eval("messages.length + document.querySelectorAll('article').length"), 0);
}

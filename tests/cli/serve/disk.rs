//! Beginnings of texts on disk: after a kill, with damaged files, and what the log says.

use super::Server;
use crate::support::fixture;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Between 1100 and 1700 tokens for the bundled model.
fn long(end: &str) -> String {
    let verse = "And God said, Let there be light: and there was light. And God saw the light, that it was good. ";
    format!("{}{end}", verse.repeat(64))
}

fn ask(server: &Server, prompt: &str) -> (String, u64) {
    let body = json!({"prompt": prompt, "temperature": 0, "max_tokens": 12, "ignore_eos": true});
    let (status, answer) = server.post("/v1/completions", &body);
    assert_eq!(status, 200, "{answer}");
    let cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
    (answer["choices"][0]["text"].as_str().unwrap().to_owned(), cached)
}

fn keeping(dir: &Path) -> Server {
    Server::with_context("2048", &["--kv-dir", dir.to_str().unwrap(), "--max-sequences", "3"])
}

/// Names of files with this ending.
fn files(dir: &Path, ending: &str) -> Vec<std::path::PathBuf> {
    let all = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
    all.filter(|p| p.to_str().unwrap().ends_with(ending)).collect()
}

#[test]
fn after_a_kill_under_load_the_next_server_goes_on_from_what_was_written() {
    let dir = tempfile::tempdir().unwrap();
    let want = ask(&Server::with_context("2048", &[]), &long("So")).0;
    for round in 0..3 {
        let mut server = keeping(dir.path());
        let (ended, address) = (AtomicBool::new(false), server.address.clone());
        std::thread::scope(|scope| {
            for client in 0..3 {
                let (ended, address) = (&ended, &address);
                scope.spawn(move || {
                    for i in 0.. {
                        let prompt = format!("{round} {client} {i} {}", long("x"));
                        let body = json!({"prompt": prompt, "max_tokens": 4}).to_string();
                        // The server goes away in the middle of one of them.
                        let Ok(mut stream) = std::net::TcpStream::connect(address) else { return };
                        let head = format!("POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len());
                        if std::io::Write::write_all(&mut stream, head.as_bytes()).is_err() || ended.load(Ordering::Relaxed) {
                            return;
                        }
                        let _ = std::io::Read::read_to_end(&mut stream, &mut Vec::new());
                    }
                });
            }
            // The long prompt is on disk, and others are being written.
            assert_eq!(ask(&server, &long("So")).0, want);
            server.wait_for("blocks on disk", |s| s.metric("prefix_disk_blocks") >= 6.0);
            std::thread::sleep(Duration::from_millis(70 * round));
            server.child.kill().unwrap();
            ended.store(true, Ordering::Relaxed);
        });
    }
    let server = keeping(dir.path());
    let (text, cached) = ask(&server, &long("So"));
    assert!(text == want && cached >= 1024, "{cached} tokens, {text}");
    assert_eq!((server.metric("prefix_disk_hits_total"), server.metric("prefix_disk_damaged_total")), (1.0, 0.0));
    assert!(server.metric("tokens_in_total") < 300.0);
    assert!(files(dir.path(), "unfinished").is_empty());
}

#[test]
fn damaged_and_foreign_files_are_told_in_the_log_and_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let (want, none) = ask(&keeping(dir.path()), &long("So"));
    assert_eq!(none, 0);
    let blocks = files(dir.path(), ".kv");
    assert!(blocks.len() >= 4);
    for (i, path) in blocks.iter().enumerate() {
        let mut bytes = std::fs::read(path).unwrap();
        match i % 3 {
            0 => bytes.truncate(bytes.len() / 2),
            1 => *bytes.last_mut().unwrap() ^= 0x40,
            _ => bytes[3] = 0,
        }
        std::fs::write(path, bytes).unwrap();
    }
    std::fs::write(dir.path().join("README"), "mine").unwrap();
    let server = keeping(dir.path());
    let (text, cached) = ask(&server, &long("So"));
    assert!(text == want && cached == 0, "{cached}");
    assert!(server.logged(&["README", "not a file of keys and values"]) && server.logged(&["expected"]));
    assert!(dir.path().join("README").exists());
    // Another server on the same folder is refused at once.
    let refused = ashlar!["serve", fixture("demo-moe"), "--port", "0", "--kv-dir", dir.path()];
    refused.expect(1).says(&["another process uses it"]);
}

/// On a disk of 4 MB, of which a text takes 2 or 3.
#[test]
fn on_a_full_disk_new_blocks_take_the_place_of_old_ones() {
    let dir = tempfile::tempdir().unwrap();
    let mount = "mount -t tmpfs -o size=4m tmpfs \"$1\"";
    let unshare = |script: &str| {
        let mut command = std::process::Command::new("unshare");
        command.args(["-rm", "sh", "-c", script, "sh"]).arg(dir.path());
        command
    };
    if !unshare(mount).stderr(std::process::Stdio::null()).status().is_ok_and(|s| s.success()) {
        return crate::support::skip("disk-full", "cannot mount a small file system here (unshare -rm)");
    }
    let script = format!("{mount} && dir=\"$1\" && shift && exec \"$@\" --kv-dir \"$dir\"");
    let mut command = unshare(&script);
    command.arg(env!("CARGO_BIN_EXE_ashlar")).arg("serve").arg(fixture("demo-moe"));
    let server = Server::spawn(command.args(["--context", "2048", "--max-sequences", "1"]));
    let text = |i: usize| format!("{i} {}", long("So"));
    let want: Vec<_> = (0..4).map(|i| ask(&server, &text(i)).0).collect();
    server.wait_for("blocks that made room", |s| s.metric("prefix_disk_evicted_total") >= 4.0);
    // The one slot holds something else meanwhile: what comes back comes from the disk.
    assert_eq!(ask(&server, "The").1, 0);
    let (text, cached) = ask(&server, &text(3));
    assert!(text == want[3] && cached >= 1024, "{cached}");
    assert_eq!((server.metric("prefix_disk_hits_total"), server.metric("prefix_disk_damaged_total")), (1.0, 0.0));
}

#[test]
fn a_stopped_server_keeps_what_was_answered_last_and_logs_as_told() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::with_context(
        "2048",
        &["--kv-dir", dir.path().to_str().unwrap(), "--log-format", "json", "--log-level", "info"],
    );
    let (want, _) = ask(&server, &long("So"));
    let (status, head, _) = server.ask("GET", "/v1/models", &["x-request-id: mine-1"], "");
    assert!(status == 200 && head.to_lowercase().contains("x-request-id: mine-1"), "{head}");
    let (_, head, _) = server.ask("GET", "/v1/models", &["x-request-id: no \"quotes\""], "");
    assert!(head.to_lowercase().contains("x-request-id: req-"), "{head}");
    assert!(std::process::Command::new("kill").arg(server.child.id().to_string()).status().unwrap().success());
    assert!(server.child.wait().unwrap().success());
    std::thread::sleep(Duration::from_millis(100));
    let lines = server.log.lock().unwrap().clone();
    let events: Vec<Value> = lines.iter().filter_map(|l| serde_json::from_str(l).ok()).collect();
    let done = events.iter().find(|e| e["message"] == "done").unwrap_or_else(|| panic!("{lines:?}"));
    assert!(
        done["prompt_tokens"].as_u64().unwrap() > 1024 && done["tokens"] == 12 && done["level"] == "INFO",
        "{done}"
    );
    assert!(events.iter().any(|e| e["request"] == "mine-1" && e["status"] == 200 && e["path"] == "/v1/models"));
    let (text, cached) = ask(&keeping(dir.path()), &long("So"));
    assert!(text == want && cached >= 1024, "{cached}");
}

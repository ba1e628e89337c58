//! A hub on this machine: one repository, with faults on demand. Large files are redirected to another host, as the hub
//! does.
#![allow(dead_code, reason = "two test binaries share this file, each with its own needs")]

use ashlar_hub::{Digest, Hasher};
use serde_json::json;
use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
pub const REPO: &str = "org/model";

/// What goes wrong the next time that a file is asked for.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The connection ends after so many bytes of the body.
    Cut(usize),
    /// This status, with `Retry-After` if any.
    Status(u16, Option<&'static str>),
    /// One bit of the body is another.
    Flip,
    /// The whole file, whatever was asked for.
    IgnoreRange,
    /// More bytes than there are.
    Longer,
}

/// A request that was answered.
#[derive(Clone, Debug)]
pub struct Request {
    pub path: String,
    pub host: String,
    pub authorization: Option<String>,
    /// First byte asked for.
    pub from: u64,
    /// Bytes of the body that were sent.
    pub sent: u64,
}

#[derive(Default)]
struct State {
    files: BTreeMap<String, Vec<u8>>,
    token: Option<String>,
    faults: BTreeMap<String, VecDeque<Fault>>,
    log: Vec<Request>,
}

/// The server; it ends with the process.
pub struct TestHub {
    pub url: String,
    state: Arc<Mutex<State>>,
}

impl TestHub {
    /// Serves these files as `org/model`.
    pub fn new(files: impl IntoIterator<Item = (String, Vec<u8>)>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let state = Arc::new(Mutex::new(State { files: files.into_iter().collect(), ..State::default() }));
        let shared = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = shared.clone();
                std::thread::spawn(move || {
                    // A client that goes away is its own business.
                    let _ = answer(stream, port, &state);
                });
            }
        });
        Self { url: format!("http://127.0.0.1:{port}"), state }
    }

    /// Serves the files of a directory.
    pub fn of(dir: &Path) -> Self {
        let files = std::fs::read_dir(dir).expect("a readable folder").map(|entry| {
            let path = entry.expect("an entry").path();
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            (name, std::fs::read(&path).expect("a readable file"))
        });
        Self::new(files.collect::<Vec<_>>())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic in the server")
    }

    /// Only with this token from now on.
    pub fn demand(&self, token: &str) {
        self.state().token = Some(token.to_owned());
    }

    /// What goes wrong with a file (or `api`), each fault once, in this order.
    pub fn fail(&self, file: &str, faults: impl IntoIterator<Item = Fault>) {
        self.state().faults.entry(file.to_owned()).or_default().extend(faults);
    }

    /// Takes a file away, or replaces it.
    pub fn replace(&self, file: &str, bytes: Option<Vec<u8>>) {
        match bytes {
            Some(bytes) => self.state().files.insert(file.to_owned(), bytes),
            None => self.state().files.remove(file),
        };
    }

    /// The requests so far whose path ends like this.
    pub fn requests(&self, end: &str) -> Vec<Request> {
        self.state().log.iter().filter(|r| r.path.ends_with(end)).cloned().collect()
    }

    /// Forgets the requests so far.
    pub fn forget(&self) {
        self.state().log.clear();
    }

    /// Bytes of all bodies of weights so far.
    pub fn weight_bytes(&self) -> u64 {
        self.state().log.iter().filter(|r| is_large(&r.path)).map(|r| r.sent).sum()
    }
}

/// The hash that the hub lists for a file.
pub fn digest(name: &str, bytes: &[u8]) -> Digest {
    let zeros = |n| "0".repeat(n);
    let like = if is_large(name) { Digest::sha256(&zeros(64)) } else { Digest::git(&zeros(40)) };
    let mut hasher = Hasher::like(&like.expect("hex"), bytes.len() as u64);
    hasher.update(bytes);
    hasher.finish()
}

fn is_large(name: &str) -> bool {
    name.ends_with(".safetensors") || name.ends_with(".gguf")
}

/// The file's path in the repository.
fn file_of(path: &str) -> &str {
    let resolved = path.split_once("/resolve/").and_then(|(_, rest)| Some(rest.split_once('/')?.1));
    resolved.or_else(|| path.strip_prefix("/cdn/")).unwrap_or_default()
}

struct Asked {
    path: String,
    host: String,
    authorization: Option<String>,
    range: Option<(usize, Option<usize>)>,
}

fn asked(stream: &TcpStream) -> Option<Asked> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next()?.ok()?;
    let path = first.split(' ').nth(1)?.to_owned();
    let mut asked = Asked { path, host: String::new(), authorization: None, range: None };
    for line in lines {
        let line = line.ok()?;
        let Some((name, value)) = line.split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "host" => asked.host = value.to_owned(),
            "authorization" => asked.authorization = Some(value.to_owned()),
            "range" => {
                let (from, to) = value.strip_prefix("bytes=")?.split_once('-')?;
                asked.range = Some((from.parse().ok()?, to.parse().ok()));
            }
            _ => {}
        }
    }
    Some(asked)
}

fn answer(mut stream: TcpStream, port: u16, state: &Mutex<State>) -> std::io::Result<()> {
    let Some(asked) = asked(&stream) else { return Ok(()) };
    let path = asked.path.split('?').next().unwrap_or_default().to_owned();
    let (file, fault, token, bytes) = {
        let mut state = state.lock().expect("no panic in the server");
        let file = if path.starts_with("/api/") { "api" } else { file_of(&path) };
        let redirected = !path.starts_with("/cdn/") && is_large(file);
        let fault = if redirected { None } else { state.faults.get_mut(file).and_then(VecDeque::pop_front) };
        (file.to_owned(), fault, state.token.clone(), state.files.get(file).cloned())
    };
    let sent = |n: usize| {
        let mut state = state.lock().expect("no panic in the server");
        let from = asked.range.map_or(0, |(from, _)| from as u64);
        let (host, authorization) = (asked.host.clone(), asked.authorization.clone());
        state.log.push(Request { path: path.clone(), host, authorization, from, sent: n as u64 });
    };
    let mut plain = |status: &str, more: &str, body: &str| {
        sent(0);
        let length = body.len();
        write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n{more}\r\n{body}")
    };
    if let Some(Fault::Status(status, wait)) = fault {
        let wait = wait.map(|w| format!("Retry-After: {w}\r\n")).unwrap_or_default();
        return plain(&format!("{status} Fault"), &wait, "");
    }
    let cdn = path.starts_with("/cdn/");
    let allowed = token.is_none_or(|t| asked.authorization == Some(format!("Bearer {t}")));
    if !cdn && !allowed {
        return plain("401 Unauthorized", "X-Error-Code: RepoNotFound\r\n", "");
    }
    if file == "api" {
        let revision = path.rsplit('/').next().unwrap_or_default();
        if path.contains(REPO) && (revision == "main" || revision == COMMIT) {
            return plain("200 OK", "Content-Type: application/json\r\n", &info(state));
        }
        return plain("404 Not Found", "X-Error-Code: RevisionNotFound\r\n", "");
    }
    let Some(bytes) = bytes else { return plain("404 Not Found", "X-Error-Code: EntryNotFound\r\n", "") };
    if !cdn && is_large(&file) {
        // Another name of the same machine: what is secret must not follow.
        return plain("302 Found", &format!("Location: http://localhost:{port}/cdn/{file}\r\n"), "");
    }
    body(stream, &asked, &bytes, fault, sent)
}

fn body(
    mut stream: TcpStream,
    asked: &Asked,
    bytes: &[u8],
    fault: Option<Fault>,
    sent: impl Fn(usize),
) -> std::io::Result<()> {
    let range = asked.range.filter(|_| !matches!(fault, Some(Fault::IgnoreRange)));
    let (from, to) = range.map_or((0, bytes.len()), |(a, b)| (a, b.map_or(bytes.len(), |b| (b + 1).min(bytes.len()))));
    if from >= to && !bytes.is_empty() {
        sent(0);
        return write!(stream, "HTTP/1.1 416 Range\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    }
    let mut part = bytes[from..to].to_vec();
    match fault {
        Some(Fault::Flip) => *part.last_mut().expect("a byte") ^= 1,
        Some(Fault::Longer) => part.extend([0; 10]),
        _ => {}
    }
    let status = match range {
        Some(_) => format!("206 Partial\r\nContent-Range: bytes {from}-{}/{}", to - 1, bytes.len()),
        None => "200 OK".to_owned(),
    };
    write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", part.len())?;
    let upto = if let Some(Fault::Cut(n)) = fault { n.min(part.len()) } else { part.len() };
    sent(upto);
    stream.write_all(&part[..upto])?;
    stream.flush()
}

fn info(state: &Mutex<State>) -> String {
    let state = state.lock().expect("no panic in the server");
    let siblings: Vec<_> = state
        .files
        .iter()
        .map(|(name, bytes)| match digest(name, bytes) {
            Digest::Sha256(hex) => json!({"rfilename": name, "size": bytes.len(), "blobId": "0".repeat(40),
                                          "lfs": {"sha256": hex, "size": bytes.len(), "pointerSize": 130}}),
            Digest::Git(hex) => json!({"rfilename": name, "size": bytes.len(), "blobId": hex}),
        })
        .collect();
    json!({"id": REPO, "sha": COMMIT, "siblings": siblings}).to_string()
}

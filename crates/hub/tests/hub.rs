//! The client against a hub on this machine, with faults.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod support;

use ashlar_hub::{Hub, HubError, Repo, Settings, Stream};
use ashlar_tensor::{Report, Silent, TensorStore};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use support::{COMMIT, Fault, REPO, TestHub, digest};

const SHARDS: [&str; 3] =
    ["model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors", "model-00003-of-00003.safetensors"];

/// A shard with one f32 matrix, 600 kB.
fn shard(name: &str, seed: u32) -> Vec<u8> {
    let (n, k) = (150, 1000);
    let json = format!("{{{name:?}:{{\"dtype\":\"F32\",\"shape\":[{n},{k}],\"data_offsets\":[0,{}]}}}}", 4 * n * k);
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(json.as_bytes());
    bytes.extend((0..n * k).flat_map(|i| ((i as u32).wrapping_mul(seed) as f32).to_le_bytes()));
    bytes
}

/// config, index, three shards, a licence, and what no model needs.
fn files() -> Vec<(String, Vec<u8>)> {
    let index = serde_json::json!({"metadata": {}, "weight_map": {"a": SHARDS[0], "b": SHARDS[1], "c": SHARDS[2]}});
    let text = |name: &str, text: &str| (name.to_owned(), text.as_bytes().to_vec());
    let mut all = vec![
        text("config.json", "{\"architectures\": [\"X\"]}"),
        text("model.safetensors.index.json", &index.to_string()),
        text("LICENSE", "as you like"),
        text("picture.png", "no"),
        text("pytorch_model.bin", "no"),
    ];
    all.extend(SHARDS.iter().zip(["a", "b", "c"]).map(|(file, name)| ((*file).to_owned(), shard(name, 7))));
    all
}

struct Place {
    server: TestHub,
    cache: tempfile::TempDir,
    token: Option<String>,
}

impl Place {
    fn new() -> Self {
        Self { server: TestHub::new(files()), cache: tempfile::tempdir().unwrap(), token: None }
    }

    fn hub(&self) -> Hub {
        self.settings(false)
    }

    fn settings(&self, offline: bool) -> Hub {
        let settings = Settings {
            endpoint: self.server.url.clone(),
            token: self.token.clone(),
            cache: self.cache.path().to_owned(),
            offline,
            certificates: None,
            longest_wait: 0,
        };
        Hub::new(settings).unwrap()
    }

    fn root(&self) -> PathBuf {
        self.cache.path().join("models--org--model")
    }
}

fn repo() -> Repo {
    REPO.parse().unwrap()
}

/// Keeps notes.
#[derive(Default)]
struct Notes(Mutex<Vec<String>>);

impl Report for Notes {
    fn begin(&self, _stage: &str, _total: u64) {}
    fn advance(&self, _amount: u64, _current: &str) {}
    fn note(&self, text: &str) {
        self.0.lock().unwrap().push(text.to_owned());
    }
    fn end(&self) {}
}

#[test]
fn a_model_lies_in_the_layout_that_other_tools_share_and_is_not_downloaded_twice() {
    let place = Place::new();
    let snapshot = place.hub().pull(&repo(), &Silent).unwrap();
    assert_eq!((snapshot.dir.clone(), snapshot.commit.as_str()), (place.root().join("snapshots").join(COMMIT), COMMIT));
    assert_eq!(fs::read_to_string(place.root().join("refs/main")).unwrap(), COMMIT);
    for (name, bytes) in files() {
        let link = snapshot.dir.join(&name);
        if name.ends_with("png") || name.ends_with("bin") {
            assert!(!link.exists(), "{name}");
            continue;
        }
        assert_eq!(fs::read(&link).unwrap(), bytes, "{name}");
        let blob = Path::new("../../blobs").join(digest(&name, &bytes).hex());
        assert_eq!(fs::read_link(&link).unwrap(), blob, "{name}");
    }
    place.server.forget();
    let again = place.hub().pull(&repo(), &Silent).unwrap();
    assert_eq!(again.downloaded, 0);
    assert!(place.server.requests(".safetensors").is_empty());
}

#[test]
fn a_download_that_is_cut_goes_on_where_it_stopped() {
    let place = Place::new();
    place.server.fail(SHARDS[1], [Fault::Cut(100_000), Fault::Cut(300_000)]);
    let snapshot = place.hub().pull(&repo(), &Silent).unwrap();
    assert_eq!(fs::read(snapshot.dir.join(SHARDS[1])).unwrap(), shard("b", 7));
    let cdn: Vec<_> = place.server.requests(SHARDS[1]).into_iter().filter(|r| r.path.starts_with("/cdn/")).collect();
    assert_eq!(cdn.iter().map(|r| r.from).collect::<Vec<_>>(), [0, 100_000, 400_000]);
    assert_eq!(cdn.iter().map(|r| r.sent).sum::<u64>(), shard("b", 7).len() as u64);
}

#[test]
fn what_an_earlier_process_left_is_hashed_and_continued() {
    let place = Place::new();
    let bytes = shard("a", 7);
    let blobs = place.root().join("blobs");
    fs::create_dir_all(&blobs).unwrap();
    fs::write(blobs.join(format!("{}.incomplete", digest(SHARDS[0], &bytes).hex())), &bytes[..200_000]).unwrap();
    let snapshot = place.hub().pull(&repo(), &Silent).unwrap();
    assert_eq!(fs::read(snapshot.dir.join(SHARDS[0])).unwrap(), bytes);
    assert!(place.server.requests(SHARDS[0]).iter().all(|r| r.from == 200_000));
    assert_eq!(snapshot.downloaded + 200_000, snapshot.bytes);
}

#[test]
fn a_server_that_is_busy_or_down_for_a_while_is_asked_again() {
    let place = Place::new();
    place.server.fail("api", [Fault::Status(429, Some("0")), Fault::Status(503, None)]);
    place.server.fail(SHARDS[2], [Fault::Status(500, None), Fault::Status(429, Some("Thu, 01 Jan 1970 00:00:00 GMT"))]);
    place.hub().pull(&repo(), &Silent).unwrap();
    assert_eq!(place.server.requests("/revision/main").len(), 3);
}

#[test]
fn a_server_that_stays_down_is_given_up_and_what_came_stays() {
    let place = Place::new();
    place.server.fail(SHARDS[0], std::iter::once(Fault::Cut(50_000)).chain(vec![Fault::Status(503, None); 20]));
    let error = place.hub().pull(&repo(), &Silent).unwrap_err();
    assert!(matches!(&error, HubError::Connection { attempts: 5, .. }), "{error}");
    assert!(error.to_string().contains("goes on where it stopped"), "{error}");
    let left = place.root().join("blobs").join(format!("{}.incomplete", digest(SHARDS[0], &shard("a", 7)).hex()));
    assert_eq!(fs::metadata(left).unwrap().len(), 50_000);
}

#[test]
fn a_file_with_another_hash_is_downloaded_once_more_and_then_refused() {
    let place = Place::new();
    place.server.fail(SHARDS[0], [Fault::Flip]);
    let notes = Notes::default();
    place.hub().pull(&repo(), &notes).unwrap();
    assert!(notes.0.lock().unwrap().iter().any(|n| n.contains(SHARDS[0]) && n.contains("hash")));

    let place = Place::new();
    place.server.fail(SHARDS[0], [Fault::Flip, Fault::Flip]);
    let error = place.hub().pull(&repo(), &Silent).unwrap_err();
    assert!(matches!(&error, HubError::Hash { file, .. } if file == SHARDS[0]), "{error}");
    assert!(!place.root().join("blobs").join(digest(SHARDS[0], &shard("a", 7)).hex()).exists());
}

#[test]
fn a_server_without_ranges_or_with_too_many_bytes_does_no_harm() {
    let place = Place::new();
    place.server.fail(SHARDS[0], [Fault::Cut(100_000), Fault::IgnoreRange]);
    let snapshot = place.hub().pull(&repo(), &Silent).unwrap();
    assert_eq!(fs::read(snapshot.dir.join(SHARDS[0])).unwrap(), shard("a", 7));
    let place = Place::new();
    place.server.fail(SHARDS[0], vec![Fault::Longer; 3]);
    let error = place.hub().pull(&repo(), &Silent).unwrap_err();
    assert!(error.to_string().contains("more bytes came"), "{error}");
}

#[test]
fn a_private_model_needs_a_token_which_no_other_host_sees() {
    let mut place = Place::new();
    place.server.demand("hf_secret");
    let error = place.hub().pull(&repo(), &Silent).unwrap_err();
    assert!(matches!(&error, HubError::Status { status: 401, .. }), "{error}");
    assert!(error.to_string().contains("HF_TOKEN"), "{error}");
    place.token = Some("hf_secret".to_owned());
    place.server.forget();
    place.hub().pull(&repo(), &Silent).unwrap();
    let cdn: Vec<_> = place.server.requests("").into_iter().filter(|r| r.path.starts_with("/cdn/")).collect();
    assert!(
        cdn.len() >= 3 && cdn.iter().all(|r| r.host.starts_with("localhost") && r.authorization.is_none()),
        "{cdn:?}"
    );
}

#[test]
fn what_a_repository_lacks_is_named() {
    let place = Place::new();
    let error = place.hub().pull(&"org/model@nowhere".parse().unwrap(), &Silent).unwrap_err();
    assert!(matches!(error, HubError::Status { status: 404, .. }), "{error}");
    place.server.replace(SHARDS[1], None);
    let error = place.hub().pull(&repo(), &Silent).unwrap_err();
    assert!(error.to_string().contains(SHARDS[1]) && error.to_string().contains("upload"), "{error}");
    place.server.replace("model.safetensors.index.json", None);
    let error = place.hub().pull(&repo(), &Silent).unwrap_err();
    assert!(error.to_string().contains("pytorch_model.bin"), "{error}");
    place.server.replace("config.json", None);
    let error = place.hub().pull(&repo(), &Silent).unwrap_err();
    assert!(error.to_string().contains("config.json"), "{error}");
}

#[test]
fn offline_and_pinned_models_come_from_the_cache_without_a_question() {
    let place = Place::new();
    let error = place.settings(true).pull(&repo(), &Silent).unwrap_err();
    assert!(matches!(error, HubError::Offline { .. }), "{error}");
    place.hub().pull(&repo(), &Silent).unwrap();
    place.server.forget();
    place.settings(true).pull(&repo(), &Silent).unwrap();
    place.hub().pull(&format!("{REPO}@{COMMIT}").parse().unwrap(), &Silent).unwrap();
    assert!(place.server.requests("").is_empty());
}

#[test]
fn a_hub_that_cannot_be_reached_does_not_hide_what_is_in_the_cache() {
    let place = Place::new();
    place.hub().pull(&repo(), &Silent).unwrap();
    place.server.fail("api", vec![Fault::Status(503, None); 20]);
    let notes = Notes::default();
    place.hub().pull(&repo(), &notes).unwrap();
    assert!(notes.0.lock().unwrap().iter().any(|n| n.contains("in the cache")), "told");
}

#[test]
fn headers_alone_give_every_shape_and_no_weight() {
    let place = Place::new();
    let headers = place.hub().headers(&repo(), &Silent).unwrap();
    assert!(place.server.weight_bytes() <= 3 * (256 << 10), "{}", place.server.weight_bytes());
    let names: Vec<_> = headers.entries().iter().map(|e| (e.name.as_str(), e.shape.as_slice(), e.bytes())).collect();
    assert_eq!(names, ["a", "b", "c"].map(|n| (n, [150, 1000].as_slice(), 600_000)));
    let entry = headers.entry("b").unwrap();
    let error = headers.read(entry, 0, 0, &mut [0; 4]).unwrap_err();
    assert!(error.to_string().contains("only headers"), "{error}");
    // The same model has the same identity, downloaded or not.
    let local = ashlar_source::Checkpoint::open(&place.hub().pull(&repo(), &Silent).unwrap().dir).unwrap();
    assert_eq!(headers.checkpoint().identity(), local.identity());
}

#[test]
fn shards_of_a_stream_come_and_go() {
    let place = Place::new();
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("out.download");
    let stream = Stream::open(Arc::new(place.hub()), &repo(), &dir, &Silent).unwrap();
    let b = stream.entry("b").unwrap().clone();
    assert_eq!((stream.count(), stream.shards_of(&b)), (3, vec![1]));
    let mut four = [0; 4];
    assert!(stream.read(&b, 0, 4, &mut four).is_err(), "not there yet");
    place.server.fail(SHARDS[1], [Fault::Cut(70_000)]);
    stream.fetch(1, &Silent).unwrap();
    stream.read(&b, 0, 4, &mut four).unwrap();
    assert_eq!(f32::from_le_bytes(four), 7.0);
    stream.release(1).unwrap();
    assert!(stream.read(&b, 0, 4, &mut four).is_err(), "gone");
    assert_eq!(fs::metadata(dir.join(SHARDS[1])).unwrap().len(), 0);
    drop(stream);
    // What an earlier run left is replaced; what it did not make is not touched.
    Stream::open(Arc::new(place.hub()), &repo(), &dir, &Silent).unwrap().remove().unwrap();
    assert!(!dir.exists());
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("precious"), "x").unwrap();
    assert!(Stream::open(Arc::new(place.hub()), &repo(), &dir, &Silent).is_err());
    assert!(dir.join("precious").exists());
}

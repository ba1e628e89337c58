//! `hf:ORG/NAME` as a source, against a hub on this machine.

#[path = "../../crates/hub/tests/support/mod.rs"]
mod server;

use crate::support::{Ran, Shape, Test, ashlar, assert_same_files, finish, write_checkpoint};
use server::{COMMIT, Fault, TestHub};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

const SHAPE: Shape = Shape { hidden: 256, intermediate: 768, layers: 4, vocab: 512, shards: 4 };
const SRC: &str = "hf:org/model";

struct Place {
    dir: tempfile::TempDir,
    server: TestHub,
    local: PathBuf,
}

impl Place {
    fn new() -> std::io::Result<Self> {
        let dir = tempfile::tempdir()?;
        let local = dir.path().join("local");
        write_checkpoint(&local, SHAPE)?;
        std::fs::write(local.join("README.md"), "---\nlicense: mit\n---\n")?;
        Ok(Self { server: TestHub::of(&local), local, dir })
    }

    fn out(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn run<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Ran {
        let mut command = ashlar();
        command.env("HF_ENDPOINT", &self.server.url).env("HF_HOME", self.dir.path().join("home"));
        for variable in ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "SSL_CERT_FILE"] {
            command.env_remove(variable);
        }
        finish(command.args(args))
    }

    fn convert(&self, src: &Path, out: &Path, extra: &[&str]) -> Ran {
        let args = ["convert", "-o"].map(OsStr::new).into_iter().chain([out.as_os_str(), src.as_os_str()]);
        let recipe = ["--recipe", "4bit", "--shard-size", "1MiB"];
        self.run(args.chain(recipe.iter().chain(extra).map(OsStr::new)))
    }
}

/// All files but the card, in which a model of the hub has a name and a commit.
fn assert_same_weights(local: &Path, hub: &Path) -> Test {
    let card = std::fs::read_to_string(hub.join("README.md"))?;
    assert!(card.contains("base_model:\n- org/model\n") && card.contains(&format!("org/model at {COMMIT}")), "{card}");
    for dir in [local, hub] {
        let path = dir.join("README.md");
        if path.exists() {
            std::fs::remove_file(path)?;
        }
    }
    assert_same_files(local, hub);
    Ok(())
}

#[test]
fn a_model_of_the_hub_is_planned_from_its_headers() -> Test {
    let place = Place::new()?;
    let hub = place.run(["plan", SRC, "--recipe", "4bit", "--json"]).expect(0).json();
    let weights: u64 =
        std::fs::read_dir(&place.local)?.flatten().filter_map(|e| e.metadata().ok()).map(|m| m.len()).sum();
    assert!(place.server.weight_bytes() < weights / 4, "{} of {weights}", place.server.weight_bytes());
    let local = ashlar!["plan", place.local, "--recipe", "4bit", "--json"].expect(0).json();
    for key in ["total_bytes", "classes", "shards", "source_bytes"] {
        assert_eq!(hub[key], local[key], "{key}");
    }
    assert_eq!(place.run(["inspect", SRC, "--json"]).expect(0).json()["license"], "mit");
    let tier = place.run(["plan", SRC, "--hardware", "cpu-32gb"]).expect(0).stdout;
    assert!(tier.contains("cpu-32gb") && tier.contains("fits"), "{tier}");
    place.run(["plan", SRC, "--target-bpw", "5"]).expect(2).says(&["only shapes"]);
    Ok(())
}

#[test]
fn a_model_of_the_hub_converts_downloaded_or_shard_by_shard_to_the_same_bytes() -> Test {
    let place = Place::new()?;
    let (local, pulled, streamed) = (place.out("a"), place.out("b"), place.out("c"));
    place.convert(&place.local, &local, &[]).expect(0);
    place.convert(Path::new(SRC), &streamed, &["--stream"]).expect(0);
    assert_same_weights(&local, &streamed)?;
    assert!(!place.out("c.download").exists(), "nothing is left of the shards");
    // Nothing of the weights went into the cache.
    let cached = place.run(["pull", "org/model", "--json"]).expect(0).json();
    assert!(cached["downloaded_bytes"].as_u64() > Some(1_000_000), "{cached}");
    place.server.forget();
    place.convert(Path::new(SRC), &pulled, &[]).expect(0);
    assert_eq!(place.server.weight_bytes(), 0, "it was in the cache");
    assert_same_weights(&local, &pulled)?;
    let report = place.run(["verify".as_ref(), pulled.as_os_str(), "--against".as_ref(), SRC.as_ref()]);
    report.expect(0);
    Ok(())
}

#[test]
fn parts_of_a_model_of_the_hub_download_only_the_shards_they_need() -> Test {
    let place = Place::new()?;
    let (local, out) = (place.out("local-pack"), place.out("out"));
    place.convert(&place.local, &local, &[]).expect(0);
    for part in ["1/2", "2/2"] {
        place.convert(Path::new(SRC), &out, &["--stream", "--part", part]).expect(0);
    }
    place.server.forget();
    place.convert(Path::new(SRC), &out, &["--merge"]).expect(0);
    assert!(place.server.weight_bytes() <= 4 * (256 << 10), "headers alone: {}", place.server.weight_bytes());
    assert_same_weights(&local, &out)?;
    Ok(())
}

#[test]
fn a_stream_survives_cuts_and_goes_on_after_a_failure() -> Test {
    let place = Place::new()?;
    let (local, out) = (place.out("local-pack"), place.out("out"));
    place.convert(&place.local, &local, &[]).expect(0);
    let shard = |i: usize| format!("model-{i:05}-of-00004.safetensors");
    // The first answer is the header's.
    let not_found = Fault::Status(410, None);
    place.server.fail(&shard(3), [Fault::Cut(usize::MAX), not_found]);
    place.convert(Path::new(SRC), &out, &["--stream"]).expect(1).says(&[&shard(3), "410"]);
    assert!(!out.exists() && place.out("out.partial").exists());
    place.server.forget();
    place.server.fail(&shard(4), [Fault::Cut(usize::MAX), Fault::Cut(10_000)]);
    place.convert(Path::new(SRC), &out, &["--stream"]).expect(0).says(&["note"]);
    assert_same_weights(&local, &out)?;
    Ok(())
}

#[test]
fn mistakes_with_the_hub_are_the_users_and_say_what_helps() -> Test {
    let place = Place::new()?;
    place.run(["pull", "no such name"]).expect(2).says(&["ORG/NAME"]);
    place.run(["inspect", "hf:../x"]).expect(2).says(&["ORG/NAME"]);
    place.run(["pull", "org/other"]).expect(2).says(&["404", "org/other"]);
    let out = place.out("out");
    place.convert(&place.local, &out, &["--stream"]).expect(2).says(&["--stream", "hf:"]);
    place.server.demand("hf_secret");
    let refused = place.run(["pull", "org/model"]).expect(2);
    refused.says(&["401", "HF_TOKEN"]);
    Ok(())
}

/// A repository with two quantizations of a model, one of them in a folder.
fn of_gguf() -> std::io::Result<Place> {
    let fixtures = crate::support::fixture("gguf");
    let file = |name: &str, to: &str| Ok::<_, std::io::Error>((to.to_owned(), std::fs::read(fixtures.join(name))?));
    let mut files = vec![file("llama-q8_0.gguf", "tiny-Q8_0.gguf")?, ("mmproj-F16.gguf".to_owned(), vec![0; 8])];
    for part in std::fs::read_dir(fixtures.join("llama-split"))?
        .flatten()
        .filter(|e| e.path().extension().is_some_and(|e| e == "gguf"))
    {
        let name = part.file_name().to_string_lossy().into_owned();
        files.push((format!("split/{name}"), std::fs::read(part.path())?));
    }
    Ok(Place { server: TestHub::new(files), ..Place::new()? })
}

#[test]
fn of_several_gguf_files_one_is_named_and_only_it_is_downloaded() -> Test {
    let place = of_gguf()?;
    place.run(["plan", SRC, "--recipe", "8bit"]).expect(2).says(&["several GGUF files", "tiny-Q8_0", "hf:org/model:"]);
    place.run(["pull", "org/model:Q5_K_M"]).expect(2).says(&["no GGUF file of that name", "tiny-Q8_0"]);
    for named in ["hf:org/model:q8_0", "hf:org/model:split"] {
        let headers = place.run(["inspect", named, "--json"]).expect(0).json();
        assert_eq!(headers["family"], "llama", "{named}");
        let (pulled, streamed) = (place.out("pulled"), place.out("streamed"));
        place.convert(Path::new(named), &streamed, &["--stream"]).expect(0);
        place.convert(Path::new(named), &pulled, &[]).expect(0);
        assert_same_weights(&pulled, &streamed)?;
        place.server.forget();
        place.run(["plan", named, "--recipe", "4bit"]).expect(0);
        assert_eq!(place.server.weight_bytes(), 0, "it was in the cache");
        for dir in [pulled, streamed] {
            std::fs::remove_dir_all(dir)?;
        }
    }
    let json = place.run(["pull", "org/model:tiny-Q8_0.gguf", "--json"]).expect(0).json();
    assert!(json["path"].as_str().is_some_and(|p| p.ends_with("/tiny-Q8_0.gguf")), "{json}");
    assert_eq!(json["downloaded_bytes"], 0);
    Ok(())
}

#[test]
fn a_pack_of_the_hub_is_downloaded_whole_and_used() -> Test {
    let place = Place::new()?;
    let pack = place.out("pack");
    place.convert(&place.local, &pack, &[]).expect(0);
    let place = Place { server: TestHub::of(&pack), ..place };
    place.run(["inspect", SRC]).expect(2).says(&["it holds a pack", "ashlar pull org/model"]);
    place.run(["pull", "org/model"]).expect(0);
    let inspected = place.run(["inspect", SRC, "--json"]).expect(0).json();
    assert_eq!((&inspected["kind"], &inspected["license"]), (&"pack".into(), &"mit".into()));
    place.run(["verify", SRC]).expect(0);
    Ok(())
}

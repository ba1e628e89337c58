//! A copy of a small honest checkpoint, to be damaged and shown to `ashlar convert`.

use super::files::file;
use crate::support::{Ran, ashlar, finish, fixture};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

/// A weight every test can damage.
pub const TENSOR: &str = "model.layers.0.self_attn.q_proj.weight";
/// Its shape in the fixture; BF16.
pub const SHAPE: [usize; 2] = [128, 128];
/// The single file of the fixture.
pub const FILE: &str = "model.safetensors";
/// The index of a sharded checkpoint.
pub const INDEX: &str = "model.safetensors.index.json";

/// A work folder with nothing in it but the checkpoint.
pub struct Victim {
    work: tempfile::TempDir,
}

impl Victim {
    /// A copy of tiny/llama in one file.
    pub fn new() -> Self {
        let work = tempfile::tempdir().expect("a temporary folder");
        let victim = Self { work };
        std::fs::create_dir(victim.dir()).expect("writable");
        for entry in fixture("tiny/llama").read_dir().expect("the fixture") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().expect("a name");
            std::fs::copy(&path, victim.dir().join(name)).expect("writable");
        }
        std::fs::remove_file(victim.dir().join("golden.safetensors")).expect("the golden logits");
        victim
    }

    /// The same checkpoint in two shards: embeddings and head in the first, layers in the second.
    pub fn sharded() -> Self {
        let victim = Self::new();
        let (header, data) = victim.read(FILE);
        let mut map = Map::new();
        for (shard, first) in [("model-00001-of-00002.safetensors", true), ("model-00002-of-00002.safetensors", false)]
        {
            let (mut part, mut bytes) = (Map::new(), Vec::new());
            for (name, info) in header.iter().filter(|(n, _)| *n != "__metadata__" && n.contains(".layers.") != first) {
                let [begin, end] = range(info);
                let mut info = info.clone();
                info["data_offsets"] = json!([bytes.len(), bytes.len() + end - begin]);
                bytes.extend_from_slice(&data[begin..end]);
                part.insert(name.clone(), info);
                map.insert(name.clone(), shard.into());
            }
            victim.write(shard, &part, &bytes);
        }
        std::fs::remove_file(victim.path(FILE)).expect("the single file");
        std::fs::write(victim.path(INDEX), json!({"weight_map": map}).to_string()).expect("writable");
        victim
    }

    /// The checkpoint.
    pub fn dir(&self) -> PathBuf {
        self.work.path().join("src")
    }

    /// A file of the checkpoint.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    /// Header and data of a shard.
    pub fn read(&self, name: &str) -> (Map<String, Value>, Vec<u8>) {
        let bytes = std::fs::read(self.path(name)).expect("a shard");
        let (prefix, rest) = bytes.split_first_chunk().expect("a length");
        let (json, data) = rest.split_at(u64::from_le_bytes(*prefix) as usize);
        let Ok(Value::Object(header)) = serde_json::from_slice(json) else { panic!("{name} has no header") };
        (header, data.to_vec())
    }

    /// Writes a shard.
    pub fn write(&self, name: &str, header: &Map<String, Value>, data: &[u8]) {
        std::fs::write(self.path(name), file(&Value::Object(header.clone()).to_string(), data)).expect("writable");
    }

    /// Changes the header of the single file.
    pub fn edit(&self, change: impl FnOnce(&mut Map<String, Value>)) {
        let (mut header, data) = self.read(FILE);
        change(&mut header);
        self.write(FILE, &header, &data);
    }

    /// Changes the text of the index.
    pub fn edit_index(&self, change: impl FnOnce(&mut Map<String, Value>)) {
        let text = std::fs::read(self.path(INDEX)).expect("the index");
        let mut index: Value = serde_json::from_slice(&text).expect("valid JSON");
        change(index["weight_map"].as_object_mut().expect("a map"));
        std::fs::write(self.path(INDEX), index.to_string()).expect("writable");
    }

    /// Converts the checkpoint, which must fail with exit code 1 and a message holding each of `parts`, and leave the
    /// work folder as it was.
    #[track_caller]
    pub fn refused(&self, parts: &[&str]) {
        let ran = self.convert().expect(1).says(parts);
        assert!(!ran.stderr.contains("panicked"), "{}", ran.stderr);
        assert_eq!(names(self.work.path()), ["src"], "something was left behind");
    }

    /// Converts the checkpoint, which must work: the damage alone makes the difference.
    #[track_caller]
    pub fn accepted(&self) {
        self.convert().expect(0);
        assert!(self.work.path().join("out/ashlar.json").is_file());
    }

    fn convert(&self) -> Ran {
        let out = self.work.path().join("out");
        finish(ashlar().arg("convert").arg(self.dir()).arg("-o").arg(out).args(["--recipe", "8bit"]))
    }
}

/// `data_offsets` of a tensor of a header.
pub fn range(info: &Value) -> [usize; 2] {
    [0, 1].map(|i| info["data_offsets"][i].as_u64().expect("an offset") as usize)
}

fn names(dir: &Path) -> Vec<String> {
    let entries = dir.read_dir().expect("readable");
    let mut names: Vec<_> = entries.map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

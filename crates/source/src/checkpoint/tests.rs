//! Opening and reading honest checkpoints; `defects` refuses the others.

mod defects;
mod fp4;
mod fp8;
mod fused;
mod reads;

use super::*;
use crate::testing::{Result, bytes_file, directory, index};
use ashlar_tensor::{Order, PlaneKind};

const CONFIG: (&str, &[u8]) = ("config.json", br#"{"model_type": "llama"}"#);

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name)
}

#[test]
fn every_fixture_opens_with_all_its_tensors() -> Result {
    for name in
        ["tiny/llama", "tiny/qwen2", "tiny/qwen3", "tiny/qwen2_moe", "tiny/qwen3_moe", "tiny/mixtral", "demo-moe"]
    {
        let dir = fixture(name);
        let checkpoint = Checkpoint::open(&dir)?;
        let bytes = std::fs::read(dir.join("model.safetensors"))?;
        let reference = safetensors::SafeTensors::deserialize(&bytes)?;
        assert_eq!(checkpoint.entries().len(), reference.len(), "{name}");
        for entry in checkpoint.entries() {
            let view = reference.tensor(&entry.name)?;
            assert_eq!(entry.shape, view.shape());
            assert_eq!(entry.file, "model.safetensors");
            let mut read = vec![0; view.data().len()];
            checkpoint.read(entry, 0, 0, &mut read)?;
            assert_eq!(read, view.data());
            assert_eq!(&*checkpoint.map(entry, 0)?, view.data());
        }
    }
    Ok(())
}

#[test]
fn floats_have_one_plane_of_values_and_other_dtypes_their_name() -> Result {
    use crate::testing::{file, header, tensor};
    let parts = [
        tensor("a", "F32", &[2], 0, 8),
        tensor("b", "F16", &[2], 8, 12),
        tensor("c", "BF16", &[1, 2], 12, 16),
        tensor("d", "I64", &[1], 16, 24),
        tensor("e", "F8_E5M2", &[1], 24, 25),
        tensor("f", "BOOL", &[1], 25, 26),
    ];
    let dir = directory(&[CONFIG, ("model.safetensors", &file(&header(&parts), &[0; 26]))])?;
    let checkpoint = Checkpoint::open(dir.path())?;
    let formats: Vec<_> = checkpoint.entries().iter().map(|e| e.format.as_str()).collect();
    assert_eq!(formats, ["f32", "f16", "bf16", "i64", "f8_e5m2", "bool"]);
    for entry in checkpoint.entries() {
        assert_eq!((entry.order, entry.planes.len(), entry.planes[0].kind), (Order::Rows, 1, PlaneKind::Values));
    }
    assert_eq!(checkpoint.entry("c").map(|e| (e.shape.clone(), e.bytes(), e.elements())), Some((vec![1, 2], 4, 2)));
    assert_eq!(checkpoint.entry("g"), None);
    Ok(())
}

#[test]
fn shards_are_one_list_of_tensors() -> Result {
    let index = index(&[("c", "s-1.safetensors"), ("a", "s-2.safetensors"), ("b", "s-1.safetensors")]);
    let (one, two) = (bytes_file(&["c", "b"]), bytes_file(&["a"]));
    let dir = directory(&[
        CONFIG,
        ("model.safetensors.index.json", index.as_bytes()),
        ("s-1.safetensors", &one),
        ("s-2.safetensors", &two),
    ])?;
    let checkpoint = Checkpoint::open(dir.path())?;
    let places: Vec<_> = checkpoint.entries().iter().map(|e| (e.name.as_str(), e.file.as_str())).collect();
    assert_eq!(places, [("a", "s-2.safetensors"), ("b", "s-1.safetensors"), ("c", "s-1.safetensors")]);
    let mut bytes = [0; 4];
    checkpoint.read(&checkpoint.entries()[1], 0, 0, &mut bytes)?;
    assert_eq!(bytes, [4, 5, 6, 7]);
    let files: Vec<_> = checkpoint.files().collect();
    assert_eq!(files, [("s-1.safetensors", one.len() as u64), ("s-2.safetensors", two.len() as u64)]);
    Ok(())
}

#[test]
fn an_index_beside_the_single_file_is_ignored_and_told() -> Result {
    let (one, index) = (bytes_file(&["a"]), index(&[("a", "s-1.safetensors")]));
    let alone = directory(&[CONFIG, ("model.safetensors", &one)])?;
    assert_eq!(Checkpoint::open(alone.path())?.notes(), Vec::<String>::new());
    let both = directory(&[CONFIG, ("model.safetensors", &one), ("model.safetensors.index.json", index.as_bytes())])?;
    let notes = Checkpoint::open(both.path())?.notes();
    assert_eq!(notes, ["`model.safetensors.index.json` is ignored, as `model.safetensors` lies beside it"]);
    Ok(())
}

#[test]
fn one_file_opens_with_the_config_beside_it() -> Result {
    let dir = directory(&[CONFIG, ("other.safetensors", &bytes_file(&["a"]))])?;
    let checkpoint = Checkpoint::open(&dir.path().join("other.safetensors"))?;
    assert_eq!(checkpoint.dir(), dir.path());
    assert_eq!(checkpoint.config()["model_type"], "llama");
    assert_eq!(checkpoint.entries()[0].file, "other.safetensors");
    Ok(())
}

#[test]
fn metadata_of_the_file_is_kept() -> Result {
    let bytes = crate::testing::file(r#"{"__metadata__":{"format":"pt"}}"#, &[]);
    let dir = directory(&[CONFIG, ("model.safetensors", &bytes)])?;
    assert_eq!(Checkpoint::open(dir.path())?.metadata().get("format").map(String::as_str), Some("pt"));
    Ok(())
}

#[test]
fn identity_depends_on_config_names_sizes_and_headers_but_not_on_the_place() -> Result {
    let make = |config: &str, name: &str, bytes: &[u8]| -> Result<String> {
        let dir = directory(&[("config.json", config.as_bytes()), (name, bytes)])?;
        Ok(Checkpoint::open(&dir.path().join(name))?.identity())
    };
    let file = bytes_file(&["a"]);
    let same = make("{}", "m.safetensors", &file)?;
    assert_eq!((same.len(), &same), (64, &make("{}", "m.safetensors", &file)?));
    assert_ne!(same, make("{ }", "m.safetensors", &file)?);
    assert_ne!(same, make("{}", "n.safetensors", &file)?);
    assert_ne!(same, make("{}", "m.safetensors", &bytes_file(&["b"]))?);
    assert_ne!(same, make("{}", "m.safetensors", &bytes_file(&["a", "b"]))?);
    Ok(())
}

#[test]
fn side_files_are_those_a_pack_carries_along() -> Result {
    let wanted = [
        "LICENSE.txt",
        "NOTICE",
        "README.md",
        "chat_template.jinja",
        "generation_config.json",
        "merges.txt",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "vocab.json",
    ];
    let dir =
        directory(&[CONFIG, ("model.safetensors", &bytes_file(&["a"])), ("tokenizer.bin", b""), ("notes.txt", b"")])?;
    for name in wanted {
        std::fs::write(dir.path().join(name), b"x")?;
    }
    std::fs::create_dir(dir.path().join("tokenizer"))?;
    let found = Checkpoint::open(dir.path())?.side_files();
    assert_eq!(found, wanted.map(|name| dir.path().join(name)));
    Ok(())
}

#[cfg(unix)]
#[test]
fn links_are_followed_as_hub_caches_need_it() -> Result {
    let blobs = directory(&[("1", CONFIG.1), ("2", &bytes_file(&["a"])), ("3", b"{}")])?;
    let dir = tempfile::tempdir()?;
    for (name, blob) in [("config.json", "1"), ("model.safetensors", "2"), ("tokenizer.json", "3")] {
        std::os::unix::fs::symlink(blobs.path().join(blob), dir.path().join(name))?;
    }
    let checkpoint = Checkpoint::open(dir.path())?;
    assert_eq!((checkpoint.entries().len(), checkpoint.side_files().len()), (1, 1));
    Ok(())
}

//! One test per defect of a directory. Defects of a header are in `header/tests.rs`.

use super::*;
use crate::testing::{expect, refusal};

const INDEX_NAME: &str = "model.safetensors.index.json";

/// The message for a directory of config, index and files.
fn sharded(index: &str, files: &[(&str, &[u8])]) -> Result<String> {
    let mut all = vec![CONFIG, (INDEX_NAME, index.as_bytes())];
    all.extend_from_slice(files);
    refusal(directory(&all)?.path())
}

fn single(bytes: &[u8]) -> Result<String> {
    refusal(directory(&[CONFIG, ("model.safetensors", bytes)])?.path())
}

#[test]
fn files_shorter_than_the_length_field_are_refused() -> Result {
    for len in 0..8 {
        let got = format!("model.safetensors: {len} bytes, expected at least 8");
        expect(&single(&bytes_file(&["a"])[..len])?, &[&got, "download it again"])?;
    }
    Ok(())
}

#[test]
fn a_header_longer_than_the_file_is_refused_before_it_is_read() -> Result {
    for claim in [3_u64, 90_000_000, 1 << 40, u64::MAX] {
        let mut bytes = claim.to_le_bytes().to_vec();
        bytes.extend_from_slice(b"{}");
        let message = single(&bytes)?;
        expect(&message, &[&format!("header claims {claim} bytes, expected at most 2 (the rest of the file)")])?;
    }
    Ok(())
}

#[cfg(unix)]
#[test]
fn a_header_beyond_the_cap_is_refused_even_in_a_large_file() -> Result {
    let dir = directory(&[CONFIG, ("model.safetensors", &100_000_001_u64.to_le_bytes())])?;
    let file = std::fs::OpenOptions::new().write(true).open(dir.path().join("model.safetensors"))?;
    // Sparse: takes no disk.
    file.set_len(1 << 40)?;
    expect(&refusal(dir.path())?, &["claims 100000001 bytes, expected at most 100000000 (the limit)"])
}

#[test]
fn every_truncation_of_a_file_is_refused() -> Result {
    let bytes = bytes_file(&["a", "b", "c"]);
    for len in 0..bytes.len() {
        let message = single(&bytes[..len])?;
        expect(&message, &["model.safetensors", "expected", "download"]).map_err(|e| format!("{len} bytes: {e}"))?;
    }
    Ok(())
}

#[test]
fn a_directory_without_weights_says_what_was_looked_for() -> Result {
    let message = refusal(directory(&[CONFIG])?.path())?;
    expect(&message, &["`model.safetensors`", "`model.safetensors.index.json`", "is this the directory"])
}

#[test]
fn weights_in_other_containers_are_named() -> Result {
    for name in ["pytorch_model.bin", "model.onnx", "consolidated.00.pth"] {
        let dir = directory(&[CONFIG, (name, b"")])?;
        expect(&refusal(dir.path())?, &[&format!("`{name}` is of a kind that is not supported yet"), "safetensors"])?;
        expect(&refusal(&dir.path().join(name))?, &[name, "not supported yet"])?;
    }
    Ok(())
}

#[test]
fn shards_without_an_index_are_told() -> Result {
    let shard = bytes_file(&["a"]);
    let dir = directory(&[CONFIG, ("x-1.safetensors", &shard)])?;
    expect(&refusal(dir.path())?, &["found `x-1.safetensors`: pass that file itself"])?;
    std::fs::write(dir.path().join("x-2.safetensors"), &shard)?;
    expect(&refusal(dir.path())?, &["found 2 shards", "download `model.safetensors.index.json`"])
}

#[test]
fn a_path_that_does_not_exist_is_told() -> Result {
    let dir = tempfile::tempdir()?;
    expect(&refusal(&dir.path().join("nothing"))?, &["nothing", "cannot find", "check that the path exists"])
}

#[test]
fn the_index_or_the_config_as_path_is_answered_with_the_directory() -> Result {
    let dir = directory(&[CONFIG, ("model.safetensors", &bytes_file(&["a"]))])?;
    expect(&refusal(&dir.path().join("config.json"))?, &["pass its directory"])
}

#[cfg(unix)]
#[test]
fn pipes_and_devices_are_refused_without_being_opened() -> Result {
    let dir = directory(&[CONFIG])?;
    let path = dir.path().join("model.safetensors");
    std::os::unix::fs::symlink("/dev/zero", &path)?;
    expect(&refusal(dir.path())?, &["expected a regular file, got a pipe, socket or device"])?;
    std::fs::remove_file(&path)?;
    std::fs::create_dir(&path)?;
    expect(&refusal(dir.path())?, &["expected a regular file, got a directory"])
}

#[test]
fn a_missing_config_is_told() -> Result {
    let dir = directory(&[("model.safetensors", &bytes_file(&["a"]))])?;
    expect(&refusal(dir.path())?, &["config.json: missing", "beside the weights", "download"])
}

#[test]
fn a_config_that_is_no_json_object_is_refused_with_its_position() -> Result {
    let deep = "[".repeat(100_000);
    for (config, position) in [
        ("{\n  \"a\": ,\n}", "line 2, column 8"),
        ("", "line 1, column 0"),
        ("[1]", "got an array"),
        ("{\"a\": 1} {", "line 1, column 10"),
        ("{\"a\": 1e999}", "line 1"),
        (deep.as_str(), "recursion limit"),
    ] {
        let dir = directory(&[("config.json", config.as_bytes()), ("model.safetensors", &bytes_file(&["a"]))])?;
        expect(&refusal(dir.path())?, &["config.json", position, "expected a JSON object"])?;
    }
    Ok(())
}

#[test]
fn a_config_beyond_16_mib_is_refused_before_it_is_read() -> Result {
    let dir = directory(&[CONFIG, ("model.safetensors", &bytes_file(&["a"]))])?;
    let file = std::fs::OpenOptions::new().write(true).open(dir.path().join("config.json"))?;
    file.set_len((16 << 20) + 1)?;
    expect(&refusal(dir.path())?, &["config.json: 16777217 bytes, expected at most 16777216"])
}

#[test]
fn a_missing_shard_is_named_with_a_tensor_it_should_hold() -> Result {
    let index = index(&[("a", "1.safetensors"), ("b", "2.safetensors"), ("c", "2.safetensors")]);
    let message = sharded(&index, &[("1.safetensors", &bytes_file(&["a"]))])?;
    expect(&message, &[INDEX_NAME, "shard `2.safetensors` is missing", "2 tensors, among them `b`", "download it"])
}

#[test]
fn an_index_that_names_absent_tensors_is_refused() -> Result {
    let index = index(&[("a", "1.safetensors"), ("b", "1.safetensors")]);
    let message = sharded(&index, &[("1.safetensors", &bytes_file(&["a"]))])?;
    expect(&message, &[INDEX_NAME, "tensor `b` is expected in `1.safetensors`", "holds 1 tensors but not this one"])
}

#[test]
fn a_tensor_that_is_not_in_the_index_is_refused() -> Result {
    let index = index(&[("a", "1.safetensors")]);
    let message = sharded(&index, &[("1.safetensors", &bytes_file(&["a", "b"]))])?;
    expect(&message, &["1.safetensors: tensor `b` is not listed in", INDEX_NAME])
}

#[test]
fn a_tensor_in_two_shards_is_refused() -> Result {
    let index = index(&[("a", "1.safetensors"), ("b", "2.safetensors")]);
    let files = [("1.safetensors", &bytes_file(&["a"])[..]), ("2.safetensors", &bytes_file(&["a", "b"]))];
    expect(&sharded(&index, &files)?, &["2.safetensors: tensor `a` is also in `1.safetensors`"])
}

#[test]
fn a_tensor_listed_twice_in_the_index_is_refused() -> Result {
    let index = index(&[("a", "1.safetensors"), ("a", "2.safetensors")]);
    expect(&sharded(&index, &[])?, &[INDEX_NAME, "tensor `a`", "listed twice"])
}

#[test]
fn shard_paths_that_leave_the_directory_are_refused() -> Result {
    for path in ["../x.safetensors", "/etc/passwd", "..", ".", "", "sub/x.safetensors", "..\\x", "C:x", "a\nb"] {
        let message = sharded(&index(&[("a", path)]), &[])?;
        expect(&message, &[INDEX_NAME, "tensor `a` is said to be in", "expected a file name in the same directory"])?;
    }
    Ok(())
}

#[test]
fn an_index_of_another_shape_is_refused() -> Result {
    for text in
        ["", "[]", "{}", "{\"weight_map\": 1}", "{\"weight_map\": {\"a\": 1}}", "{\"weight_map\":{},\"weight_map\":{}}"]
    {
        expect(&sharded(text, &[])?, &[INDEX_NAME, "line 1, column", "`weight_map`"])?;
    }
    Ok(())
}

#[test]
fn a_damaged_shard_is_named_itself() -> Result {
    let index = index(&[("a", "1.safetensors"), ("b", "2.safetensors")]);
    let b = bytes_file(&["b"]);
    let files = [("1.safetensors", &bytes_file(&["a"])[..]), ("2.safetensors", &b[..b.len() - 1])];
    expect(&sharded(&index, &files)?, &["2.safetensors: truncated", "tensor `b`"])
}

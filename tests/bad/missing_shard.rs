//! An index whose files are not all there, or are to be sought elsewhere.

use super::victim::{INDEX, TENSOR, Victim};

#[test]
fn a_missing_shard_is_named_with_what_it_should_hold() {
    let victim = Victim::sharded();
    let name = "model-00002-of-00002.safetensors";
    std::fs::remove_file(victim.path(name)).expect("a shard");
    victim.refused(&[INDEX, &format!("shard `{name}` is missing"), "tensors, among them `model.layers.0.", "download"]);
}

#[test]
fn a_shard_outside_the_checkpoint_is_refused() {
    for path in ["../model-00002-of-00002.safetensors", "/etc/hostname", "..", "sub/x.safetensors"] {
        let victim = Victim::sharded();
        victim.edit_index(|map| map[TENSOR] = path.into());
        victim.refused(&[
            INDEX,
            &format!("tensor `{TENSOR}`"),
            path,
            "expected a file name in the same directory",
            "index",
        ]);
    }
}

#[test]
fn a_checkpoint_without_weights_says_what_was_looked_for() {
    let victim = Victim::new();
    std::fs::rename(victim.path("model.safetensors"), victim.path("pytorch_model.bin")).expect("renamed");
    victim.refused(&[
        "no weights found",
        "`model.safetensors`",
        INDEX,
        "`pytorch_model.bin`",
        "not supported yet",
        "download",
    ]);
}

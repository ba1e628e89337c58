//! Index and shards that disagree.

use super::victim::{INDEX, TENSOR, Victim};

#[test]
fn an_index_that_names_an_absent_tensor_is_refused() {
    let victim = Victim::sharded();
    let shard = "model-00001-of-00002.safetensors";
    victim.edit_index(|map| drop(map.insert("model.layers.9.mlp.up_proj.weight".to_owned(), shard.into())));
    victim.refused(&[INDEX, "tensor `model.layers.9.mlp.up_proj.weight` is expected in", shard, "download"]);
}

#[test]
fn an_index_that_names_the_wrong_shard_is_refused() {
    let victim = Victim::sharded();
    victim.edit_index(|map| map[TENSOR] = "model-00001-of-00002.safetensors".into());
    victim.refused(&[
        INDEX,
        &format!("tensor `{TENSOR}` is expected in `model-00001-of-00002.safetensors`"),
        "download",
    ]);
}

#[test]
fn a_tensor_that_the_index_does_not_list_is_refused() {
    let victim = Victim::sharded();
    victim.edit_index(|map| drop(map.shift_remove(TENSOR)));
    victim.refused(&[
        "model-00002-of-00002.safetensors",
        &format!("tensor `{TENSOR}` is not listed"),
        INDEX,
        "download",
    ]);
}

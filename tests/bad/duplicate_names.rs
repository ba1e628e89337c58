//! The same name twice: which one is meant cannot be known.

use super::files::file;
use super::victim::{FILE, INDEX, TENSOR, Victim};
use serde_json::Value;

#[test]
fn a_tensor_listed_twice_in_the_header_is_refused() {
    let victim = Victim::new();
    let (header, data) = victim.read(FILE);
    let text = Value::Object(header.clone()).to_string();
    let again = format!(",{}:{}}}", Value::from(TENSOR), header[TENSOR]);
    let text = format!("{}{again}", text.strip_suffix('}').expect("an object"));
    std::fs::write(victim.path(FILE), file(&text, &data)).expect("writable");
    victim.refused(&[FILE, &format!("tensor `{TENSOR}`"), "listed twice, expected once", "export"]);
}

#[test]
fn a_tensor_listed_twice_in_the_index_is_refused() {
    let victim = Victim::sharded();
    let text = std::fs::read_to_string(victim.path(INDEX)).expect("the index");
    let again = format!(",{}:\"model-00001-of-00002.safetensors\"}}}}", Value::from(TENSOR));
    let text = format!("{}{again}", text.strip_suffix("}}").expect("two objects"));
    std::fs::write(victim.path(INDEX), text).expect("writable");
    victim.refused(&[INDEX, &format!("tensor `{TENSOR}`"), "listed twice, expected once", "export"]);
}

#[test]
fn a_tensor_in_two_shards_is_refused() {
    let victim = Victim::sharded();
    let [one, two] = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    let (first, _) = victim.read(one);
    let (mut header, mut data) = victim.read(two);
    let mut info = first["model.norm.weight"].clone();
    info["data_offsets"] = serde_json::json!([data.len(), data.len() + 256]);
    header.insert("model.norm.weight".to_owned(), info);
    data.extend([0; 256]);
    victim.write(two, &header, &data);
    victim.refused(&[two, "tensor `model.norm.weight` is also in", one, "expected in one shard only", "export"]);
}

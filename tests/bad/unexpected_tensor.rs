//! A checkpoint with more in it than its model has.

use super::victim::{FILE, Victim};
use serde_json::json;

#[test]
fn a_tensor_that_the_model_does_not_know_is_refused() {
    let victim = Victim::new();
    let (mut header, mut data) = victim.read(FILE);
    let name = "model.layers.0.self_attn.q_proj.lora_A";
    let end = data.len() + 8;
    header.insert(name.to_owned(), json!({"dtype": "BF16", "shape": [4], "data_offsets": [data.len(), end]}));
    data.resize(end, 0);
    victim.write(FILE, &header, &data);
    victim.refused(&[&format!("`{name}`")]);
}

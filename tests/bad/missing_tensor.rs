//! A checkpoint that lacks what its model needs.

use super::victim::{FILE, TENSOR, Victim, range};
use serde_json::json;

#[test]
fn a_missing_tensor_is_named_with_its_shape() {
    let victim = Victim::new();
    let (mut header, mut data) = victim.read(FILE);
    let info = header.shift_remove(TENSOR).expect("the tensor");
    let [begin, end] = range(&info);
    data.drain(begin..end);
    for (_, other) in header.iter_mut().filter(|(n, _)| *n != "__metadata__") {
        let [b, e] = range(other);
        if b >= end {
            other["data_offsets"] = json!([b - (end - begin), e - (end - begin)]);
        }
    }
    victim.write(FILE, &header, &data);
    victim.refused(&[&format!("`{TENSOR}`"), "[128, 128]", "missing"]);
}

#[test]
fn a_misspelt_tensor_is_told_with_the_nearest_name() {
    let victim = Victim::new();
    let wrong = TENSOR.replace("q_proj", "q_porj");
    victim.edit(|header| {
        let info = header.shift_remove(TENSOR).expect("the tensor");
        header.insert(wrong.clone(), info);
    });
    victim.refused(&[&format!("`{TENSOR}`"), &wrong]);
}

//! Two tensors that claim the same bytes.

use super::victim::{FILE, TENSOR, Victim};
use serde_json::json;

#[test]
fn two_tensors_on_the_same_bytes_are_refused() {
    let victim = Victim::new();
    // o_proj has the same shape: only the ranges collide.
    let other = TENSOR.replace("q_proj", "o_proj");
    victim.edit(|header| header[TENSOR]["data_offsets"] = header[&other]["data_offsets"].clone());
    victim.refused(&[FILE, TENSOR, &other, "overlap", "download"]);
}

#[test]
fn a_range_that_begins_inside_another_is_refused() {
    let victim = Victim::new();
    victim.edit(|header| {
        let [begin, end] = super::victim::range(&header[TENSOR]);
        header[TENSOR]["data_offsets"] = json!([begin - 2, end - 2]);
    });
    victim.refused(&[FILE, &format!("tensor `{TENSOR}`"), "overlap", "which ends at", "download"]);
}

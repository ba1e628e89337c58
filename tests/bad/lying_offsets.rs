//! Offsets that point elsewhere than they should.

use super::victim::{FILE, TENSOR, Victim, range};
use serde_json::json;

fn with_offsets(change: impl FnOnce([usize; 2]) -> [usize; 2]) -> Victim {
    let victim = Victim::new();
    victim.edit(|header| header[TENSOR]["data_offsets"] = json!(change(range(&header[TENSOR]))));
    victim
}

#[test]
fn a_range_beyond_the_file_is_refused() {
    let victim = with_offsets(|[begin, end]| [begin + (1 << 40), end + (1 << 40)]);
    victim.refused(&[FILE, &format!("tensor `{TENSOR}`"), "data_offsets", "the file has only", "download"]);
}

#[test]
fn a_range_of_another_length_than_the_shape_needs_is_refused() {
    let victim = with_offsets(|[begin, end]| [begin, end - 2]);
    victim.refused(&[FILE, TENSOR, "BF16 [128, 128] needs 32768 bytes, got 32766", "download"]);
}

#[test]
fn a_range_that_runs_backwards_is_refused() {
    let victim = with_offsets(|[begin, end]| [end, begin]);
    victim.refused(&[FILE, TENSOR, "run backwards", "expected begin ≤ end", "download"]);
}

#[test]
fn bytes_that_belong_to_no_tensor_are_refused() {
    let victim = Victim::new();
    victim.edit(|header| drop(header.shift_remove(TENSOR)));
    victim.refused(&[FILE, "belong to no tensor", "begins at data byte", "expected"]);
}

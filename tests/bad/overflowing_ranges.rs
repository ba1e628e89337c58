//! Numbers chosen so that arithmetic on them wraps around.

use super::victim::{FILE, TENSOR, Victim};
use serde_json::json;

#[test]
fn offsets_at_the_end_of_64_bits_are_refused() {
    let victim = Victim::new();
    victim.edit(|header| header[TENSOR]["data_offsets"] = json!([u64::MAX - 32768, u64::MAX]));
    victim.refused(&[FILE, TENSOR, "18446744073709551615", "the file has only", "download"]);
}

#[test]
fn a_shape_whose_product_wraps_to_the_right_size_is_refused() {
    let victim = Victim::new();
    // (2^50 + 1) · 2^14 wraps to 128 · 128 in 64 bits.
    victim.edit(|header| header[TENSOR]["shape"] = json!([(1_u64 << 50) + 1, 1 << 14]));
    victim.refused(&[FILE, TENSOR, "1125899906842625", "overflows", "download"]);
}

#[test]
fn offsets_beyond_64_bits_are_refused() {
    let victim = Victim::new();
    victim.edit(|header| header[TENSOR]["data_offsets"] = json!([0, 1e30]));
    victim.refused(&[FILE, TENSOR, "line 1, column", "download"]);
}

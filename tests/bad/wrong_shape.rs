//! Shapes that are sound in the file but not those of the model.

use super::victim::{SHAPE, TENSOR, Victim};
use serde_json::json;

#[test]
fn a_shape_other_than_the_config_says_is_refused() {
    let victim = Victim::new();
    victim.edit(|header| header[TENSOR]["shape"] = json!([SHAPE[0] / 2, SHAPE[1] * 2]));
    victim.refused(&[&format!("`{TENSOR}`"), "[64, 256]", "[128, 128]", "config.json"]);
}

#[test]
fn a_vector_where_a_matrix_is_expected_is_refused() {
    let victim = Victim::new();
    victim.edit(|header| header[TENSOR]["shape"] = json!([SHAPE[0] * SHAPE[1]]));
    victim.refused(&[&format!("`{TENSOR}`"), "[16384]", "[128, 128]"]);
}

//! Dtypes nobody knows, and dtypes that no weight has.

use super::victim::{FILE, TENSOR, Victim};

#[test]
fn an_unknown_dtype_is_refused_by_name() {
    let victim = Victim::new();
    victim.edit(|header| header[TENSOR]["dtype"] = "F42".into());
    victim.refused(&[FILE, &format!("tensor `{TENSOR}`"), "unknown dtype `F42`", "expected one of", "BF16", "convert"]);
}

#[test]
fn integers_where_a_weight_is_expected_are_refused() {
    let victim = Victim::new();
    victim.edit(|header| header[TENSOR]["dtype"] = "I16".into());
    victim.refused(&[FILE, &format!("tensor `{TENSOR}`"), "expected a weight as f32", "got i16", "export"]);
}

#[test]
fn fp8_without_scales_is_refused() {
    let victim = Victim::new();
    victim.edit(|header| {
        header[TENSOR]["dtype"] = "F8_E4M3".into();
        header[TENSOR]["shape"] = serde_json::json!([128, 256]);
    });
    victim.refused(&[
        FILE,
        &format!("tensor `{TENSOR}`"),
        "F8_E4M3",
        &format!("`{TENSOR}_scale_inv`, got none"),
        "use a checkpoint",
    ]);
}

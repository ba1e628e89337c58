//! Weights that are no numbers.

use super::victim::{FILE, TENSOR, Victim, range};

/// A checkpoint whose damaged tensor has `value` at a row and column.
fn with_value(tensor: &str, at: usize, value: u16) -> Victim {
    let victim = Victim::new();
    let (header, mut data) = victim.read(FILE);
    let [begin, _] = range(&header[tensor]);
    data[begin + 2 * at..][..2].copy_from_slice(&value.to_le_bytes());
    victim.write(FILE, &header, &data);
    victim
}

#[test]
fn nan_and_infinity_are_refused_with_their_place() {
    // BF16 bits of NaN, +∞ and −∞, at row 37, column 5.
    for (bits, name) in [(0x7fc0, "NaN"), (0x7f80, "inf"), (0xff80, "-inf")] {
        let victim = with_value(TENSOR, 37 * 128 + 5, bits);
        victim.refused(&[FILE, &format!("`{TENSOR}`"), "row 37", "column 5", name]);
    }
}

#[test]
fn nan_in_a_tensor_that_is_kept_as_it_is_is_refused_too() {
    let victim = with_value("model.norm.weight", 7, 0x7fc0);
    victim.refused(&[FILE, "`model.norm.weight`", "column 7", "NaN"]);
}

//! A length field that asks for more memory than the file justifies.

use super::victim::{FILE, Victim};
use std::fs::OpenOptions;
use std::io::Write;

fn with_length(len: u64) -> Victim {
    let victim = Victim::new();
    let mut file = OpenOptions::new().write(true).open(victim.path(FILE)).expect("the file");
    file.write_all(&len.to_le_bytes()).expect("writable");
    victim
}

#[test]
fn a_header_longer_than_the_file_is_refused() {
    for len in [90_000_000, 1 << 40, u64::MAX] {
        with_length(len).refused(&[
            FILE,
            &format!("claims {len} bytes"),
            "expected at most",
            "the rest of the file",
            "download",
        ]);
    }
}

#[test]
fn a_header_beyond_the_limit_is_refused_even_if_the_file_has_it() {
    let victim = with_length(100_000_001);
    // Sparse: takes no disk where the file system can do that.
    let file = OpenOptions::new().write(true).open(victim.path(FILE)).expect("the file");
    file.set_len(200_000_000).expect("sparse");
    victim.refused(&[FILE, "claims 100000001 bytes", "expected at most 100000000", "the limit", "download"]);
}

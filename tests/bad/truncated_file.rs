//! A download that stopped.

use super::victim::{FILE, Victim};
use std::fs::OpenOptions;

fn cut(victim: &Victim, name: &str, len: u64) {
    let file = OpenOptions::new().write(true).open(victim.path(name)).expect("a shard");
    file.set_len(len).expect("shorter");
}

#[test]
fn a_file_cut_in_its_data_names_sizes_and_the_first_incomplete_tensor() {
    let victim = Victim::new();
    let len = victim.path(FILE).metadata().expect("a file").len();
    cut(&victim, FILE, len - 1);
    let (got, expected) = (format!("{} bytes", len - 1), format!("expected {len}"));
    victim.refused(&[FILE, "truncated", &got, &expected, "tensor `model.norm.weight`", "download"]);
}

#[test]
fn a_file_cut_in_its_header_is_refused() {
    let victim = Victim::new();
    cut(&victim, FILE, 100);
    victim.refused(&[FILE, "the header claims", "expected at most 92", "download"]);
}

#[test]
fn an_empty_file_is_refused() {
    let victim = Victim::new();
    cut(&victim, FILE, 0);
    victim.refused(&[FILE, "0 bytes, expected at least 8", "download"]);
}

#[test]
fn a_cut_shard_is_the_one_that_is_named() {
    let victim = Victim::sharded();
    let name = "model-00002-of-00002.safetensors";
    let len = victim.path(name).metadata().expect("a shard").len();
    cut(&victim, name, len - 100);
    victim.refused(&[name, "truncated", &format!("expected {len}"), "download"]);
}

//! The `ashlar` command.
#![forbid(unsafe_code)]
fn main() {}

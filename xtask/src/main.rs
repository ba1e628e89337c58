//! Project chores: `cargo xtask lint`.
fn main() {}

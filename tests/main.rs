//! End-to-end tests of the `ashlar` binary: cli, golden, bad (hostile input), compat (packs of earlier versions).
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

#[macro_use]
mod support;

mod bad;
mod cli;
mod compat;
mod golden;

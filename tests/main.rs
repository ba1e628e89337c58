//! End-to-end tests: cli, golden, bad (hostile input), compat.

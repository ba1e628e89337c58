//! The subcommands, one file each: arguments, what the libraries are asked to do, what is printed.

pub mod bench;
pub mod calibrate;
pub mod completions;
pub mod convert;
pub mod demo;
pub mod doctor;
pub mod eval;
pub mod inspect;
pub mod logits;
pub mod man;
pub mod plan;
pub mod pull;
pub mod run;
pub mod serve;
pub mod simulate;
pub mod trace;
pub mod verify;

//! The subcommands, one file each: arguments, what the libraries are asked to do, what is printed.

pub mod convert;
pub mod inspect;
pub mod logits;
pub mod plan;
pub mod verify;

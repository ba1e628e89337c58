//! The subcommands, one file each: arguments, what the libraries are asked to do, what is printed.

pub mod inspect;
pub mod logits;

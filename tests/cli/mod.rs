//! The command line as a user meets it: help, exit codes, what is printed where.

pub mod convert;

mod help;
mod recipe;
mod robust;

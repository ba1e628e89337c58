//! The command line as a user meets it: help, exit codes, what is printed where.

mod allocate;
mod bench;
mod calibrate;
pub mod convert;
mod demo;
mod eval;
mod help;
mod recipe;
mod robust;
mod run;
mod stream;

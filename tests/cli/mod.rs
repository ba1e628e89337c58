//! The command line as a user meets it: help, exit codes, what is printed where.

mod allocate;
mod bench;
mod calibrate;
mod catalogue;
pub mod convert;
mod demo;
mod eval;
mod help;
mod hub;
mod parts;
mod placement;
mod recipe;
mod robust;
mod run;
mod scale;
mod sources;
mod stream;

//! The command line as a user meets it: help, exit codes, what is printed where.

mod allocate;
mod bench;
mod calibrate;
mod catalogue;
pub mod convert;
mod demo;
mod doctor;
mod eval;
mod gguf;
mod help;
mod hub;
mod native_io;
mod nvme;
mod parts;
mod placement;
mod quantized;
mod recipe;
mod robust;
mod run;
mod scale;
mod serve;
mod simulate;
mod sources;
mod stream;
mod think;
mod tiers;

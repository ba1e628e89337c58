//! The command line as a user meets it: help, exit codes, what is printed where.

mod help;

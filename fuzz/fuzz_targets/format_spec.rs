//! See `ashlar_fuzz::format_spec`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ashlar_fuzz::format_spec(data));

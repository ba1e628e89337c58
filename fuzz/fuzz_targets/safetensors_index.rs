//! See `ashlar_fuzz::safetensors_index`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ashlar_fuzz::safetensors_index(data));

//! The conformance suite over the host shim: every kernel and all orchestration, without a GPU.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "skips must be seen; a device that cannot be opened twice is a failure"
)]

use ashlar_backend::conformance::{self, Tolerances};
use ashlar_backend::{ActivationMode, Backend};
use ashlar_cuda::{Error, open_host};

/// A skip, or a failure where the environment asks for this device.
fn skipped(error: &Error) {
    let required = std::env::var("ASHLAR_REQUIRE").is_ok_and(|r| r.split(',').any(|name| name == "cuda"));
    assert!(!required, "ASHLAR_REQUIRE names cuda, but: {error}");
    println!("SKIPPED cuda conformance: {error}");
}

#[test]
fn the_gpu_conforms() {
    for mode in [ActivationMode::Int8, ActivationMode::F32] {
        // Small pools: every case opens the device anew.
        let open = || ashlar_cuda::open(0, mode, Some(256 << 20));
        if let Err(error) = open() {
            return skipped(&error);
        }
        let report = conformance::run(&mut || Box::new(open().unwrap()), &Tolerances::default());
        println!("cuda:0, {mode:?}: {report}");
        assert!(report.failures().is_empty() && report.skips().is_empty(), "{report}");
    }
}

#[test]
fn argument_structs_are_as_large_as_the_kernels_say() {
    if let Err(error) = open_host(ActivationMode::Int8, false) {
        return skipped(&error);
    }
    for (kernel, bytes) in ashlar_cuda::ARGUMENTS {
        assert_eq!(ashlar_cuda::argument_bytes(kernel).unwrap(), Some(*bytes), "{kernel}");
    }
}

fn conforms(mode: ActivationMode, reversed: bool) {
    if let Err(error) = open_host(mode, reversed) {
        return skipped(&error);
    }
    let mut make = || Box::new(open_host(mode, reversed).unwrap()) as Box<dyn Backend>;
    let report = conformance::run(&mut make, &Tolerances::default());
    println!("host shim, {mode:?}, reversed {reversed}: {report}");
    assert!(report.ran() > 0 && report.failures().is_empty(), "{report}");
    assert!(report.skips().is_empty(), "every format has a kernel: {report}");
}

#[test]
fn the_host_shim_conforms() {
    conforms(ActivationMode::Int8, false);
}

#[test]
fn the_host_shim_conforms_with_f32_inputs_and_threads_in_the_opposite_order() {
    conforms(ActivationMode::F32, true);
}

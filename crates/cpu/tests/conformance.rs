//! The conformance suite on every instruction set of this machine, in every activation mode.

#![allow(clippy::print_stdout, reason = "skips must be seen")]

use ashlar_backend::conformance::{self, Tolerances};
use ashlar_backend::{ActivationMode, Backend, Virtual};
use ashlar_cpu::Cpu;
use ashlar_simd::Isa;

fn conforms(mode: ActivationMode) {
    let available = Isa::available();
    let mut skipped = 0;
    for isa in Isa::known() {
        if !available.contains(&isa) {
            println!("SKIPPED conformance {isa}: not on this CPU");
            skipped += 1;
            continue;
        }
        let mut make = || Box::new(Cpu::with_mode(Some(2), isa, mode)) as Box<dyn Backend>;
        let report = conformance::run(&mut make, &Tolerances::default());
        println!("{isa} {mode:?}: {report}");
        assert!(report.ran() > 0 && report.failures().is_empty(), "{isa} {mode:?}: {report}");
        assert!(report.skips().is_empty(), "the cpu supports every format: {report}");
    }
    println!("conformance {mode:?}: {skipped} instruction sets skipped");
}

#[test]
fn conforms_with_int8_activations() {
    conforms(ActivationMode::Int8);
}

#[test]
fn conforms_with_bf16_activations() {
    conforms(ActivationMode::Bf16);
}

#[test]
fn conforms_with_f32_activations() {
    conforms(ActivationMode::F32);
}

/// Experts that take turns in slots reach the kernels as records do, beside products that come from elsewhere.
#[test]
fn a_virtual_device_on_these_kernels_shares_mixtures_with_a_host() {
    for mode in [ActivationMode::F32, ActivationMode::Int8] {
        let mut make = || {
            let cpu = Cpu::with_mode(Some(2), Isa::detect().unwrap(), mode);
            Box::new(Virtual::new(Box::new(cpu), u64::MAX)) as Box<dyn Backend>
        };
        let report = conformance::run_slots(&mut make, &Tolerances::default());
        assert!(report.ran() == 30 && report.failures().is_empty(), "{mode:?}: {report}");
    }
}

//! By hand, and against figures that others published.

use super::*;

const GB: u64 = 1_000_000_000;
const GIB: u64 = 1 << 30;

/// DeepSeek-V4-Flash with experts at 2.1 bits (the 72.7 GB of `docs/sizes.md`'s smallest preset, about), the rest at 8.5.
fn flash() -> Needs {
    Needs {
        dense: 6_900_000_000,
        embed: 560_000_000,
        experts: 72_700_000_000,
        active_experts: 1_700_000_000,
        largest_expert: 6_600_000,
        expert_count: 43 * 256,
        top_k: 6,
        moe_layers: 43,
        kv: 100_000_000,
        activations: 300_000_000,
    }
}

/// GiB of one card and of RAM.
fn machine(vram: u64, ram: u64) -> Hardware {
    Hardware {
        gpus: usize::from(vram > 0),
        vram: vram * GIB,
        ram: ram * GIB,
        vram_bandwidth: Some(760e9),
        ram_bandwidth: Some(70e9),
        ..Hardware::default()
    }
}

fn with_nvme(vram: u64, ram: u64, rate: f64) -> Hardware {
    Hardware { nvme: 1000 * GB, nvme_bandwidth: Some(rate), ..machine(vram, ram) }
}

fn on(machine: Hardware) -> Fit {
    fit(&flash(), &machine)
}

#[test]
fn the_card_takes_what_every_token_reads_and_then_experts() {
    let f = on(machine(24, 96));
    assert_eq!((f.verdict, f.lacks, f.nvme), (Verdict::Memory, 0, 0));
    let core = 6_900_000_000 + 400_000_000 + 2 * 6_600_000;
    let usable = 24 * GIB - (768 << 20);
    assert_eq!((f.vram, f.vram_experts), (usable, usable - core));
    assert_eq!(f.ram, 72_700_000_000 + 560_000_000 + (64 << 20), "RAM holds all experts, those of the card too");
}

#[test]
fn what_memory_cannot_hold_comes_from_the_disk_or_is_what_lacks() {
    let with = on(with_nvme(24, 48, 7e9));
    let without = on(machine(24, 48));
    assert_eq!((with.verdict, without.verdict), (Verdict::Nvme, Verdict::No));
    assert!(with.nvme == without.lacks && (1..10 * GB).contains(&with.nvme), "{}", with.nvme);
    assert_eq!((without.tokens_per_s, with.lacks), (None, 0));
    // As much RAM as it lacks, and it fits.
    let ram = 48 * GIB + without.lacks * 12 / 11 + 200;
    assert_eq!(on(Hardware { ram, ..machine(24, 48) }).verdict, Verdict::Memory);
    let small = Hardware { nvme: 50 * GB, ..with_nvme(24, 48, 7e9) };
    assert_eq!(on(small).verdict, Verdict::No, "a disk that the pack does not fit is no help");
}

#[test]
fn a_core_that_a_card_cannot_hold_is_shared_with_ram() {
    let f = on(machine(6, 128));
    assert_eq!((f.verdict, f.vram_experts), (Verdict::Memory, 0));
    assert!(f.vram < 6 * GIB && f.vram + f.ram > flash().weights());
    assert_eq!(on(with_nvme(0, 8, 7e9)).verdict, Verdict::No, "dense weights never come from the disk");
}

#[test]
fn what_a_card_holds_whole_needs_no_ram() {
    let f = on(machine(96, 16));
    assert_eq!((f.verdict, f.vram_experts, f.ram), (Verdict::Card, flash().experts, SCRATCH));
    assert_eq!(f.vram, flash().core() + 2 * flash().largest_expert + flash().embed + flash().experts);
}

/// The rooflines of others' arithmetic for the same model, times 0.6 to 0.7: 29.9 tokens/s from RAM alone at 70 GB/s; with a
/// card of 760 GB/s that holds 21 % of the experts 45 to 68.
#[test]
fn speeds_are_the_published_rooflines_times_what_is_reached() {
    let ram = on(machine(0, 128)).tokens_per_s.unwrap();
    let exact = 70e9 / (6.9e9 + 1.7e9);
    assert!((ram[0] / exact - 0.6).abs() < 1e-9 && (ram[1] / exact - 0.7).abs() < 1e-9, "{ram:?}");
    let [low, high] = on(machine(22, 96)).tokens_per_s.unwrap();
    let handshake = |tps: f64, seconds: f64, reached: f64| 1.0 / (1.0 / (tps * reached) + 43.0 * seconds);
    assert!((low - handshake(45.0, 300e-6, 0.6)).abs() < 3.0, "{low}");
    assert!((high - handshake(68.0, 40e-6, 0.7)).abs() < 3.0, "{high}");
}

#[test]
fn a_slower_disk_or_less_of_a_card_is_never_faster() {
    let tps = |vram, rate| on(with_nvme(vram, 48, rate)).tokens_per_s.unwrap();
    let (fast, slow, small) = (tps(24, 7e9), tps(24, 3e9), tps(12, 7e9));
    assert!(slow[0] < fast[0] && small[0] < fast[0] && fast[0] <= fast[1]);
}

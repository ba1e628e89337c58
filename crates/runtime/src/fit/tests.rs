//! By hand, and against figures that others published.

use super::*;
use ashlar_recipe::tier;

const GB: u64 = 1_000_000_000;

/// DeepSeek-V4-Flash with experts at 2.1 bits (the 72.7 GB of `docs/sizes.md`'s smallest preset, about), the rest at 8.5.
fn flash() -> Needs {
    Needs {
        dense: 6_900_000_000,
        embed: 560_000_000,
        experts: 72_700_000_000,
        active_experts: 1_700_000_000,
        largest_expert: 6_600_000,
        moe_layers: 43,
        kv: 100_000_000,
        activations: 300_000_000,
    }
}

fn on(machine: &str) -> Fit {
    fit(&flash(), &tier(machine).unwrap().hardware)
}

#[test]
fn the_card_takes_what_every_token_reads_and_then_experts() {
    let f = on("vram=24GiB,ram=96GiB");
    assert_eq!((f.verdict, f.lacks, f.nvme), (Verdict::Memory, 0, 0));
    let core = 6_900_000_000 + 400_000_000 + 2 * 6_600_000;
    let card: u64 = 24 << 30;
    let usable = card - 500_000_000 - (256 << 20) - card / 100 * 3;
    assert_eq!((f.vram, f.vram_experts), (usable, usable - core));
    assert_eq!(f.ram, 72_700_000_000 + 560_000_000 + (64 << 20), "RAM holds all experts, those of the card too");
}

#[test]
fn what_memory_cannot_hold_comes_from_the_disk_or_is_what_lacks() {
    let with = on("vram=24GiB,ram=64GiB,nvme=7GB/s");
    let without = on("vram=24GiB,ram=64GiB");
    assert_eq!((with.verdict, without.verdict), (Verdict::Nvme, Verdict::No));
    assert!(with.nvme == without.lacks && (1 * GB..5 * GB).contains(&with.nvme), "{}", with.nvme);
    assert_eq!((without.tokens_per_s, with.lacks), (None, 0));
    // As much RAM as it lacks, and it fits.
    let ram = (64 << 30) + without.lacks * 100 / 92 + 200;
    assert_eq!(on(&format!("vram=24GiB,ram={ram}")).verdict, Verdict::Memory);
}

#[test]
fn a_core_that_a_card_cannot_hold_is_shared_with_ram() {
    let f = on("vram=8GiB,ram=128GiB");
    assert_eq!((f.verdict, f.vram_experts), (Verdict::Memory, 0));
    assert!(f.vram < 8 << 30 && f.vram + f.ram > flash().weights());
    assert_eq!(on("ram=8GiB,nvme=7GB/s").verdict, Verdict::No, "dense weights never come from the disk");
}

#[test]
fn what_a_card_holds_whole_needs_no_ram() {
    let f = on("vram=96GiB,ram=16GiB");
    assert_eq!((f.verdict, f.vram_experts, f.ram), (Verdict::Card, flash().experts, SCRATCH));
    assert_eq!(f.vram, flash().core() + 2 * flash().largest_expert + flash().embed + flash().experts);
}

/// The rooflines of others' arithmetic for the same model, times 0.6 to 0.7: 29.9 tokens/s from RAM alone at 70 GB/s; with a
/// card of 760 GB/s that holds 21 % of the experts 45 to 68.
#[test]
fn speeds_are_the_published_rooflines_times_what_is_reached() {
    let ram = on("ram=128GiB,ram_bandwidth=70GB/s").tokens_per_s.unwrap();
    let exact = 70e9 / (6.9e9 + 1.7e9);
    assert!((ram[0] / exact - 0.6).abs() < 1e-9 && (ram[1] / exact - 0.7).abs() < 1e-9, "{ram:?}");
    let [low, high] = on("vram=24GiB,vram_bandwidth=760GB/s,ram=96GiB,ram_bandwidth=70GB/s").tokens_per_s.unwrap();
    let handshake = |tps: f64, seconds: f64, reached: f64| 1.0 / (1.0 / (tps * reached) + 43.0 * seconds);
    assert!((low - handshake(45.0, 300e-6, 0.6)).abs() < 3.0, "{low}");
    assert!((high - handshake(68.0, 40e-6, 0.7)).abs() < 3.0, "{high}");
}

#[test]
fn a_slower_disk_or_less_of_a_card_is_never_faster() {
    let tps = |machine: &str| on(machine).tokens_per_s.unwrap();
    let fast = tps("vram=24GiB,ram=48GiB,nvme=7GB/s");
    let slow = tps("vram=24GiB,ram=48GiB,nvme=3GB/s");
    let small = tps("vram=12GiB,ram=48GiB,nvme=7GB/s");
    assert!(slow[0] < fast[0] && small[0] < fast[0] && fast[0] <= fast[1]);
}

//! Models over several devices: the same bits however they are placed, and never more bytes than a device may hold.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use ashlar_runtime::placement::{PlaceError, PlacementText};
use ashlar_runtime::routing::{LayerStep, Policy, Recorder, Replay, Routes, record, replay};
use ashlar_runtime::{Model, OpenOptions, RuntimeError, Wanted};
use ashlar_tensor::Silent;
use std::path::{Path, PathBuf};

const FIXTURES: &[&str] = &[
    "tiny/llama",
    "tiny/qwen2",
    "tiny/gpt_oss",
    "tiny/qwen3",
    "tiny/qwen2_moe",
    "tiny/mixtral",
    "tiny/deepseek_v2",
    "tiny/deepseek_v3",
    "tiny/deepseek_v4",
    "tiny/qwen3_moe",
    "demo-moe",
];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name)
}

fn options(device: &str, rules: Option<&str>) -> OpenOptions {
    OpenOptions {
        device: device.into(),
        placement: rules.map(|rules| PlacementText { name: "rules".into(), text: rules.into() }),
        threads: Some(1),
        context: Some(64),
        chunk: 7,
        sequences: 2,
        ..OpenOptions::default()
    }
}

fn open(name: &str, options: &OpenOptions) -> Result<Model, RuntimeError> {
    Model::open(&fixture(name), options, &Silent)
}

/// Bits of the logits of a prompt in chunks, of single tokens after it, and after going back.
fn bits(model: &mut Model) -> Vec<u32> {
    let mut all = Vec::new();
    let vocab = model.spec().vocab_size as u32;
    let tokens: Vec<u32> = (0..24).map(|i| (i * 37 + 5) % vocab).collect();
    for (slot, position, tokens) in [
        (0, 0, &tokens[..17]),
        (1, 0, &tokens[3..9]),
        (0, 17, &tokens[17..18]),
        (0, 18, &tokens[18..19]),
        (1, 2, &tokens[9..12]),
    ] {
        let mut each = |rows: &[f32]| all.extend(rows.iter().map(|v| v.to_bits()));
        model.feed(slot, position, tokens, Wanted::All, &mut each, &mut |_| true).unwrap();
    }
    all
}

/// Seeded: the same placements on every run.
struct Random(u64);

impl Random {
    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        from[(self.0 >> 33) as usize % from.len()]
    }

    /// Rules that put every class of every layer, and every projection of attention, anywhere.
    fn rules(&mut self, layers: usize) -> String {
        let mut rules = vec!["version: 1".to_owned(), "rules:".to_owned()];
        let mut rule = |matched: String, random: &mut Self| {
            let device = random.pick(&["cpu", "virtual:0", "virtual:1"]);
            rules.push(format!("  - {{match: {{{matched}}}, set: {{device: '{device}'}}, optional: true}}"));
        };
        for class in ["embed", "lm_head", "norm", "hyper"] {
            rule(format!("class: {class}"), self);
        }
        for layer in 0..layers {
            for class in ["attn", "mlp", "experts", "shared_expert", "router", "norm", "indexer", "compressor", "hyper"]
            {
                rule(format!("class: {class}, layers: {layer}"), self);
            }
            for proj in ["q", "k", "v", "o", "q_a", "q_b", "kv_a", "kv_b", "kv", "o_a", "o_b"] {
                rule(format!("class: attn, layers: {layer}, proj: {proj}"), self);
            }
            rule(format!("class: mlp, layers: {layer}, proj: down"), self);
        }
        rules.join("\n")
    }
}

#[test]
fn every_family_gives_the_same_bits_on_the_processor_on_a_virtual_device_and_on_any_mix() {
    let split = |class: &str, rest: &str| {
        format!(
            "version: 1\nrules:\n  - {{match: {{name: '*'}}, set: {{device: '{rest}'}}}}\n  - {{match: {{class: {class}}}, set: {{device: '{}'}}, optional: true}}",
            if rest == "cpu" { "virtual:0" } else { "cpu" }
        )
    };
    for name in FIXTURES {
        let mut alone = open(name, &options("cpu", None)).unwrap();
        let (layers, expected) = (alone.spec().layers.len(), bits(&mut alone));
        let mut placements = Vec::new();
        for class in ["attn", "[experts, mlp]", "[norm, router]"] {
            placements.extend(["cpu", "virtual:0"].map(|rest| split(class, rest)));
        }
        for layer in 0..layers {
            placements.push(format!(
                "version: 1\nrules:\n  - {{match: {{name: '*'}}, set: {{device: cpu}}}}\n  - {{match: {{layers: '{layer}..-1'}}, set: {{device: 'virtual:0'}}}}"
            ));
        }
        let mut random = Random(7);
        placements.extend((0..4).map(|_| random.rules(layers)));
        let mut all = open(name, &options("virtual:0", None)).unwrap();
        assert!(bits(&mut all) == expected, "{name}: all on the virtual device");
        let mut crossed = 0;
        for rules in placements {
            let mut model =
                open(name, &options("auto", Some(&rules))).unwrap_or_else(|e| panic!("{name}: {e}\n{rules}"));
            crossed += usize::from(model.placement().devices.len() > 1);
            assert!(bits(&mut model) == expected, "{name}: other bits with\n{rules}");
        }
        assert!(crossed >= layers + 6, "{name}: only {crossed} placements used several devices");
    }
}

#[test]
fn whatever_the_budget_no_more_is_reserved_and_the_bits_are_the_same() {
    for name in ["demo-moe", "tiny/gpt_oss", "tiny/deepseek_v4"] {
        let mut alone = open(name, &options("cpu", None)).unwrap();
        let expected = bits(&mut alone);
        let all = open(name, &options("virtual:0", None)).unwrap();
        let total = all.placement().devices[0].bytes.total();
        let mut before = 0;
        for step in 0..=8 {
            let limit = total * step / 8;
            let asked = OpenOptions { vram_limit: Some(limit), ..options("virtual:0", Some("version: 1\nrules: []")) };
            let mut model = open(name, &asked).unwrap();
            let held = |m: &Model| {
                let shares = m.placement().devices.iter().filter(|s| s.offer.device.is_accelerator());
                shares.map(|s| s.bytes.total()).sum::<u64>()
            };
            assert!(held(&model) <= limit, "{name}: {} of {limit}", held(&model));
            assert!(held(&model) >= before, "{name}: less with more room");
            before = held(&model);
            assert!(bits(&mut model) == expected, "{name} in {limit} bytes");
        }
        assert_eq!(before, total, "{name}: all of it fits in the end");
    }
}

#[test]
fn what_does_not_fit_is_refused_with_the_missing_bytes_and_what_would_help() {
    let all = open("demo-moe", &options("virtual:0", None)).unwrap();
    let total = all.placement().devices[0].bytes.total();
    let asked = OpenOptions { vram_limit: Some(total - 1), ..options("virtual:0", None) };
    let error = open("demo-moe", &asked).err().unwrap();
    let RuntimeError::Place(PlaceError::Misfit(misfit)) = &error else { panic!("{error}") };
    assert_eq!(misfit.missing(), 1);
    let said = error.to_string();
    for part in ["virtual:0 would have to hold", "1 bytes are missing", "leave ", "--kv q8"] {
        assert!(said.contains(part), "no `{part}` in {said}");
    }
    let fits = OpenOptions { vram_limit: Some(total), ..options("virtual:0", None) };
    assert!(open("demo-moe", &fits).is_ok());
}

#[test]
fn matrices_of_one_operation_cannot_be_torn_apart_and_small_tensors_follow_and_are_told() {
    let rules = "version: 1\nrules:\n  - {id: g, match: {class: experts, proj: gate}, set: {device: 'virtual:0'}}\n  - {id: d, match: {class: experts, proj: down}, set: {device: cpu}}";
    let said = open("demo-moe", &options("auto", Some(rules))).err().unwrap().to_string();
    for part in ["gate_proj", "down_proj", "virtual:0", "rule `d` (line 4)", "one operation reads both"] {
        assert!(said.contains(part), "no `{part}` in {said}");
    }
    let rules = "version: 1\nrules:\n  - {match: {class: router}, set: {device: cpu}}\n  - {match: {class: experts}, set: {device: 'virtual:0'}}";
    let model = open("demo-moe", &options("auto", Some(rules))).unwrap();
    let notes = &model.placement().notes;
    assert!(notes.iter().any(|n| n.contains("small tensors of class router go to virtual:0")), "{notes:?}");
}

#[test]
fn tiers_that_a_device_does_not_have_are_refused_by_rule() {
    for (set, part) in [
        ("device: cpu, tier: vram", "`device: cpu` is none"),
        ("device: 'virtual:0', tier: ram", "`tier: ram` is memory of the host"),
        ("tier: vram", "there is none"),
    ] {
        let rules = format!("version: 1\nrules:\n  - {{id: r, match: {{class: embed}}, set: {{{set}}}}}");
        let said = open("demo-moe", &options("auto", Some(&rules))).err().unwrap().to_string();
        assert!(said.contains(part) && said.contains("rule `r` (line 3)"), "{said}");
    }
}

const CACHED: &str = "version: 1\nrules:\n  - {match: {class: experts}, set: {tier: cached}}";

/// What `tier: cached` makes of a model on a virtual device of so many bytes.
fn cached(name: &str, limit: u64) -> Result<Model, RuntimeError> {
    open(name, &OpenOptions { vram_limit: Some(limit), ..options("virtual:0", Some(CACHED)) })
}

/// Bytes of everything but experts, and with all experts, on a virtual device.
fn dense_and_all(name: &str) -> (u64, u64) {
    let rules = "version: 1\nrules:\n  - {match: {class: experts}, set: {device: cpu}}\n  - {match: {name: '*'}, set: {device: 'virtual:0'}}\n  - {match: {class: experts}, set: {device: cpu}}";
    let on_card = |model: &Model| {
        let shares = model.placement().devices.iter().filter(|s| s.offer.device.is_accelerator());
        shares.map(|s| s.bytes.total()).sum::<u64>()
    };
    (
        on_card(&open(name, &options("auto", Some(rules))).unwrap()),
        on_card(&open(name, &options("virtual:0", None)).unwrap()),
    )
}

#[test]
fn experts_in_slots_leave_every_bit_as_it_is_whatever_room_there_is() {
    for name in [
        "tiny/gpt_oss",
        "tiny/qwen2_moe",
        "tiny/mixtral",
        "tiny/deepseek_v3",
        "tiny/deepseek_v4",
        "tiny/qwen3_moe",
        "demo-moe",
    ] {
        let mut alone = open(name, &options("cpu", None)).unwrap();
        let expected = bits(&mut alone);
        let (dense, all) = dense_and_all(name);
        let mut with_slots = 0;
        for step in 0..=8 {
            let limit = dense + (all - dense) * step / 8;
            let mut model = cached(name, limit).unwrap_or_else(|e| panic!("{name} in {limit}: {e}"));
            let share = model.placement().devices.iter().find(|s| s.offer.device.is_accelerator()).cloned();
            let held = share.as_ref().map_or(0, |s| s.bytes.total());
            assert!(held <= limit, "{name}: {held} of {limit}");
            assert!(bits(&mut model) == expected, "{name}: other bits in {limit} bytes");
            let Some(plan) = share.and_then(|s| s.expert_slots) else { continue };
            with_slots += 1;
            let [(device, used)] = &model.slots()[..] else { panic!("{name}: no slots") };
            assert_eq!((device.as_str(), used.slots, used.experts), ("virtual:0", plan.count, plan.experts));
            let pairs = used.hits + used.misses + used.prompt_hits + used.prompt_misses;
            assert!(pairs > 0 && used.fills > 0, "{name}: {used:?}");
            assert!(plan.count - plan.lent < plan.experts, "{name}: whole layers would have been better");
        }
        assert!(with_slots >= 3, "{name}: only {with_slots} placements had slots");
    }
}

/// The same policy code sees the same uses: what a model measures is what the simulator says of its recording.
#[test]
fn a_models_own_hit_rate_is_that_of_the_simulator_on_its_recording() {
    let (dense, all) = dense_and_all("demo-moe");
    for part in [2, 4, 6] {
        let asked = OpenOptions {
            vram_limit: Some(dense + (all - dense) * part / 8),
            // Keys and values take less than a slot, so that no slot stands in their memory.
            context: Some(64),
            chunk: 16,
            sequences: 1,
            ..options("virtual:0", Some(CACHED))
        };
        let mut model = open("demo-moe", &asked).unwrap();
        let mut routes: Option<Routes> = None;
        for text in 0..10 {
            let recorder = Recorder::new("demo", model.spec(), &|_| Some(1)).unwrap();
            let prompt: Vec<u32> = (0..16).map(|i| (i * 31 + 7 + 13 * text) % 200).collect();
            let more = record(&mut model, recorder, [&prompt, &[]], 48, &mut |_| true).unwrap();
            let all = routes.get_or_insert_with(|| Routes { steps: Vec::new(), ..more.clone() });
            let shifted = |step: &LayerStep| LayerStep { token: step.token + 64 * u64::from(text), ..step.clone() };
            all.steps.extend(more.steps.iter().map(shifted));
        }
        let routes = routes.unwrap();
        let (_, used) = model.slots().remove(0);
        assert_eq!(model.placement().devices[1].expert_slots.unwrap().lent, 0);
        // Two slots are for streaming.
        let capacity = if used.slots >= 8 { used.slots - 2 } else { used.slots };
        let policy = Policy::Ema { half_life: 12.0 };
        let what = Replay { policy, capacity, max_fills: Some(1), hysteresis: Some(1.1) };
        let replayed = replay(&routes, &what, None);
        assert_eq!(replayed.accesses, used.hits + used.misses);
        let (live, simulated) = (used.hit_rate().unwrap(), replayed.hit_rate());
        assert!((0.2..0.99).contains(&live), "{used:?}");
        assert!((live - simulated).abs() < 0.01, "{capacity} slots: live {live:.4}, simulated {simulated:.4}");
    }
}

/// Keys and values take the memory of the coldest slots as texts grow, and give it back when they end.
#[test]
fn slots_stand_in_memory_that_keys_and_values_do_not_need_yet() {
    let (dense, all) = dense_and_all("demo-moe");
    let of = |device: &str, rules, vram_limit| OpenOptions {
        context: Some(1024),
        chunk: 64,
        vram_limit,
        ..options(device, rules)
    };
    let mut alone = open("demo-moe", &of("cpu", None, None)).unwrap();
    let longer = alone.kv().bytes(1024, 64) * 2 - alone.kv().bytes(64, 7) * 2;
    let limit = dense + longer + (all - dense) / 4;
    let mut model = open("demo-moe", &of("virtual:0", Some(CACHED), Some(limit))).unwrap();
    let share = model.placement().devices.iter().find(|s| s.expert_slots.is_some()).cloned().unwrap();
    let plan = share.expert_slots.unwrap();
    assert!(plan.lent >= 8 && plan.count > plan.lent, "{plan:?}");
    let tokens: Vec<u32> = (0..960).map(|i| (i * 37 + i / 7) % 200).collect();
    let (mut released, mut got, mut expected) = (Vec::new(), Vec::new(), Vec::new());
    for slot in [0, 1] {
        for (i, chunk) in tokens.chunks(64).enumerate() {
            for (model, all) in [(&mut model, &mut got), (&mut alone, &mut expected)] {
                let mut each = |rows: &[f32]| all.extend(rows.iter().map(|v| v.to_bits()));
                model.feed(slot, i * 64, chunk, Wanted::Last, &mut each, &mut |_| true).unwrap();
            }
            let (_, used) = model.slots().remove(0);
            let held = used.bytes / used.slots as u64 * (used.slots - used.released) as u64;
            let others = share.bytes.weights + share.bytes.activations;
            assert!(others + model.kv().used() + held <= limit, "{used:?}");
            released.push(used.released);
        }
    }
    assert!(got == expected, "other bits");
    assert!(released.is_sorted() && released[0] < plan.lent && released.last() > Some(&4), "{released:?} of {plan:?}");
    assert!(model.slots()[0].1.stolen > 0);
    model.release(0);
    model.release(1);
    model.feed(0, 0, &tokens[..64], Wanted::Last, &mut |_| (), &mut |_| true).unwrap();
    assert_eq!(model.slots()[0].1.released, released[0]);
}

/// A device that has less memory than was planned says so before the first token, and what it gave before stays.
#[test]
fn slots_that_a_device_has_no_memory_for_are_refused_with_what_is_missing() {
    use ashlar_backend::{Backend, Virtual};
    let mut device = Virtual::new(ashlar_runtime::device("cpu", Some(1), None).unwrap(), 1 << 20);
    let reserved = device.arena().unwrap().reserved();
    let error = device.slots().unwrap().reserve(3, 0, 1 << 19).unwrap_err().to_string();
    assert!(error.contains("3 slots for experts of 524288 bytes") && error.contains("1048576 are free"), "{error}");
    assert_eq!(device.arena().unwrap().reserved(), reserved);
    device.slots().unwrap().reserve(2, 0, (1 << 19) - 4096).unwrap();
    assert!(device.arena().unwrap().reserved().total() <= 1 << 20);
}

#[test]
fn two_accelerators_share_the_layers_so_that_both_have_slots() {
    let mut alone = open("demo-moe", &options("cpu", None)).unwrap();
    let expected = bits(&mut alone);
    let (dense, all) = dense_and_all("demo-moe");
    // A rule about the other one is what makes it known.
    let rules = format!("{CACHED}\n  - {{match: {{class: embed}}, set: {{device: 'virtual:1'}}}}");
    let limit = dense + (all - dense) / 4;
    let asked = OpenOptions { vram_limit: Some(limit), ..options("virtual:0", Some(&rules)) };
    let mut model = open("demo-moe", &asked).unwrap();
    let slots: Vec<usize> = model.placement().devices.iter().filter_map(|s| Some(s.expert_slots?.count)).collect();
    assert!(slots.len() == 2 && slots.iter().all(|count| *count > 4), "{:?}", model.placement().devices);
    assert!(bits(&mut model) == expected);
}

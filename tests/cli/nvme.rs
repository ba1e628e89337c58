//! Models larger than the memory they may take: experts from disk, the same bits, what is told and what is refused.

use crate::cli::convert::{MIXED, convert, recipe};
use crate::support::{Test, ashlar, finish, fixture};
use ashlar_runtime::placement::PlacementText;
use ashlar_runtime::{Model, OpenOptions, Wanted};
use ashlar_tensor::Silent;
use std::path::Path;

const MIXTURES: [&str; 7] = [
    "demo-moe",
    "tiny/qwen2_moe",
    "tiny/qwen3_moe",
    "tiny/mixtral",
    "tiny/gpt_oss",
    "tiny/deepseek_v3",
    "tiny/deepseek_v4",
];

fn options(ram_limit: Option<u64>) -> OpenOptions {
    OpenOptions {
        device: "cpu".into(),
        ram_limit,
        threads: Some(2),
        context: Some(64),
        chunk: 7,
        sequences: 2,
        ..OpenOptions::default()
    }
}

/// Bits of the logits of a prompt in chunks, and of single tokens after it.
fn bits(model: &mut Model) -> Vec<u32> {
    let vocab = model.spec().vocab_size as u32;
    let tokens: Vec<u32> = (0..24).map(|i| (i * 37 + 5) % vocab).collect();
    let mut all = Vec::new();
    for (slot, position, tokens) in
        [(0, 0, &tokens[..17]), (1, 0, &tokens[3..9]), (0, 17, &tokens[17..18]), (0, 18, &tokens[18..19])]
    {
        let mut each = |rows: &[f32]| all.extend(rows.iter().map(|v| v.to_bits()));
        model.feed(slot, position, tokens, Wanted::All, &mut each, &mut |_| true).unwrap();
    }
    all
}

/// What a model holds in memory when all of it is there.
fn in_memory(model: &Model) -> u64 {
    model.placement().devices.iter().map(|s| s.bytes.total()).sum()
}

#[test]
fn logits_are_the_same_bits_however_few_experts_memory_holds() -> Test {
    let dir = tempfile::tempdir()?;
    for name in MIXTURES {
        let pack = dir.path().join(name.replace('/', "-"));
        if name == "demo-moe" {
            convert(&fixture(name), &pack, &recipe(dir.path(), MIXED)?, &[]);
        } else {
            convert(&fixture(name), &pack, Path::new("8bit"), &[]);
        }
        let mut whole = Model::open(&pack, &options(None), &Silent)?;
        assert!(whole.nvme().is_none(), "{name} fits");
        let (expected, total) = (bits(&mut whole), in_memory(&whole));
        let mut sizes = Vec::new();
        // From a byte too little to where not even two experts fit.
        for part in 0..40 {
            let limit = total - 1 - part * total / 40;
            let Ok(mut model) = Model::open(&pack, &options(Some(limit)), &Silent) else { break };
            let used = model.nvme().ok_or("experts on disk")?;
            assert!(
                in_memory(&model) - model.placement().devices[0].on_disk + used.slot_bytes <= limit,
                "{name}: {used:?}"
            );
            assert!(bits(&mut model) == expected, "{name} in {limit} bytes, {used:?}");
            let used = model.nvme().ok_or("experts on disk")?;
            assert!(used.hits + used.misses > 0 && used.bytes > 0, "{name}: {used:?}");
            sizes.push(used.slots);
        }
        assert!(sizes.len() > 2 && sizes.is_sorted_by(|a, b| a >= b), "{name}: {sizes:?}");
    }
    Ok(())
}

/// Disk, memory and an accelerator: experts take turns in both.
#[test]
fn experts_on_disk_reach_slots_of_an_accelerator_and_the_bits_are_the_same() -> Test {
    let dir = tempfile::tempdir()?;
    let pack = dir.path().join("pack");
    convert(&fixture("demo-moe"), &pack, &recipe(dir.path(), MIXED)?, &[]);
    let mut whole = Model::open(&pack, &options(None), &Silent)?;
    let (expected, total) = (bits(&mut whole), in_memory(&whole));
    let rules = "version: 1\nrules:\n  - {match: {class: experts}, set: {tier: cached}}".to_owned();
    let placement = Some(PlacementText { name: "rules".into(), text: rules });
    let mut seen = 0;
    for part in 2..7 {
        let (vram_limit, ram_limit) = (Some(total * 3 / 4), Some(total * part / 10));
        let asked =
            OpenOptions { device: "virtual:0".into(), vram_limit, placement: placement.clone(), ..options(ram_limit) };
        let mut model = Model::open(&pack, &asked, &Silent)?;
        assert!(bits(&mut model) == expected, "{part} tenths: {:?}", model.slots());
        let (Some(disk), [(_, slots)]) = (model.nvme(), &model.slots()[..]) else { continue };
        seen += usize::from(disk.bytes > disk.warm_bytes && slots.fills > 0 && slots.copied > 0);
    }
    assert!(seen >= 2, "{seen}");
    Ok(())
}

#[test]
fn prompts_go_through_in_larger_chunks_where_experts_move_and_have_room() -> Test {
    let dir = tempfile::tempdir()?;
    let pack = dir.path().join("pack");
    convert(&fixture("demo-moe"), &pack, Path::new("8bit"), &[]);
    let small = |ram_limit| OpenOptions {
        chunk: 4,
        larger_chunks: true,
        context: Some(16),
        sequences: 1,
        ..options(ram_limit)
    };
    let tokens: Vec<u32> = (0..16).map(|i| i * 31 + 3).collect();
    let mut whole = Model::open(&pack, &small(None), &Silent)?;
    assert_eq!(whole.chunk(), 4, "nothing moves");
    let (expected, total) = (ashlar_runtime::logits(&mut whole, &tokens)?, in_memory(&whole));
    // Nearly all memory for experts, and little of it.
    for (limit, chunk) in [(total - 1, 16), (total - 5 * (total / 8), 4)] {
        let mut model = Model::open(&pack, &small(Some(limit)), &Silent)?;
        assert_eq!(model.chunk(), chunk, "{:?}", model.nvme());
        assert!(ashlar_runtime::logits(&mut model, &tokens)? == expected, "in chunks of {chunk}");
        let asked = Model::open(&pack, &OpenOptions { larger_chunks: false, ..small(Some(limit)) }, &Silent)?;
        assert_eq!(asked.chunk(), 4);
    }
    Ok(())
}

#[test]
fn rules_that_say_nvme_are_followed_and_single_layers_may_stay_in_memory() -> Test {
    let dir = tempfile::tempdir()?;
    let pack = dir.path().join("pack");
    convert(&fixture("demo-moe"), &pack, Path::new("8bit"), &[]);
    let mut whole = Model::open(&pack, &options(None), &Silent)?;
    let expected = bits(&mut whole);
    for (rule, experts) in
        [("class: experts", 64), ("class: experts, layers: '1-2'", 32), ("class: experts, experts: [0, 3, 9]", 12)]
    {
        let text = format!("version: 1\nrules:\n  - {{match: {{{rule}}}, set: {{tier: nvme}}}}\n");
        let placement = Some(PlacementText { name: "rules".into(), text });
        let mut model = Model::open(&pack, &OpenOptions { placement, ..options(None) }, &Silent)?;
        assert_eq!(model.nvme().map(|used| used.experts), Some(experts), "{rule}");
        assert!(bits(&mut model) == expected, "{rule}");
    }
    Ok(())
}

#[test]
fn run_tells_what_came_from_the_disk_and_refuses_what_memory_cannot_hold() -> Test {
    let dir = tempfile::tempdir()?;
    let pack = dir.path().join("pack");
    convert(&fixture("demo-moe"), &pack, Path::new("8bit"), &[]);
    let run = |more: &[&str]| {
        let common = ["--raw", "-p", "And it came", "--temperature", "0", "--max-tokens", "8", "--context", "64", "-v"];
        finish(ashlar().arg("run").arg(&pack).args(common).args(more))
    };
    let text = run(&[]).expect(0).stdout;
    let small = run(&["--ram-limit", "8MiB"]).expect(0).says(&["disk: ", " read (", "experts on disk", "evicted"]);
    assert_eq!(small.stdout, text);
    run(&["--ram-limit", "1MiB"]).says(&["bytes are missing"]);
    let planned = ashlar!["plan", pack, "--ram-limit", "8MiB", "--context", "64"].expect(0).stdout;
    assert!(planned.contains("experts on disk take turns in"), "{planned}");
    let source = finish(ashlar().arg("run").arg(fixture("demo-moe")).args([
        "--raw",
        "-p",
        "And",
        "--max-tokens",
        "2",
        "--ram-limit",
        "8MiB",
    ]));
    source.expect(0).says(&["mapped and read page by page", "ashlar convert"]);
    Ok(())
}

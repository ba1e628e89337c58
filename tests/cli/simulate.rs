//! `trace` and `simulate`: recorded routes, and what a cache of experts would do with them.

use crate::support::{Test, fixture};
use ashlar_recipe::Recipe;
use ashlar_runtime::fit::speeds;
use ashlar_runtime::placement::PlacementText;
use ashlar_runtime::routing::{LayerBytes, Machine, Policy, Recorder, Replay, Tiers, record, replay};
use ashlar_runtime::{Model, OpenOptions};
use ashlar_tensor::{Entry, Silent};

#[test]
fn a_model_is_recorded_and_its_recording_replayed() -> Test {
    let dir = tempfile::tempdir()?;
    let (text, routes) = (dir.path().join("prompt.txt"), dir.path().join("demo.route.csv"));
    std::fs::write(&text, "And it came to pass in those days, that the word of the LORD came unto me")?;
    let model = fixture("demo-moe");
    ashlar!["trace", model, "--text", text, "-o", routes, "--prompt-tokens", "10", "--max-tokens", "6"].expect(0);
    let recorded = std::fs::read_to_string(&routes)?;
    assert!(recorded.starts_with("# route_trace v1\n# model=demo-moe n_layer=4 "), "{recorded}");
    // 16 tokens, 4 layers, the chosen experts of each; the same on any number of threads and devices.
    let again = dir.path().join("again.csv");
    ashlar![
        "trace",
        model,
        "--text",
        text,
        "-o",
        again,
        "--prompt-tokens",
        "10",
        "--max-tokens",
        "6",
        "--threads",
        "1",
        "--device",
        "virtual:0"
    ]
    .expect(0);
    assert_eq!(recorded, std::fs::read_to_string(&again)?);
    let found =
        ashlar!["simulate", routes, "--capacity", "100%,0", "--policies", "lru,belady", "--json"].expect(0).json();
    let rows = found["replayed"].as_array().ok_or("replayed")?;
    let top_k = rows[0]["accesses"].as_u64().ok_or("accesses")? / (6 * 4);
    assert_eq!(recorded.lines().filter(|l| !l.starts_with('#')).count() as u64 - 1, 16 * 4 * top_k);
    for (row, hits) in rows.iter().zip([true, true, false, false]) {
        assert_eq!(row["hits"].as_u64() > Some(0), hits, "{row}");
        assert_eq!(row["tokens"], 6);
    }
    let dense = ashlar!["trace", fixture("tiny/llama"), "--text", text, "-o", again];
    dense.expect(2).says(&["has no experts"]);
    Ok(())
}

#[test]
fn policies_are_held_against_the_bound_and_told_as_tokens_per_second() -> Test {
    let routes = fixture("routes/qwen3-30b.route.csv");
    let text = ashlar!["simulate", routes, "--hardware", "rtx3080-10gb-64gb"].expect(0).stdout;
    for part in [
        "Qwen3-30B",
        "12 layers of 128 experts, 6 per token, 20 decoded tokens",
        "belady",
        "tokens per second",
        "(here)",
        "the card holds",
    ] {
        assert!(text.contains(part), "no `{part}` in {text}");
    }
    let of = |more: &[&str]| -> Result<(u64, u64), Box<dyn std::error::Error>> {
        let mut command = crate::support::ashlar();
        command.arg("simulate").arg(&routes).args(["--capacity", "12%", "--policies", "ema", "--json"]).args(more);
        let row = crate::support::finish(&mut command).expect(0).json()["replayed"][0].clone();
        Ok((row["hits"].as_u64().ok_or("hits")?, row["fills"].as_u64().ok_or("fills")?))
    };
    assert_eq!(of(&[])?, (664, 776));
    assert_eq!(of(&["--max-fills", "1", "--hysteresis", "1.1"])?, (663, 196));
    Ok(())
}

#[test]
fn experts_of_the_next_layer_are_guessed_and_what_that_is_worth_is_told() -> Test {
    let routes = fixture("routes/qwen3-30b.route.csv");
    let text = ashlar!["simulate", routes, "--capacity", "30%", "--look-ahead", "previous,learned"].expect(0).stdout;
    assert!(text.contains("previous") && text.contains("of missing"), "{text}");
    let found =
        ashlar!["simulate", routes, "--capacity", "30%", "--look-ahead", "learned", "--train", routes, "--json"];
    let row = found.expect(0).json()["look_ahead"][0].clone();
    let of = |key: &str| row[key].as_u64().unwrap_or_default();
    // Who learned from the recording itself knows more than half of it.
    assert!(of("named") * 2 > of("uses") && of("useful") > of("wasted"), "{row}");
    assert!(of("covered") <= of("absent") && of("uses") > 0, "{row}");
    ashlar!["simulate", routes, "--train", routes].expect(2).says(&["--look-ahead"]);
    Ok(())
}

#[test]
fn a_recording_on_machines_is_slower_with_less_of_a_card_and_with_a_disk() -> Test {
    let routes = fixture("routes/qwen3-30b.route.csv");
    let rate = |hardware: &str| -> Result<f64, Box<dyn std::error::Error>> {
        let found = ashlar![
            "simulate",
            routes,
            "--hardware",
            hardware,
            "--policies",
            "ema",
            "--max-fills",
            "1",
            "--hysteresis",
            "1.1",
            "--capacity",
            "12%",
            "--json"
        ];
        let found = found.expect(0).json();
        let slots = found["machine_slots"].as_u64();
        let rows = found["replayed"].as_array().ok_or("replayed")?;
        let here = rows.iter().find(|row| row["slots"].as_u64() == slots).ok_or("the machine's own slots")?;
        Ok(here["tokens_per_s"].as_f64().ok_or("tokens_per_s")?)
    };
    let card = |vram: &str| rate(&format!("vram={vram},ram=64GiB,vram_bandwidth=760GB/s,ram_bandwidth=70GB/s"));
    let (large, small) = (card("2GiB")?, card("1GiB")?);
    let memory = rate("ram=64GiB,ram_bandwidth=70GB/s")?;
    // The recording's experts take 4.5 GB; a machine of 7 GiB leaves 3 to a model.
    let disk = rate("ram=7GiB,ram_bandwidth=70GB/s,nvme=2GB/s")?;
    assert!(large > small && small > memory && memory > 2.0 * disk, "{large} {small} {memory} {disk}");
    Ok(())
}

/// Both cards are full to the limit, and what is found in slots only helps.
#[test]
fn large_shapes_are_planned_and_simulated_within_10_gib_of_a_card() -> Test {
    for (model, recipe) in [("deepseek-v4-flash", "v4-flash-2bit-experts"), ("deepseek-v3", "deepseek-v3-2bit-experts")]
    {
        let hardware = "vram=24GiB,ram=256GiB,vram_bandwidth=760GB/s,ram_bandwidth=70GB/s";
        let limit = ["--vram-limit", "10GiB"];
        let found = ashlar![
            "simulate",
            "--model",
            model,
            "--recipe",
            recipe,
            "--hardware",
            hardware,
            limit[0],
            limit[1],
            "--json"
        ];
        let found = found.expect(0).json();
        let rates: Vec<f64> =
            found["shares"].as_array().ok_or("shares")?.iter().filter_map(|r| r["tokens_per_s"].as_f64()).collect();
        assert!(rates.len() == 7 && rates.is_sorted() && rates[0] > 1.0, "{model}: {rates:?}");
        let range: Vec<f64> = serde_json::from_value(found["prediction"]["tokens_per_s"].clone())?;
        assert!(range[0] < range[1] && range[1] < rates[6], "{model}: {range:?} {rates:?}");
        let planned = ashlar!["plan", model, "--recipe", recipe, "--hardware", hardware, limit[0], limit[1], "--json"];
        let planned = planned.expect(0).json()["tiers"][0].clone();
        assert!(planned["fit"]["vram"].as_u64() <= Some(10 << 30), "{planned}");
        assert_eq!(planned["prediction"], found["prediction"], "the planner says the same");
        assert_eq!(planned["prediction"]["first_token_s"].as_array().map(Vec::len), Some(2), "2K and 8K of 16K");
        // The placement itself holds no more either, keys and values' memory that slots stand in counted once.
        let tier = "dual-96gb-512gb-nvme";
        let placed = ashlar!["plan", model, "--recipe", recipe, "--placement", tier, limit[0], limit[1], "--json"]
            .expect(0)
            .json();
        let cards = placed["placement"]["devices"].as_array().ok_or("devices")?.iter().filter(|d| d["device"] != "cpu");
        let held: Vec<u64> = cards
            .map(|d| {
                let of = |key: &str| d[key].as_u64().unwrap_or(0);
                let slots = &d["expert_slots"];
                let own = slots["count"].as_u64().unwrap_or(0) - slots["lent"].as_u64().unwrap_or(0);
                of("weights") + of("caches") + of("activations") + own * slots["bytes"].as_u64().unwrap_or(0)
            })
            .collect();
        assert!(held.iter().all(|bytes| *bytes <= 10 << 30) && held.first() > Some(&(9 << 30)), "{model}: {held:?}");
        assert!(placed["prediction"]["tokens_per_s"][0].as_f64() > Some(1.0), "{placed}");
        let marginal = planned["prediction"]["marginal"].to_string();
        assert!(marginal.contains("card memory") && marginal.contains("bit less"), "{marginal}");
    }
    Ok(())
}

#[test]
fn a_model_that_does_not_fit_or_is_another_than_the_recorded_one_is_refused() -> Test {
    let routes = fixture("routes/qwen3-30b.route.csv");
    let of = |hardware: &str| {
        let recipe = "deepseek-v3-2bit-experts";
        ashlar!["simulate", "--model", "deepseek-v3", "--recipe", recipe, "--hardware", hardware]
    };
    of("rtx4060-8gb-32gb").expect(2).says(&["does not fit rtx4060-8gb-32gb", "missing"]);
    ashlar!["simulate", routes, "--model", "deepseek-v3", "--hardware", "dual-96gb-512gb-nvme"]
        .expect(2)
        .says(&["61 layers of which 58", "the recording has 12"]);
    ashlar!["simulate"].expect(2);
    ashlar!["simulate", "--model", "deepseek-v3"].expect(2).says(&["--hardware"]);
    Ok(())
}

/// A machine so slow that bytes, not handshakes, are what takes time of a small model.
const SLOW: &str = "version: 1
hardware: {gpus: 1, vram: 10GiB, ram: 64GiB, vram_bandwidth: 76MB/s, ram_bandwidth: 7MB/s, link_bandwidth: 5MB/s}
rules:
  - {id: experts, match: {class: experts}, set: {tier: cached}}
";

/// The scheduler that runs models and the simulator agree on modelled time.
#[test]
fn a_run_on_a_rehearsed_card_has_the_modelled_time_of_the_simulator() -> Test {
    let model = fixture("demo-moe");
    let options = |vram_limit| OpenOptions {
        device: "virtual:0".into(),
        placement: Some(PlacementText { name: "slow".into(), text: SLOW.into() }),
        vram_limit,
        threads: Some(1),
        // Keys and values take less than a slot, so that no slot stands in their memory.
        context: Some(64),
        chunk: 16,
        ..OpenOptions::default()
    };
    let whole = Model::open(&model, &options(None), &Silent)?;
    let total: u64 =
        whole.placement().devices.iter().filter(|s| s.offer.device.is_accelerator()).map(|s| s.bytes.total()).sum();
    let mut split = Model::open(&model, &options(Some(total - (8 << 20))), &Silent)?;
    let opened = ashlar_runtime::open(&model, &Silent)?;
    let bytes = |name: &str| opened.store.entry(name).map(Entry::bytes);
    let recorder = Recorder::new("demo", split.spec(), &bytes)?;
    // A prompt of one token is decoded too.
    let routes = record(&mut split, recorder, [[5].as_slice(), &[]], 62, &mut |_| true)?;
    let (_, used) = split.slots().into_iter().next().ok_or("slots")?;
    assert!(used.slots > 10 && used.slots < 60, "{used:?}");
    // Two slots are for streaming.
    let (policy, capacity) = (Policy::Ema { half_life: 12.0 }, used.slots - 2);
    let what = Replay { policy, capacity, max_fills: Some(1), hysteresis: Some(1.1) };
    let hardware = Recipe::parse(SLOW, "slow")?.hardware().ok_or("hardware")?;
    let machine = Machine { speeds: speeds(&hardware), accelerated: true, dense_on_host: 0.0 };
    let (_, head) = LayerBytes::of(split.spec(), &bytes);
    let found = replay(&routes, &what, Some(&Tiers { machine, memory: None, head }));
    let modelled = split.modelled().ok_or("modelled")?;
    assert_eq!(modelled.machine, "slow");
    let (rate, simulated) = (modelled.tokens_per_s().ok_or("tokens")?, found.tokens as f64 / found.seconds);
    assert!((rate / simulated - 1.0).abs() < 0.1, "{rate} and {simulated}");
    Ok(())
}

#[test]
fn what_is_no_recording_or_no_size_is_wrong_usage() -> Test {
    let routes = fixture("routes/qwen3-30b.route.csv");
    ashlar!["simulate", fixture("demo-moe").join("config.json")].expect(2).says(&["line 1", "no recording of routes"]);
    ashlar!["simulate", routes, "--capacity", "much"].expect(2).says(&["`much` is no size of a cache"]);
    ashlar!["simulate", routes, "--machine", "rtx3080-10gb-46gb"]
        .expect(2)
        .says(&["did you mean `rtx3080-10gb-64gb`?"]);
    Ok(())
}

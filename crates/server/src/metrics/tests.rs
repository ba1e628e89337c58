use super::*;
use ashlar_runtime::engine::Rate;
use ashlar_runtime::{NvmeUse, SlotUse};
use std::collections::BTreeSet;

/// What the server promises to tell, by what it is about.
const NAMES: &[&str] = &[
    // The queue.
    "requests_waiting",
    "requests_running",
    "requests_ended_total",
    "requests_refused_total",
    "requests_preempted_total",
    "time_in_queue_seconds_count",
    // Pace.
    "tokens_in_total",
    "tokens_out_total",
    "tokens_in_per_second",
    "tokens_out_per_second",
    "time_to_first_token_seconds_bucket",
    "time_between_tokens_seconds_bucket",
    "steps_total",
    // Keys and values.
    "kv_bytes",
    "kv_budget_bytes",
    "kv_layer_bytes",
    // Beginnings.
    "prefix_hits_total",
    "prefix_tokens_total",
    "prefix_disk_hits_total",
    "prefix_disk_bytes",
    "prefix_disk_evicted_total",
    "prefix_shared_hits_total",
    "prefix_evictions_total",
    // Memory by class and layer.
    "weight_bytes",
    "device_bytes",
    // Experts.
    "expert_cache_bytes",
    "expert_cache_hits_total",
    "expert_cache_misses_total",
    "expert_cache_evictions_total",
    "expert_moved_bytes_total",
];

fn metrics() -> Metrics {
    let (device, class) = ("cpu".to_owned(), "attn".to_owned());
    let cache = |device: &str, tier, layer| CachePlace { device: device.into(), tier, layer: Some(layer) };
    // Layer 1 has two caches.
    let caches = vec![cache("cpu", "ram", 0), cache("cuda:0", "vram", 1), cache("cuda:0", "vram", 1)];
    Metrics::new(&[Holding { device, tier: "ram", class, layer: Some(3), bytes: 9 }], caches)
}

fn stats() -> EngineStats {
    EngineStats {
        tokens_out: 7,
        kv_by_cache: vec![10, 200, 3000],
        kv_most: 5000,
        memory: vec![("cpu".into(), ashlar_runtime::Memory { activations: 4, caches: 10 })],
        slots: vec![("cuda:0".into(), SlotUse { hits: 2, prompt_hits: 1, fills: 4, copied: 50, ..SlotUse::default() })],
        nvme: Some(NvmeUse { hits: 5, bytes: 99, ..NvmeUse::default() }),
        prefixes: Some(PrefixStats::default()),
        ..EngineStats::default()
    }
}

#[test]
fn everything_promised_is_told_under_its_name_with_a_number() {
    let metrics = metrics();
    metrics.first_token(Duration::from_millis(15));
    let text = metrics.render(&stats());
    let mut told = BTreeSet::new();
    for line in text.lines().filter(|l| !l.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').unwrap();
        assert!(value.parse::<f64>().is_ok(), "{line}");
        told.insert(name.split('{').next().unwrap().strip_prefix("ashlar_").unwrap());
    }
    for name in NAMES {
        assert!(told.contains(name), "{name} in\n{text}");
    }
    // Every name is explained once.
    let explained: Vec<&str> = text.lines().filter_map(|l| l.strip_prefix("# TYPE ")).collect();
    assert_eq!(explained.iter().collect::<BTreeSet<_>>().len(), explained.len());
}

#[test]
fn figures_stand_with_the_place_they_are_of() {
    let text = metrics().render(&stats());
    for line in [
        "ashlar_tokens_out_total 7",
        "ashlar_weight_bytes{device=\"cpu\",tier=\"ram\",layer=\"3\",class=\"attn\"} 9",
        "ashlar_kv_bytes 3210",
        "ashlar_kv_layer_bytes{device=\"cpu\",tier=\"ram\",layer=\"0\"} 10",
        "ashlar_kv_layer_bytes{device=\"cuda:0\",tier=\"vram\",layer=\"1\"} 3200",
        "ashlar_device_bytes{device=\"cpu\",class=\"activations\"} 4",
        "ashlar_device_bytes{device=\"cpu\",class=\"kv\"} 10",
        "ashlar_expert_cache_hits_total{tier=\"ram\"} 5",
        "ashlar_expert_cache_hits_total{tier=\"vram\",device=\"cuda:0\"} 3",
        "ashlar_expert_cache_evictions_total{tier=\"vram\",device=\"cuda:0\"} 4",
        "ashlar_expert_moved_bytes_total{from=\"nvme\",to=\"ram\"} 99",
        "ashlar_expert_moved_bytes_total{from=\"ram\",to=\"vram\"} 50",
    ] {
        assert!(text.lines().any(|l| l == line), "{line}\n{text}");
    }
}

#[test]
fn a_pace_is_told_also_when_nothing_has_happened_since() {
    let mut stats = stats();
    let mut rate = Rate::default();
    let Some(begin) = Instant::now().checked_sub(Duration::from_secs(4)) else { return };
    rate.add(80, begin);
    stats.rate_out = rate;
    let text = metrics().render(&stats);
    assert!(text.lines().any(|l| l == "ashlar_tokens_out_per_second 20"), "{text}");
}

//! `bench`: speed beside the machine's ceilings.

use crate::support::fixture;

#[test]
fn speeds_come_with_ceilings_and_what_a_token_reads() {
    let result = ashlar![
        "bench",
        fixture("demo-moe"),
        "--prompt-tokens",
        "40",
        "--gen-tokens",
        "4",
        "--depth",
        "0,20",
        "--rounds",
        "1",
        "--threads",
        "2",
        "--chunk",
        "16",
        "--profile",
        "--json"
    ]
    .expect(0)
    .json();
    for work in ["prefill", "decode"] {
        let depths: Vec<_> = result[work].as_array().unwrap().iter().map(|r| r["depth"].as_u64().unwrap()).collect();
        assert_eq!(depths, [0, 20], "{result}");
        assert!(result[work].as_array().unwrap().iter().all(|r| r["tokens_per_s"].as_f64().unwrap() > 0.0));
    }
    assert!(result["ceilings"]["read_gb_per_s"].as_f64().unwrap() > 0.0);
    // Four of sixteen experts: a token reads less than half of the file.
    let file = std::fs::metadata(fixture("demo-moe").join("model.safetensors")).unwrap().len() as f64;
    let bytes = result["decode"][0]["bytes_per_token"].as_f64().unwrap();
    assert!(bytes > 0.0 && bytes < 0.5 * file, "{bytes} of {file}");
    let calls = |work: &str| {
        let ops = result["profile"][work].as_array().unwrap();
        ops.iter().find(|op| op["op"] == "attention").unwrap()["calls"].as_u64().unwrap()
    };
    // Per layer: three chunks of 16 at two depths, and four single tokens at two depths.
    assert_eq!(calls("prefill") * 8, calls("decode") * 6);
}

#[test]
fn nothing_to_measure_on_is_wrong_usage() {
    ashlar!["bench", fixture("demo-moe"), "--rounds", "0"].expect(2);
    ashlar!["bench", "/nonexistent-model"].expect(2);
}

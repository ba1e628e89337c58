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

#[test]
fn a_shape_is_measured_without_a_checkpoint() {
    let config = fixture("demo-moe").join("config.json");
    let result = ashlar![
        "bench",
        "--shape",
        config,
        "--format",
        "k3",
        "--prompt-tokens",
        "8",
        "--gen-tokens",
        "2",
        "--rounds",
        "1",
        "--threads",
        "1",
        "--json"
    ]
    .expect(0)
    .json();
    assert!(result["decode"][0]["tokens_per_s"].as_f64().unwrap() > 0.0, "{result}");
    let config = fixture("demo-moe").join("tokenizer.json");
    ashlar!["bench", "--shape", config].expect(2);
}

#[test]
fn kernels_are_measured_in_every_way_and_one_is_chosen() {
    // Whether it is the fastest is another question, on a machine that does other things at the same time.
    let output = ashlar!["bench", "--kernels", "--formats", "i4:g64;k2", "--rows", "1", "--rounds", "1", "--json"];
    let lines = output.json();
    for line in lines.as_array().unwrap() {
        let candidates = line["candidates"].as_array().unwrap();
        assert!(candidates.len() >= 2 && candidates.iter().filter(|c| c["chosen"] == true).count() == 1, "{line}");
        assert!(candidates.iter().all(|c| c["seconds"].as_f64().unwrap() > 0.0), "{line}");
    }
    ashlar!["bench", "--kernels", "--formats", "q9"].expect(2);
    ashlar!["bench", "--kernels", "model"].expect(2);
    ashlar!["bench"].expect(2);
}

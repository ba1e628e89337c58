//! `bench`: speed beside the machine's ceilings.

use crate::support::{ashlar, finish, fixture};

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
fn several_sequences_are_decoded_at_once_and_what_experts_read_then_is_not_made_up() {
    let measured = |fixture_name: &str| {
        let mut command = ashlar();
        command.arg("bench").arg(fixture(fixture_name)).args(["--prompt-tokens", "0", "--gen-tokens", "3"]);
        finish(command.args(["--rounds", "1", "--threads", "2", "--batch", "1,3", "--depth", "5", "--json"]))
            .expect(0)
            .json()
    };
    let [dense, moe] = ["tiny/llama", "demo-moe"].map(measured);
    for result in [&dense, &moe] {
        assert!(result["prefill"].as_array().unwrap().is_empty());
        let sequences: Vec<_> = result["decode"].as_array().unwrap().iter().map(|r| r["sequences"].as_u64()).collect();
        assert_eq!(sequences, [Some(1), Some(3)]);
    }
    let bytes = |result: &serde_json::Value, batch: usize| result["decode"][batch]["bytes_per_token"].as_f64();
    assert!((bytes(&dense, 0).unwrap() / bytes(&dense, 1).unwrap() - 3.0).abs() < 1e-9);
    assert!(bytes(&moe, 0).is_some() && bytes(&moe, 1).is_none(), "{moe}");
}

#[test]
fn nothing_to_measure_on_is_wrong_usage() {
    ashlar!["bench", fixture("demo-moe"), "--rounds", "0"].expect(2);
    ashlar!["bench", fixture("demo-moe"), "--batch", "0"].expect(2);
    ashlar!["bench", "/nonexistent-model"].expect(2);
}

#[test]
fn a_shape_is_a_file_or_the_name_of_a_released_model_and_can_be_cut() {
    let unknown = ashlar!["bench", "--shape", "no-such-model"].expect(2);
    assert!(unknown.stderr.contains("--list-models"), "{}", unknown.stderr);
    // The name is known, the number of layers is not; nothing of 0.6 billion weights is made.
    let cut = ashlar!["bench", "--shape", "qwen3-0.6b", "--layers", "29"].expect(2);
    assert!(cut.stderr.contains("1 to 28"), "{}", cut.stderr);
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

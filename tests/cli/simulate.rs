//! `trace` and `simulate`: recorded routes, and what a cache of experts would do with them.

use crate::support::{Test, fixture};

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
    let text = ashlar!["simulate", routes, "--machine", "rtx3080-10gb-64gb"].expect(0).stdout;
    for part in ["Qwen3-30B", "12 layers of 128 experts, 6 per token, 20 decoded tokens", "belady", "tokens per second"]
    {
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
fn what_is_no_recording_or_no_size_is_wrong_usage() -> Test {
    let routes = fixture("routes/qwen3-30b.route.csv");
    ashlar!["simulate", fixture("demo-moe").join("config.json")].expect(2).says(&["line 1", "no recording of routes"]);
    ashlar!["simulate", routes, "--capacity", "much"].expect(2).says(&["`much` is no size of a cache"]);
    ashlar!["simulate", routes, "--machine", "rtx3080-10gb-46gb"]
        .expect(2)
        .says(&["did you mean `rtx3080-10gb-64gb`?"]);
    ashlar!["simulate", routes, "--machine", "cpu-64gb"].expect(2).says(&["no accelerator"]);
    Ok(())
}

//! `demo`: the first thing anybody runs.

#[test]
fn the_demo_shows_the_whole_path_and_ends_well() {
    let out = ashlar!["demo"].expect(0).stdout;
    for part in [
        "plan",
        "convert",
        "verify",
        "bits per weight",
        "perplexity",
        "KL divergence",
        "the word of the LORD",
        "tokens agree",
    ] {
        assert!(out.contains(part), "no `{part}` in:\n{out}");
    }
}

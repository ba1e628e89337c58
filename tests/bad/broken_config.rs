//! Configs that are no JSON, or describe no model.

use super::victim::Victim;

fn with_config(change: impl FnOnce(String) -> String) -> Victim {
    let victim = Victim::new();
    let path = victim.path("config.json");
    let text = std::fs::read_to_string(&path).expect("the config");
    std::fs::write(path, change(text)).expect("writable");
    victim
}

#[test]
fn a_config_that_is_no_json_is_refused_with_line_and_column() {
    with_config(|t| t.replacen("\"hidden_size\":", "\"hidden_size\"", 1)).refused(&[
        "config.json: line ",
        "column ",
        "expected",
    ]);
    with_config(|_| String::new()).refused(&["config.json: line 1, column 0", "expected a JSON object"]);
    with_config(|_| "[".repeat(1 << 20)).refused(&["config.json: line 1", "recursion limit"]);
}

#[test]
fn a_missing_config_is_told() {
    let victim = Victim::new();
    std::fs::remove_file(victim.path("config.json")).expect("the config");
    victim.refused(&["config.json: missing", "beside the weights", "download"]);
}

#[test]
fn absurd_sizes_are_refused_rather_than_believed() {
    for key in ["num_hidden_layers", "hidden_size", "vocab_size", "num_attention_heads", "intermediate_size"] {
        for value in
            ["0", "-1", "1.5", "18446744073709551615", "9223372036854775807", "4294967296", "\"4\"", "null", "[]"]
        {
            let victim = with_config(|text| {
                let mut config: serde_json::Value = serde_json::from_str(&text).expect("valid JSON");
                config[key] = serde_json::from_str(value).expect("valid JSON");
                config.to_string()
            });
            victim.refused(&[]);
        }
    }
}

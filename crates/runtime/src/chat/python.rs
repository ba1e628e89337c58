//! JSON to the letter as Python's `json.dumps(ensure_ascii=False)` writes it: models saw tools and arguments so.

use serde_json::Value;

/// Appends a value: `, ` and `: ` between, keys in their order, floats as `repr` has them.
pub fn write(value: &Value, out: &mut String) {
    match value {
        Value::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                write(item, out);
            }
            out.push(']');
        }
        Value::Object(map) => {
            out.push('{');
            for (i, (key, item)) in map.iter().enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                out.push_str(&Value::from(key.as_str()).to_string());
                out.push_str(": ");
                write(item, out);
            }
            out.push('}');
        }
        Value::Number(n) if n.is_f64() => out.push_str(&float(n.as_f64().unwrap_or_default())),
        other => out.push_str(&other.to_string()),
    }
}

/// The text of a value.
pub fn dumps(value: &Value) -> String {
    let mut out = String::new();
    write(value, &mut out);
    out
}

/// `repr` of a finite float: the shortest digits that give it back, with an exponent from 1e16 on and below 1e-4.
fn float(v: f64) -> String {
    let plain = format!("{v:e}");
    let (digits, exponent) = plain.split_once('e').unwrap_or((&plain, "0"));
    let power: i32 = exponent.parse().unwrap_or_default();
    if v != 0.0 && !(-4..16).contains(&power) {
        let sign = if power < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", power.unsigned_abs());
    }
    let whole = format!("{v}");
    if whole.contains('.') { whole } else { whole + ".0" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    // Expected texts from Python 3.
    #[test]
    fn numbers_and_texts_are_written_as_python_does() {
        let numbers = json!([0.0, -0.5, 1.0, 1e-5, 1.5e-7, 1e15, 1e16, 1.25e22, 0.0001, 12, -3]);
        assert_eq!(
            dumps(&numbers),
            "[0.0, -0.5, 1.0, 1e-05, 1.5e-07, 1000000000000000.0, 1e+16, 1.25e+22, 0.0001, 12, -3]"
        );
        let mixed = json!({"b": "é\n\"\u{1}", "a": [true, null, {}]});
        assert_eq!(dumps(&mixed), "{\"b\": \"é\\n\\\"\\u0001\", \"a\": [true, null, {}]}");
    }
}

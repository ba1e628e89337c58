use super::*;
use crate::testing::{Result, expect, header, tensor};

/// The message with which a header over `data_len` bytes is refused.
fn refused(json: &str, data_len: u64) -> Result<String> {
    match Header::parse("f.safetensors", json.as_bytes(), data_len) {
        Ok(_) => Err(format!("accepted: {json}").into()),
        Err(e) => Ok(e.to_string()),
    }
}

#[test]
fn a_plain_header_is_read() -> Result {
    let json = r#"{"__metadata__":{"format":"pt"},"b":{"dtype":"BF16","shape":[2,3],"data_offsets":[4,16]},
        "a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}   "#;
    let header = Header::parse("f", json.as_bytes(), 16)?;
    assert_eq!(header.metadata.get("format").map(String::as_str), Some("pt"));
    assert_eq!(header.data_start, 8 + json.len() as u64);
    let names: Vec<_> = header.tensors.iter().map(|t| (t.name.as_str(), t.dtype, t.shape.as_slice())).collect();
    assert_eq!(names, [("a", Dtype::F32, &[][..]), ("b", Dtype::BF16, &[2, 3][..])]);
    Ok(())
}

#[test]
fn an_empty_header_describes_an_empty_file() -> Result {
    assert_eq!(Header::parse("f", b"{}", 0)?.tensors, []);
    expect(&refused("{}", 1)?, &["f.safetensors", "11 bytes, expected 10"])
}

#[test]
fn zero_dimensions_are_allowed_anywhere() -> Result {
    let parts =
        [tensor("a", "F32", &[0, 7], 0, 0), tensor("b", "U8", &[2], 0, 2), tensor("c", "I64", &[1 << 40, 0], 2, 2)];
    assert_eq!(Header::parse("f", header(&parts).as_bytes(), 2)?.tensors.len(), 3);
    Ok(())
}

#[test]
fn a_shape_that_overflows_beside_a_zero_is_refused() -> Result {
    let json = header(&[tensor("t", "F32", &[1 << 62, 4, 0], 0, 0)]);
    expect(&refused(&json, 0)?, &["tensor `t`", "overflows", "F32"])
}

#[test]
fn a_shape_that_wraps_to_the_right_size_is_refused() -> Result {
    // 2^32 · 2^32 · 1 byte wraps to 0.
    let json = header(&[tensor("t", "U8", &[1 << 32, 1 << 32], 0, 0)]);
    expect(&refused(&json, 0)?, &["tensor `t`", "4294967296", "overflows"])
}

#[test]
fn a_shape_beyond_64_bits_is_refused() -> Result {
    let json = r#"{"t":{"dtype":"U8","shape":[18446744073709551616],"data_offsets":[0,1]}}"#;
    expect(&refused(json, 1)?, &["tensor `t`", "line 1, column"])
}

#[test]
fn negative_and_fractional_dimensions_are_refused() -> Result {
    for dim in ["-1", "1.5", "1e3", "\"4\"", "null", "[4]", "{}"] {
        let json = format!(r#"{{"t":{{"dtype":"U8","shape":[{dim}],"data_offsets":[0,4]}}}}"#);
        expect(&refused(&json, 4)?, &["tensor `t`", "line 1, column"])?;
    }
    Ok(())
}

#[test]
fn sixty_five_dimensions_are_refused() -> Result {
    assert_eq!(Header::parse("f", header(&[tensor("t", "U8", &[1; 64], 0, 1)]).as_bytes(), 1)?.tensors.len(), 1);
    let json = header(&[tensor("t", "U8", &[1; 65], 0, 1)]);
    expect(&refused(&json, 1)?, &["tensor `t`", "at most 64 dimensions"])
}

#[test]
fn backward_ranges_are_refused() -> Result {
    expect(&refused(&header(&[tensor("t", "U8", &[4], 8, 4)]), 8)?, &["tensor `t`", "[8, 4]", "backwards"])
}

#[test]
fn ranges_that_do_not_fit_their_shape_are_refused() -> Result {
    let message = refused(&header(&[tensor("t", "F32", &[2, 2], 0, 15)]), 15)?;
    expect(&message, &["tensor `t`", "F32 [2, 2] needs 16 bytes, got 15"])
}

#[test]
fn overlapping_ranges_are_refused() -> Result {
    let parts = [tensor("a", "U8", &[8], 0, 8), tensor("b", "U8", &[8], 4, 12)];
    expect(&refused(&header(&parts), 12)?, &["tensor `b`", "[4, 12]", "overlap `a`", "ends at 8"])
}

#[test]
fn an_empty_tensor_inside_another_is_refused() -> Result {
    let parts = [tensor("a", "U8", &[8], 0, 8), tensor("b", "U8", &[0], 4, 4)];
    expect(&refused(&header(&parts), 8)?, &["tensor `b`", "overlap `a`"])
}

#[test]
fn two_tensors_on_the_same_bytes_are_refused() -> Result {
    let parts = [tensor("a", "U8", &[8], 0, 8), tensor("b", "U8", &[8], 0, 8)];
    expect(&refused(&header(&parts), 8)?, &["overlap"])
}

#[test]
fn a_hole_between_tensors_is_refused() -> Result {
    let parts = [tensor("a", "U8", &[4], 0, 4), tensor("b", "U8", &[4], 8, 12)];
    expect(&refused(&header(&parts), 12)?, &["tensor `b`", "begins at data byte 8, expected 4"])
}

#[test]
fn ranges_beyond_the_file_are_refused() -> Result {
    let parts = [tensor("a", "U8", &[4], 0, 4), tensor("b", "U8", &[4], 1 << 50, (1 << 50) + 4)];
    expect(&refused(&header(&parts), 8)?, &["tensor `b`", "1125899906842624", "only 8 data bytes"])?;
    // The tensor that left the hole is named, not the one after it.
    let parts = [parts[0].clone(), parts[1].clone(), tensor("c", "U8", &[4], 8, 12)];
    expect(&refused(&header(&parts), 12)?, &["tensor `b`", "1125899906842624", "only 12 data bytes"])?;
    let last = u64::MAX;
    let message = refused(&header(&[tensor("a", "U8", &[4], last - 4, last)]), 8)?;
    expect(&message, &["tensor `a`", "18446744073709551615", "only 8 data bytes"])
}

#[test]
fn a_truncated_file_names_the_first_incomplete_tensor() -> Result {
    let parts = [tensor("a", "U8", &[4], 0, 4), tensor("b", "U8", &[4], 4, 8), tensor("c", "U8", &[4], 8, 12)];
    let json = header(&parts);
    let start = 8 + json.len();
    let message = refused(&json, 6)?;
    expect(&message, &["truncated", "tensor `b`", &format!("{} bytes, expected {}", start + 6, start + 12), "download"])
}

#[test]
fn bytes_after_the_last_tensor_are_refused() -> Result {
    expect(&refused(&header(&[tensor("a", "U8", &[4], 0, 4)]), 5)?, &["belong to no tensor"])
}

#[test]
fn a_tensor_listed_twice_is_refused() -> Result {
    let parts = [tensor("a", "U8", &[4], 0, 4), tensor("a", "U8", &[4], 4, 8)];
    expect(&refused(&header(&parts), 8)?, &["tensor `a`", "listed twice"])?;
    // Equal names written differently are equal.
    let json = header(&[tensor("ab", "U8", &[4], 0, 4), tensor("@", "U8", &[4], 4, 8).replace('@', "\\u0061b")]);
    expect(&refused(&json, 8)?, &["tensor `ab`", "listed twice"])
}

#[test]
fn keys_listed_twice_inside_a_tensor_or_the_metadata_are_refused() -> Result {
    let json = r#"{"t":{"dtype":"U8","shape":[4],"shape":[4],"data_offsets":[0,4]}}"#;
    expect(&refused(json, 4)?, &["tensor `t`", "duplicate field `shape`"])?;
    expect(&refused(r#"{"__metadata__":{"k":"1","k":"2"}}"#, 0)?, &["__metadata__", "key `k` is listed twice"])?;
    expect(&refused(r#"{"__metadata__":{},"__metadata__":{}}"#, 0)?, &["`__metadata__` is listed twice"])
}

#[test]
fn unknown_dtypes_name_tensor_and_dtype() -> Result {
    for dtype in ["F42", "bf16", "", "C64", "F4"] {
        let message = refused(&header(&[tensor("t", dtype, &[4], 0, 4)]), 4)?;
        expect(&message, &["f.safetensors: tensor `t`", &format!("unknown dtype `{dtype}`"), "BF16"])?;
    }
    Ok(())
}

#[test]
fn incomplete_tensors_are_refused() -> Result {
    expect(&refused(r#"{"t":{"dtype":"U8","shape":[4]}}"#, 4)?, &["tensor `t`", "missing field `data_offsets`"])?;
    expect(&refused(r#"{"t":{"dtype":"U8","data_offsets":[0,4]}}"#, 4)?, &["tensor `t`", "missing field `shape`"])?;
    expect(&refused(r#"{"t":[1]}"#, 4)?, &["tensor `t`"])?;
    expect(&refused(r#"{"t":{"dtype":"U8","shape":[4],"data_offsets":[0]}}"#, 4)?, &["tensor `t`"])?;
    expect(&refused(r#"{"t":{"dtype":"U8","shape":[4],"data_offsets":[0,4,8]}}"#, 4)?, &["tensor `t`"])
}

#[test]
fn metadata_that_is_not_text_is_refused() -> Result {
    expect(&refused(r#"{"__metadata__":{"k":1}}"#, 0)?, &["__metadata__", "line 1, column"])?;
    expect(&refused(r#"{"__metadata__":"k"}"#, 0)?, &["__metadata__"])
}

#[test]
fn json_that_is_no_header_is_refused_with_its_position() -> Result {
    for json in ["", " {}", "[]", "{", "{]", "{}x", "null", "\u{feff}{}", "{\"a\"", "{\"a\":"] {
        expect(&refused(json, 0)?, &["f.safetensors: bad safetensors header"])?;
    }
    expect(&refused("{\n\"a\":!}", 0)?, &["line 2, column 5"])?;
    let not_utf8 = Header::parse("f.safetensors", b"{\"\xff\":{}}", 0);
    assert!(matches!(not_utf8, Err(SourceError::Header { .. })));
    Ok(())
}

#[test]
fn deep_nesting_ends_in_an_error() -> Result {
    let deep = format!("{{\"t\":{}", "[".repeat(1 << 20));
    expect(&refused(&deep, 0)?, &["tensor `t`"])?;
    let unknown_key = format!("{{\"t\":{{\"x\":{}", "[".repeat(1 << 20));
    expect(&refused(&unknown_key, 0)?, &["tensor `t`"])
}

#[test]
fn names_that_cannot_be_shown_are_refused() -> Result {
    expect(&refused(&header(&[tensor("", "U8", &[4], 0, 4)]), 4)?, &["the name `` is empty"])?;
    let json = r#"{"a\u001b[31mb":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}"#;
    let message = refused(json, 4)?;
    expect(&message, &["control character", "\\u{1b}"])?;
    assert!(!message.contains('\u{1b}'));
    let message = refused(&header(&[tensor(&"x".repeat(2000), "U8", &[4], 0, 4)]), 4)?;
    expect(&message, &["2000 bytes long, at most 1024"])?;
    assert!(message.len() < 400, "{message}");
    Ok(())
}

#[test]
fn messages_stay_short_whatever_the_file_says() -> Result {
    let long = "y".repeat(1 << 20);
    let texts = [
        header(&[tensor("t", &long, &[4], 0, 4)]),
        format!("{{\"t\":\"{long}\"}}"),
        format!("{{\"{long}\":1}}"),
        format!("{{\"t\":{{\"dtype\":\"U8\",\"shape\":\"{long}\"}}}}"),
        format!("{{\"__metadata__\":{{\"{long}\":\"\",\"{long}\":\"\"}}}}"),
    ];
    for json in texts {
        let message = refused(&json, 4)?;
        assert!(message.len() < 800, "{} bytes: {message:.300}", message.len());
    }
    Ok(())
}

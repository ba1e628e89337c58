//! Byte sizes as people write them. GB is 10⁹ bytes, GiB is 2³⁰; never mixed up.

const UNITS: &[(&str, u64)] = &[
    ("B", 1),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];

/// Reads `512MiB`, `81GB`, `1.5 GiB` or a plain number of bytes.
///
/// # Errors
/// A sentence for the user, when the number or the unit cannot be read.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let split = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let unit = unit.trim();
    let factor = if unit.is_empty() {
        1
    } else {
        let known = UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit));
        known.map(|(_, factor)| *factor).ok_or_else(|| {
            format!(
                "`{unit}` is no unit of bytes; write e.g. 512MiB (2^20 bytes each), 81GB (10^9), or a number of bytes"
            )
        })?
    };
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(factor).ok_or_else(|| format!("`{text}` is more bytes than a computer can count"));
    }
    let value: f64 = number.parse().map_err(|_| format!("`{text}` is no size; write e.g. 512MiB, 81GB or 1.5GiB"))?;
    let bytes = value * factor as f64;
    if bytes.is_finite() && (0.0..9.0e18).contains(&bytes) {
        Ok(bytes.round() as u64)
    } else {
        Err(format!("`{text}` is no usable size"))
    }
}

/// Reads `760GB/s`: bytes per second, more than none.
///
/// # Errors
/// As [`parse_bytes`].
pub fn parse_rate(text: &str) -> Result<f64, String> {
    let wrong = || format!("`{text}` is no bandwidth; write e.g. 760GB/s");
    let bytes = text.trim().strip_suffix("/s").ok_or_else(wrong)?;
    match parse_bytes(bytes) {
        Ok(bytes) if bytes > 0 => Ok(bytes as f64),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_both_systems() {
        for (text, want) in [
            ("0", 0),
            ("4096", 4096),
            ("1GiB", 1 << 30),
            ("81GB", 81_000_000_000),
            ("512MiB", 512 << 20),
            ("1.5 gib", 3 << 29),
            ("2kb", 2000),
        ] {
            assert_eq!(parse_bytes(text), Ok(want), "{text}");
        }
    }

    #[test]
    fn bandwidths_are_bytes_per_second() {
        assert_eq!(parse_rate("760GB/s"), Ok(760e9));
        for text in ["760GB", "0GB/s", "/s", "fast"] {
            assert!(parse_rate(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused_with_an_example() {
        for text in ["", "GB", "1G", "1 giga", "-1GB", "1.2.3GB", "99999999999TB"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
        assert!(parse_bytes("1G").unwrap_err().contains("512MiB"));
    }
}

//! Byte sizes, rates and durations as people write and read them. GB is 10⁹ bytes, GiB is 2³⁰; never mixed up.

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

/// `16.3 MB`: decimal units, three significant digits.
#[must_use]
pub fn bytes(count: u64) -> String {
    scaled(count as f64, &[("B", 1.0), ("kB", 1e3), ("MB", 1e6), ("GB", 1e9), ("TB", 1e12)])
}

/// `8.22 M`: a count of parameters or tokens.
#[must_use]
pub fn count(count: u64) -> String {
    scaled(count as f64, &[("", 1.0), ("K", 1e3), ("M", 1e6), ("B", 1e9), ("T", 1e12)]).trim_end().to_owned()
}

/// `1.50 GiB`: binary units, for memory.
#[must_use]
pub fn memory(count: u64) -> String {
    let kib = 1024.0_f64;
    scaled(count as f64, &[("B", 1.0), ("KiB", kib), ("MiB", kib.powi(2)), ("GiB", kib.powi(3)), ("TiB", kib.powi(4))])
}

fn scaled(value: f64, units: &[(&str, f64)]) -> String {
    let fits = units.iter().rev().find(|(_, factor)| value >= *factor * 0.9995).or(units.first());
    let Some((unit, factor)) = fits else { return format!("{value}") };
    let value = value / factor;
    let digits = match value {
        _ if *factor == 1.0 => 0,
        v if v < 9.995 => 2,
        v if v < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.digits$} {unit}")
}

/// `0.83 s`, `12.3 s`, `4 min 05 s`, `2 h 07 min`.
#[must_use]
pub fn duration(seconds: f64) -> String {
    match seconds {
        s if !s.is_finite() || s < 0.0 => "?".into(),
        s if s < 9.995 => format!("{s:.2} s"),
        s if s < 59.95 => format!("{s:.1} s"),
        s => {
            let whole = s.round() as u64;
            if whole < 3600 {
                format!("{} min {:02} s", whole / 60, whole % 60)
            } else {
                format!("{} h {:02} min", whole / 3600, whole % 3600 / 60)
            }
        }
    }
}

/// `19 531 250` → `19,531,250`.
#[must_use]
pub fn thousands(count: u64) -> String {
    let digits = count.to_string();
    let mut out = String::with_capacity(digits.len() * 4 / 3);
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
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
    fn what_is_no_size_is_refused_with_an_example() {
        for text in ["", "GB", "1G", "1 giga", "-1GB", "1.2.3GB", "99999999999TB"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
        assert!(parse_bytes("1G").unwrap_err().contains("512MiB"));
    }

    #[test]
    fn three_digits_are_shown() {
        let shown: Vec<_> = [0, 999, 1000, 16_317_896, 2_200_000_000, 999_999].map(bytes).into();
        assert_eq!(shown, ["0 B", "999 B", "1.00 kB", "16.3 MB", "2.20 GB", "1.00 MB"]);
        assert_eq!(memory(3 << 29), "1.50 GiB");
        assert_eq!(count(8_220_000), "8.22 M");
        assert_eq!(count(12), "12");
    }

    #[test]
    fn durations_change_their_unit() {
        assert_eq!([0.5, 12.34, 245.0, 7620.0].map(duration), ["0.50 s", "12.3 s", "4 min 05 s", "2 h 07 min"]);
        assert_eq!(duration(f64::INFINITY), "?");
    }

    #[test]
    fn thousands_are_grouped() {
        assert_eq!([0, 999, 1000, 19_531_250].map(thousands), ["0", "999", "1,000", "19,531,250"]);
    }
}

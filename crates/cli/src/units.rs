//! Byte sizes, rates and durations as people write and read them. GB is 10⁹ bytes, GiB is 2³⁰; never mixed up.

pub use ashlar_recipe::parse_bytes;

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

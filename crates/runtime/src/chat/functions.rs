//! What transformers gives a template beyond plain Jinja.

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Value};
use std::time::{SystemTime, UNIX_EPOCH};

pub fn register(environment: &mut Environment<'_>, now: SystemTime) {
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> { Err(invalid(message)) });
    let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    environment.add_function("strftime_now", move |format: String| strftime(&format, seconds).map_err(invalid));
    environment.add_filter("tojson", |value: Value, options: Kwargs| -> Result<Value, Error> {
        let indent: Option<usize> = options.get("indent")?;
        let _: Option<bool> = options.get("ensure_ascii")?;
        options.assert_all_used()?;
        let mut out = String::new();
        write_json(&value, indent, 0, &mut out)?;
        // The result is text, not something to be escaped or quoted again.
        Ok(Value::from_safe_string(out))
    });
}

fn invalid(message: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

/// JSON as Python's `json.dumps(ensure_ascii=False)` writes it: spaces after `,` and `:`, or an indent.
fn write_json(value: &Value, indent: Option<usize>, depth: usize, out: &mut String) -> Result<(), Error> {
    if depth > 64 {
        return Err(invalid("tojson: nested deeper than 64 levels".into()));
    }
    let newline =
        |depth: usize| indent.map_or(String::new(), |width| format!("\n{}", " ".repeat(width.min(16) * depth)));
    let comma = if indent.is_some() { "," } else { ", " };
    match value.kind() {
        ValueKind::Seq | ValueKind::Iterable => {
            out.push('[');
            let mut any = false;
            for item in value.try_iter()? {
                out.push_str(if any { comma } else { "" });
                out.push_str(&newline(depth + 1));
                write_json(&item, indent, depth + 1, out)?;
                any = true;
            }
            out.push_str(&if any { newline(depth) } else { String::new() });
            out.push(']');
        }
        ValueKind::Map => {
            out.push('{');
            let mut any = false;
            for key in value.try_iter()? {
                out.push_str(if any { comma } else { "" });
                out.push_str(&newline(depth + 1));
                out.push_str(&scalar(&Value::from(key.to_string()))?);
                out.push_str(": ");
                write_json(&value.get_item(&key)?, indent, depth + 1, out)?;
                any = true;
            }
            out.push_str(&if any { newline(depth) } else { String::new() });
            out.push('}');
        }
        ValueKind::Undefined => return Err(invalid("tojson: the value is undefined".into())),
        _ => out.push_str(&scalar(value)?),
    }
    Ok(())
}

fn scalar(value: &Value) -> Result<String, Error> {
    match value.kind() {
        ValueKind::None => Ok("null".into()),
        ValueKind::Bool | ValueKind::Number => Ok(value.to_string().to_lowercase()),
        ValueKind::String => {
            serde_json::to_string(value.as_str().unwrap_or_default()).map_err(|e| invalid(e.to_string()))
        }
        kind => Err(invalid(format!("tojson: {kind} is not JSON serializable"))),
    }
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

/// The directives that templates use; an unknown one is an error, not left out.
fn strftime(format: &str, seconds: u64) -> Result<String, String> {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day, day_of_year) = civil(days);
    let weekday = DAYS[(days % 7) as usize];
    let month_name = MONTHS[month - 1];
    let (hour, minute) = (second / 3600, second / 60 % 60);
    let hour12 = if hour % 12 == 0 { 12 } else { hour % 12 };
    let mut out = String::new();
    let mut rest = format.chars();
    while let Some(c) = rest.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut directive = rest.next();
        let plain = directive == Some('-');
        if plain {
            directive = rest.next();
        }
        let padded = |n: u64, width: usize| if plain { n.to_string() } else { format!("{n:0width$}") };
        out.push_str(&match directive {
            Some('Y') => year.to_string(),
            Some('y') => padded(year % 100, 2),
            Some('m') => padded(month as u64, 2),
            Some('d') => padded(day, 2),
            Some('e') => format!("{day:>2}"),
            Some('j') => padded(day_of_year, 3),
            Some('H') => padded(hour, 2),
            Some('I') => padded(hour12, 2),
            Some('M') => padded(minute, 2),
            Some('S') => padded(second % 60, 2),
            Some('p') => if hour < 12 { "AM" } else { "PM" }.into(),
            Some('A') => weekday.into(),
            Some('a') => weekday[..3].into(),
            Some('B') => month_name.into(),
            Some('b') => month_name[..3].into(),
            Some('Z') => "UTC".into(),
            Some('z') => "+0000".into(),
            Some('F') => format!("{year}-{month:02}-{day:02}"),
            Some('T') => format!("{hour:02}:{minute:02}:{:02}", second % 60),
            Some('%') => "%".into(),
            other => {
                return Err(format!(
                    "strftime_now: unknown directive `%{}`",
                    other.map_or(String::new(), String::from)
                ));
            }
        });
    }
    Ok(out)
}

/// Year, month from 1, day from 1 and day of the year from 1, of a day counted from 1970-01-01.
fn civil(mut days: u64) -> (u64, usize, u64, u64) {
    // 400 years of the Gregorian calendar have the same number of days.
    let mut year = 1970 + days / 146_097 * 400;
    days %= 146_097;
    let leap = |y: u64| (y.is_multiple_of(4) && !y.is_multiple_of(100)) || y.is_multiple_of(400);
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let day_of_year = days + 1;
    let lengths = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    for (i, length) in lengths.into_iter().enumerate() {
        month = i;
        if days < length {
            break;
        }
        days -= length;
    }
    (year, month + 1, days + 1, day_of_year)
}

#[cfg(test)]
mod tests {
    use super::*;

    // Expected values from Python's datetime.
    #[test]
    fn strftime_agrees_with_python() {
        for (seconds, want) in [
            (0, "Thu 01 Jan 1970 001 00:00:00 12AM"),
            (951_782_400, "Tue 29 Feb 2000 060 00:00:00 12AM"),
            (1_767_225_599, "Wed 31 Dec 2025 365 23:59:59 11PM"),
            (4_107_542_400, "Mon 01 Mar 2100 060 00:00:00 12AM"),
        ] {
            assert_eq!(strftime("%a %d %b %Y %j %H:%M:%S %I%p", seconds).unwrap(), want);
        }
        assert_eq!(strftime("%-d %B %y %%", 1_754_006_400).unwrap(), "1 August 25 %");
        assert!(strftime("%Q", 0).is_err() && strftime("%", 0).is_err());
    }
}

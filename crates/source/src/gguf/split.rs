//! Files that are parts of one: `NAME-00001-of-0000N.gguf`, each a GGUF file of its own. The first holds the metadata; every
//! one says its number (`split.no`, from 0), how many there are (`split.count`) and how many tensors (`split.tensors.count`).

use super::header::GgufHeader;
use crate::SourceError;
use serde_json::Value;

/// Most parts that are believed; the largest released model has some forty.
const MAX_PARTS: usize = 10_000;

/// Stem, number and count of a part, from its name.
pub fn parts(name: &str) -> Option<(&str, usize, usize)> {
    let stem = name.strip_suffix(".gguf")?;
    let (stem, count) = stem.rsplit_once("-of-")?;
    let (stem, number) = stem.rsplit_once('-')?;
    let read = |text: &str| {
        let digits = text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
        text.parse().ok().filter(|n| digits && (1..=MAX_PARTS).contains(n))
    };
    let (number, count) = (read(number)?, read(count)?);
    (number <= count).then_some((stem, number, count))
}

/// The names of all parts of the file of that name; it alone if it is no part.
pub fn siblings(name: &str) -> Vec<String> {
    match parts(name) {
        Some((stem, _, count)) => (1..=count).map(|i| format!("{stem}-{i:05}-of-{count:05}.gguf")).collect(),
        None => vec![name.to_owned()],
    }
}

/// Whether the files are what their names say, and hold no tensor twice.
pub fn check(names: &[String], headers: &[GgufHeader]) -> Result<(), SourceError> {
    let refuse = |file: &String, message: String| Err(SourceError::GgufSplit { file: file.clone(), message });
    let number = |header: &GgufHeader, key: &str| header.metadata.get(key).and_then(Value::as_u64);
    let (count, total) = (headers.len() as u64, headers.iter().map(|h| h.tensors.len() as u64).sum::<u64>());
    for (index, (name, header)) in (0u64..).zip(names.iter().zip(headers)) {
        match number(header, "split.count") {
            None if count == 1 => {}
            Some(said) if said == count || (count == 1 && said == 0) => {}
            said => {
                let said = said.map_or_else(|| "nothing".to_owned(), |s| s.to_string());
                return refuse(name, format!("`split.count` is {said}, but there are {count} files of that name"));
            }
        }
        match number(header, "split.no") {
            None if count == 1 => {}
            Some(said) if said == index => {}
            said => {
                let said = said.map_or_else(|| "nothing".to_owned(), |s| s.to_string());
                return refuse(name, format!("`split.no` is {said}, expected {index}"));
            }
        }
        if let Some(said) = number(header, "split.tensors.count").filter(|said| *said != total && count > 1) {
            return refuse(name, format!("`split.tensors.count` is {said}, but the files hold {total} tensors"));
        }
    }
    let mut seen = std::collections::HashMap::new();
    for (name, header) in names.iter().zip(headers) {
        for tensor in &header.tensors {
            if let Some(other) = seen.insert(tensor.name.as_str(), name) {
                return refuse(name, format!("tensor `{}` is also in `{other}`", tensor.name));
            }
        }
    }
    Ok(())
}

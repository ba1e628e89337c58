//! The journal: what a killed conversion had finished. Append-only lines, each with its own checksum:
//!
//! ```text
//! <first 16 hex digits of BLAKE3 of the payload> <payload: one JSON object>\n
//! ```
//!
//! The first payload is `{"journal":1,"inputs":{…}}`, each further one `{"record":i,"blake3":"…","notes":…}`. Reading
//! stops at the first line that is torn or altered: what follows counts as not done. What it claims is never believed,
//! but hashed again.

use blake3::Hash;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// The inputs that a pack is made of, by name (`source`, `recipe`, `layout`, …), each as a short text or hash.
pub type Fingerprint = BTreeMap<String, String>;

/// A finished record.
#[derive(Clone, Debug, PartialEq)]
pub struct Done {
    /// Index in the layout.
    pub record: usize,
    /// BLAKE3 of its bytes.
    pub blake3: Hash,
    /// What the caller wants back after a resume; opaque here.
    pub notes: Value,
}

/// What a journal says.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Contents {
    /// `None` if not even the first line is whole.
    pub inputs: Option<Fingerprint>,
    /// By record; of two lines for one record the later holds.
    pub done: BTreeMap<usize, Done>,
    /// Bytes of whole lines.
    pub valid: usize,
    /// Whether the first line has its own checksum: some version of ashlar wrote it.
    pub ours: bool,
}

/// The name of the only input in the journal of a pack that has been replaced.
const REPLACED: &str = "replaced";

impl Contents {
    /// Whether the directory is a pack whose successor is in place, so that it is only waiting to be deleted.
    pub fn is_replaced(&self) -> bool {
        self.inputs.as_ref().is_some_and(|i| i.len() == 1 && i.contains_key(REPLACED))
    }
}

/// The whole journal of a pack that is about to be replaced.
pub(crate) fn replaced() -> String {
    first_line(&Fingerprint::from([(REPLACED.to_owned(), "by a newer pack".to_owned())]))
}

#[derive(Serialize, Deserialize)]
struct First {
    journal: u32,
    inputs: Fingerprint,
}

#[derive(Serialize, Deserialize)]
struct Line {
    record: usize,
    blake3: String,
    notes: Value,
}

pub(crate) fn first_line(inputs: &Fingerprint) -> String {
    line(&First { journal: 1, inputs: inputs.clone() })
}

pub(crate) fn done_line(done: &Done) -> String {
    line(&Line { record: done.record, blake3: done.blake3.to_hex().to_string(), notes: done.notes.clone() })
}

fn line(payload: &impl Serialize) -> String {
    let payload = serde_json::to_string(payload).unwrap_or_default();
    format!("{} {payload}\n", tag(payload.as_bytes()))
}

fn tag(payload: &[u8]) -> String {
    blake3::hash(payload).to_hex().as_str().chars().take(16).collect()
}

pub(crate) fn parse(bytes: &[u8]) -> Contents {
    let mut contents = Contents::default();
    for line in bytes.split_inclusive(|b| *b == b'\n') {
        let Some(payload) = checked(line) else { break };
        contents.ours = true;
        if contents.inputs.is_none() {
            let Ok(first) = serde_json::from_slice::<First>(payload) else { break };
            if first.journal != 1 {
                break;
            }
            contents.inputs = Some(first.inputs);
        } else {
            let Ok(line) = serde_json::from_slice::<Line>(payload) else { break };
            let Ok(blake3) = Hash::from_hex(&line.blake3) else { break };
            contents.done.insert(line.record, Done { record: line.record, blake3, notes: line.notes });
        }
        contents.valid += line.len();
    }
    contents
}

fn checked(line: &[u8]) -> Option<&[u8]> {
    let body = line.strip_suffix(b"\n")?;
    let (head, payload) = body.split_at_checked(17)?;
    (head.strip_suffix(b" ")? == tag(payload).as_bytes()).then_some(payload)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn sample() -> (Fingerprint, Vec<Done>, Vec<u8>) {
        let inputs = Fingerprint::from([("source".into(), "abc".into()), ("recipe".into(), "a\nb".into())]);
        let done: Vec<Done> = (0..6)
            .map(|i| Done { record: i * 3, blake3: blake3::hash(&[i as u8]), notes: json!({"bits": i}) })
            .collect();
        let mut text = first_line(&inputs);
        done.iter().for_each(|d| text.push_str(&done_line(d)));
        (inputs, done, text.into_bytes())
    }

    #[test]
    fn what_was_written_is_read_back() {
        let (inputs, done, text) = sample();
        let back = parse(&text);
        assert_eq!((back.inputs, back.valid), (Some(inputs), text.len()));
        assert_eq!(back.done.into_values().collect::<Vec<_>>(), done);
    }

    #[test]
    fn a_replaced_pack_and_another_version_are_recognised() {
        assert!(parse(replaced().as_bytes()).is_replaced());
        let later = parse(line(&json!({"journal": 2, "entirely": "different"})).as_bytes());
        assert!(later.ours && later.inputs.is_none() && !later.is_replaced());
        let (_, _, text) = sample();
        assert!(parse(&text).ours && !parse(&text).is_replaced());
        assert!(!parse(b"Dear diary,\ntoday I converted a model.\n").ours);
    }

    #[test]
    fn of_two_lines_for_a_record_the_later_holds() {
        let (_, done, mut text) = sample();
        let again = Done { blake3: blake3::hash(b"again"), ..done[0].clone() };
        text.extend_from_slice(done_line(&again).as_bytes());
        assert_eq!(parse(&text).done[&0], again);
    }

    proptest! {
        #[test]
        fn a_truncated_journal_yields_a_prefix(cut in 0usize..2000) {
            let (inputs, done, text) = sample();
            let cut = cut.min(text.len());
            let back = parse(&text[..cut]);
            let whole = text[..cut].iter().filter(|b| **b == b'\n').count();
            prop_assert_eq!(back.inputs, (whole > 0).then_some(inputs));
            prop_assert_eq!(back.done.into_values().collect::<Vec<_>>(), done[..whole.saturating_sub(1)].to_vec());
        }

        #[test]
        fn a_changed_byte_never_invents_a_record(at in 0usize..2000, to in any::<u8>()) {
            let (_, done, mut text) = sample();
            let at = at % text.len();
            text[at] = to;
            for (i, d) in parse(&text).done {
                prop_assert_eq!(Some(&d), done.iter().find(|d| d.record == i));
            }
        }

        #[test]
        fn any_bytes_are_safe(bytes in prop::collection::vec(any::<u8>(), 0..500)) {
            prop_assert!(parse(&bytes).valid <= bytes.len());
        }
    }
}

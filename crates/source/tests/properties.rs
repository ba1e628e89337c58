//! The reader against the `safetensors` crate: what that crate writes we read the same; what we accept it accepts, with
//! the same tensors; nothing panics.
#![forbid(unsafe_code)]

use ashlar_source::{Checkpoint, Header};
use ashlar_tensor::TensorStore;
use proptest::prelude::*;
use proptest::sample::Index;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors, serialize};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

const DTYPES: [Dtype; 8] =
    [Dtype::BOOL, Dtype::U8, Dtype::I16, Dtype::F16, Dtype::BF16, Dtype::F32, Dtype::I64, Dtype::F8_E5M2];

/// Names and bytes, as read.
type Read = Vec<(String, Vec<u8>)>;
type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn tensors() -> impl Strategy<Value = Tensors> {
    let dims = prop::collection::vec(0_usize..5, 0..4);
    let tensor = (prop::sample::select(&DTYPES[..]), dims, any::<u8>()).prop_map(|(dtype, shape, seed)| {
        let bytes = shape.iter().product::<usize>() * dtype.bitsize() / 8;
        let data = (0..bytes).map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed)).collect();
        (dtype, shape, data)
    });
    prop::collection::btree_map("[a-zA-Z0-9_.é\"\\\\-]{1,20}", tensor, 0..8)
}

/// Not empty if there: with empty metadata and no tensors, safetensors 0.8 writes broken JSON.
fn metadata() -> impl Strategy<Value = Option<HashMap<String, String>>> {
    prop::option::of(prop::collection::hash_map(".{0,8}", ".{0,8}", 1..4))
}

fn write(tensors: &Tensors, metadata: Option<HashMap<String, String>>) -> Result<Vec<u8>, TestCaseError> {
    let mut views = Vec::new();
    for (name, (dtype, shape, data)) in tensors {
        let view = TensorView::new(*dtype, shape.clone(), data).map_err(|e| TestCaseError::fail(e.to_string()))?;
        views.push((name, view));
    }
    serialize(views, metadata).map_err(|e| TestCaseError::fail(e.to_string()))
}

/// Splits a file as an honest reader would, or nothing where the length field lies.
fn split(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (prefix, rest) = bytes.split_at_checked(8)?;
    let len = usize::try_from(u64::from_le_bytes(prefix.try_into().ok()?)).ok()?;
    rest.split_at_checked(len)
}

/// If we accept these bytes, the reference accepts them too and sees the same tensors.
fn never_laxer_than_the_reference(bytes: &[u8]) -> Result<(), TestCaseError> {
    let Some((json, data)) = split(bytes) else { return Ok(()) };
    let Ok(header) = Header::parse("f.safetensors", json, data.len() as u64) else { return Ok(()) };
    let reference = SafeTensors::deserialize(bytes).map_err(|e| TestCaseError::fail(format!("accepted, but: {e}")))?;
    prop_assert_eq!(header.tensors.len(), reference.len());
    for tensor in &header.tensors {
        let view = reference.tensor(&tensor.name).map_err(|e| TestCaseError::fail(e.to_string()))?;
        prop_assert_eq!(view.shape(), &tensor.shape[..]);
        prop_assert_eq!(view.dtype().to_string(), tensor.dtype.name());
        prop_assert_eq!(Some(view.data()), data.get(tensor.begin as usize..tensor.end as usize));
    }
    Ok(())
}

/// Opens the bytes as a checkpoint and reads all of it; errors are fine, panics are not.
fn open_and_read(dir: &Path, bytes: &[u8]) -> Result<Option<Read>, TestCaseError> {
    std::fs::write(dir.join("config.json"), "{}")?;
    std::fs::write(dir.join("model.safetensors"), bytes)?;
    let Ok(checkpoint) = Checkpoint::open(dir) else { return Ok(None) };
    let mut all = Vec::new();
    for entry in checkpoint.entries() {
        prop_assert!(entry.bytes() <= bytes.len() as u64);
        let mut data = vec![0; entry.planes[0].bytes as usize];
        checkpoint.read(entry, 0, 0, &mut data).map_err(|e| TestCaseError::fail(e.to_string()))?;
        let map = checkpoint.map(entry, 0).map_err(|e| TestCaseError::fail(e.to_string()))?;
        prop_assert_eq!(&*map, &data[..]);
        all.push((entry.name.clone(), data));
    }
    Ok(Some(all))
}

/// One random change of a file.
#[derive(Clone, Debug)]
enum Mutation {
    Flip(Index, u8),
    Cut(Index),
    Insert(Index, Vec<u8>),
    Remove(Index, usize),
    Copy(Index, Index, usize),
    /// Replaces the digit nearest after a place by another text: numbers are where headers lie.
    Number(Index, &'static str),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    const NUMBERS: [&str; 10] =
        ["0", "1", "9", "-1", "4294967296", "9223372036854775807", "18446744073709551615", "1e9", "[", "\""];
    prop_oneof![
        (any::<Index>(), any::<u8>()).prop_map(|(i, b)| Mutation::Flip(i, b)),
        any::<Index>().prop_map(Mutation::Cut),
        (any::<Index>(), prop::collection::vec(any::<u8>(), 1..16)).prop_map(|(i, b)| Mutation::Insert(i, b)),
        (any::<Index>(), 1_usize..16).prop_map(|(i, n)| Mutation::Remove(i, n)),
        (any::<Index>(), any::<Index>(), 1_usize..64).prop_map(|(a, b, n)| Mutation::Copy(a, b, n)),
        (any::<Index>(), prop::sample::select(&NUMBERS[..])).prop_map(|(i, n)| Mutation::Number(i, n)),
    ]
}

fn apply(bytes: &mut Vec<u8>, mutation: &Mutation) {
    if bytes.is_empty() {
        return;
    }
    let len = bytes.len();
    match mutation {
        Mutation::Flip(i, b) => bytes[i.index(len)] ^= b,
        Mutation::Cut(i) => bytes.truncate(i.index(len)),
        Mutation::Insert(i, new) => drop(bytes.splice(i.index(len)..i.index(len), new.iter().copied())),
        Mutation::Remove(i, n) => drop(bytes.drain(i.index(len)..(i.index(len) + n).min(len))),
        Mutation::Copy(from, to, n) => {
            let part = bytes[from.index(len)..(from.index(len) + n).min(len)].to_vec();
            bytes.splice(to.index(len)..to.index(len), part);
        }
        Mutation::Number(i, text) => {
            let digit = bytes.iter().enumerate().skip(i.index(len).max(8)).find(|(_, b)| b.is_ascii_digit());
            if let Some((at, _)) = digit {
                bytes.splice(at..=at, text.bytes());
            }
        }
    }
}

/// Sets the length field to what a patched header needs, so that mutations reach what lies behind it.
fn repair_length(bytes: &mut [u8], old_len: usize) {
    if let Some(end) = bytes.iter().skip(8).rposition(|b| *b == b'}')
        && let Some(prefix) = bytes.get_mut(..8)
    {
        let len = if end < old_len + 64 { end as u64 + 1 } else { old_len as u64 };
        prefix.copy_from_slice(&len.to_le_bytes());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_the_reference_writes_is_read_the_same(tensors in tensors(), metadata in metadata()) {
        let bytes = write(&tensors, metadata.clone())?;
        let (json, data) = split(&bytes).expect("a file of the reference");
        let header = Header::parse("f", json, data.len() as u64).map_err(|e| TestCaseError::fail(e.to_string()))?;
        prop_assert_eq!(header.metadata, metadata.unwrap_or_default().into_iter().collect::<BTreeMap<_, _>>());
        let dir = tempfile::tempdir()?;
        let read = open_and_read(dir.path(), &bytes)?.expect("accepted");
        let written: Vec<_> = tensors.into_iter().map(|(name, (_, _, data))| (name, data)).collect();
        prop_assert_eq!(read, written);
    }

    #[test]
    fn arbitrary_text_is_no_panic(json in "\\PC*", data_len in any::<u64>()) {
        let _ = Header::parse("f", json.as_bytes(), data_len);
        let _ = ashlar_source::parse_config(json.as_bytes(), "config.json");
        let _ = ashlar_source::parse_index(json.as_bytes(), "index.json");
    }
}

/// A header of U8 tensors with these ranges and shapes, over `data_len` bytes.
fn ranges_file(ranges: &[(u64, u64, i8)], data_len: usize) -> Vec<u8> {
    let tensor = |(i, (begin, len, lie)): (usize, &(u64, u64, i8))| {
        let shape = len.saturating_add_signed(i64::from(*lie));
        format!(r#""t{i}":{{"dtype":"U8","shape":[{shape}],"data_offsets":[{begin},{}]}}"#, begin + len)
    };
    let json = format!("{{{}}}", ranges.iter().enumerate().map(tensor).collect::<Vec<_>>().join(","));
    [&(json.len() as u64).to_le_bytes(), json.as_bytes(), &vec![0; data_len]].concat()
}

/// Ranges in a row, some of them moved, stretched or lying about their shape.
fn ranges() -> impl Strategy<Value = Vec<(u64, u64, i8)>> {
    const MOVES: [i64; 8] = [0, 0, 0, 0, 0, 0, 1, -1];
    const LIES: [i8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, -1];
    let one = (0_u64..4, prop::sample::select(&MOVES[..]), prop::sample::select(&LIES[..]));
    prop::collection::vec(one, 0..5).prop_shuffle().prop_map(|list| {
        let mut end = 0;
        let place = |(len, shift, lie): (u64, i64, i8)| {
            let begin = u64::saturating_add_signed(end, shift);
            end = begin + len;
            (begin, len, lie)
        };
        list.into_iter().map(place).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2048, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn mutated_files_are_refused_or_agree_with_the_reference(
        tensors in tensors(),
        mutations in prop::collection::vec(mutation(), 1..6),
        repair in any::<bool>(),
    ) {
        let mut bytes = write(&tensors, None)?;
        let header_len = split(&bytes).map_or(0, |(json, _)| json.len());
        for mutation in &mutations {
            apply(&mut bytes, mutation);
        }
        if repair {
            repair_length(&mut bytes, header_len);
        }
        never_laxer_than_the_reference(&bytes)?;
        let dir = tempfile::tempdir()?;
        open_and_read(dir.path(), &bytes)?;
    }

    #[test]
    fn ranges_are_accepted_exactly_when_the_reference_accepts_them(ranges in ranges(), spare in -1_i64..2) {
        let end = ranges.iter().map(|(begin, len, _)| begin + len).max().unwrap_or(0);
        let bytes = ranges_file(&ranges, end.saturating_add_signed(spare) as usize);
        let (json, data) = split(&bytes).expect("an honest length");
        let ours = Header::parse("f", json, data.len() as u64);
        let reference = SafeTensors::deserialize(&bytes);
        prop_assert_eq!(ours.is_ok(), reference.is_ok(), "{:?} {:?}", ours, reference.err());
    }
}

//! One block as a file: a head of [`HEAD`] bytes, then the payload. All numbers are little-endian.
//!
//! | bytes | |
//! |---|---|
//! | 0..8 | `ASHLARKV` |
//! | 8..16 | version |
//! | 16..48 | hash of model and format |
//! | 48..56 | number of the block in its text |
//! | 56..64 | bytes of the payload |
//! | 64..96 | BLAKE3 of the 64 bytes before, of the key, and of the payload |
//!
//! A file is written under another name and renamed when it is whole. The system may still lose its bytes when the machine
//! loses power; the checksum tells.

use super::Key;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::SystemTime;

const MAGIC: &[u8; 8] = b"ASHLARKV";
const VERSION: u64 = 1;
/// Bytes before the payload.
pub const HEAD: usize = 96;
const SIGNED: usize = 64;
const WHOLE: &str = ".kv";
const UNFINISHED: &str = ".kv-unfinished";

/// Why a file is no block that can be used.
#[derive(Debug, thiserror::Error)]
pub enum Wrong {
    /// Another program's, or a user's.
    #[error("it is not a file of keys and values")]
    Foreign,
    /// Of another version of this program.
    #[error("it is of version {0}, expected {VERSION}")]
    Version(u64),
    /// Of another model, under a name that it cannot have.
    #[error("it belongs to another model or format")]
    Model,
    /// Cut off, or longer than it should be.
    #[error("it has {got} bytes, expected {expected}")]
    Length {
        /// As it is.
        got: u64,
        /// As its head says.
        expected: u64,
    },
    /// Changed bytes.
    #[error("its checksum is wrong: it is damaged")]
    Checksum,
    /// The system.
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

/// What a head tells.
pub struct Head {
    /// Of the whole file.
    pub bytes: u64,
    /// Blocks before it in its text.
    pub number: u64,
    /// When it was last used.
    pub modified: SystemTime,
    identity: [u8; 32],
    checksum: [u8; 32],
}

/// The name of a block's file.
pub fn name(key: &Key) -> String {
    format!("{}{WHOLE}", blake3::Hash::from_bytes(key.0).to_hex())
}

/// The block that a file's name stands for.
pub fn key(name: &str) -> Option<Key> {
    let hash = blake3::Hash::from_hex(name.strip_suffix(WHOLE)?).ok()?;
    Some(Key(*hash.as_bytes()))
}

/// Whether a file was being written when its process ended.
pub fn is_unfinished(name: &str) -> bool {
    name.strip_suffix(UNFINISHED).is_some_and(|hex| blake3::Hash::from_hex(hex).is_ok())
}

/// Writes a block and returns the bytes of its file.
pub fn write(dir: &Path, identity: &Key, key: &Key, number: u64, payload: &[u8]) -> std::io::Result<u64> {
    let mut head = Vec::with_capacity(HEAD);
    head.extend_from_slice(MAGIC);
    head.extend_from_slice(&VERSION.to_le_bytes());
    head.extend_from_slice(&identity.0);
    head.extend_from_slice(&number.to_le_bytes());
    head.extend_from_slice(&(payload.len() as u64).to_le_bytes());
    let checksum = checksum(&head, key, payload);
    head.extend_from_slice(&checksum);
    let whole = dir.join(name(key));
    let unfinished = whole.with_extension(&UNFINISHED[1..]);
    let write = || {
        // Texts can be guessed from their keys and values: they are their owner's alone.
        let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
        file.write_all(&head)?;
        file.write_all(payload)?;
        std::fs::rename(&unfinished, &whole)
    };
    let written = write();
    if written.is_err() {
        // A full disk should not be kept full.
        let _ = std::fs::remove_file(&unfinished);
    }
    written.map(|()| (HEAD + payload.len()) as u64)
}

/// Reads the head of a file and compares its length, but not its checksum.
pub fn check(path: &Path) -> Result<Head, Wrong> {
    open(path).map(|(_, head, _)| head)
}

/// Reads the payload of a block of this model.
pub fn read(path: &Path, identity: &Key, key: &Key) -> Result<Vec<u8>, Wrong> {
    let (mut file, head, signed) = open(path)?;
    if head.identity != identity.0 {
        return Err(Wrong::Model);
    }
    // The file is as long as its head says.
    let mut payload = Vec::with_capacity(usize::try_from(head.bytes).unwrap_or(0).saturating_sub(HEAD));
    file.read_to_end(&mut payload)?;
    if checksum(&signed, key, &payload) == head.checksum { Ok(payload) } else { Err(Wrong::Checksum) }
}

fn open(path: &Path) -> Result<(File, Head, [u8; SIGNED]), Wrong> {
    let mut file = File::open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.len() < HEAD as u64 {
        return Err(Wrong::Foreign);
    }
    let mut all = [0; HEAD];
    file.read_exact(&mut all)?;
    let (signed, checksum) = all.split_at(SIGNED);
    let number = |at: usize| signed.get(at..at + 8).map_or(0, |b| u64::from_le_bytes(b.try_into().unwrap_or_default()));
    if !signed.starts_with(MAGIC) {
        return Err(Wrong::Foreign);
    }
    if number(8) != VERSION {
        return Err(Wrong::Version(number(8)));
    }
    let (got, expected) = (metadata.len(), number(56).saturating_add(HEAD as u64));
    if got != expected {
        return Err(Wrong::Length { got, expected });
    }
    let hash = |bytes: Option<&[u8]>| bytes.and_then(|b| b.try_into().ok()).unwrap_or_default();
    let head = Head {
        bytes: got,
        number: number(48),
        modified: metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH),
        identity: hash(signed.get(16..48)),
        checksum: hash(Some(checksum)),
    };
    Ok((file, head, signed.try_into().unwrap_or([0; SIGNED])))
}

fn checksum(head: &[u8], key: &Key, payload: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(head).update(&key.0).update(payload);
    *hasher.finalize().as_bytes()
}

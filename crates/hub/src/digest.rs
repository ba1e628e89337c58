//! The hashes by which the hub names files: SHA-256 of large files, git's SHA-1 of small ones.

use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256};
use std::fmt;

/// What a file's bytes must hash to. It is also its name in the cache.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Digest {
    /// SHA-256 of the bytes, as files in large storage have it.
    Sha256(String),
    /// SHA-1 as git counts it: of `blob SIZE\0` and the bytes.
    Git(String),
}

impl Digest {
    /// From hex digits.
    #[must_use]
    pub fn sha256(hex: &str) -> Option<Self> {
        is_hex(hex, 64).then(|| Self::Sha256(hex.to_owned()))
    }

    /// From hex digits.
    #[must_use]
    pub fn git(hex: &str) -> Option<Self> {
        is_hex(hex, 40).then(|| Self::Git(hex.to_owned()))
    }

    /// The digits.
    #[must_use]
    pub fn hex(&self) -> &str {
        match self {
            Self::Sha256(hex) | Self::Git(hex) => hex,
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::Sha256(_) => "sha256",
            Self::Git(_) => "git sha1",
        };
        write!(f, "{name} {}", self.hex())
    }
}

fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// Hashes a file piece by piece.
pub struct Hasher {
    context: Context,
    git: bool,
}

impl Hasher {
    /// For a file of `size` bytes that is to have `digest`.
    #[must_use]
    pub fn like(digest: &Digest, size: u64) -> Self {
        match digest {
            Digest::Sha256(_) => Self { context: Context::new(&SHA256), git: false },
            Digest::Git(_) => {
                let mut context = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
                context.update(format!("blob {size}\0").as_bytes());
                Self { context, git: true }
            }
        }
    }

    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.context.update(bytes);
    }

    /// The digest of all bytes.
    #[must_use]
    pub fn finish(self) -> Digest {
        let hex = self.context.finish().as_ref().iter().map(|b| format!("{b:02x}")).collect();
        if self.git { Digest::Git(hex) } else { Digest::Sha256(hex) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers: FIPS 180 for "abc", `git hash-object` for "hello\n".
    #[test]
    fn digests_are_those_of_sha256sum_and_git() {
        let sha = Digest::sha256("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad").unwrap();
        let mut hasher = Hasher::like(&sha, 3);
        hasher.update(b"a");
        hasher.update(b"bc");
        assert_eq!(hasher.finish(), sha);
        let git = Digest::git("ce013625030ba8dba906f756967f9e9ca394464a").unwrap();
        let mut hasher = Hasher::like(&git, 6);
        hasher.update(b"hello\n");
        assert_eq!(hasher.finish(), git);
    }

    #[test]
    fn what_is_no_digest_cannot_become_a_file_name() {
        for text in ["", "../../x", "ABCDEF", "ce013625030ba8dba906f756967f9e9ca394464g"] {
            assert!(Digest::git(text).is_none() && Digest::sha256(text).is_none(), "{text}");
        }
    }
}

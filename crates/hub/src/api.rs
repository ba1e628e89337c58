//! What a repository holds: one question to the hub.

use crate::repo::is_commit;
use crate::{Digest, Hub, HubError, Repo};
use serde::Deserialize;

/// A file of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteFile {
    /// Its path, relative, with `/`; never leads out of the repository.
    pub path: String,
    /// Its bytes.
    pub size: u64,
    /// What they hash to.
    pub digest: Digest,
}

/// A repository at a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revision {
    /// The commit, 40 hex digits.
    pub commit: String,
    /// Its files, by path.
    pub files: Vec<RemoteFile>,
}

#[derive(Deserialize)]
struct Info {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    #[serde(default)]
    size: Option<u64>,
    #[serde(default, rename = "blobId")]
    blob_id: Option<String>,
    #[serde(default)]
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: String,
    size: u64,
}

impl Hub {
    /// The commit that a revision means now, and its files.
    ///
    /// # Errors
    /// [`HubError`] if the hub cannot be asked, refuses, or does not list sizes and hashes.
    pub fn revision(&self, repo: &Repo) -> Result<Revision, HubError> {
        let path = format!("/api/models/{}/revision/{}?blobs=true", repo.id, repo.escaped_revision());
        let refuse = |what: String| HubError::Answer { url: self.client.url(&path), what };
        let info: Info = serde_json::from_value(self.client.json(&path)?)
            .map_err(|e| refuse(format!("the answer does not describe a repository: {e}")))?;
        if !is_commit(&info.sha) {
            return Err(refuse("the answer names no commit".into()));
        }
        let mut files = Vec::new();
        for sibling in info.siblings.into_iter().filter(|s| is_safe(&s.rfilename)) {
            let path = sibling.rfilename.clone();
            let file = sibling.described();
            files.push(file.ok_or_else(|| refuse(format!("the answer lists no size or hash of `{path}`")))?);
        }
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(Revision { commit: info.sha, files })
    }

    /// The address of a file.
    pub(crate) fn address(&self, repo: &Repo, commit: &str, file: &str) -> String {
        let escaped: String = file.bytes().map(escape).collect();
        self.client.url(&format!("/{}/resolve/{commit}/{escaped}", repo.id))
    }
}

impl Sibling {
    fn described(self) -> Option<RemoteFile> {
        let (digest, size) = match self.lfs {
            Some(lfs) => (Digest::sha256(&lfs.sha256)?, lfs.size),
            None => (Digest::git(&self.blob_id?)?, self.size?),
        };
        Some(RemoteFile { path: self.rfilename, size, digest })
    }
}

impl Revision {
    /// The file of that path.
    #[must_use]
    pub fn file(&self, path: &str) -> Option<&RemoteFile> {
        self.files.binary_search_by(|f| f.path.as_str().cmp(path)).ok().and_then(|i| self.files.get(i))
    }
}

fn escape(byte: u8) -> String {
    let plain = byte.is_ascii_alphanumeric() || b"-_.~/".contains(&byte);
    if plain { char::from(byte).to_string() } else { format!("%{byte:02X}") }
}

/// Whether a path stays inside the repository.
fn is_safe(path: &str) -> bool {
    let part = |p: &str| !p.is_empty() && p != "." && p != ".." && p.len() <= 255;
    path.len() <= 1024 && path.split('/').all(part) && !path.contains('\\') && !path.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_lead_out_are_not_listed() {
        for path in ["config.json", "a/b.json", "..a", "a b"] {
            assert!(is_safe(path), "{path}");
        }
        for path in ["", "/etc/passwd", "../a", "a/../b", "a//b", "a\\b", "a\nb", "./a"] {
            assert!(!is_safe(path), "{path}");
        }
    }

    #[test]
    fn addresses_escape_what_a_url_cannot_hold() {
        let escaped: String = "a b/ü%.json".bytes().map(escape).collect();
        assert_eq!(escaped, "a%20b/%C3%BC%25.json");
    }
}

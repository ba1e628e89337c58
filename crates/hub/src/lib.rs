//! Models from the Hugging Face hub.
//!
//! [`Hub::pull`] downloads a repository into the cache that other tools of the hub share, goes on after a cut, and checks
//! the hash of every file; [`Hub::headers`] reads no more than configs and tensor headers, so that a conversion can be
//! planned; [`Stream`] hands out shards while they are downloaded and forgets them once they are converted.
//!
//! Owns: the hub's protocol and cache layout, retries, hashes, tokens. Refuses: what a checkpoint means (`source`), what
//! becomes of it (`convert`). What the hub sends is not trusted: names cannot leave the cache, sizes and hashes are
//! compared, waiting is bounded.
//!
//! The protocol (<https://huggingface.co/docs/hub/api>): `GET /api/models/ORG/NAME/revision/REV?blobs=true` lists files with
//! sizes and hashes; `GET /ORG/NAME/resolve/COMMIT/FILE` gives a file, usually by a redirect to another host, and takes
//! ranges.
#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

mod api;
mod cache;
mod client;
mod digest;
mod download;
mod error;
mod headers;
mod repo;
mod select;
mod settings;
mod stream;

pub use api::{RemoteFile, Revision};
pub use digest::{Digest, Hasher};
pub use download::Snapshot;
pub use error::HubError;
pub use headers::HeadersOnly;
pub use repo::Repo;
pub use settings::Settings;
pub use stream::Stream;

use client::Client;

/// The hub, as the settings describe it.
#[derive(Debug)]
pub struct Hub {
    settings: Settings,
    client: Client,
}

impl Hub {
    /// With these settings; nothing is asked yet.
    ///
    /// # Errors
    /// [`HubError::Certificates`] if `SSL_CERT_FILE` names a file that holds none.
    pub fn new(settings: Settings) -> Result<Self, HubError> {
        let client = Client::new(&settings)?;
        Ok(Self { settings, client })
    }
}

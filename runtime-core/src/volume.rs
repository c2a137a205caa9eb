//! Named volumes as their owner sees them.

use std::path::PathBuf;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

/// What is known of a named volume on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeStatus {
    /// The volume.
    pub name: String,
    /// Its tree on this host.
    pub mountpoint: PathBuf,
    /// The generation this host last published or restored. An older one that was restored in place is not published yet as
    /// long as `durable_at` is `None`.
    pub generation: Option<u64>,
    /// When the tree as it was then became durable in S3; `None` when it never did, no bucket is configured, or it was restored
    /// over a newer generation and would not be what another host gets.
    #[serde(with = "crate::time::option")]
    pub durable_at: Option<DateTime<Utc>>,
    /// Bytes of files that are here and not in S3 as they are; all of them until the first sync. 0 for a volume that has no
    /// bucket: it is local, as `durable_at` says, and nothing was to bring it anywhere. What lies in its directory and is not
    /// known to be its own counts in any case; `last_error` says where. Of a tree restored over a newer generation those count
    /// that the newest lacks.
    pub bytes_at_risk: u64,
    /// The host that holds the claim, as last seen.
    pub owner: Option<String>,
    /// What the last attempt to sync failed with, or what else keeps the tree from being durable.
    pub last_error: Option<String>,
    /// Bytes of its files on this host.
    pub size_bytes: Option<u64>,
}

//! The history of a volume, as its log tells it.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::record::{Record, RecordKind};
use crate::store::VolumeStore;

/// A record of a volume's history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryEntry {
    /// The record's number if it holds a tree (data, branch).
    pub generation: Option<u64>,
    /// The record's number.
    pub record: u64,
    /// How often the volume was claimed so far.
    pub epoch: u64,
    /// What the record is for.
    pub kind: RecordKind,
    /// By the clock of the host that wrote it.
    #[serde(with = "runtime_core::time")]
    pub created_at: DateTime<Utc>,
    /// The host that wrote it.
    pub host: String,
    /// Regular files of the tree.
    pub files: Option<u64>,
    /// Bytes of them.
    pub size_bytes: Option<u64>,
    /// Bytes that were sent for it.
    pub new_bytes: Option<u64>,
}

impl From<Record> for HistoryEntry {
    fn from(record: Record) -> Self {
        let tree = record.tree.as_ref();
        Self {
            generation: tree.map(|_| record.record),
            record: record.record,
            epoch: record.epoch,
            kind: record.kind,
            created_at: record.created_at,
            files: tree.map(|tree| tree.files),
            size_bytes: tree.map(|tree| tree.size_bytes),
            new_bytes: tree.map(|tree| tree.new_bytes),
            host: record.host,
        }
    }
}

impl VolumeStore {
    /// The records that hold a tree, oldest first; with `all` also claims, releases and prunes.
    ///
    /// # Errors
    /// [`Error::NoBucket`](crate::Error::NoBucket); [`Error::NotFound`](crate::Error::NotFound) when neither S3 nor this host has the volume.
    pub async fn history(&self, name: &str, all: bool) -> Result<Vec<HistoryEntry>> {
        let remote = self.remote(name, "a history").await?;
        let records = remote.records().await?;
        if records.is_empty() {
            remote.store.check_bucket().await?;
            self.status(name).await?;
        }
        Ok(records.into_iter().filter(|record| all || record.tree.is_some()).map(HistoryEntry::from).collect())
    }
}

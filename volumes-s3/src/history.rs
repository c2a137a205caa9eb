//! The history of a volume, as its log tells it.

use runtime_core::HistoryEntry;

use crate::error::Result;
use crate::record::Record;
use crate::store::VolumeStore;

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

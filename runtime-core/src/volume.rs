//! Named volumes as their owner sees them.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

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
    #[serde(with = "crate::time")]
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

/// What a record is for. In the log it stands by these names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum RecordKind {
    /// A generation of the main line.
    Data,
    /// A generation beside it: what a fenced host could not publish.
    Branch,
    /// A host became the owner.
    Claim,
    /// The owner gave it back.
    Released,
    /// Names what is about to be deleted.
    Prune,
}

/// How something in a tree changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Change {
    /// It is in the newer tree only.
    Added,
    /// It is in the older tree only.
    Removed,
    /// Its data, target or kind.
    Content,
    /// Its owner, mode, time or extended attributes alone. The time of a directory, which its content changes, is none.
    Attributes,
}

/// One thing that changed from one generation to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiffEntry {
    /// From the root of the tree; what is not UTF-8 is replaced.
    pub path: String,
    /// How.
    pub change: Change,
    /// Of a regular file, in the older tree.
    pub old_size_bytes: Option<u64>,
    /// Of a regular file, in the newer tree.
    pub new_size_bytes: Option<u64>,
}

impl DiffEntry {
    /// Whether the newer tree has data here that the older has not.
    #[must_use]
    pub fn has_other_data(&self) -> bool {
        matches!(self.change, Change::Added | Change::Content)
    }
}

/// What to restore, and where.
#[derive(Debug, Clone, Default)]
pub struct RestoreOptions {
    /// The generation; the newest if not given.
    pub generation: Option<u64>,
    /// Beside the volume, into this directory, which must not exist or be empty.
    pub to: Option<PathBuf>,
    /// In place, over changes that are nowhere else.
    pub discard_local: bool,
    /// Is told how it goes on.
    pub progress: Progress,
}

/// What was restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreReport {
    /// The generation.
    pub generation: u64,
    /// Where it is.
    pub path: PathBuf,
    /// Regular files.
    pub files: u64,
    /// Bytes of them.
    pub size_bytes: u64,
}

/// What a verification found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyReport {
    /// Generations that were verified.
    pub generations: u64,
    /// Different chunks that they consist of, manifests included.
    pub chunks: u64,
    /// Bytes that these take in the bucket, all of them read.
    pub stored_bytes: u64,
    /// What cannot be restored. Nothing in a history that is whole.
    pub damaged: Vec<Damage>,
}

/// Something that a generation cannot be restored without, or not as it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Damage {
    /// The generation.
    pub generation: u64,
    /// The file, from the root of the tree; `None` for the manifest itself.
    pub path: Option<String>,
    /// What is wrong.
    pub detail: String,
}

/// What a prune of a history did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryPruned {
    /// The volume.
    pub name: String,
    /// Generations and branches that went.
    pub removed: Vec<u64>,
    /// Those that stayed.
    pub kept: Vec<u64>,
    /// Packs that went, those of syncs that were cut off among them.
    pub packs: u64,
    /// Bytes of these.
    pub space_reclaimed: u64,
}

/// Is told how far a restore or a verification has come: how many bytes are done, of how many. Called from several threads.
#[derive(Clone, Default)]
pub struct Progress(Option<Arc<dyn Fn(u64, u64) + Send + Sync>>);

impl Progress {
    /// Calls `each` with the bytes done and the bytes in all.
    pub fn new(each: impl Fn(u64, u64) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(each)))
    }

    /// Tells it, for whoever does the work.
    pub fn report(&self, done: u64, total: u64) {
        if let Some(each) = &self.0 {
            each(done, total);
        }
    }
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Progress(..)" } else { "Progress" })
    }
}

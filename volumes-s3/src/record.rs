//! Records of a volume's log: what each says, and how it is written.

use chrono::{DateTime, Utc};
use runtime_core::RecordKind;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::pack::{ChunkRef, Digest};

/// Version of the whole format, in each record. See `FORMAT.md`.
pub(crate) const FORMAT: u32 = 1;
/// Longest record read: a record is under 2 KiB, but for a prune that keeps many ([`crate::prune`]); the rest is room for
/// fields to come.
pub(crate) const RECORD_LIMIT: usize = 2 << 20;

/// A record of the log. The newest one alone tells the volume's state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// [`FORMAT`].
    pub format: u32,
    /// Its own number.
    pub record: u64,
    /// What it is for.
    pub kind: RecordKind,
    /// Random, the same in all records of one volume: tells it from one of the same name that was deleted.
    pub volume: String,
    /// How often the volume was claimed, this record included.
    pub epoch: u64,
    /// Who owns it after this record; null when released.
    pub owner: Option<String>,
    /// The owner renews its claim within so many milliseconds, or has lost it to who waits for that. Null: it lasts until it
    /// is given back.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub lasts_ms: Option<u64>,
    /// The host that wrote the record.
    pub host: String,
    /// Random, new for each record: tells a writer whose answer was lost that the record is its own.
    pub nonce: String,
    /// By the writer's clock. Nothing is decided by it.
    #[serde(with = "runtime_core::time")]
    pub created_at: DateTime<Utc>,
    /// The newest generation of the main line, this record included; null when there is none.
    pub generation: Option<u64>,
    /// Nonce of the record before; null in the first.
    #[serde(default)]
    pub previous: Option<String>,
    /// The newest prune, this record included; null when there is none. The log begins with it.
    #[serde(default)]
    pub pruned: Option<u64>,
    /// For data and branch: the tree.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub tree: Option<TreeSummary>,
    /// For prune: what stays and what goes.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub prune: Option<PruneSummary>,
}

/// What a prune decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PruneSummary {
    /// The older trees that stay, by their numbers in order. Of any other older one nothing is promised any more.
    pub kept: Vec<u64>,
    /// How many trees go.
    pub generations: u64,
    /// How many packs go.
    pub packs: u64,
    /// BLAKE3 of the list that names all of them.
    pub list: Digest,
}

/// A tree as its record tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TreeSummary {
    /// The generation it descends from.
    pub parent: Option<u64>,
    /// Where the root of the manifest is; its digest names the whole tree.
    pub root: ChunkRef,
    /// All entries.
    pub entries: u64,
    /// Regular files.
    pub files: u64,
    /// Bytes of them, holes included.
    pub size_bytes: u64,
    /// Bytes that were put for it.
    pub new_bytes: u64,
    /// Files that were still changing after several reads.
    #[serde(default)]
    pub torn: u64,
}

impl Record {
    /// The record to append after `head`, by `host`; the caller changes what its kind changes.
    pub(crate) fn after(head: Option<&Self>, kind: RecordKind, host: &str) -> Self {
        Self {
            format: FORMAT,
            record: head.map_or(1, |head| head.record + 1),
            kind,
            volume: head.map_or_else(random_id, |head| head.volume.clone()),
            epoch: head.map_or(0, |head| head.epoch),
            owner: head.and_then(|head| head.owner.clone()),
            lasts_ms: head.and_then(|head| head.lasts_ms),
            host: host.to_owned(),
            nonce: random_id(),
            created_at: Utc::now(),
            generation: head.and_then(|head| head.generation),
            previous: head.map(|head| head.nonce.clone()),
            pruned: head.and_then(|head| head.pruned),
            tree: None,
            prune: None,
        }
    }

    /// The JSON that is put. One that no reader would take is an error.
    pub(crate) fn encode(&self) -> Result<Vec<u8>> {
        let json = serde_json::to_vec(self);
        let json = json.map_err(|error| Error::corrupt(format!("record {}", self.record), error.to_string()))?;
        if json.len() > RECORD_LIMIT {
            return Err(Error::Unsupported { what: format!("a record of {} bytes", json.len()) });
        }
        Ok(json)
    }

    /// Reads the record with this number. Its own number must agree: an object copied to another key is not believed.
    pub(crate) fn decode(number: u64, bytes: &[u8]) -> Result<Self> {
        #[derive(Deserialize)]
        struct Version {
            format: u32,
        }
        let what = || format!("record {number}");
        let corrupt = |error: serde_json::Error| Error::corrupt(what(), error.to_string());
        let version: Version = serde_json::from_slice(bytes).map_err(corrupt)?;
        if version.format > FORMAT {
            return Err(Error::UnsupportedFormat { what: what(), found: version.format, supported: FORMAT });
        }
        let record: Self = serde_json::from_slice(bytes).map_err(corrupt)?;
        let has_tree = matches!(record.kind, RecordKind::Data | RecordKind::Branch);
        let prunes = record.kind == RecordKind::Prune;
        let fits = has_tree == record.tree.is_some() && prunes == record.prune.is_some();
        if record.record != number || !fits || prunes && record.pruned != Some(number) {
            return Err(Error::corrupt(what(), "its number or kind does not fit"));
        }
        Ok(record)
    }
}

/// 128 random bits in hex.
pub(crate) fn random_id() -> String {
    format!("{:032x}", rand::random::<u128>())
}

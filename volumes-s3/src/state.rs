//! What a host keeps of a volume besides its tree: one small file, replaced whole and synced.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;

use chrono::{DateTime, Utc};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::pack::{Digest, PackId};
use crate::record::{Record, random_id};

/// Version of the file.
const FORMAT: u32 = 1;
/// Ends the name of a JSON file that is being written.
pub(crate) const TEMPORARY: &str = "json.tmp";

/// The file `state.json` of a volume.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct State {
    pub format: u32,
    /// The id of the place that all of the following is about.
    pub place: Option<String>,
    /// The newest record seen.
    pub head: Option<Record>,
    /// The epoch of the claim this host believes to hold.
    pub epoch: Option<u64>,
    /// The generation of the main line that the tree descends from.
    pub parent: Option<u64>,
    /// The generation the tree was when it was last published or restored; the scan record is of it.
    pub tree: Option<TreeMark>,
    #[serde(with = "runtime_core::time::option")]
    pub durable_at: Option<DateTime<Utc>>,
    /// Who uses the volume on this host.
    pub users: BTreeMap<String, User>,
    /// The claim was taken by hand: it is kept until somebody has used the volume.
    pub held: bool,
    /// The create that made and fills the tree, as long as nobody has used it since: if it is undone, so is the tree.
    pub made_by: Option<String>,
    /// What is still owed to S3.
    pub pending: Pending,
    /// As it was counted when S3 last refused the tree; `None` while a sync is owed and nobody has counted since.
    pub bytes_at_risk: Option<u64>,
    pub last_error: Option<String>,
    /// Text of the caller's.
    pub tier: Option<String>,
}

/// A generation a tree was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TreeMark {
    /// Its record.
    pub record: u64,
    /// Digest of the root of its manifest.
    pub root: String,
    /// It is a branch, and was not restored to become the main line again.
    pub branch: bool,
    pub size_bytes: u64,
    /// Of one that was restored over a newer generation: bytes of its files that the newest had not, or had otherwise.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ahead_bytes: Option<u64>,
}

/// A user of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct User {
    pub readonly: bool,
}

/// What is owed to S3.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Pending {
    /// It is used without a claim, because S3 was away.
    pub claim: bool,
    /// A sync did not succeed.
    pub sync: bool,
    /// The last user is gone and `released` is not written.
    pub release: bool,
}

/// The file `commit.json`: a record about to be put, whose packs are there. Its outcome is settled before anything
/// else is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Commit {
    pub record: Record,
    /// Packs made for it.
    pub packs: Vec<String>,
}

impl Commit {
    pub(crate) fn pack_ids(&self) -> Result<Vec<PackId>> {
        self.packs.iter().map(|pack| pack.parse()).collect()
    }
}

impl State {
    /// The state at `path`, or that of a volume never seen.
    pub(crate) fn load(path: &Path) -> Result<Option<Self>> {
        let state: Option<Self> = read_own(path)?;
        match state {
            Some(state) if state.format > FORMAT => Err(Error::UnsupportedFormat {
                what: path.display().to_string(),
                found: state.format,
                supported: FORMAT,
            }),
            state => Ok(state),
        }
    }

    /// Replaces the file; on disk when it returns.
    pub(crate) fn save(&mut self, path: &Path) -> Result<()> {
        self.format = FORMAT;
        write_json(path, self)
    }

    /// Drops all that is about a history which is not the one in the bucket. The tree stays: as one never published.
    pub(crate) fn forget_history(&mut self) {
        (self.head, self.epoch, self.parent, self.tree, self.durable_at) = (None, None, None, None, None);
        self.held = false;
    }

    /// Tells the trees of one volume in one place from any other.
    pub(crate) fn lineage(&self) -> Digest {
        let volume = self.head.as_ref().map_or("", |head| &head.volume);
        Digest::of(format!("{}|{volume}", self.place.as_deref().unwrap_or_default()).as_bytes())
    }

    /// Whether the tree is one that was restored over a newer generation: a change, though all of it is in S3.
    pub(crate) fn went_back(&self) -> bool {
        self.tree.as_ref().is_some_and(|tree| !tree.branch && Some(tree.record) != self.parent)
    }

    /// Bytes that the next sync would publish though nothing was changed since the tree was restored: it was restored over
    /// a newer generation.
    pub(crate) fn ahead_bytes(&self) -> u64 {
        let ahead = self.tree.as_ref().filter(|_| self.went_back());
        ahead.map_or(0, |tree| tree.ahead_bytes.unwrap_or(tree.size_bytes))
    }

    /// Whether something on this host may write to it.
    pub(crate) fn has_writer(&self) -> bool {
        self.users.values().any(|user| !user.readonly)
    }

    /// Whether it belongs to a bucket, be it one that this process does not know.
    pub(crate) fn has_bucket(&self) -> bool {
        self.place.is_some() || self.owes()
    }

    /// Whether S3 is owed something.
    pub(crate) fn owes(&self) -> bool {
        let Pending { claim, sync, release } = self.pending;
        claim || sync || release || self.claims_for_nobody()
    }

    /// Whether a claim is held that no user here needs.
    pub(crate) fn claims_for_nobody(&self) -> bool {
        self.epoch.is_some() && !self.has_writer() && !self.held
    }
}

/// Reads JSON; `None` if there is no file.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|error| Error::corrupt(path.display().to_string(), error.to_string())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("read", path, error)),
    }
}

/// The same of a file in the directory of a volume.
pub(crate) fn read_own<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    read_json(path).map_err(|error| match error {
        Error::Corrupt { detail, .. } => {
            let name = path.parent().and_then(Path::file_name).unwrap_or_default();
            Error::Damaged { name: name.to_string_lossy().into_owned(), path: path.to_owned(), detail }
        }
        error => error,
    })
}

/// Writes JSON beside `path`, syncs it, renames it into place and syncs the directory.
pub(crate) fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let failed = |error: std::io::Error| Error::io("write", path, error);
    let bytes = serde_json::to_vec_pretty(value).map_err(|error| failed(error.into()))?;
    let temporary = path.with_extension(TEMPORARY);
    let mut file = std::fs::File::create(&temporary).map_err(failed)?;
    file.write_all(&bytes).and_then(|()| file.sync_data()).map_err(failed)?;
    std::fs::rename(&temporary, path).map_err(failed)?;
    sync_parent(path)
}

/// The same for a file that no lock guards: each of several writers has a temporary file of its own.
pub(crate) fn write_json_unlocked<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let own = path.with_file_name(format!("{}.json", random_id()));
    write_json(&own, value)?;
    std::fs::rename(&own, path).map_err(|error| Error::io("write", path, error))
}

/// Makes a rename or removal in the directory of `path` durable.
pub(crate) fn sync_parent(path: &Path) -> Result<()> {
    let Some(parent) = path.parent() else { return Ok(()) };
    let synced = std::fs::File::open(parent).and_then(|directory| directory.sync_all());
    synced.map_err(|error| Error::io("sync", parent, error))
}

/// Removes a file if it is there.
pub(crate) fn remove_file(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path, error)),
        _ => Ok(()),
    }
}

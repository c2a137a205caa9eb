//! What is told of a volume: by its state, and by what lies here.

use runtime_core::VolumeStatus;

use crate::attributes;
use crate::damaged::status_without_state;
use crate::error::{Error, Result};
use crate::fetch::blocking;
use crate::foreign::{Foreign, is_own};
use crate::name;
use crate::paths::Paths;
use crate::scan::changes;
use crate::scan_record::RecordReader;
use crate::state::State;
use crate::store::VolumeStore;
use crate::volume::{Volume, scan_record};
use crate::walk::open_root;

/// How often a status is counted anew because a sync ended meanwhile.
const STATUS_LOOKS: u32 = 3;

impl VolumeStore {
    /// What is known here of the volume. No request is made.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn status(&self, name: &str) -> Result<VolumeStatus> {
        name::check_name(name)?;
        let (paths, name) = (Paths::new(&self.inner.config.root, name), name.to_owned());
        let configured = self.inner.config.s3.is_some();
        blocking("read the state", move || {
            let load = || State::load(&paths.state())?.ok_or_else(|| Error::NotFound { name: name.clone() });
            let mut state = load()?;
            for _ in 0..STATUS_LOOKS {
                let mut status = status(&name, &paths, &state);
                let counted = count(&mut status, &paths, &state, configured || state.has_bucket());
                if let Err(error) = &counted {
                    // The rest is known, and one tree that cannot be read hides no other volume.
                    status.last_error.get_or_insert_with(|| error.to_string());
                }
                Foreign::tell(&mut status, &paths);
                if !matches!(counted, Ok(true)) {
                    return Ok(status);
                }
                // Counted without the lock: a sync may have ended meanwhile.
                let now = load()?;
                if now == state {
                    return Ok(status);
                }
                state = now;
            }
            let mut status = status(&name, &paths, &state);
            Foreign::tell(&mut status, &paths);
            Ok(status)
        })
        .await
    }

    /// The volumes of this host, by name. One whose state cannot be read is told with that as its last error, and with all of
    /// its bytes at risk.
    ///
    /// # Errors
    /// Those of reading the root.
    pub async fn list(&self) -> Result<Vec<VolumeStatus>> {
        let mut found = Vec::new();
        for name in self.names().await? {
            match self.status(&name).await {
                Ok(status) => found.push(status),
                Err(Error::NotFound { .. }) => {}
                Err(error) => {
                    let paths = Paths::new(&self.inner.config.root, &name);
                    let tell = move || Ok(status_without_state(&name, &paths, &error));
                    found.push(blocking("look at a volume", tell).await?);
                }
            }
        }
        Ok(found)
    }
}

impl Volume {
    /// The status as the state tells it, and what lies here besides.
    pub(crate) async fn status(&self) -> Result<VolumeStatus> {
        let (mut status, paths, hold) = (status(&self.name, &self.paths, &self.state), self.paths.clone(), self.hold());
        blocking("look for trees that are not the volume's", move || {
            Foreign::tell(&mut status, &paths);
            drop(hold);
            Ok(status)
        })
        .await
    }
}

/// Whether the scan record is of another tree of this history than the one that the state tells of.
fn is_of_another_tree(paths: &Paths, state: &State) -> Result<bool> {
    let Some(tree) = &state.tree else { return Ok(false) };
    let record = match RecordReader::open(&paths.scan()) {
        Err(Error::Corrupt { .. }) => None,
        record => record?,
    };
    let other = |record: RecordReader| {
        record.subject.lineage == state.lineage() && record.subject.root.to_string() != tree.root
    };
    Ok(record.is_some_and(other))
}

/// Counts what `status` tells of a tree and its state does not; true if there was something to count. `bucket`: it belongs
/// to one, or would with its next use. Without, nothing is at risk: it was never to be anywhere else. Blocks.
fn count(status: &mut VolumeStatus, paths: &Paths, state: &State, bucket: bool) -> Result<bool> {
    let uncounted = state.pending.sync && state.bytes_at_risk.is_none();
    // A restore puts its tree in place before its state: who was killed in between has not said which it is.
    let unknown = uncounted || state.tree.is_none() || is_of_another_tree(paths, state)?;
    let at_risk = bucket && (unknown || state.has_writer());
    if !(at_risk || status.size_bytes.is_none()) || !is_own(&status.name, &paths.data()) {
        return Ok(false);
    }
    let data = paths.data();
    let found = changes(&data, scan_record(&status.name, paths, state)?)?;
    // What a create still fills is no data yet.
    let unfilled = attributes::is_unfilled(open_root(&data)?);
    if at_risk && !unfilled.map_err(|error| Error::io("read the attributes of", &data, error))? {
        status.bytes_at_risk = found.bytes.saturating_add(state.ahead_bytes()).min(found.size_bytes);
    }
    status.size_bytes = Some(found.size_bytes);
    Ok(true)
}

/// The status as a state tells it.
pub(crate) fn status(name: &str, paths: &Paths, state: &State) -> VolumeStatus {
    let generation = state.tree.as_ref().map(|tree| tree.record);
    // What another host would get is the newest generation, and not this one.
    let unpublished = generation.filter(|_| state.went_back());
    let unpublished = unpublished.map(|generation| Error::Unpublished { name: name.to_owned(), generation });
    VolumeStatus {
        name: name.to_owned(),
        mountpoint: paths.data(),
        generation,
        durable_at: state.durable_at.filter(|_| unpublished.is_none()),
        bytes_at_risk: state.bytes_at_risk.unwrap_or(0).saturating_add(state.ahead_bytes()),
        owner: state.head.as_ref().and_then(|head| head.owner.clone()),
        last_error: state.last_error.clone().or_else(|| unpublished.map(|error| error.to_string())),
        size_bytes: state.tree.as_ref().map(|tree| tree.size_bytes),
    }
}

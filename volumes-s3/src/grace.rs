//! Time for readers: what a prune by the keeper has decided to delete stays for a while, so that a restore which reads it
//! anywhere can come to its end.
//!
//! The record decides at once, for writers; only the deletion waits. It is the last step of a prune, which anybody may take
//! later, so nothing else must know of it. No clock is trusted: each process measures from when it first sees the prune.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Asked again at least so often what is left of a time, however long that is.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

/// The unfinished prunes that this process has seen: by volume the record of its newest, and since when.
#[derive(Debug, Default)]
pub(crate) struct Graces(Mutex<HashMap<String, (u64, Instant)>>);

impl Graces {
    /// How long to wait, of `grace` since the prune `record` of volume `name` was first seen. `None`: no longer.
    pub(crate) fn left(&self, name: &str, record: u64, grace: Duration) -> Option<Duration> {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = seen.entry(name.to_owned()).or_insert_with(|| (record, Instant::now()));
        if entry.0 != record {
            *entry = (record, Instant::now());
        }
        let left = grace.saturating_sub(entry.1.elapsed()).min(LONGEST_WAIT);
        (!left.is_zero()).then_some(left)
    }

    /// The newest prune of volume `name` is finished.
    pub(crate) fn over(&self, name: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }
}

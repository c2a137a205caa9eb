//! `attempts.json`: which attempt of a container is the current one once there was more than one, and how those before
//! it ended. Written before an attempt begins: by its supervisor for a restart, by whoever starts it by hand.

use std::path::Path;

use chrono::{DateTime, Utc};
use runtime_core::WaitOutcome;
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::record::{self, ExitRecord};

/// How many ended attempts are kept: a program that fails at once would fill the disk with them.
const MAX_EARLIER: usize = 10;

/// The file's name.
pub(crate) const ATTEMPTS_FILE: &str = "attempts.json";

/// What the file says.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Attempts {
    /// The current one, from 1.
    pub attempt: u32,
    /// How many times its policy restarted it since it was last started by hand.
    pub restarts: u32,
    /// The ended ones, oldest first.
    pub earlier: Vec<EarlierAttempt>,
}

/// An attempt that another one followed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EarlierAttempt {
    /// Its number, from 1.
    pub attempt: u32,
    /// When its program was started; `None` if it never was.
    #[serde(with = "runtime_core::time::option")]
    pub started_at: Option<DateTime<Utc>>,
    /// How it ended.
    pub outcome: WaitOutcome,
    /// Why it counts as failed, if it does.
    pub failure: Option<String>,
}

impl Attempts {
    /// What is on record in `path`; nothing for a container that had one attempt, or where a power cut has damaged that.
    pub fn read(path: &Path) -> Result<Self> {
        Ok(record::read_intact(path)?.unwrap_or_default())
    }

    /// Puts on record that `attempt` is current from now on, and how the one before it ended.
    pub fn begin(path: &Path, attempt: u32, restarts: u32, ended: &ExitRecord) -> Result<()> {
        let mut all = Self::read(path)?;
        all.earlier.retain(|earlier| earlier.attempt < ended.attempt);
        all.earlier.push(EarlierAttempt {
            attempt: ended.attempt,
            started_at: ended.started_at,
            outcome: ended.outcome.clone(),
            failure: ended.failure.clone(),
        });
        let surplus = all.earlier.len().saturating_sub(MAX_EARLIER);
        all.earlier.drain(..surplus);
        record::write(path, &Self { attempt, restarts, ..all })
    }

    /// How attempt `number` ended, if it is one of the earlier ones that are kept.
    pub fn end_of(&self, number: u32) -> Option<ExitRecord> {
        let found = self.earlier.iter().find(|earlier| earlier.attempt == number)?;
        Some(ExitRecord {
            attempt: number,
            supervisor: None,
            outcome: found.outcome.clone(),
            started_at: found.started_at,
            failure: found.failure.clone(),
            oom_kills: 0,
            stats: None,
            restarting: true,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_ten_ends_are_kept_each_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(ATTEMPTS_FILE);
        assert_eq!(Attempts::read(&path).unwrap(), Attempts::default());
        for attempt in 1..=15 {
            let ended = ExitRecord::lost(attempt, "x".into());
            // Written again by one that could not go on after it.
            for _ in 0..2 {
                Attempts::begin(&path, attempt + 1, attempt, &ended).unwrap();
            }
        }
        let all = Attempts::read(&path).unwrap();
        assert_eq!((all.attempt, all.restarts), (16, 15));
        let numbers: Vec<u32> = all.earlier.iter().map(|earlier| earlier.attempt).collect();
        assert_eq!(numbers, (6..=15).collect::<Vec<u32>>());
        assert_eq!(all.end_of(6).unwrap().outcome.exit_code, 137);
        assert!(all.end_of(5).is_none() && all.end_of(16).is_none());
    }
}

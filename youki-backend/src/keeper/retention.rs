//! Retention: a history that has grown is pruned, at most once an hour for each volume. What that takes away goes later, when
//! who reads it has had time to.

use std::collections::HashMap;
use std::sync::Weak;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{PAUSE_AFTER_ERROR, until};
use crate::dir_watch::{Changed, DirWatch};
use crate::error::{Error, Result};
use crate::runtime::Inner;

/// Between two looks at one history: each reads its records, and where something goes all manifests that stay.
const PAUSE: Duration = Duration::from_secs(3600);

/// When which history is looked at.
#[derive(Debug, Default)]
struct Histories {
    due: HashMap<String, Instant>,
    /// When each was looked at last; none that is longer ago than a pause.
    looked_at: HashMap<String, Instant>,
    /// When what a prune has decided to delete may go.
    unfinished: HashMap<String, Instant>,
}

impl Histories {
    /// That of `name` has grown.
    fn hear_of(&mut self, name: String, now: Instant) {
        let at = self.looked_at.get(&name).map_or(now, |last| (*last + PAUSE).max(now));
        self.due.entry(name).or_insert(at);
    }

    /// When the next one is due, for a look or to be finished.
    fn next(&self) -> Option<Instant> {
        self.due.values().chain(self.unfinished.values()).min().copied()
    }

    /// What was decided for `name` waits until `at`; `None`: nothing does.
    fn leave_unfinished(&mut self, name: String, at: Option<Instant>) {
        match at {
            Some(at) => drop(self.unfinished.insert(name, at)),
            None => drop(self.unfinished.remove(&name)),
        }
    }

    /// One whose prune may be finished now.
    fn take_unfinished(&mut self, now: Instant) -> Option<String> {
        let name = self.unfinished.iter().find(|(_, at)| **at <= now)?.0.clone();
        self.unfinished.remove(&name);
        Some(name)
    }

    /// One that is due, which is being looked at now.
    fn take(&mut self, now: Instant) -> Option<String> {
        let name = self.due.iter().find(|(_, at)| **at <= now)?.0.clone();
        self.due.remove(&name);
        self.looked_at.retain(|_, at| *at + PAUSE > now);
        self.looked_at.insert(name.clone(), now);
        Some(name)
    }
}

/// Prunes for as long as it is polled. Ends where there is nothing to do: no bucket, or no retention and no renewals.
pub(super) async fn apply(weak: Weak<Inner>) {
    while let Err(error) = follow(&weak).await {
        tracing::error!(error = error.chain(), "histories of volumes are not pruned for a minute");
        sleep(PAUSE_AFTER_ERROR).await;
    }
}

async fn follow(weak: &Weak<Inner>) -> Result<()> {
    let Some(inner) = weak.upgrade() else { return Ok(()) };
    let volumes = &inner.config.volumes;
    if inner.config.s3.is_none() || volumes.keep.is_none() && volumes.take_over_after.is_none() {
        return Ok(());
    }
    let dir = inner.volumes.grown()?;
    drop(inner);
    // Before the first look, so that none which comes after it goes unnoticed.
    let bell = DirWatch::new(&dir)?;
    let mut histories = Histories::default();
    let all = || -> Result<Vec<String>> {
        let failed = || Error::io("reading", &dir);
        let entries = std::fs::read_dir(&dir).map_err(failed())?;
        entries.map(|entry| Ok(entry.map_err(failed())?.file_name().to_string_lossy().into_owned())).collect()
    };
    all()?.into_iter().for_each(|name| histories.hear_of(name, Instant::now()));
    loop {
        let next = histories.next();
        tokio::select! {
            () = until(next) => {
                while let Some(name) = histories.take_unfinished(Instant::now()) {
                    let Some(inner) = weak.upgrade() else { return Ok(()) };
                    let left = inner.finish_prune(&name).await;
                    histories.leave_unfinished(name, left.map(|left| Instant::now() + left));
                }
                while let Some(name) = histories.take(Instant::now()) {
                    let Some(inner) = weak.upgrade() else { return Ok(()) };
                    inner.retain(name, &mut histories).await;
                }
            }
            changed = bell.names() => {
                let names = match changed? {
                    Changed::Names(names) => names,
                    Changed::Any => all()?,
                    // The root is.
                    Changed::Gone => return Ok(()),
                };
                names.into_iter().for_each(|name| histories.hear_of(name, Instant::now()));
            }
        }
    }
}

impl Inner {
    /// Looks at the history of `name`, and notes when to do so again.
    async fn retain(&self, name: String, histories: &mut Histories) {
        match self.volumes.retain(&name).await {
            Ok(retained) => {
                let removed = retained.pruned.removed.len();
                if removed > 0 {
                    self.tell_of_volume(&name, &format!("pruned: {removed} generations"));
                }
                if retained.unfinished.is_some() {
                    // Nothing more is decided until then.
                    histories.hear_of(name.clone(), Instant::now());
                }
                histories.leave_unfinished(name, retained.unfinished.map(|left| Instant::now() + left));
            }
            // Somebody else's now. What was decided before that can still be deleted.
            Err(volumes_s3::Error::InUseElsewhere { .. }) => {}
            Err(volumes_s3::Error::NotFound { .. }) => histories.leave_unfinished(name, None),
            Err(error) => {
                tracing::warn!(volume = name, %error, "its history is not pruned");
                histories.hear_of(name, Instant::now());
            }
        }
    }

    /// Deletes what a prune has decided to; how long that must still wait, or is put off.
    async fn finish_prune(&self, name: &str) -> Option<Duration> {
        self.volumes.finish_prune(name).await.unwrap_or_else(|error| {
            tracing::warn!(volume = name, %error, "what its prune has decided to delete is still there");
            Some(PAUSE)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_is_looked_at_when_it_grows_and_then_once_an_hour() {
        let (mut histories, begin) = (Histories::default(), Instant::now());
        assert_eq!(histories.next(), None);
        histories.hear_of("a".into(), begin);
        assert_eq!((histories.next(), histories.take(begin).as_deref()), (Some(begin), Some("a")));
        assert_eq!((histories.next(), histories.take(begin)), (None, None), "nothing grows, and nobody wakes");
        // It grows again, and again.
        for seconds in [1, 600] {
            histories.hear_of("a".into(), begin + Duration::from_secs(seconds));
            assert_eq!(histories.next(), Some(begin + PAUSE));
        }
        histories.hear_of("b".into(), begin + Duration::from_secs(700));
        assert_eq!(histories.take(begin + Duration::from_secs(700)).as_deref(), Some("b"));
        assert_eq!(histories.take(begin + Duration::from_secs(701)), None);
        assert_eq!(histories.take(begin + PAUSE).as_deref(), Some("a"));
        // An hour without growth: the next is looked at at once.
        let later = begin + PAUSE * 3;
        histories.hear_of("a".into(), later);
        assert_eq!(histories.next(), Some(later));
        // What waits for readers is no look.
        histories.leave_unfinished("b".into(), Some(later - Duration::from_secs(1)));
        assert_eq!(histories.next(), Some(later - Duration::from_secs(1)));
        assert_eq!(histories.take(later - Duration::from_secs(1)), None);
        assert_eq!(histories.take_unfinished(later).as_deref(), Some("b"));
        assert_eq!((histories.take_unfinished(later), histories.next()), (None, Some(later)));
    }
}

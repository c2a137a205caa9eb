//! What volumes owe to S3, whichever process could not pay: tried again, volume by volume, with growing pauses.

use std::collections::HashMap;
use std::sync::Weak;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use tokio::time::Instant;

use super::until;
use crate::dir_watch::{Changed, DirWatch};
use crate::error::Result;
use crate::runtime::Inner;

/// First pause after a failed try; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
/// Longest pause between tries.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// Volumes tried at once: each sync may hold some ten MiB.
const AT_ONCE: usize = 4;

/// When a volume is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Due {
    at: Instant,
    /// Before the try after that one.
    pause: Duration,
}

/// The volumes that owe something.
#[derive(Debug, Default)]
struct Debts(HashMap<String, Due>);

impl Debts {
    /// `name` owes something since now. Whoever put that down is about to pay it: the first try is left to them.
    fn hear_of(&mut self, name: String, now: Instant) {
        self.0.entry(name).or_insert(Due { at: now + FIRST_PAUSE, pause: FIRST_PAUSE });
    }

    /// When the next one is due.
    fn next(&self) -> Option<Instant> {
        self.0.values().map(|due| due.at).min()
    }

    /// Those that are.
    fn due(&self, now: Instant) -> Vec<String> {
        self.0.iter().filter(|(_, due)| due.at <= now).map(|(name, _)| name.clone()).collect()
    }

    /// `name` was tried. If one could be paid, S3 is there: the others need not wait.
    fn tried(&mut self, name: &str, paid: bool, now: Instant) {
        if paid {
            self.0.remove(name);
            self.0.values_mut().for_each(|due| *due = Due { at: now, pause: FIRST_PAUSE });
        } else if let Some(due) = self.0.get_mut(name) {
            *due = Due { at: now + due.pause, pause: (due.pause * 2).min(LONGEST_PAUSE) };
        }
    }
}

/// Pays for as long as it is polled.
pub(super) async fn pay(weak: Weak<Inner>) {
    let (bell, mut debts) = match begin(&weak).await {
        Ok(Some(begun)) => begun,
        Ok(None) => return,
        Err(error) => {
            tracing::error!(error = error.chain(), "what volumes owe to S3 is not retried");
            return;
        }
    };
    loop {
        let next = debts.next();
        tokio::select! {
            () = until(next) => try_due(&weak, &mut debts).await,
            rung = rings(&bell, &weak) => match rung {
                Ok(names) => names.into_iter().for_each(|name| debts.hear_of(name, Instant::now())),
                Err(error) => {
                    tracing::error!(error = error.chain(), "what other processes could not pay is not noticed");
                    return;
                }
            },
        }
    }
}

/// The bell, and what is owed already: that is due at once. None without a bucket.
async fn begin(weak: &Weak<Inner>) -> Result<Option<(DirWatch, Debts)>> {
    let Some(inner) = weak.upgrade().filter(|inner| inner.config.s3.is_some()) else { return Ok(None) };
    let bell = DirWatch::new(&inner.volumes.debts()?)?;
    let now = Instant::now();
    let owing = inner.volumes.owing().await?.into_iter();
    Ok(Some((bell, Debts(owing.map(|name| (name, Due { at: now, pause: FIRST_PAUSE })).collect()))))
}

/// The volumes that it rang for.
async fn rings(bell: &DirWatch, weak: &Weak<Inner>) -> Result<Vec<String>> {
    match bell.names().await? {
        Changed::Names(names) => Ok(names),
        Changed::Any => match weak.upgrade() {
            Some(inner) => Ok(inner.volumes.owing().await?),
            None => Ok(Vec::new()),
        },
        // The root is, and with it whatever was owed.
        Changed::Gone => std::future::pending().await,
    }
}

async fn try_due(weak: &Weak<Inner>, debts: &mut Debts) {
    let Some(volumes) = weak.upgrade().map(|inner| inner.volumes.clone()) else { return };
    let tries = debts.due(Instant::now()).into_iter().map(|name| {
        let volumes = volumes.clone();
        async move { (volumes.retry(&name).await, name) }
    });
    let mut tries = stream::iter(tries).buffer_unordered(AT_ONCE);
    while let Some((tried, name)) = tries.next().await {
        if let Err(error) = &tried {
            tracing::debug!(volume = name, %error, "still owed to S3");
        }
        debts.tried(&name, tried.is_ok(), Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_due_without_a_debt_and_pauses_grow_until_one_is_paid() {
        let (mut debts, begin) = (Debts::default(), Instant::now());
        assert_eq!(debts.next(), None);
        debts.hear_of("a".into(), begin);
        debts.hear_of("b".into(), begin + Duration::from_secs(1));
        debts.hear_of("a".into(), begin + Duration::from_secs(2));
        assert_eq!((debts.next(), debts.due(begin + FIRST_PAUSE)), (Some(begin + FIRST_PAUSE), vec!["a".into()]));
        let mut now = begin;
        for pause in [5, 10, 20, 40, 80, 160, 300, 300] {
            debts.tried("a", false, now);
            assert_eq!(debts.0["a"].at, now + Duration::from_secs(pause));
            now = debts.0["a"].at;
        }
        debts.tried("b", true, now);
        assert_eq!(debts.due(now), ["a"], "S3 is back, and it waits");
        debts.tried("a", true, now);
        assert_eq!(debts.next(), None);
    }
}

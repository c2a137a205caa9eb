//! What volumes owe to S3, whichever process could not pay: tried again, volume by volume, with growing pauses.

use std::collections::HashMap;
use std::sync::Weak;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::{Instant, sleep};

use super::{PAUSE_AFTER_ERROR, until};
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
struct Debts {
    due: HashMap<String, Due>,
    /// What is being tried, with the pause after that. What is heard of one meanwhile is for another try.
    under_way: HashMap<String, Duration>,
}

impl Debts {
    /// `name` owes something since now. Whoever put that down is about to pay it: the first try is left to them.
    fn hear_of(&mut self, name: String, now: Instant) {
        self.due.entry(name).or_insert(Due { at: now + FIRST_PAUSE, pause: FIRST_PAUSE });
    }

    /// The one that is due first, of those that can be tried.
    fn first(&self) -> Option<(&String, &Due)> {
        let idle = self.due.iter().filter(|(name, _)| !self.under_way.contains_key(*name));
        idle.min_by_key(|(_, due)| due.at).filter(|_| self.under_way.len() < AT_ONCE)
    }

    /// When that is.
    fn next(&self) -> Option<Instant> {
        self.first().map(|(_, due)| due.at)
    }

    /// That one, if it is due, to be tried now.
    fn take(&mut self, now: Instant) -> Option<String> {
        let (name, due) = self.first().filter(|(_, due)| due.at <= now)?;
        let (name, pause) = (name.clone(), due.pause);
        self.due.remove(&name);
        self.under_way.insert(name.clone(), pause);
        Some(name)
    }

    /// Somebody works with `name`, so that it was not tried.
    fn put_off(&mut self, name: String, now: Instant) {
        if let Some(pause) = self.under_way.remove(&name) {
            self.due.insert(name, Due { at: now + FIRST_PAUSE, pause });
        }
    }

    /// `name` was tried. If one could be paid, S3 is there: the others need not wait.
    fn tried(&mut self, name: String, paid: bool, now: Instant) {
        let Some(pause) = self.under_way.remove(&name) else { return };
        if paid {
            self.due.values_mut().for_each(|due| *due = Due { at: now, pause: FIRST_PAUSE });
        } else {
            self.due.insert(name, Due { at: now + pause, pause: (pause * 2).min(LONGEST_PAUSE) });
        }
    }
}

/// Pays for as long as it is polled. Ends where there is nothing to do: no bucket.
pub(super) async fn pay(weak: Weak<Inner>) {
    while let Err(error) = pay_all(&weak).await {
        tracing::error!(error = error.chain(), "what volumes owe to S3 is not retried for a minute");
        sleep(PAUSE_AFTER_ERROR).await;
    }
}

async fn pay_all(weak: &Weak<Inner>) -> Result<()> {
    let Some((bell, mut debts)) = begin(weak).await? else { return Ok(()) };
    // Beside the bell: one of them may upload for hours.
    let mut tries = FuturesUnordered::new();
    loop {
        while let Some(name) = debts.take(Instant::now()) {
            let Some(inner) = weak.upgrade() else { return Ok(()) };
            tries.push(async move { (try_to_pay(&inner, &name).await, name) });
        }
        let next = debts.next();
        tokio::select! {
            () = until(next) => {}
            Some((tried, name)) = tries.next() => match tried {
                Some(paid) => debts.tried(name, paid, Instant::now()),
                None => debts.put_off(name, Instant::now()),
            },
            changed = bell.names() => {
                let names = match changed? {
                    Changed::Names(names) => names,
                    Changed::Any => match weak.upgrade() {
                        Some(inner) => inner.volumes.owing().await?,
                        None => return Ok(()),
                    },
                    // The root is, and with it whatever was owed.
                    Changed::Gone => return Ok(()),
                };
                names.into_iter().for_each(|name| debts.hear_of(name, Instant::now()));
            }
        }
    }
}

/// Whether nothing is owed any more; `None` where somebody works with the volume: waiting for him, a try would keep others
/// from theirs.
async fn try_to_pay(inner: &Inner, name: &str) -> Option<bool> {
    let paid = match inner.volumes.is_idle(name).await {
        Ok(false) => return None,
        Ok(true) => inner.pay(name).await,
        Err(error) => Err(error),
    };
    Some(paid.inspect_err(|error| tracing::debug!(volume = name, %error, "still owed to S3")).is_ok())
}

/// The bell, and what is owed already: that is due at once. None without a bucket.
async fn begin(weak: &Weak<Inner>) -> Result<Option<(DirWatch, Debts)>> {
    let Some(inner) = weak.upgrade().filter(|inner| inner.config.s3.is_some()) else { return Ok(None) };
    let bell = DirWatch::new(&inner.volumes.debts()?)?;
    let now = Instant::now();
    let owing = inner.volumes.owing().await?.into_iter();
    let due = owing.map(|name| (name, Due { at: now, pause: FIRST_PAUSE })).collect();
    Ok(Some((bell, Debts { due, ..Debts::default() })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_due_without_a_debt_and_pauses_grow_until_one_is_paid() {
        let (mut debts, begin) = (Debts::default(), Instant::now());
        assert_eq!((debts.next(), debts.take(begin)), (None, None));
        debts.hear_of("a".into(), begin);
        debts.hear_of("a".into(), begin + Duration::from_secs(2));
        assert_eq!((debts.next(), debts.take(begin)), (Some(begin + FIRST_PAUSE), None));
        let mut now = begin + FIRST_PAUSE;
        for pause in [5, 10, 20, 40, 80, 160, 300, 300] {
            assert_eq!((debts.take(now).as_deref(), debts.next()), (Some("a"), None));
            debts.tried("a".into(), false, now);
            assert_eq!(debts.next(), Some(now + Duration::from_secs(pause)));
            now += Duration::from_secs(pause);
        }
        debts.hear_of("b".into(), now - FIRST_PAUSE * 2);
        assert_eq!(debts.take(now).as_deref(), Some("b"));
        assert_eq!(debts.take(now).as_deref(), Some("a"));
        debts.tried("a".into(), false, now);
        assert_eq!((debts.take(now), debts.next()), (None, Some(now + LONGEST_PAUSE)));
        debts.tried("b".into(), true, now);
        assert_eq!(debts.take(now).as_deref(), Some("a"), "S3 is back, and it waits");
        debts.tried("a".into(), true, now);
        assert_eq!(debts.next(), None);
    }

    #[test]
    fn what_is_tried_is_not_tried_twice_and_holds_up_nothing_else() {
        let (mut debts, now) = (Debts::default(), Instant::now());
        let owe = |debts: &mut Debts, name: &str| debts.hear_of(name.into(), now - FIRST_PAUSE);
        owe(&mut debts, "a");
        assert_eq!(debts.take(now).as_deref(), Some("a"));
        // It owes more, or it is its own ring that is heard.
        owe(&mut debts, "a");
        assert_eq!((debts.take(now), debts.next()), (None, None));
        owe(&mut debts, "b");
        assert_eq!(debts.take(now).as_deref(), Some("b"));
        debts.tried("a".into(), true, now);
        assert_eq!(debts.take(now).as_deref(), Some("a"), "what was heard meanwhile is forgotten");
        for name in ["c", "d", "e"] {
            owe(&mut debts, name);
        }
        let taken = std::iter::from_fn(|| debts.take(now)).count();
        assert_eq!((taken, debts.under_way.len(), debts.next()), (2, AT_ONCE, None));
        debts.tried("b".into(), false, now);
        assert_eq!(debts.next(), Some(now));
    }
}

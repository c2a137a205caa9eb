//! Which generations are kept.

use std::collections::{BTreeSet, HashSet};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Most that can be asked for of each: a prune names what it keeps in its record.
const MOST: u32 = 1000;
const HOUR_SECONDS: i64 = 3600;
const DAY_SECONDS: i64 = 24 * HOUR_SECONDS;
const WEEK_SECONDS: i64 = 7 * DAY_SECONDS;
/// The first Monday after the epoch, which was a Thursday.
const MONDAY: i64 = 4 * DAY_SECONDS;

/// How much of a history is kept. What any of these asks for stays.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Keep {
    /// The newest generations.
    pub last: u32,
    /// Of each of so many hours the newest generation; hours without one do not count.
    pub hourly: u32,
    /// The same for days, in UTC.
    pub daily: u32,
    /// The same for weeks from Monday to Sunday, in UTC.
    pub weekly: u32,
}

impl Keep {
    /// Refuses what cannot be meant: nothing to keep, or more than a prune can name.
    ///
    /// # Errors
    /// [`Error::Configuration`].
    pub fn check(&self) -> Result<()> {
        let asked = [self.last, self.hourly, self.daily, self.weekly];
        let wrong = |reason: String| Err(Error::Configuration { what: "retention of volumes (keep)".into(), reason });
        if asked == [0; 4] {
            return wrong("it names nothing to keep: give one of last, hourly, daily and weekly".into());
        }
        match asked.into_iter().find(|number| *number > MOST) {
            Some(number) => wrong(format!("{number} is above {MOST}")),
            None => Ok(()),
        }
    }

    /// The numbers of those of `trees` that stay. `newest` is the generation of the main line that is current: it always
    /// does. Order is that of the log; times are those of the hosts that wrote, and choose among generations alone.
    ///
    /// A branch stays as long as it would if it were a generation of the main line, and takes no generation's place.
    pub(crate) fn choose(&self, trees: &[Tree], newest: Option<u64>) -> BTreeSet<u64> {
        let (branches, line): (Vec<Tree>, Vec<Tree>) = trees.iter().copied().partition(|tree| tree.branch);
        let mut kept = self.of_line(line.clone());
        kept.extend(newest);
        for branch in branches {
            let with_it = line.iter().copied().chain([branch]).collect();
            if self.of_line(with_it).contains(&branch.record) {
                kept.insert(branch.record);
            }
        }
        kept
    }

    fn of_line(&self, mut trees: Vec<Tree>) -> BTreeSet<u64> {
        trees.sort_unstable_by_key(|tree| std::cmp::Reverse(tree.record));
        let mut kept: BTreeSet<u64> = trees.iter().take(self.last as usize).map(|tree| tree.record).collect();
        let periods =
            [(self.hourly, HOUR_SECONDS, 0), (self.daily, DAY_SECONDS, 0), (self.weekly, WEEK_SECONDS, MONDAY)];
        for (number, seconds, begin) in periods {
            let mut seen = HashSet::new();
            for tree in &trees {
                if seen.len() == number as usize {
                    break;
                }
                if seen.insert((tree.created_at.timestamp() - begin).div_euclid(seconds)) {
                    kept.insert(tree.record);
                }
            }
        }
        kept
    }
}

/// A tree as retention sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tree {
    /// Its record.
    pub record: u64,
    pub branch: bool,
    pub created_at: DateTime<Utc>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trees(times: &[&str]) -> Vec<Tree> {
        let tree = |(index, text): (usize, &&str)| {
            let (branch, time) = text.strip_prefix('b').map_or((false, *text), |time| (true, time));
            let created_at = format!("{time}:00Z").parse().unwrap();
            Tree { record: index as u64 + 1, branch, created_at }
        };
        times.iter().enumerate().map(tree).collect()
    }

    #[test]
    fn what_is_kept_is_the_newest_of_each_period_that_has_any() {
        let keep = |last, hourly, daily, weekly| Keep { last, hourly, daily, weekly };
        // A Sunday, the Monday after it, and so on; a branch begins with b.
        let week = [
            "2026-11-22T10:00", // 1, Sunday
            "2026-11-23T00:10", // 2, Monday
            "2026-11-23T09:00", // 3
            "2026-11-23T09:50", // 4
            "2026-11-23T23:59", // 5
            "2026-11-25T08:00", // 6
            "2026-11-25T08:30", // 7
            "2026-11-30T00:00", // 8, the next Monday
        ];
        // A clock that was hours ahead, and one that was set back.
        let skewed = ["2026-11-23T09:00", "2026-11-24T09:00", "2026-11-23T10:00", "2026-11-23T10:30"];
        let branched =
            ["2026-11-23T09:00", "b2026-11-23T09:10", "2026-11-23T10:00", "b2026-11-23T10:10", "2026-11-23T11:00"];
        let table: [(&[&str], Keep, &[u64]); 16] = [
            (&week, keep(1, 0, 0, 0), &[8]),
            (&week, keep(3, 0, 0, 0), &[6, 7, 8]),
            (&week, keep(100, 0, 0, 0), &[1, 2, 3, 4, 5, 6, 7, 8]),
            // Hours without a generation do not count.
            (&week, keep(0, 1, 0, 0), &[8]),
            (&week, keep(0, 4, 0, 0), &[4, 5, 7, 8]),
            (&week, keep(0, 100, 0, 0), &[1, 2, 4, 5, 7, 8]),
            (&week, keep(0, 0, 2, 0), &[7, 8]),
            (&week, keep(0, 0, 4, 0), &[1, 5, 7, 8]),
            // Sunday ends a week.
            (&week, keep(0, 0, 0, 2), &[7, 8]),
            (&week, keep(0, 0, 0, 3), &[1, 7, 8]),
            // Whatever any of them asks for.
            (&week, keep(2, 3, 0, 3), &[1, 5, 7, 8]),
            // The newest is the last of the log, whatever its clock said, and no hour is counted twice.
            (&skewed, keep(1, 0, 0, 0), &[4]),
            (&skewed, keep(0, 3, 0, 0), &[1, 2, 4]),
            (&skewed, keep(0, 0, 1, 0), &[4]),
            // A branch goes when a generation in its place would, and takes nobody's place.
            (&branched, keep(2, 0, 0, 0), &[3, 4, 5]),
            (&branched, keep(0, 2, 0, 0), &[3, 4, 5]),
        ];
        for (times, keep, expected) in table {
            let trees = trees(times);
            let newest = trees.iter().rev().find(|tree| !tree.branch).map(|tree| tree.record);
            let kept: Vec<u64> = keep.choose(&trees, newest).into_iter().collect();
            assert_eq!(kept, expected, "{keep:?} of {times:?}");
        }
        // The current one stays, whatever the rule; a branch alone is the newest there is.
        assert_eq!(keep(1, 0, 0, 0).choose(&trees(&week), Some(2)), BTreeSet::from([2, 8]));
        assert_eq!(keep(1, 0, 0, 0).choose(&trees(&["b2026-11-23T09:00"]), None), BTreeSet::from([1]));
    }

    #[test]
    fn a_retention_that_keeps_nothing_or_too_much_is_refused() {
        for keep in [Keep::default(), Keep { daily: 1001, ..Keep::default() }] {
            let error = keep.check().unwrap_err();
            assert!(error.code() == "config.invalid" && error.to_string().contains("keep"), "{error}");
        }
        Keep { weekly: 1000, ..Keep::default() }.check().unwrap();
    }
}

//! What a run of the suite found.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::spec::duration;

/// What one check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "outcome", content = "reason")]
pub enum Outcome {
    /// The promise is kept.
    Passed,
    /// It is not, and how that was seen.
    Failed(String),
    /// The backend does not do this, and says so; or it gives nothing to check it with.
    Unsupported(String),
}

/// One check of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckReport {
    /// Stable, dotted name: `logs.tail`.
    pub name: String,
    /// The sentence of the contract that it checks.
    pub promise: String,
    /// What it found.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// How long it took, cleaning up included.
    #[serde(with = "duration")]
    pub duration: Duration,
}

/// A whole run. `Display` is a table for people, in which what failed comes last: the end is what is left of a long
/// output that was cut. serde's JSON is for programs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The backend's name.
    pub backend: String,
    /// Each check, in the suite's order.
    pub checks: Vec<CheckReport>,
    /// How long all of it took.
    #[serde(with = "duration")]
    pub duration: Duration,
}

impl Report {
    /// Whether no check failed. A run in which nothing passed is not ok: it says nothing about the backend.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        self.failed().next().is_none() && self.passed().next().is_some()
    }

    /// The checks that passed.
    pub fn passed(&self) -> impl Iterator<Item = &CheckReport> {
        self.checks.iter().filter(|check| check.outcome == Outcome::Passed)
    }

    /// The checks that failed.
    pub fn failed(&self) -> impl Iterator<Item = &CheckReport> {
        self.checks.iter().filter(|check| matches!(check.outcome, Outcome::Failed(_)))
    }

    /// The checks that do not apply to this backend.
    pub fn unsupported(&self) -> impl Iterator<Item = &CheckReport> {
        self.checks.iter().filter(|check| matches!(check.outcome, Outcome::Unsupported(_)))
    }

    /// Where the unsupported checks are not those `known`, by name and by words of their reason: one that is not known, or
    /// for another reason, and one that is known and is no longer unsupported. Empty if they are the same: so a backend's
    /// own test sees what it has lost, which [`Report::is_ok`] does not.
    #[must_use]
    pub fn unsupported_unlike(&self, known: &[(&str, &str)]) -> Vec<String> {
        let reason_of =
            |check: &CheckReport| known.iter().find(|(name, _)| *name == check.name).map(|(_, words)| *words);
        let differing = self.unsupported().filter_map(|check| match (reason_of(check), &check.outcome) {
            (Some(words), Outcome::Unsupported(reason)) if reason.contains(words) => None,
            (Some(words), _) => Some(format!("{check}\n     the reason known is {words:?}")),
            (None, _) => Some(check.to_string()),
        });
        let is_found = |name: &str| self.unsupported().any(|check| check.name == name);
        let missing = known.iter().filter(|(name, _)| !is_found(name));
        differing.chain(missing.map(|(name, _)| format!("{name} is no longer unsupported"))).collect()
    }
}

impl fmt::Display for CheckReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (word, reason) = match &self.outcome {
            Outcome::Passed => ("pass", None),
            Outcome::Failed(reason) => ("FAIL", Some(reason)),
            Outcome::Unsupported(reason) => ("none", Some(reason)),
        };
        write!(f, "{word} {:24} {:>7.3} s  {}", self.name, self.duration.as_secs_f64(), self.promise)?;
        match reason {
            Some(reason) => write!(f, "\n     {reason}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let others = self.checks.iter().filter(|check| !matches!(check.outcome, Outcome::Failed(_)));
        for check in others.chain(self.failed()) {
            writeln!(f, "{check}")?;
        }
        write!(
            f,
            "{}: {} passed, {} failed, {} unsupported in {:.1} s",
            self.backend,
            self.passed().count(),
            self.failed().count(),
            self.unsupported().count(),
            self.duration.as_secs_f64()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(outcomes: &[Outcome]) -> Report {
        let check = |outcome: &Outcome| CheckReport {
            name: "a.b".into(),
            promise: "it holds".into(),
            outcome: outcome.clone(),
            duration: Duration::from_millis(1500),
        };
        Report { backend: "x".into(), checks: outcomes.iter().map(check).collect(), duration: Duration::from_secs(2) }
    }

    #[test]
    fn ok_means_something_passed_and_nothing_failed() {
        let unsupported = Outcome::Unsupported("no shell".into());
        assert!(report(&[Outcome::Passed, unsupported.clone()]).is_ok());
        assert!(!report(&[Outcome::Passed, Outcome::Failed("no".into())]).is_ok());
        assert!(!report(&[unsupported]).is_ok());
        assert!(!report(&[]).is_ok());
    }

    #[test]
    fn what_failed_stands_at_the_end() {
        let shown = report(&[Outcome::Failed("no".into()), Outcome::Passed]).to_string();
        let begins: Vec<_> = shown.lines().map(|line| line.trim().split(' ').next().unwrap_or_default()).collect();
        assert_eq!(begins, ["pass", "FAIL", "no", "x:"], "{shown}");
    }

    #[test]
    fn what_is_unsupported_is_compared_in_both_directions() {
        let report = report(&[Outcome::Passed, Outcome::Unsupported("the image has no shell".into())]);
        assert_eq!(report.unsupported_unlike(&[("a.b", "no shell")]), Vec::<String>::new());
        let others = report.unsupported_unlike(&[("a.b", "no network"), ("c.d", "no shell")]);
        assert!(others[0].contains("no network") && others[0].contains("no shell"), "{others:?}");
        assert_eq!(others[1..], ["c.d is no longer unsupported"]);
        assert!(report.unsupported_unlike(&[])[0].starts_with("none a.b"));
    }

    #[test]
    fn json_round_trips_and_text_names_the_failure() {
        let report = report(&[Outcome::Passed, Outcome::Failed("found 0, not 42".into())]);
        let json = serde_json::to_string(&report).unwrap();
        assert!(json.contains(r#""outcome":"failed","reason":"found 0, not 42","duration":"1s500ms""#), "{json}");
        assert_eq!(serde_json::from_str::<Report>(&json).unwrap(), report);
        let text = report.to_string();
        assert!(text.contains("FAIL a.b") && text.contains("found 0, not 42") && text.contains("1 passed, 1 failed"));
    }
}

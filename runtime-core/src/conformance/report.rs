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

/// A whole run. `Display` is a table for people; serde's JSON is for programs.
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
        for check in &self.checks {
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
    fn json_round_trips_and_text_names_the_failure() {
        let report = report(&[Outcome::Passed, Outcome::Failed("found 0, not 42".into())]);
        let json = serde_json::to_string(&report).unwrap();
        assert!(json.contains(r#""outcome":"failed","reason":"found 0, not 42","duration":"1s500ms""#), "{json}");
        assert_eq!(serde_json::from_str::<Report>(&json).unwrap(), report);
        let text = report.to_string();
        assert!(text.contains("FAIL a.b") && text.contains("found 0, not 42") && text.contains("1 passed, 1 failed"));
    }
}

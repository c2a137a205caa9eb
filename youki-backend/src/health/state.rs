//! What checks have come to, by docker's rules, as it stands in the run directory.

use std::time::Duration;

use chrono::{DateTime, Utc};
use runtime_core::spec::HealthSpec;
use serde::{Deserialize, Serialize};

use crate::record::ContainerRecord;

/// Time between checks while a container is starting, unless its interval is shorter; docker's.
const START_INTERVAL: Duration = Duration::from_secs(5);

/// Whether an attempt of a container is well.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct HealthState {
    /// Tells the container from an earlier one by its name.
    #[serde(with = "runtime_core::time")]
    pub created_at: DateTime<Utc>,
    pub attempt: u32,
    pub status: Status,
    /// Failures in a row.
    pub failing_streak: u32,
    /// Of the last check.
    pub last_output: Option<String>,
    /// When that ended.
    #[serde(with = "runtime_core::time::option")]
    pub checked_at: Option<DateTime<Utc>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Status {
    Starting,
    Healthy,
    Unhealthy,
}

impl Status {
    pub fn word(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        }
    }
}

/// What a check came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tried {
    pub passed: bool,
    pub output: String,
}

impl HealthState {
    /// Of an attempt that was not checked yet.
    pub fn new(record: &ContainerRecord, attempt: u32) -> Self {
        Self {
            created_at: record.created_at,
            attempt,
            status: Status::Starting,
            failing_streak: 0,
            last_output: None,
            checked_at: None,
        }
    }

    /// Whether it is of the current attempt of `record`.
    pub fn is_of(&self, record: &ContainerRecord) -> bool {
        self.created_at == record.created_at && self.attempt == record.attempt
    }

    /// Takes a check in; true if the status is another one then. `age`: how long ago the attempt was started.
    pub fn take(&mut self, tried: Tried, plan: &HealthSpec, age: Duration, now: DateTime<Utc>) -> bool {
        let before = self.status;
        if tried.passed {
            self.failing_streak = 0;
            self.status = Status::Healthy;
        } else if self.status != Status::Starting || age >= plan.start_grace {
            self.failing_streak = self.failing_streak.saturating_add(1);
            if self.failing_streak >= plan.retries {
                self.status = Status::Unhealthy;
            }
        }
        self.last_output = Some(tried.output);
        self.checked_at = Some(now);
        self.status != before
    }

    /// Time until the next check, from the last one or the start.
    pub fn pause(&self, plan: &HealthSpec, age: Duration) -> Duration {
        let starting = self.status == Status::Starting && age < plan.start_grace;
        if starting { plan.interval.min(START_INTERVAL) } else { plan.interval }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use runtime_core::spec::HealthCheck;

    fn plan(start_grace: u64) -> HealthSpec {
        HealthSpec {
            check: HealthCheck::Tcp { port: 1 },
            start_grace: Duration::from_secs(start_grace),
            interval: Duration::from_secs(30),
            timeout: Duration::from_secs(1),
            retries: 3,
        }
    }

    fn state() -> HealthState {
        let (status, failing_streak, last_output) = (Status::Starting, 0, None);
        HealthState { created_at: Utc::now(), attempt: 1, status, failing_streak, last_output, checked_at: None }
    }

    /// The words after checks that passed (`+`) or failed (`-`), each a second after the one before, and the changes.
    fn words(start_grace: u64, checks: &str) -> (String, usize) {
        let (mut state, plan, mut changes) = (state(), plan(start_grace), 0);
        let mut words = String::new();
        for (age, check) in checks.chars().enumerate() {
            let tried = Tried { passed: check == '+', output: String::new() };
            changes += usize::from(state.take(tried, &plan, Duration::from_secs(age as u64), Utc::now()));
            words.push(match state.status {
                Status::Starting => 's',
                Status::Healthy => 'h',
                Status::Unhealthy => 'u',
            });
        }
        (words, changes)
    }

    #[test]
    fn failures_in_a_row_make_it_unhealthy_and_one_success_healthy() {
        assert_eq!(words(0, "--+--+---+"), ("sshhhhhhuh".into(), 3));
        assert_eq!(words(0, "---"), ("ssu".into(), 1));
    }

    #[test]
    fn while_it_may_start_failures_do_not_count_but_after_a_success_they_do() {
        assert_eq!(words(5, "-------"), ("sssssss".into(), 0));
        assert_eq!(words(5, "--------"), ("sssssssu".into(), 1));
        assert_eq!(words(100, "-+---"), ("shhhu".into(), 2));
    }

    #[test]
    fn while_it_may_start_it_is_checked_more_often() {
        let (mut state, plan) = (state(), plan(60));
        assert_eq!(state.pause(&plan, Duration::ZERO), START_INTERVAL);
        assert_eq!(state.pause(&plan, Duration::from_secs(60)), plan.interval);
        state.status = Status::Healthy;
        assert_eq!(state.pause(&plan, Duration::ZERO), plan.interval);
        let often = HealthSpec { interval: Duration::from_secs(1), ..plan };
        assert_eq!(state.pause(&often, Duration::ZERO), often.interval);
    }
}

//! Containers: how they are named, what they can be doing, how they end.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::spec::PortMapping;

/// Longest service name. With `-rep-<n>` behind it, it still fits a file name.
pub const MAX_SERVICE_NAME_LEN: usize = 200;

/// Names one container: a replica of a service. Displayed as `{service}-rep-{replica}`.
///
/// It becomes a path and a cgroup name, so backends refuse one that [`ContainerId::validate`] refuses.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ContainerId {
    /// The service.
    pub service: String,
    /// Which of its replicas, from 0.
    pub replica: u32,
}

/// Why a text is not a container's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} is not a container name: {reason}")]
pub struct InvalidId {
    /// The name as given.
    pub name: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

impl ContainerId {
    /// Replica `replica` of `service`, unchecked: [`ContainerId::validate`] tells whether it can be used.
    #[must_use]
    pub fn new(service: impl Into<String>, replica: u32) -> Self {
        Self { service: service.into(), replica }
    }

    /// Checks the service's name: `[A-Za-z0-9][A-Za-z0-9_.-]{0,199}`, not itself ending in `-rep-<n>`.
    ///
    /// # Errors
    /// [`InvalidId`], saying what is wrong.
    pub fn validate(&self) -> Result<(), InvalidId> {
        let reason = if self.service.is_empty() {
            "it is empty"
        } else if self.service.len() > MAX_SERVICE_NAME_LEN {
            "it is longer than 200 characters"
        } else if !self.service.as_bytes()[0].is_ascii_alphanumeric() {
            "it must begin with a letter or a digit"
        } else if !self.service.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b)) {
            "only letters, digits, '_', '.' and '-' are allowed"
        } else if split_replica(&self.service).is_some() {
            "a service may not end in -rep-<number>, which names a replica"
        } else {
            return Ok(());
        };
        Err(InvalidId { name: self.service.clone(), reason })
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-rep-{}", self.service, self.replica)
    }
}

/// Reads `web-rep-2`, or `web` as replica 0, and validates it.
///
/// ```
/// use runtime_core::ContainerId;
/// assert_eq!("web".parse(), Ok(ContainerId::new("web", 0)));
/// assert_eq!("web-rep-2".parse(), Ok(ContainerId::new("web", 2)));
/// assert!("../web".parse::<ContainerId>().is_err());
/// ```
impl FromStr for ContainerId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let id = match split_replica(text) {
            Some((service, replica)) => Self::new(service, replica),
            None => Self::new(text, 0),
        };
        id.validate()?;
        Ok(id)
    }
}

/// `web-rep-2` as `("web", 2)`; only the one spelling that `Display` writes.
fn split_replica(text: &str) -> Option<(&str, u32)> {
    let (service, number) = text.rsplit_once("-rep-")?;
    let replica: u32 = number.parse().ok()?;
    (!service.is_empty() && replica.to_string() == number).then_some((service, replica))
}

/// What a container is doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ContainerState {
    /// Its image is being pulled, or it is being created.
    Pending,
    /// Created and not started, or waiting to be restarted.
    Initializing,
    /// Its process runs (or is paused; inspect tells).
    Running,
    /// It was told to stop and has not ended yet.
    Stopping,
    /// Its process ended.
    Exited {
        /// The exit code, 128+N after signal N.
        code: i32,
    },
    /// It could not start, its supervisor was lost, or its host rebooted.
    Failed {
        /// Which of these, and why.
        reason: String,
    },
}

impl ContainerState {
    /// The state as one lower-case word: `pending`, `initializing`, `running`, `stopping`, `exited`, `failed`.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Initializing => "initializing",
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::Exited { .. } => "exited",
            Self::Failed { .. } => "failed",
        }
    }

    /// Whether the current attempt is over.
    #[must_use]
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Exited { .. } | Self::Failed { .. })
    }
}

/// Why a container's process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum WaitReason {
    /// By itself, with its exit code.
    Exited,
    /// By a signal.
    Signal,
    /// The kernel killed its init for want of memory.
    OomKilled,
    /// It is not known how: its supervisor was lost, its host rebooted, or it never ran.
    RuntimeError,
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitOutcome {
    /// The exit code, 128+N after signal N, 137 when unknown.
    pub exit_code: i32,
    /// Why it ended.
    pub reason: WaitReason,
    /// The signal's name (`SIGKILL`), when one ended it.
    pub signal: Option<String>,
    /// When it ended, if that was seen.
    #[serde(with = "crate::time::option")]
    pub finished_at: Option<DateTime<Utc>>,
}

impl WaitOutcome {
    /// An ordinary exit with `exit_code` at an unknown time.
    #[must_use]
    pub fn exited(exit_code: i32) -> Self {
        Self { exit_code, reason: WaitReason::Exited, signal: None, finished_at: None }
    }
}

/// What `inspect_detailed` returns.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerInspectDetails {
    /// Published ports, ephemeral ones with the number they got.
    pub ports: Vec<PortMapping>,
    /// Networks the container is attached to.
    pub networks: Vec<NetworkAttachmentDetail>,
    /// First IPv4 address.
    pub ipv4: Option<String>,
    /// Health, when a check is configured.
    pub health: Option<HealthDetail>,
    /// Exit code of the last attempt, when it is over.
    pub exit_code: Option<i32>,
}

/// One network a container is attached to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkAttachmentDetail {
    /// The network's name.
    pub network: String,
    /// Further names of the container in it.
    pub aliases: Vec<String>,
    /// The container's address in it.
    pub ipv4: Option<String>,
}

/// What the health check last said.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthDetail {
    /// `none`, `starting`, `healthy` or `unhealthy`.
    pub status: String,
    /// Failures in a row.
    pub failing_streak: Option<u32>,
    /// Output of the last check, bounded.
    pub last_output: Option<String>,
}

/// One line of a container listing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerSummary {
    /// The container.
    pub id: ContainerId,
    /// What it is doing.
    pub state: ContainerState,
    /// The image reference it was created from.
    pub image: String,
    /// The labels of its spec.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Its init's process id in the agent's PID namespace, while it runs.
    pub pid: Option<u32>,
    /// When it was created.
    #[serde(with = "crate::time")]
    pub created_at: DateTime<Utc>,
}

/// One process of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopEntry {
    /// Process id in the agent's PID namespace.
    pub pid: u32,
    /// Its parent's.
    pub ppid: u32,
    /// The effective user id, as seen from the host.
    pub user: String,
    /// Command line, or the thread name in brackets where there is none.
    pub command: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_that_would_leave_its_directory_or_clash_is_refused() {
        let long = "a".repeat(201);
        for bad in ["", ".", "..", "../x", "a/b", "-a", "_a", "a b", "a\n", "a\0", "ä", &long, "a-rep-1-rep-2"] {
            assert!(bad.parse::<ContainerId>().is_err(), "{bad:?} was accepted");
        }
        assert!(ContainerId::new("web-rep-1", 0).validate().is_err());
    }

    #[test]
    fn display_and_parse_are_inverse() {
        for id in
            [ContainerId::new("web", 0), ContainerId::new("a.b_c-d", 4_294_967_295), ContainerId::new("w-rep-01", 3)]
        {
            assert_eq!(id.to_string().parse(), Ok(id));
        }
    }
}

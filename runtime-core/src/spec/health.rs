//! Health checks.

use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use super::duration;
use super::tagged::Tagged;

/// Time after start in which failures do not count, unless the spec names one.
pub const DEFAULT_START_GRACE: Duration = Duration::from_secs(5);
/// Time between checks, as docker's.
pub const DEFAULT_INTERVAL: Duration = Duration::from_secs(30);
/// Time a check may take, as docker's.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
/// Failures in a row that make a container unhealthy, as docker's.
pub const DEFAULT_RETRIES: u32 = 3;

/// How to tell whether a container is well.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HealthSpec {
    /// What to try.
    pub check: HealthCheck,
    /// Time after start in which failures do not count.
    #[serde(default = "default_start_grace", with = "duration")]
    pub start_grace: Duration,
    /// Time between checks.
    #[serde(default = "default_interval", with = "duration")]
    pub interval: Duration,
    /// Time a check may take.
    #[serde(default = "default_timeout", with = "duration")]
    pub timeout: Duration,
    /// Failures in a row that make it unhealthy.
    #[serde(default = "default_retries")]
    pub retries: u32,
}

/// What a health check tries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum HealthCheck {
    /// A connection to a port of the container.
    Tcp {
        /// The port.
        port: u16,
    },
    /// A GET that answers with the expected status.
    Http {
        /// The URL, from within the container's network.
        url: String,
        /// The status; any 2xx or 3xx if `None`.
        #[serde(skip_serializing_if = "Option::is_none")]
        expect_status: Option<u16>,
    },
    /// A command in the container that exits with 0.
    Command {
        /// Program and arguments.
        command: Vec<String>,
    },
}

impl<'de> Deserialize<'de> for HealthCheck {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut fields = Tagged::read(deserializer)?;
        let kind: String = fields.take("type")?;
        let (read, known): (_, &[&str]) = match kind.as_str() {
            "tcp" => (Self::Tcp { port: fields.take("port")? }, &["port"]),
            "http" => (
                Self::Http { url: fields.take("url")?, expect_status: fields.take_or_default("expect_status")? },
                &["url", "expect_status"],
            ),
            "command" => (Self::Command { command: fields.take("command")? }, &["command"]),
            other => return Err(D::Error::unknown_variant(other, &["tcp", "http", "command"])),
        };
        fields.end(known)?;
        Ok(read)
    }
}

fn default_start_grace() -> Duration {
    DEFAULT_START_GRACE
}

fn default_interval() -> Duration {
    DEFAULT_INTERVAL
}

fn default_timeout() -> Duration {
    DEFAULT_TIMEOUT
}

fn default_retries() -> u32 {
    DEFAULT_RETRIES
}

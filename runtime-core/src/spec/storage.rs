//! Mounts and volumes.

use serde::{Deserialize, Serialize};

use super::byte_size::ByteSize;

/// Something mounted into the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum StorageSpec {
    /// A host path, which must exist.
    Bind {
        /// Absolute path on the host.
        source: String,
        /// Absolute path in the container.
        target: String,
        /// Mounted read-only.
        #[serde(default)]
        readonly: bool,
    },
    /// A named volume: kept on this host, synced to S3, restored where the service next runs.
    Named {
        /// The volume's name.
        name: String,
        /// Absolute path in the container.
        target: String,
        /// Mounted read-only; needs no claim.
        #[serde(default)]
        readonly: bool,
        /// Stored and shown only; `local` if `None`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        tier: Option<String>,
        /// Largest size of its data.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        size: Option<ByteSize>,
        /// Take it over from a host that still claims it. Only the orchestrator knows that that host is dead.
        #[serde(default)]
        take_over: bool,
    },
    /// A volume that dies with the container.
    Anonymous {
        /// Absolute path in the container.
        target: String,
    },
    /// A filesystem in memory.
    Tmpfs {
        /// Absolute path in the container.
        target: String,
        /// Largest size; half of the host's memory if `None`, charged to the container.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        size: Option<ByteSize>,
        /// Mode of its root; 1777 if `None`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        mode: Option<u32>,
    },
    /// A bucket prefix as files.
    S3 {
        /// The bucket.
        bucket: String,
        /// The prefix within it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        prefix: Option<String>,
        /// Absolute path in the container.
        target: String,
        /// Mounted read-only.
        #[serde(default)]
        readonly: bool,
    },
}

impl StorageSpec {
    /// Where it is mounted.
    #[must_use]
    pub fn target(&self) -> &str {
        match self {
            Self::Bind { target, .. }
            | Self::Named { target, .. }
            | Self::Anonymous { target }
            | Self::Tmpfs { target, .. }
            | Self::S3 { target, .. } => target,
        }
    }
}

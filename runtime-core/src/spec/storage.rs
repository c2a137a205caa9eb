//! Mounts and volumes.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use super::byte_size::ByteSize;
use super::tagged::Tagged;

/// Something mounted into the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum StorageSpec {
    /// A host path, which must exist.
    Bind {
        /// Absolute path on the host.
        source: String,
        /// Absolute path in the container.
        target: String,
        /// Mounted read-only.
        readonly: bool,
    },
    /// A named volume: kept on this host, synced to S3, restored where the service next runs.
    Named {
        /// The volume's name.
        name: String,
        /// Absolute path in the container.
        target: String,
        /// Mounted read-only; needs no claim.
        readonly: bool,
        /// Stored and shown only; `local` if `None`.
        #[serde(skip_serializing_if = "Option::is_none")]
        tier: Option<String>,
        /// Largest size of its data.
        #[serde(skip_serializing_if = "Option::is_none")]
        size: Option<ByteSize>,
        /// Take it over from a host that still claims it. Only the orchestrator knows that that host is dead.
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
        #[serde(skip_serializing_if = "Option::is_none")]
        size: Option<ByteSize>,
        /// Mode of its root; 1777 if `None`.
        #[serde(skip_serializing_if = "Option::is_none")]
        mode: Option<u32>,
    },
    /// A bucket prefix as files.
    S3 {
        /// The bucket.
        bucket: String,
        /// The prefix within it.
        #[serde(skip_serializing_if = "Option::is_none")]
        prefix: Option<String>,
        /// Absolute path in the container.
        target: String,
        /// Mounted read-only.
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

impl<'de> Deserialize<'de> for StorageSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut fields = Tagged::read(deserializer)?;
        let kind: String = fields.take("type")?;
        let (read, known): (_, &[&str]) = match kind.as_str() {
            "bind" => (
                Self::Bind {
                    source: fields.take("source")?,
                    target: fields.take("target")?,
                    readonly: fields.take_or_default("readonly")?,
                },
                &["source", "target", "readonly"],
            ),
            "named" => (
                Self::Named {
                    name: fields.take("name")?,
                    target: fields.take("target")?,
                    readonly: fields.take_or_default("readonly")?,
                    tier: fields.take_or_default("tier")?,
                    size: fields.take_or_default("size")?,
                    take_over: fields.take_or_default("take_over")?,
                },
                &["name", "target", "readonly", "tier", "size", "take_over"],
            ),
            "anonymous" => (Self::Anonymous { target: fields.take("target")? }, &["target"]),
            "tmpfs" => (
                Self::Tmpfs {
                    target: fields.take("target")?,
                    size: fields.take_or_default("size")?,
                    mode: fields.take_or_default("mode")?,
                },
                &["target", "size", "mode"],
            ),
            "s3" => (
                Self::S3 {
                    bucket: fields.take("bucket")?,
                    prefix: fields.take_or_default("prefix")?,
                    target: fields.take("target")?,
                    readonly: fields.take_or_default("readonly")?,
                },
                &["bucket", "prefix", "target", "readonly"],
            ),
            other => return Err(D::Error::unknown_variant(other, &["bind", "named", "anonymous", "tmpfs", "s3"])),
        };
        fields.end(known)?;
        Ok(read)
    }
}

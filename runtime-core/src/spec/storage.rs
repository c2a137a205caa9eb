//! Mounts and volumes.

use std::fmt;

use serde::de::{self, Error as _, Unexpected, Visitor};
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
        /// Mode of its root; 0o1777 if `None`. May be written as a text of octal digits, too.
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

/// A number, or a text of octal digits.
struct Mode(u32);

impl<'de> Deserialize<'de> for Mode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ModeVisitor).map(Self)
    }
}

struct ModeVisitor;

impl Visitor<'_> for ModeVisitor {
    type Value = u32;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number, or a text of octal digits, as \"1777\"")
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<u32, E> {
        u32::try_from(number).map_err(|_| E::invalid_value(Unexpected::Unsigned(number), &self))
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<u32, E> {
        u32::try_from(number).map_err(|_| E::invalid_value(Unexpected::Signed(number), &self))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<u32, E> {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let mode = digits.then(|| u32::from_str_radix(text, 8).ok()).flatten();
        mode.ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
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
                    mode: fields.take_or_default::<Option<Mode>, _>("mode")?.map(|mode| mode.0),
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

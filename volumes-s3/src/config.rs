//! Where volumes live, here and in S3.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Configuration of a [`crate::VolumeStore`].
#[derive(Debug, Clone, Default)]
pub struct VolumesConfig {
    /// `<data root>/volumes`.
    pub root: PathBuf,
    /// The run directory of the runtime. Nothing of a volume is kept there: all its state outlives a reboot.
    pub run_dir: PathBuf,
    /// What this host (with this data root) is called in claims. Stable over reboots, different on every host.
    pub host: String,
    /// The bucket; without one volumes stay on this host.
    pub s3: Option<S3Config>,
    /// Taking a claim over by time. Not built yet: [`crate::VolumeStore::open`] answers
    /// [`crate::Error::Unsupported`] when it is set.
    pub take_over_after: Option<Duration>,
}

/// The bucket that generations go to. Credentials come from the usual AWS chain.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct S3Config {
    /// Name of the bucket. It must exist.
    pub bucket: String,
    /// URL of an S3-compatible server. Given, it also means path style.
    pub endpoint: Option<String>,
    /// Prepended to every key, a `/` between.
    pub prefix: Option<String>,
    /// Region; with an endpoint `us-east-1` if not given, else as the AWS chain has it.
    pub region: Option<String>,
    /// Permits a server that lets several writers win a put-if-absent: two hosts may then both believe they own a
    /// volume.
    pub allow_racy_put: bool,
    /// Server-side encryption asked for with each object: `AES256` or `aws:kms`.
    pub sse: Option<String>,
}

impl S3Config {
    /// The endpoint and bucket as messages name them.
    pub(crate) fn location(&self) -> String {
        format!("{}/{}", self.endpoint.as_deref().unwrap_or("s3://"), self.bucket)
    }

    /// The way to a place of volumes. Several may lead to one: which place it is, the place itself tells.
    pub(crate) fn address(&self) -> String {
        let endpoint = self.endpoint.as_deref().unwrap_or("aws").trim_end_matches('/');
        format!("{endpoint}|{}|{}", self.bucket, self.key_prefix())
    }

    /// The prefix of every key, with its `/`, or nothing.
    pub(crate) fn key_prefix(&self) -> String {
        match self.prefix.as_deref().map(|prefix| prefix.trim_matches('/')) {
            None | Some("") => String::new(),
            Some(prefix) => format!("{prefix}/"),
        }
    }
}

//! Images, and how they are fetched.

use std::fmt;
use std::path::PathBuf;
use std::pin::Pin;
use std::str::FromStr;

use futures_core::Stream;
use serde::{Deserialize, Serialize};

use crate::error::AgentError;

/// A local image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageInfo {
    /// Its full reference.
    pub reference: String,
    /// Digest of its manifest, `sha256:…`.
    pub digest: Option<String>,
    /// Bytes of its compressed layers and config.
    pub size_bytes: Option<u64>,
}

/// All that is known of a local image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageDetails {
    /// Its full reference.
    pub reference: String,
    /// Digest of its manifest, `sha256:…`.
    pub digest: String,
    /// Digest of its config: its id.
    pub id: String,
    /// Bytes of its compressed layers and config.
    pub size_bytes: u64,
    /// Where its layers are unpacked on this host, bottom first.
    pub layers: Vec<PathBuf>,
    /// Its configuration, as OCI's image specification has it.
    pub config: serde_json::Value,
}

/// One step of an image's build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryStep {
    /// When it was made (RFC 3339).
    pub created: Option<String>,
    /// The command that made it.
    pub created_by: Option<String>,
    /// What the builder says of it.
    pub comment: Option<String>,
    /// Digest of the blob of the layer that it made, if it made one.
    pub layer: Option<String>,
    /// Bytes of that blob.
    pub size_bytes: u64,
}

/// How a pull, or a push, goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PullEvent {
    /// The manifest is known.
    Resolved {
        /// Its digest.
        digest: String,
        /// Digest and size of each layer's blob, bottom first.
        layers: Vec<(String, u64)>,
    },
    /// One layer.
    Layer {
        /// Digest of its blob.
        digest: String,
        /// What is being done.
        phase: LayerPhase,
        /// Bytes that arrived, or that were sent.
        bytes: u64,
        /// Bytes of the blob.
        total: u64,
    },
    /// The image is there.
    Done {
        /// Digest of its manifest.
        digest: String,
    },
}

/// Where a layer is in a pull, or in a push.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerPhase {
    /// It was there already, or another pull fetched it.
    Exists,
    /// It arrives and is unpacked meanwhile.
    Downloading,
    /// It is whole, verified and on disk.
    Unpacked,
    /// It is on its way to the registry.
    Uploading,
    /// The registry has it.
    Uploaded,
}

/// A pull as it goes. Its last item is [`PullEvent::Done`], or the error that the pull failed with. Dropping it stops the
/// pull; what arrived whole stays for the next one.
pub type PullEventStream = Pin<Box<dyn Stream<Item = Result<PullEvent, AgentError>> + Send>>;

/// What a prune removed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PruneResult {
    /// What is gone: references, and digests of blobs and layers.
    pub deleted: Vec<String>,
    /// Bytes freed.
    pub space_reclaimed: u64,
}

/// When to ask the registry.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PullPolicy {
    /// Always; what is here already is not fetched again.
    Always,
    /// Only when the reference is not here.
    #[default]
    IfNotPresent,
    /// Never; no network call at all is made.
    Never,
}

/// `always`, `missing` (or `if_not_present`, `if-not-present`), `never`.
impl FromStr for PullPolicy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "always" => Ok(Self::Always),
            "missing" | "if_not_present" | "if-not-present" => Ok(Self::IfNotPresent),
            "never" => Ok(Self::Never),
            _ => Err(format!("{text:?} is not a pull policy: always, missing or never")),
        }
    }
}

/// How the credentials of a [`RegistryAuth`] are used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RegistryAuthType {
    /// User name and password.
    #[default]
    Basic,
    /// The password is a bearer token.
    Token,
}

/// Credentials for one pull. Debug shows no password, and memory is wiped on drop.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistryAuth {
    /// User name; ignored for a token.
    pub username: String,
    /// Password or token.
    pub password: String,
    /// Which of the two.
    #[serde(default)]
    pub auth_type: RegistryAuthType,
}

impl fmt::Debug for RegistryAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegistryAuth")
            .field("username", &self.username)
            .field("password", &"***")
            .field("auth_type", &self.auth_type)
            .finish()
    }
}

impl Drop for RegistryAuth {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.password);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_no_secret() {
        let secret = crate::Secret::new("hunter2".into());
        let auth =
            RegistryAuth { username: "u".into(), password: "hunter2".into(), auth_type: RegistryAuthType::Basic };
        assert!(!format!("{auth:?} {secret:?}").contains("hunter2"));
    }
}

//! Images, and how they are fetched.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

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

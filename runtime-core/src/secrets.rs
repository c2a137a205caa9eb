//! Secrets: what an agent gives to containers by name, and nobody stores.

use std::fmt;

use async_trait::async_trait;
use zeroize::Zeroizing;

use crate::error::Result;

/// A text that is wiped from memory on drop and not shown by Debug.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Wraps `value`.
    #[must_use]
    pub fn new(value: String) -> Self {
        Self(Zeroizing::new(value))
    }

    /// The text itself.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(***)")
    }
}

/// Gives the values of `$S:name` in a spec's environment.
#[async_trait]
pub trait SecretsProvider: Send + Sync {
    /// The secret `name`.
    async fn secret(&self, name: &str) -> Result<Secret>;
}

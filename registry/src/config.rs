//! What a store is opened with.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::limits::Limits;

/// Configuration of an [`ImageStore`](crate::ImageStore).
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// The data root; `images/` and `layers/` in it belong to the store.
    pub root: PathBuf,
    /// Registries that are dealt with in a special way, by `host` or `host:port` as written in references.
    pub registries: BTreeMap<String, RegistryConfig>,
    /// What is refused.
    pub limits: Limits,
    /// Keep no compressed layer that is unpacked. What needs one, a push or a save, fetches it again.
    pub drop_blobs: bool,
}

impl StoreConfig {
    /// The defaults for a data root.
    #[must_use]
    pub fn new(root: PathBuf) -> Self {
        Self { root, registries: BTreeMap::new(), limits: Limits::default(), drop_blobs: false }
    }
}

/// How one registry is dealt with.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RegistryConfig {
    /// Speak plain HTTP to it. 127.0.0.0/8, `[::1]` and `localhost` do anyway.
    pub plain_http: bool,
    /// Hosts (`host[:port]`) that are asked first, in this order, each with a configuration and credentials of its own.
    /// One that fails is passed over.
    pub mirrors: Vec<String>,
    /// PEM file of certificates to be trusted beside the system's.
    pub ca: Option<PathBuf>,
    /// Layers that are fetched from it at once; fewer than the limit on layers at once, if at all.
    pub max_connections: Option<usize>,
}

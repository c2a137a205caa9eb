//! The few requests that volumes make of an object store, and S3 as one.
//!
//! Everything that is S3 stands in `s3`; without the feature of that name there is no way to open one.

#[cfg(feature = "s3")]
mod patience;
#[cfg(feature = "s3")]
mod s3;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use crate::config::S3Config;
use crate::error::Result;

/// How a put-if-absent ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
// Without a client nothing is put.
#[cfg_attr(not(feature = "s3"), allow(dead_code))]
pub(crate) enum Put {
    /// The object is ours.
    Created,
    /// Another object has the key, or a race for it is going on: read it back.
    Exists,
}

/// An object as a listing tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listed {
    pub key: String,
    pub size: u64,
}

impl Listed {
    /// What follows the last `/` of its key.
    pub(crate) fn name(&self) -> &str {
        self.key.rsplit('/').next().unwrap_or_default()
    }
}

/// Requests of volumes. Reads and plain puts are repeated a bounded number of times; a put-if-absent never is: its
/// error means that the outcome is unknown.
#[async_trait]
pub(crate) trait ObjectStore: Send + Sync + fmt::Debug {
    /// Puts an object, whatever was there.
    async fn put(&self, key: &str, body: Bytes) -> Result<()>;
    /// Puts an object if the key is free.
    async fn put_if_absent(&self, key: &str, body: Bytes) -> Result<Put>;
    /// An object or a range of it; more than `limit` bytes are an error. `None` if there is none.
    async fn get(&self, key: &str, range: Option<Range<u64>>, limit: usize) -> Result<Option<Bytes>>;
    /// Its size. `None` if there is none.
    async fn size(&self, key: &str) -> Result<Option<u64>>;
    /// Up to a page of objects whose keys begin with `prefix`, in order, from the first one after `after`.
    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Vec<Listed>>;
    /// All of them, page by page.
    async fn list_all(&self, prefix: &str) -> Result<Vec<Listed>> {
        let mut found: Vec<Listed> = Vec::new();
        loop {
            let page = self.list(prefix, found.last().map(|last| last.key.as_str())).await?;
            if page.is_empty() {
                return Ok(found);
            }
            found.extend(page);
        }
    }
    /// Deletes an object; one that is not there is no error.
    async fn delete(&self, key: &str) -> Result<()>;
    /// Ok if the bucket exists.
    async fn check_bucket(&self) -> Result<()>;
}

/// Opens the bucket of `config`. No request is made.
#[cfg(feature = "s3")]
pub(crate) async fn open(config: &S3Config) -> Result<Arc<dyn ObjectStore>> {
    Ok(Arc::new(s3::S3::open(config).await?))
}

/// Without the feature there is nothing to open.
#[cfg(not(feature = "s3"))]
pub(crate) async fn open(_config: &S3Config) -> Result<Arc<dyn ObjectStore>> {
    Err(crate::error::Error::Unsupported { what: "S3 (this build has no feature `s3`)".into() })
}

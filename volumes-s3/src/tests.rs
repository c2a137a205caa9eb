//! Whole volumes over an object store in this process, which can be away, and lose answers. The suite against a real
//! server is youki-backend's.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use tempfile::TempDir;

use crate::error::Result;
use crate::{AcquireOptions, S3Config, VolumeStore, VolumesConfig};
use memory::Memory;

mod begun_anew;
mod copies;
mod damaged;
mod deep;
mod folds;
mod foreign;
mod going_back;
mod histories;
mod locks;
mod memory;
mod model;
mod owners;
mod pruned_while_read;
mod prunes;
mod readers;
mod refusals;
mod removals;
mod renewals;
mod statuses;
mod trouble;
mod unused;
mod whole_trees;

/// A data root with a runtime of its own name.
struct Host {
    store: VolumeStore,
    _root: TempDir,
}

impl Host {
    async fn new(name: &str, memory: &Arc<Memory>) -> Self {
        Self::with(name, memory, |s3| s3).await
    }

    async fn with(name: &str, memory: &Arc<Memory>, change: impl FnOnce(S3Config) -> S3Config) -> Self {
        // In memory: every sync also syncs the filesystem, and a busy disk makes that slow.
        let root = TempDir::new_in("/dev/shm").or_else(|_| TempDir::new()).unwrap();
        Self { store: open(root.path(), name, memory, change).await, _root: root }
    }

    /// One whose prunes keep the newest `last`.
    async fn keeping(name: &str, memory: &Arc<Memory>, last: u32) -> Self {
        let root = TempDir::new_in("/dev/shm").or_else(|_| TempDir::new()).unwrap();
        let keep = Some(crate::Keep { last, ..crate::Keep::default() });
        let config = VolumesConfig { keep, ..config(root.path(), name) };
        Self { store: VolumeStore::open_with(config, memory.clone()).await.unwrap(), _root: root }
    }

    /// Another process on the same root.
    async fn again(&self, name: &str, memory: &Arc<Memory>, change: impl FnOnce(S3Config) -> S3Config) -> VolumeStore {
        open(self._root.path(), name, memory, change).await
    }

    /// A process on the same root that has no bucket.
    async fn without_bucket(&self, name: &str) -> VolumeStore {
        VolumeStore::open(VolumesConfig { s3: None, ..config(self._root.path(), name) }).await.unwrap()
    }

    async fn acquire(&self) -> Result<crate::Acquired> {
        self.store.acquire("v", "web", AcquireOptions::default()).await
    }

    async fn take_over(&self) -> Result<crate::Acquired> {
        self.store.acquire("v", "web", AcquireOptions { take_over: true, ..Default::default() }).await
    }

    async fn data(&self) -> std::path::PathBuf {
        self.store.status("v").await.unwrap().mountpoint
    }

    async fn write(&self, text: &str) {
        fs::write(self.data().await.join("file"), text).unwrap();
    }

    async fn read(&self) -> String {
        fs::read_to_string(self.data().await.join("file")).unwrap()
    }
}

async fn open(root: &Path, name: &str, memory: &Arc<Memory>, change: impl FnOnce(S3Config) -> S3Config) -> VolumeStore {
    let config = config(root, name);
    let config = VolumesConfig { s3: config.s3.map(change), ..config };
    VolumeStore::open_with(config, memory.clone()).await.unwrap()
}

fn config(root: &Path, name: &str) -> VolumesConfig {
    let s3 = S3Config { bucket: "test".into(), prefix: Some("p".into()), ..S3Config::default() };
    VolumesConfig {
        root: root.join("volumes"),
        host: name.into(),
        s3: Some(s3),
        keep: None,
        take_over_after: None,
        prune_grace: std::time::Duration::ZERO,
        mounted_by: None,
    }
}

fn readonly() -> AcquireOptions {
    AcquireOptions { readonly: true, ..AcquireOptions::default() }
}

fn code<T>(result: Result<T>) -> &'static str {
    result.err().map_or("ok", |error| error.code())
}

/// What ran in `process` has ended, wherever it was: nothing of it goes on once this returns.
async fn killed(process: tokio::runtime::Runtime) {
    let patience = std::time::Duration::from_secs(20);
    tokio::task::spawn_blocking(move || process.shutdown_timeout(patience)).await.unwrap();
}

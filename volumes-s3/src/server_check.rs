//! Whether a server's put-if-absent crowns one winner. Without that two hosts cannot be kept apart.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};

use crate::config::S3Config;
use crate::error::{Error, Result};
use crate::fetch::blocking;
use crate::object_store::{ObjectStore, Put};
use crate::pack::Digest;
use crate::paths::make_directories;
use crate::record::random_id;
use crate::state::{read_json, write_json_unlocked};
use crate::store::VolumeStore;

/// Writers that race for one key.
const WRITERS: u32 = 16;

/// What the race showed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerCheck {
    /// Endpoint and bucket.
    pub location: String,
    /// Writers in the race.
    pub writers: u32,
    /// How many were told they had won, the one behind the stored bytes included; 1 is right.
    pub winners: u32,
    /// When it was raced.
    #[serde(with = "runtime_core::time")]
    pub checked_at: DateTime<Utc>,
}

impl ServerCheck {
    /// Ok if one writer won, or the configuration permits more.
    pub(crate) fn verdict(&self, config: &S3Config) -> Result<()> {
        if self.winners == 1 || config.allow_racy_put {
            return Ok(());
        }
        Err(Error::RacyServer { location: self.location.clone(), winners: self.winners, writers: self.writers })
    }
}

/// Races for a key of its own, which is deleted afterwards.
pub(crate) async fn race(store: &Arc<dyn ObjectStore>, config: &S3Config) -> Result<ServerCheck> {
    store.check_bucket().await?;
    let key = format!("{}.berth-check/{}", config.key_prefix(), random_id());
    let puts = join_all((0..WRITERS).map(|writer| {
        let (store, key) = (store.clone(), key.clone());
        async move { store.put_if_absent(&key, Bytes::from(writer.to_string())).await }
    }))
    .await;
    // An answer that was lost may have been a victory: the stored bytes tell.
    let stored = store.get(&key, None, 16).await?;
    let stored = stored.and_then(|bytes| std::str::from_utf8(&bytes).ok()?.parse::<usize>().ok());
    let created = |writer: usize| matches!(puts.get(writer), Some(Ok(Put::Created)));
    let winners = (0..puts.len()).filter(|writer| created(*writer) || stored == Some(*writer)).count();
    let deleted = store.delete(&key).await;
    if winners == 0 {
        return match puts.into_iter().find_map(Result::err) {
            Some(error) => Err(error),
            None => Err(Error::corrupt(key, "sixteen writers, and none won")),
        };
    }
    deleted?;
    Ok(ServerCheck {
        location: config.location(),
        writers: WRITERS,
        winners: u32::try_from(winners).unwrap_or(WRITERS),
        checked_at: Utc::now(),
    })
}

impl VolumeStore {
    /// Races 16 writers for one key and keeps the result. The first use of a bucket does so by itself.
    ///
    /// # Errors
    /// [`Error::NoBucket`], [`Error::S3Unreachable`], [`Error::BucketMissing`]. A server that crowns several is no error
    /// here: the result says so.
    pub async fn check_server(&self) -> Result<ServerCheck> {
        let Some(config) = &self.inner.config.s3 else {
            return Err(Error::NoBucket { name: "any".into(), operation: "a check of the server" });
        };
        let check = race(&self.client(config).await?, config).await?;
        let (path, kept) = (self.server_file(config), check.clone());
        blocking("keep the check", move || {
            path.parent().map_or(Ok(()), make_directories)?;
            write_json_unlocked(&path, &kept)
        })
        .await?;
        Ok(check)
    }

    /// Refuses a server that lets several writers win; races for it if that was never done.
    pub(crate) async fn trust_server(&self) -> Result<()> {
        let Some(config) = &self.inner.config.s3 else { return Ok(()) };
        let path = self.server_file(config);
        let known = blocking("read the check", move || Ok(read_json::<ServerCheck>(&path).ok().flatten())).await?;
        match known {
            Some(check) => check.verdict(config),
            None => self.check_server().await?.verdict(config),
        }
    }

    fn server_file(&self, config: &S3Config) -> PathBuf {
        let digest = Digest::of(config.location().as_bytes()).to_string();
        self.inner.config.root.join(".servers").join(format!("{}.json", &digest[..32]))
    }
}

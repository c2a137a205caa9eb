//! An object store in this process, which can be away, hang, and lose answers.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use runtime_core::RecordKind;

use crate::error::{Error, Result};
use crate::object_store::{Listed, ObjectStore, Put};
use crate::record::Record;

/// Objects in memory.
#[derive(Debug, Default)]
pub(super) struct Memory {
    pub objects: std::sync::Mutex<BTreeMap<String, Bytes>>,
    pub away: AtomicBool,
    /// Instead of being away it refuses the credentials.
    pub refuses: AtomicBool,
    /// The next put-if-absent happens, and its answer is lost.
    pub lose_answer: AtomicBool,
    /// Every put-if-absent is told that it won.
    pub racy: AtomicBool,
    /// Somebody else takes each number of a log a moment before.
    pub others_first: AtomicBool,
    /// No request is answered.
    pub hang: AtomicBool,
    /// Nor one for a pack.
    pub hang_at_packs: AtomicBool,
    /// After so many requests it is away; 0: never.
    pub away_after: AtomicUsize,
    /// After so many requests the objects are these: what others did in that moment.
    pub turn: std::sync::Mutex<Option<(usize, BTreeMap<String, Bytes>)>>,
    /// A put-if-absent of a record waits here before it happens, if somebody bars the way.
    pub before_record: tokio::sync::RwLock<()>,
    /// A deletion of an object of this kind, as `/packs/`, waits here.
    pub before_delete: tokio::sync::RwLock<()>,
    pub delete_waits_at: std::sync::Mutex<&'static str>,
    pub deletes_waiting: AtomicUsize,
    /// A get of a pack waits here.
    pub before_pack: tokio::sync::RwLock<()>,
    pub asked: AtomicUsize,
    pub puts: AtomicUsize,
    pub put_bytes: AtomicUsize,
}

impl Memory {
    async fn reach(&self) -> Result<()> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        if self.hang.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        let left = self.away_after.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        if left == Ok(1) {
            self.away.store(true, Ordering::SeqCst);
        }
        let mut turn = self.turn.lock().unwrap();
        match turn.as_mut() {
            Some((0, _)) => *self.objects.lock().unwrap() = turn.take().map(|(_, objects)| objects).unwrap_or_default(),
            Some((left, _)) => *left -= 1,
            None => {}
        }
        drop(turn);
        match (self.away.load(Ordering::SeqCst), self.refuses.load(Ordering::SeqCst)) {
            (false, _) => Ok(()),
            (true, false) => Err(unreachable_error()),
            (true, true) => Err(Error::S3Credentials {
                operation: "test".into(),
                target: "memory".into(),
                source: "none were found".into(),
            }),
        }
    }

    pub(super) fn keys(&self, part: &str) -> Vec<String> {
        self.objects.lock().unwrap().keys().filter(|key| key.contains(part)).cloned().collect()
    }

    fn count(&self, body: &Bytes) {
        self.puts.fetch_add(1, Ordering::SeqCst);
        self.put_bytes.fetch_add(body.len(), Ordering::SeqCst);
    }
}

fn unreachable_error() -> Error {
    Error::S3Unreachable {
        operation: "test".into(),
        location: "memory".into(),
        source: Box::new(std::io::Error::from(std::io::ErrorKind::ConnectionRefused)),
    }
}

#[async_trait]
impl ObjectStore for Memory {
    async fn put(&self, key: &str, body: Bytes) -> Result<()> {
        self.reach().await?;
        self.count(&body);
        self.objects.lock().unwrap().insert(key.into(), body);
        Ok(())
    }

    async fn put_if_absent(&self, key: &str, body: Bytes) -> Result<Put> {
        self.reach().await?;
        if key.contains("/log/") {
            drop(self.before_record.read().await);
        }
        let mut objects = self.objects.lock().unwrap();
        if self.others_first.load(Ordering::SeqCst)
            && let Ok(mut record) = serde_json::from_slice::<Record>(&body)
        {
            (record.kind, record.owner, record.nonce) = (RecordKind::Released, None, "another's".into());
            objects.insert(key.into(), record.encode()?.into());
        }
        if objects.contains_key(key) && !self.racy.load(Ordering::SeqCst) {
            return Ok(Put::Exists);
        }
        self.count(&body);
        objects.insert(key.into(), body);
        if self.lose_answer.swap(false, Ordering::SeqCst) { Err(unreachable_error()) } else { Ok(Put::Created) }
    }

    async fn get(&self, key: &str, range: Option<Range<u64>>, _limit: usize) -> Result<Option<Bytes>> {
        self.reach().await?;
        if key.contains("/packs/") {
            if self.hang_at_packs.load(Ordering::SeqCst) {
                std::future::pending::<()>().await;
            }
            drop(self.before_pack.read().await);
        }
        let object = self.objects.lock().unwrap().get(key).cloned();
        Ok(object.map(|object| match range {
            Some(range) => {
                let end = (range.end as usize).min(object.len());
                object.slice((range.start as usize).min(end)..end)
            }
            None => object,
        }))
    }

    async fn size(&self, key: &str) -> Result<Option<u64>> {
        self.reach().await?;
        Ok(self.objects.lock().unwrap().get(key).map(|object| object.len() as u64))
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Vec<Listed>> {
        self.reach().await?;
        let objects = self.objects.lock().unwrap();
        let wanted = |key: &str| key.starts_with(prefix) && after.is_none_or(|after| key > after);
        let found = objects.iter().filter(|(key, _)| wanted(key)).take(1000);
        Ok(found.map(|(key, body)| Listed { key: key.clone(), size: body.len() as u64 }).collect())
    }

    async fn delete(&self, key: &str) -> Result<()> {
        self.reach().await?;
        let kind = *self.delete_waits_at.lock().unwrap();
        if key.contains(kind) {
            self.deletes_waiting.fetch_add(1, Ordering::SeqCst);
            drop(self.before_delete.read().await);
        }
        self.objects.lock().unwrap().remove(key);
        Ok(())
    }

    async fn check_bucket(&self) -> Result<()> {
        self.reach().await
    }
}

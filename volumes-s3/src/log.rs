//! The log of a volume: numbered records, each put only if its number is free.
//!
//! Only this condition is needed of a server, and no clock is trusted. A writer that finds its number taken has lost
//! the race for it and reads on to see what that means.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream;

use crate::error::{Error, Result};
use crate::object_store::{ObjectStore, Put};
use crate::record::{RECORD_LIMIT, Record};

/// `latest` is written with every so many records: it only spares a reader the start of a long log.
const HINT_EVERY: u64 = 16;
/// Keys on a full page of a listing, as S3 has it.
const LIST_PAGE: usize = 1000;
/// Longest `latest`: one decimal number.
const HINT_LIMIT: usize = 32;
/// How often the outcome of a put is asked for after its answer was lost.
const READ_BACK_ATTEMPTS: u32 = 3;
/// How often the log is listed until its newest record is still there when it is read.
const LISTINGS: u32 = 8;
/// Records read at once for a history.
const HISTORY_READS: usize = 16;

/// How an append ended.
#[derive(Debug)]
pub(crate) enum Append {
    /// The record is in the log.
    Won,
    /// Another record has the number.
    Lost,
}

/// The log of one volume.
#[derive(Debug, Clone)]
pub(crate) struct Log {
    store: Arc<dyn ObjectStore>,
    prefix: String,
}

impl Log {
    /// The log under `prefix`, which ends in `/` and is the volume's own.
    pub(crate) fn new(store: Arc<dyn ObjectStore>, prefix: String) -> Self {
        Self { store, prefix }
    }

    /// The newest record; `known` is one that was seen, and costs two requests if it still is the newest. `None` if
    /// the volume has none (and the bucket exists).
    pub(crate) async fn head(&self, known: Option<Record>) -> Result<Option<Record>> {
        if let Some(known) = known {
            // In this order: numbers are freed in theirs, so one after a record that is still there never was free before.
            let page = self.page(known.record).await?;
            // Not there any more: it was pruned, or the history was deleted, and maybe begun anew with as many records.
            // Only what bears its nonce is it.
            if self.read(known.record).await?.is_some_and(|there| there.nonce == known.nonce) {
                match self.last_listed(page).await? {
                    None => return Ok(Some(known)),
                    Some(last) => {
                        if let Some(listed) = self.read(last).await? {
                            return self.forward(Some(listed)).await;
                        }
                    }
                }
            }
        }
        let mut after = self.hint().await?.saturating_sub(1);
        for _ in 0..LISTINGS {
            let Some(last) = self.last_listed(self.page(after).await?).await? else {
                if after > 0 {
                    after = 0;
                    continue;
                }
                break;
            };
            // One that is gone by now was cut off by a prune, which is newer.
            if let Some(listed) = self.read(last).await? {
                return self.forward(Some(listed)).await;
            }
        }
        let head = self.forward(None).await?;
        if head.is_none() {
            self.store.check_bucket().await?;
        }
        Ok(head)
    }

    /// Reads on from `head` until a number is free: a listing may lag behind.
    async fn forward(&self, mut head: Option<Record>) -> Result<Option<Record>> {
        let mut next = head.as_ref().map_or(1, |record| record.record + 1);
        while let Some(record) = self.read(next).await? {
            next += 1;
            head = Some(record);
        }
        Ok(head)
    }

    /// The record with this number.
    pub(crate) async fn read(&self, number: u64) -> Result<Option<Record>> {
        let body = self.store.get(&self.key(number), None, RECORD_LIMIT).await?;
        body.map(|body| Record::decode(number, &body)).transpose()
    }

    /// Appends `record` under its number.
    ///
    /// An error means that the outcome is not known: the same record may be appended again.
    pub(crate) async fn append(&self, record: &Record) -> Result<Append> {
        let body = Bytes::from(record.encode()?);
        let key = self.key(record.record);
        let put = self.store.put_if_absent(&key, body.clone()).await;
        if let Ok(Put::Created) = put {
            self.leave_hint(record.record).await;
            return self.confirm(record).await;
        }
        // A lost answer is not a defeat, and a 409 only says that somebody else is at it: whose record is there?
        let mut put = put.map(drop);
        for _ in 0..READ_BACK_ATTEMPTS {
            match self.read(record.record).await? {
                Some(found) if found.nonce == record.nonce => return self.confirm(record).await,
                Some(_) => return Ok(Append::Lost),
                None => match self.store.put_if_absent(&key, body.clone()).await {
                    Ok(Put::Created) => return self.confirm(record).await,
                    again => put = again.map(drop),
                },
            }
        }
        put?;
        Err(Error::corrupt(key, "the server says that it exists, and that it does not"))
    }

    /// Whether `record`, which is there, is in the log: a prune frees the numbers before its own, a removal all of them, and
    /// who slept through one can take such a number. Numbers are freed in order, so where the one before is still what it
    /// was, this one was never free before. One that is not is taken away again: it would be read as the newest of a history
    /// that was begun anew.
    async fn confirm(&self, record: &Record) -> Result<Append> {
        let confirmed = match &record.previous {
            Some(nonce) => self.read(record.record - 1).await?.is_some_and(|before| before.nonce == *nonce),
            None => self.head(None).await?.is_some_and(|head| head.pruned.is_none()),
        };
        if confirmed {
            return Ok(Append::Won);
        }
        tracing::debug!(record = record.record, "its number was freed meanwhile: it is not in the log");
        self.store.delete(&self.key(record.record)).await?;
        Ok(Append::Lost)
    }

    /// All records, oldest first. What lies before the newest prune is no longer one.
    pub(crate) async fn all(&self) -> Result<Vec<Record>> {
        let mut reads = stream::iter(self.numbers().await?).map(|number| self.read(number)).buffered(HISTORY_READS);
        let mut records = Vec::new();
        while let Some(record) = reads.next().await {
            records.extend(record?);
        }
        let first = records.last().and_then(|newest: &Record| newest.pruned);
        records.retain(|record| first.is_none_or(|first| record.record >= first));
        Ok(records)
    }

    /// All numbers that have a record, in order.
    pub(crate) async fn numbers(&self) -> Result<Vec<u64>> {
        let listed = self.store.list_all(&self.records_prefix()).await?;
        Ok(listed.iter().filter_map(|object| object.name().parse().ok()).collect())
    }

    /// Those on one page after `after`.
    async fn page(&self, after: u64) -> Result<Vec<u64>> {
        let listed = self.store.list(&self.records_prefix(), Some(&self.key(after))).await?;
        Ok(listed.iter().filter_map(|object| object.name().parse().ok()).collect())
    }

    /// What the keys of all records begin with.
    pub(crate) fn records_prefix(&self) -> String {
        format!("{}log/", self.prefix)
    }

    /// The key of a record.
    pub(crate) fn key(&self, number: u64) -> String {
        format!("{}{number:020}", self.records_prefix())
    }

    /// The key of the hint.
    fn hint_key(&self) -> String {
        format!("{}latest", self.prefix)
    }

    /// The last number from `page` on, which came after `after`.
    async fn last_listed(&self, mut page: Vec<u64>) -> Result<Option<u64>> {
        let mut last = None;
        while let Some(number) = page.last().copied() {
            last = Some(number);
            // A page that is not full is the last one.
            if page.len() < LIST_PAGE {
                break;
            }
            page = self.page(number).await?;
        }
        Ok(last)
    }

    async fn hint(&self) -> Result<u64> {
        let hint = self.store.get(&self.hint_key(), None, HINT_LIMIT).await?;
        Ok(hint.and_then(|text| std::str::from_utf8(&text).ok()?.trim().parse().ok()).unwrap_or(0))
    }

    async fn leave_hint(&self, number: u64) {
        if number.is_multiple_of(HINT_EVERY)
            && let Err(error) = self.store.put(&self.hint_key(), Bytes::from(number.to_string())).await
        {
            tracing::debug!(%error, "the hint to the newest record was not written");
        }
    }
}

//! The records of generations and branches: in the log, or, once a prune cut the log off before its own record, among the
//! copies of those that it kept.

use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use crate::error::{Error, Result};
use crate::record::{PruneSummary, RECORD_LIMIT, Record};
use crate::volume::Remote;

/// Copies read at once.
const READS: usize = 16;
/// How often a prune that comes in between makes a reader begin again.
const ATTEMPTS: u32 = 4;

impl Remote {
    /// The key of the copy of a record that a prune kept.
    pub(crate) fn kept_key(&self, record: u64) -> String {
        format!("{}{record:020}", self.kept_prefix())
    }

    /// What the keys of all such copies begin with.
    pub(crate) fn kept_prefix(&self) -> String {
        format!("{}kept/", self.prefix)
    }

    /// What the newest prune decided, by the newest record. `None` if there is none.
    pub(crate) async fn newest_prune(&self, head: &Record) -> Result<Option<PruneSummary>> {
        let Some(number) = head.pruned else { return Ok(None) };
        match self.log.read(number).await?.and_then(|record| record.prune) {
            Some(prune) => Ok(Some(prune)),
            None => Err(Error::corrupt(self.log.key(number), "is the newest prune, and is not there")),
        }
    }

    /// The record of this tree; `None` if there is none, or none any more.
    pub(crate) async fn tree(&self, generation: u64) -> Result<Option<Record>> {
        let mut head = self.log.head(None).await?;
        for _ in 1..ATTEMPTS {
            let Some(before) = head else { return Ok(None) };
            match self.tree_by(&before, generation).await {
                // It may have gone from the log for a copy of it.
                Ok(None) => {
                    let newest = self.log.head(Some(before.clone())).await?;
                    if newest.as_ref().and_then(|newest| newest.pruned) == before.pruned {
                        return Ok(None);
                    }
                    head = newest;
                }
                Err(Error::Corrupt { .. }) => head = self.log.head(Some(before)).await?,
                found => return found,
            }
        }
        let Some(head) = head else { return Ok(None) };
        self.tree_by(&head, generation).await
    }

    /// Everything the history still tells, oldest first: trees that prunes kept, then the whole log.
    pub(crate) async fn records(&self) -> Result<Vec<Record>> {
        let mut head = self.log.head(None).await?;
        for _ in 1..ATTEMPTS {
            let Some(before) = head else { return Ok(Vec::new()) };
            match self.records_by(&before).await {
                Err(Error::Corrupt { .. }) => head = self.log.head(Some(before)).await?,
                found => return found,
            }
        }
        let Some(head) = head else { return Ok(Vec::new()) };
        self.records_by(&head).await
    }

    /// Whether `record`, the number of a tree that was there once, is one that the newest prune lets be.
    pub(crate) async fn still_has(&self, head: &Record, record: u64) -> Result<bool> {
        if head.generation == Some(record) || head.pruned.is_none_or(|pruned| record > pruned) {
            return Ok(true);
        }
        Ok(self.newest_prune(head).await?.is_some_and(|prune| prune.kept.contains(&record)))
    }

    /// What reading `generation` came to: one that went meanwhile is not damaged.
    pub(crate) async fn or_pruned<T>(&self, name: &str, generation: u64, read: Result<T>) -> Result<T> {
        match read {
            Err(error @ Error::Corrupt { .. }) => match self.tree(generation).await {
                Ok(None) => Err(Error::GenerationPruned { name: name.to_owned(), generation }),
                // Nobody knows which it is.
                Err(unknown) if unknown.is_transient() => Err(unknown),
                _ => Err(error),
            },
            read => read,
        }
    }

    /// The copy of the record of a tree.
    pub(crate) async fn kept(&self, number: u64) -> Result<Record> {
        let key = self.kept_key(number);
        let body = self.store.get(&key, None, RECORD_LIMIT).await?;
        let body = body.ok_or_else(|| Error::corrupt(key, "is gone"))?;
        Record::decode(number, &body)
    }

    async fn tree_by(&self, head: &Record, generation: u64) -> Result<Option<Record>> {
        if head.pruned.is_none_or(|pruned| generation > pruned) {
            return Ok(self.log.read(generation).await?.filter(|record| record.tree.is_some()));
        }
        let kept = self.newest_prune(head).await?.map(|prune| prune.kept).unwrap_or_default();
        if kept.contains(&generation) { self.kept(generation).await.map(Some) } else { Ok(None) }
    }

    async fn records_by(&self, head: &Record) -> Result<Vec<Record>> {
        let kept = self.newest_prune(head).await?.map(|prune| prune.kept).unwrap_or_default();
        let copies = stream::iter(kept).map(|number| self.kept(number)).buffered(READS);
        let mut records: Vec<Record> = copies.try_collect().await?;
        let log = self.log.all().await?;
        if log.last().is_none_or(|newest| newest.record < head.record || newest.pruned != head.pruned) {
            return Err(Error::corrupt(self.log.key(0), "was pruned while it was read"));
        }
        records.extend(log);
        Ok(records)
    }
}

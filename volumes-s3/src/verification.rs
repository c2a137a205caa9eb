//! Reads a history again, every chunk of it, and compares digests.

use std::collections::{HashMap, HashSet};

use futures_util::StreamExt as _;
use runtime_core::{Progress, VerifyReport, volume::Damage};

use crate::error::{Error, Result};
use crate::fetch::Packs;
use crate::generation::{entries, expand, leaves, parts};
use crate::pack::ChunkRef;
use crate::record::Record;
use crate::store::VolumeStore;
use crate::walk::display;

/// Chunks gathered before they are read: neighbours in a pack are read at once.
const BATCH: usize = 4096;

impl VolumeStore {
    /// Reads `generation`, or all that the history has, again, and compares every digest. A chunk that several share is
    /// read once.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::GenerationNotFound`], [`Error::GenerationPruned`], [`Error::NoBucket`],
    /// [`Error::S3Unreachable`]. Damage is no error here: the report tells of it.
    pub async fn verify(&self, name: &str, generation: Option<u64>, progress: Progress) -> Result<VerifyReport> {
        let remote = self.remote(name, "a verification").await?;
        let records = match generation {
            Some(number) => Vec::from_iter(remote.tree(number).await?),
            None => remote.records().await?,
        };
        let trees: Vec<_> = records.into_iter().filter(|record| record.tree.is_some()).collect();
        match generation {
            Some(generation) if trees.is_empty() => {
                return Err(Error::GenerationNotFound { name: name.to_owned(), generation });
            }
            None if trees.is_empty() => {
                remote.store.check_bucket().await?;
                self.status(name).await?;
            }
            _ => {}
        }
        let total = trees.iter().filter_map(|record| record.tree.as_ref()).map(|tree| tree.new_bytes).sum();
        let mut check = Check {
            packs: remote.packs.clone(),
            seen: HashSet::new(),
            bad: HashMap::new(),
            progress,
            total,
            report: VerifyReport::default(),
        };
        for record in &trees {
            let before = check.report.damaged.len();
            check.generation(record).await?;
            if check.report.damaged.len() > before && remote.tree(record.record).await?.is_none() {
                // It went while it was read: that is no damage.
                check.report.damaged.truncate(before);
                if let Some(generation) = generation {
                    return Err(Error::GenerationPruned { name: name.to_owned(), generation });
                }
                continue;
            }
            check.report.generations += 1;
        }
        check.progress.report(total, total);
        Ok(check.report)
    }
}

struct Check {
    packs: Packs,
    /// Keys of the chunks that were read.
    seen: HashSet<[u8; 16]>,
    /// Those of the chunks that are not what they were.
    bad: HashMap<[u8; 16], String>,
    progress: Progress,
    total: u64,
    report: VerifyReport,
}

impl Check {
    async fn generation(&mut self, record: &Record) -> Result<()> {
        let Some(tree) = &record.tree else { return Ok(()) };
        let generation = record.record;
        if !self.chunks(generation, vec![(tree.root, None)]).await? {
            return Ok(());
        }
        let leaves = match leaves(&self.packs, tree.root).await {
            Ok(leaves) => leaves,
            Err(error) => return self.damaged(generation, None, error),
        };
        let listed = leaves.iter().map(|leaf| (leaf.chunk, None)).collect();
        if !self.chunks(generation, listed).await? {
            return Ok(());
        }
        let packs = self.packs.clone();
        let mut leaves = std::pin::pin!(entries(packs.clone(), leaves));
        let mut batch = Vec::new();
        while let Some(entries) = leaves.next().await {
            let entries = match entries {
                Ok(entries) => entries,
                Err(error) => return self.damaged(generation, None, error),
            };
            for mut entry in entries {
                let path = || Some(display(&entry.path).to_string_lossy().into_owned());
                // The lists themselves first: what they list can be read only if they are whole.
                let (lists, _) = parts(&entry);
                let lists = lists.into_iter().map(|chunk| (chunk, path())).collect::<Vec<_>>();
                if !lists.is_empty() {
                    if !self.chunks(generation, lists).await? {
                        continue;
                    }
                    let of = path();
                    if let Err(error) = expand(&packs, &mut entry).await {
                        self.damaged(generation, of, error)?;
                        continue;
                    }
                }
                let (_, data) = parts(&entry);
                let path = display(&entry.path).to_string_lossy().into_owned();
                batch.extend(data.into_iter().map(|chunk| (chunk, Some(path.clone()))));
                if batch.len() >= BATCH {
                    self.chunks(generation, std::mem::take(&mut batch)).await?;
                }
            }
        }
        self.chunks(generation, batch).await.map(drop)
    }

    /// Reads those that were not read yet; whether all of them are whole.
    async fn chunks(&mut self, generation: u64, chunks: Vec<(ChunkRef, Option<String>)>) -> Result<bool> {
        let unread: Vec<_> =
            chunks.iter().filter(|(chunk, _)| self.seen.insert(key(chunk))).map(|(chunk, _)| *chunk).collect();
        self.report.chunks += unread.len() as u64;
        self.report.stored_bytes += unread.iter().map(|chunk| u64::from(chunk.stored)).sum::<u64>();
        for (chunk, error) in self.packs.examine(unread).await? {
            self.bad.insert(key(&chunk), error.to_string());
        }
        self.progress.report(self.report.stored_bytes.min(self.total), self.total);
        let mut whole = true;
        for (chunk, path) in chunks {
            let Some(detail) = self.bad.get(&key(&chunk)) else { continue };
            whole = false;
            let damage = Damage { generation, path, detail: detail.clone() };
            // A file of several damaged chunks is damaged once.
            let told = |other: &Damage| (other.generation, &other.path) == (generation, &damage.path);
            if !self.report.damaged.last().is_some_and(told) {
                self.report.damaged.push(damage);
            }
        }
        Ok(whole)
    }

    /// Ok if it is damage and not the way to S3.
    fn damaged(&mut self, generation: u64, path: Option<String>, error: Error) -> Result<()> {
        match error {
            Error::Corrupt { .. } | Error::UnsupportedFormat { .. } => {
                self.report.damaged.push(Damage { generation, path, detail: error.to_string() });
                Ok(())
            }
            error => Err(error),
        }
    }
}

/// Short, since there may be millions. A chunk may lie in two packs, and only one of them be damaged.
fn key(chunk: &ChunkRef) -> [u8; 16] {
    let mut key = [0; 16];
    let whole = blake3::Hasher::new()
        .update(&chunk.digest.0)
        .update(&chunk.pack.random)
        .update(&chunk.offset.to_le_bytes())
        .finalize();
    key.copy_from_slice(&whole.as_bytes()[..16]);
    key
}

//! Reads chunks from packs: neighbours in one ranged GET, several at once, each verified.

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tokio::sync::RwLock;

use crate::error::{Error, Result};
use crate::object_store::ObjectStore;
use crate::pack::{ChunkRef, PACK_LIMIT, PackId};

/// Longest range asked for at once: servers reach their best throughput from 4 MiB on.
const RANGE_LIMIT: u64 = 8 << 20;
/// Bytes nobody wants that are read rather than asking twice: about what a request costs.
const GAP_LIMIT: u64 = 128 << 10;
/// Requests in flight; with their ranges 48 MiB.
const REQUESTS: usize = 6;

/// The packs of a volume.
#[derive(Debug, Clone)]
pub(crate) struct Packs {
    store: Arc<dyn ObjectStore>,
    prefix: String,
}

/// A stretch of a pack, and the chunks in it.
#[derive(Debug, PartialEq, Eq)]
struct Stretch {
    pack: PackId,
    start: u64,
    end: u64,
    chunks: Vec<ChunkRef>,
}

impl Packs {
    /// Those under `prefix`, which ends in `/` and is the volume's own.
    pub(crate) fn new(store: Arc<dyn ObjectStore>, prefix: String) -> Self {
        Self { store, prefix }
    }

    /// The key of a pack.
    pub(crate) fn key(&self, pack: PackId) -> String {
        format!("{}packs/{pack}", self.prefix)
    }

    /// One chunk.
    pub(crate) async fn chunk(&self, chunk: ChunkRef) -> Result<Vec<u8>> {
        let range = u64::from(chunk.offset)..u64::from(chunk.offset) + u64::from(chunk.stored);
        let stored = self.stored(chunk.pack, range).await?;
        blocking("decompress", move || chunk.open(&stored)).await
    }

    /// Gives `each` every chunk, once and in no order, on threads that may block. None of them is at it any more when this
    /// returns, after an error either.
    pub(crate) async fn chunks(
        &self,
        chunks: Vec<ChunkRef>,
        each: impl Fn(ChunkRef, Vec<u8>) -> Result<()> + Send + Sync + 'static,
    ) -> Result<()> {
        let each = Arc::new(each);
        let at_it = Arc::new(RwLock::new(()));
        let given = stream::iter(stretches(chunks).into_iter().map(Ok))
            .try_for_each_concurrent(REQUESTS, |stretch| {
                let (each, at_it) = (each.clone(), at_it.clone());
                async move {
                    let stored = self.stored(stretch.pack, stretch.start..stretch.end).await?;
                    let guard = at_it.read_owned().await;
                    blocking("restore", move || {
                        let _at_it = guard;
                        stretch.chunks.iter().try_for_each(|chunk| {
                            let start = (u64::from(chunk.offset) - stretch.start) as usize;
                            let bytes = chunk.open(&stored[start..start + chunk.stored as usize])?;
                            each(*chunk, bytes)
                        })
                    })
                    .await
                }
            })
            .await;
        drop(at_it.write().await);
        given
    }

    /// Several chunks, in their order. For the few of a manifest, not for data.
    pub(crate) async fn collect(&self, chunks: &[ChunkRef]) -> Result<Vec<Vec<u8>>> {
        let found = Arc::new(std::sync::Mutex::new(HashMap::new()));
        let into = found.clone();
        self.chunks(chunks.to_vec(), move |chunk, bytes| {
            into.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert(chunk, bytes);
            Ok(())
        })
        .await?;
        let found = found.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let missing = |chunk: &ChunkRef| Error::corrupt(format!("chunk {}", chunk.digest), "was not delivered");
        chunks.iter().map(|chunk| found.get(chunk).cloned().ok_or_else(|| missing(chunk))).collect()
    }

    /// Reads every chunk, and gives those that are not what they were, with what is wrong. What is amiss with the way to
    /// them is an error.
    pub(crate) async fn examine(&self, chunks: Vec<ChunkRef>) -> Result<Vec<(ChunkRef, Error)>> {
        let damaged: Vec<_> = stream::iter(stretches(chunks))
            .map(|stretch| self.examine_stretch(stretch))
            .buffer_unordered(REQUESTS)
            .try_collect()
            .await?;
        Ok(damaged.into_iter().flatten().collect())
    }

    async fn examine_stretch(&self, stretch: Stretch) -> Result<Vec<(ChunkRef, Error)>> {
        let Stretch { pack, start, end, chunks } = stretch;
        match self.stored(pack, start..end).await {
            Ok(stored) => {
                blocking("verify", move || {
                    let broken = |chunk: &ChunkRef| {
                        let from = (u64::from(chunk.offset) - start) as usize;
                        chunk.open(&stored[from..from + chunk.stored as usize]).err().map(|error| (*chunk, error))
                    };
                    Ok(chunks.iter().filter_map(broken).collect())
                })
                .await
            }
            // Not all of it is there: some of its chunks may be.
            Err(Error::Corrupt { .. }) => {
                let mut damaged = Vec::new();
                for chunk in chunks {
                    match self.chunk(chunk).await {
                        Ok(_) => {}
                        Err(error @ Error::Corrupt { .. }) => damaged.push((chunk, error)),
                        Err(error) => return Err(error),
                    }
                }
                Ok(damaged)
            }
            Err(error) => Err(error),
        }
    }

    /// Checks that each of these packs is there.
    pub(crate) async fn check(&self, packs: Vec<PackId>) -> Result<()> {
        stream::iter(packs)
            .map(|pack| async move {
                let key = self.key(pack);
                match self.store.size(&key).await? {
                    Some(size) if size > 0 => Ok(()),
                    _ => Err(Error::corrupt(key, "is gone")),
                }
            })
            .buffer_unordered(REQUESTS)
            .try_collect()
            .await
    }

    async fn stored(&self, pack: PackId, range: std::ops::Range<u64>) -> Result<bytes::Bytes> {
        if range.is_empty() {
            return Ok(bytes::Bytes::new());
        }
        let (key, length) = (self.key(pack), range.end - range.start);
        let stored = self.store.get(&key, Some(range), PACK_LIMIT).await?;
        match stored {
            Some(stored) if stored.len() as u64 == length => Ok(stored),
            Some(stored) => Err(Error::corrupt(key, format!("{} bytes of {length}", stored.len()))),
            None => Err(Error::corrupt(key, "is gone")),
        }
    }
}

/// Runs what blocks on a thread that may.
pub(crate) async fn blocking<T: Send + 'static>(
    operation: &'static str,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|_| Error::Interrupted { operation })?
}

/// Groups chunks into stretches, each chunk once. Packs stay in the order in which they first come.
fn stretches(mut chunks: Vec<ChunkRef>) -> Vec<Stretch> {
    let mut order = HashMap::new();
    for chunk in &chunks {
        let next = order.len();
        order.entry(chunk.pack).or_insert(next);
    }
    chunks.sort_unstable_by_key(|chunk| (order[&chunk.pack], chunk.offset, chunk.digest));
    chunks.dedup();
    let mut stretches: Vec<Stretch> = Vec::new();
    for chunk in chunks {
        let start = u64::from(chunk.offset);
        let end = start + u64::from(chunk.stored);
        match stretches.last_mut() {
            Some(last)
                if last.pack == chunk.pack && start <= last.end + GAP_LIMIT && end - last.start <= RANGE_LIMIT =>
            {
                last.end = last.end.max(end);
                last.chunks.push(chunk);
            }
            _ => stretches.push(Stretch { pack: chunk.pack, start, end, chunks: vec![chunk] }),
        }
    }
    stretches
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pack::{Codec, Digest};

    #[test]
    fn neighbours_are_read_at_once_and_far_ones_apart() {
        let pack = PackId { epoch: 1, random: [0; 16] };
        let chunk = |offset: u32, stored: u32| ChunkRef {
            digest: Digest::of(&offset.to_le_bytes()),
            pack,
            offset,
            stored,
            length: stored,
            codec: Codec::Raw,
        };
        let chunks = vec![chunk(5 << 20, 10), chunk(0, 100), chunk(200, 100), chunk(0, 100)];
        let found = stretches(chunks);
        assert_eq!(
            found.iter().map(|s| (s.start, s.end, s.chunks.len())).collect::<Vec<_>>(),
            [(0, 300, 2), (5 << 20, (5 << 20) + 10, 1)]
        );
    }
}

//! Packs: chunks one after the other in objects of up to 16 MiB, and the references that find them again.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// A pack is put once it would exceed this. One plain PUT of this size reaches the best throughput of every server
/// tried, and a few in flight stay within the memory of a sync.
pub(crate) const PACK_LIMIT: usize = 16 << 20;
/// Longest chunk, before compression. Nothing longer is believed when it is read.
pub(crate) const CHUNK_LIMIT: usize = 4 << 20;
/// Fastest level: the network is the bottleneck, not the ratio.
const ZSTD_LEVEL: i32 = 1;
/// From this size on a sample decides whether a chunk is worth compressing at all.
const SAMPLE_FROM: usize = 64 << 10;
/// Length of that sample, from the middle of the chunk.
const SAMPLE_LENGTH: usize = 16 << 10;

/// BLAKE3 of a chunk before compression.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Digest(pub [u8; 32]);

impl Digest {
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0)
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

impl TryFrom<String> for Digest {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl FromStr for Digest {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        read_hex(text).map(Self).ok_or_else(|| Error::corrupt("digest", format!("{text:?}")))
    }
}

/// The name of a pack: the epoch in which it was made, and 128 random bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct PackId {
    pub epoch: u64,
    pub random: [u8; 16],
}

impl PackId {
    /// A new one of this epoch.
    pub(crate) fn new(epoch: u64) -> Self {
        Self { epoch, random: rand::random() }
    }
}

/// The last part of the pack's key.
impl fmt::Display for PackId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:020}-", self.epoch)?;
        write_hex(f, &self.random)
    }
}

impl FromStr for PackId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parsed = text
            .split_once('-')
            .and_then(|(epoch, random)| Some(Self { epoch: epoch.parse().ok()?, random: read_hex(random)? }));
        parsed.ok_or_else(|| Error::corrupt("pack name", format!("{text:?}")))
    }
}

/// How a chunk is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Codec {
    /// As it is.
    Raw,
    /// One zstd frame.
    Zstd,
}

/// A chunk, and where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "ChunkText", into = "ChunkText")]
pub(crate) struct ChunkRef {
    pub digest: Digest,
    pub pack: PackId,
    pub offset: u32,
    /// Bytes in the pack.
    pub stored: u32,
    /// Bytes of the chunk itself.
    pub length: u32,
    pub codec: Codec,
}

/// A reference as JSON.
#[derive(Serialize, Deserialize)]
struct ChunkText {
    digest: String,
    pack: String,
    offset: u32,
    stored: u32,
    length: u32,
    codec: Codec,
}

impl From<ChunkRef> for ChunkText {
    fn from(chunk: ChunkRef) -> Self {
        let ChunkRef { digest, pack, offset, stored, length, codec } = chunk;
        Self { digest: digest.to_string(), pack: pack.to_string(), offset, stored, length, codec }
    }
}

impl TryFrom<ChunkText> for ChunkRef {
    type Error = Error;

    fn try_from(text: ChunkText) -> Result<Self> {
        let ChunkText { digest, pack, offset, stored, length, codec } = text;
        let chunk = Self { digest: digest.parse()?, pack: pack.parse()?, offset, stored, length, codec };
        chunk.check()?;
        Ok(chunk)
    }
}

impl ChunkRef {
    /// Refuses what no writer makes, so that no reference makes a reader allocate without bound.
    pub(crate) fn check(&self) -> Result<()> {
        let end = u64::from(self.offset) + u64::from(self.stored);
        let fits = self.length as usize <= CHUNK_LIMIT && self.stored <= self.length && end <= PACK_LIMIT as u64;
        let raw = self.codec != Codec::Raw || self.stored == self.length;
        if fits && raw { Ok(()) } else { Err(Error::corrupt("chunk reference", format!("{self:?}"))) }
    }

    /// The chunk from its bytes in the pack, verified.
    pub(crate) fn open(&self, stored: &[u8]) -> Result<Vec<u8>> {
        let corrupt = |detail: &str| Error::corrupt(format!("chunk {} in pack {}", self.digest, self.pack), detail);
        let bytes = match self.codec {
            Codec::Raw => stored.to_vec(),
            Codec::Zstd => zstd::bulk::decompress(stored, self.length as usize)
                .map_err(|error| corrupt(&format!("does not decompress: {error}")))?,
        };
        if bytes.len() != self.length as usize || Digest::of(&bytes) != self.digest {
            return Err(corrupt("its digest is another"));
        }
        Ok(bytes)
    }
}

/// A pack that is full.
#[derive(Debug)]
pub(crate) struct SealedPack {
    pub id: PackId,
    pub bytes: Bytes,
    pub chunks: Vec<ChunkRef>,
}

/// Puts chunks into packs, each chunk once.
pub(crate) struct Packer<F> {
    epoch: u64,
    id: PackId,
    bytes: Vec<u8>,
    chunks: Vec<ChunkRef>,
    known: HashMap<Digest, ChunkRef>,
    compressor: zstd::bulk::Compressor<'static>,
    scratch: Vec<u8>,
    seal: F,
    /// Bytes in packs so far.
    pub stored: u64,
}

impl<F> fmt::Debug for Packer<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Packer").field("id", &self.id).field("known", &self.known.len()).finish_non_exhaustive()
    }
}

impl<F: FnMut(SealedPack) -> Result<()>> Packer<F> {
    /// A packer of this epoch; `seal` takes each full pack.
    pub(crate) fn new(epoch: u64, seal: F) -> Result<Self> {
        let compressor = zstd::bulk::Compressor::new(ZSTD_LEVEL)
            .map_err(|error| Error::corrupt("zstd", format!("no compressor: {error}")))?;
        let (bytes, scratch) = (Vec::new(), Vec::new());
        let id = PackId::new(epoch);
        Ok(Self { epoch, id, bytes, chunks: Vec::new(), known: HashMap::new(), compressor, scratch, seal, stored: 0 })
    }

    /// Tells it of a chunk that is in the store already.
    pub(crate) fn know(&mut self, chunk: ChunkRef) {
        self.known.entry(chunk.digest).or_insert(chunk);
    }

    /// The reference of `bytes`, which goes into a pack unless it is known.
    pub(crate) fn add(&mut self, bytes: &[u8]) -> Result<ChunkRef> {
        let digest = Digest::of(bytes);
        if let Some(known) = self.known.get(&digest) {
            return Ok(*known);
        }
        let codec = self.compress(bytes);
        let stored = if codec == Codec::Zstd { self.scratch.as_slice() } else { bytes };
        if self.bytes.len() + stored.len() > PACK_LIMIT {
            let full = SealedPack {
                id: std::mem::replace(&mut self.id, PackId::new(self.epoch)),
                bytes: Bytes::from(std::mem::take(&mut self.bytes)),
                chunks: std::mem::take(&mut self.chunks),
            };
            (self.seal)(full)?;
        }
        if self.bytes.capacity() == 0 {
            self.bytes.reserve_exact(PACK_LIMIT);
        }
        // Neither exceeds PACK_LIMIT.
        let (offset, length) = (self.bytes.len() as u32, bytes.len() as u32);
        let chunk = ChunkRef { digest, pack: self.id, offset, stored: stored.len() as u32, length, codec };
        self.bytes.extend_from_slice(stored);
        self.stored += stored.len() as u64;
        self.chunks.push(chunk);
        self.known.insert(digest, chunk);
        Ok(chunk)
    }

    /// Seals the last pack, if there is one. The bytes stored in all.
    pub(crate) fn finish(mut self) -> Result<u64> {
        if !self.bytes.is_empty() {
            (self.seal)(SealedPack { id: self.id, bytes: Bytes::from(self.bytes), chunks: self.chunks })?;
        }
        Ok(self.stored)
    }

    /// Fills `scratch` if that makes it smaller. A sample that does not shrink ends the attempt.
    fn compress(&mut self, bytes: &[u8]) -> Codec {
        if bytes.len() >= SAMPLE_FROM {
            let middle = (bytes.len() - SAMPLE_LENGTH) / 2;
            let shrunk = self.compress_to_scratch(&bytes[middle..middle + SAMPLE_LENGTH]);
            if shrunk.is_none_or(|length| length > SAMPLE_LENGTH / 20 * 19) {
                return Codec::Raw;
            }
        }
        match self.compress_to_scratch(bytes) {
            Some(length) if length < bytes.len() => Codec::Zstd,
            _ => Codec::Raw,
        }
    }

    fn compress_to_scratch(&mut self, bytes: &[u8]) -> Option<usize> {
        self.scratch.clear();
        self.scratch.reserve(zstd::zstd_safe::compress_bound(bytes.len()));
        self.compressor.compress_to_buffer(bytes, &mut self.scratch).ok()
    }
}

fn write_hex(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

fn read_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let text = text.as_bytes();
    let mut bytes = [0; N];
    if text.len() != 2 * N {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        let digit = |c: u8| char::from(c).to_digit(16);
        *byte = u8::try_from(digit(pair[0])? * 16 + digit(pair[1])?).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_comes_back_and_is_packed_once() {
        let mut packs: Vec<SealedPack> = Vec::new();
        let mut packer = Packer::new(7, |pack| {
            packs.push(pack);
            Ok(())
        })
        .unwrap();
        let text = b"all work and no play ".repeat(10_000);
        let noise: Vec<u8> = (0..300_000).map(|_| rand::random()).collect();
        let refs = [packer.add(&text), packer.add(&noise), packer.add(&text), packer.add(b"")].map(Result::unwrap);
        packer.finish().unwrap();
        assert_eq!(refs[0], refs[2]);
        assert_eq!((refs[0].codec, refs[1].codec), (Codec::Zstd, Codec::Raw));
        assert_eq!(packs.len(), 1);
        for (chunk, expected) in refs.iter().zip([&text[..], &noise, &text, b""]) {
            let stored = &packs[0].bytes[chunk.offset as usize..][..chunk.stored as usize];
            assert_eq!(chunk.open(stored).unwrap(), expected);
        }
        let mut damaged = packs[0].bytes[refs[1].offset as usize..][..refs[1].stored as usize].to_vec();
        damaged[1000] ^= 1;
        assert_eq!(refs[1].open(&damaged).unwrap_err().code(), "volume.corrupt");
    }

    #[test]
    fn references_survive_json_and_absurd_ones_are_refused() {
        let pack = PackId::new(3);
        let chunk = ChunkRef { digest: Digest::of(b"x"), pack, offset: 5, stored: 1, length: 1, codec: Codec::Raw };
        let json = serde_json::to_string(&chunk).unwrap();
        assert_eq!(serde_json::from_str::<ChunkRef>(&json).unwrap(), chunk);
        for (from, to) in [("\"length\":1", "\"length\":4294967295"), ("\"offset\":5", "\"offset\":4294967295")] {
            assert!(serde_json::from_str::<ChunkRef>(&json.replace(from, to)).is_err());
        }
    }
}

//! Which packs of an unfinished sync have arrived, so that a sync that was killed sends nothing twice.
//!
//! `header: lineage 32` then per pack `u32 length, body, first 8 bytes of the body's BLAKE3`. A torn end is ignored.

use std::collections::HashSet;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use crate::codec::{Reader, put_uint};
use crate::entry::{PackTable, decode_chunk, encode_chunk};
use crate::error::{Error, Result};
use crate::pack::{ChunkRef, Codec, Digest, PackId};

/// The file `uploads` of a volume.
#[derive(Debug)]
pub(crate) struct Uploads {
    path: PathBuf,
    file: File,
}

impl Uploads {
    /// Opens the file for this lineage and gives the chunks in it; what is of another is dropped.
    pub(crate) fn open(path: &Path, lineage: Digest) -> Result<(Self, Vec<ChunkRef>)> {
        let failed = |error| Error::io("open", path, error);
        let (chunks, whole) = read(path, lineage)?;
        let mut file = File::options().create(true).append(true).open(path).map_err(failed)?;
        file.set_len(whole as u64).map_err(failed)?;
        if whole == 0 {
            file.write_all(&lineage.0).map_err(failed)?;
        }
        Ok((Self { path: path.to_owned(), file }, chunks))
    }

    /// The packs that are noted for this lineage. Blocks.
    pub(crate) fn packs(path: &Path, lineage: Digest) -> Result<HashSet<PackId>> {
        Ok(read(path, lineage)?.0.into_iter().map(|chunk| chunk.pack).collect())
    }

    /// Notes the chunks of a pack that has arrived; on disk when it returns.
    pub(crate) fn add(&mut self, chunks: &[ChunkRef]) -> Result<()> {
        let (mut packs, mut rows, mut body) = (PackTable::default(), Vec::new(), Vec::new());
        put_uint(&mut rows, chunks.len() as u64);
        for chunk in chunks {
            rows.push(u8::from(chunk.codec == Codec::Zstd));
            encode_chunk(chunk, &mut rows, &mut packs);
        }
        packs.encode(0, &mut body);
        body.extend_from_slice(&rows);
        let mut frame = u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes().to_vec();
        frame.extend_from_slice(&body);
        frame.extend_from_slice(&Digest::of(&body).0[..8]);
        let written = self.file.write_all(&frame).and_then(|()| self.file.sync_data());
        written.map_err(|error| Error::io("write", &self.path, error))
    }
}

/// The chunks that are noted, and the bytes that hold them.
fn read(path: &Path, lineage: Digest) -> Result<(Vec<ChunkRef>, usize)> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(Error::io("open", path, error)),
    };
    let (mut chunks, mut whole) = (Vec::new(), 0);
    if bytes.starts_with(&lineage.0) {
        let mut reader = Reader::new("uploads", &bytes[32..]);
        whole = 32;
        while let Ok((body, length)) = read_frame(&mut reader) {
            chunks.extend(body);
            whole += length;
        }
    }
    Ok((chunks, whole))
}

fn read_frame(reader: &mut Reader<'_>) -> Result<(Vec<ChunkRef>, usize)> {
    let length = u32::from_le_bytes(reader.array()?) as usize;
    let body = reader.take(length)?;
    if reader.array::<8>()? != Digest::of(body).0[..8] {
        return Err(reader.error("torn"));
    }
    let mut reader = Reader::new("uploads", body);
    let mut packs = PackTable::default();
    packs.decode(&mut reader)?;
    let mut chunks = Vec::new();
    for _ in 0..reader.count()? {
        let codec = if reader.byte()? == 0 { Codec::Raw } else { Codec::Zstd };
        chunks.push(decode_chunk(&mut reader, &packs, codec)?);
    }
    Ok((chunks, 4 + length + 8))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_arrived_is_found_again_and_a_torn_end_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("uploads");
        let pack = PackId::new(4);
        let chunk = |seed: u8| ChunkRef {
            digest: Digest([seed; 32]),
            pack,
            offset: 1,
            stored: 2,
            length: 3,
            codec: Codec::Zstd,
        };
        let lineage = Digest::of(b"here");
        let (mut uploads, found) = Uploads::open(&path, lineage).unwrap();
        assert!(found.is_empty());
        uploads.add(&[chunk(1), chunk(2)]).unwrap();
        uploads.add(&[chunk(3)]).unwrap();
        let length = std::fs::metadata(&path).unwrap().len();
        File::options().write(true).open(&path).unwrap().set_len(length - 1).unwrap();
        let (mut uploads, found) = Uploads::open(&path, lineage).unwrap();
        assert_eq!(found, [chunk(1), chunk(2)]);
        uploads.add(&[chunk(4)]).unwrap();
        assert_eq!(Uploads::open(&path, lineage).unwrap().1, [chunk(1), chunk(2), chunk(4)]);
        assert!(Uploads::open(&path, Digest::of(b"elsewhere")).unwrap().1.is_empty());
    }
}

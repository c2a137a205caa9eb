//! What a host knows of the tree it last published or restored: each entry with its inode and times, and where its
//! chunks are. A cache: without it the next sync reads every file, and sends what the bucket already has.
//!
//! ```text
//! frame*  leaves  trailer
//! frame:   u32 length (little endian), tag, payload     tag 1: names of packs; tag 2: an entry
//! entry:   flags (1 = racy), inode, ctime seconds, nanoseconds, entry as in the manifest, lists inline
//! leaves:  table of packs, count, per chunk codec and reference: the root of the manifest, then its leaves
//! trailer: "BVSCAN02", offset of leaves u64, device u64, digest of the root 32, digest of the place and volume 32
//! ```

use std::fs::File;
use std::io::{BufReader, BufWriter, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use crate::codec::{Reader, put_int, put_uint};
use crate::entry::{Entry, Lists, PackTable, Time, decode_chunk, encode_chunk};
use crate::error::{Error, Result};
use crate::pack::{ChunkRef, Codec, Digest};

const MAGIC: &[u8; 8] = b"BVSCAN02";
const TRAILER: usize = 8 + 8 + 8 + 32 + 32;
const TAG_PACKS: u8 = 1;
const TAG_ENTRY: u8 = 2;
const FLAG_RACY: u8 = 1;
/// Longest frame: the entry of a file of several TiB.
const FRAME_LIMIT: u32 = 256 << 20;

/// An entry as it was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub entry: Entry,
    pub inode: u64,
    pub ctime: Time,
    /// Changed so shortly before it was seen that a later change may bear the same time: to be read again.
    pub racy: bool,
}

/// What a record is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Subject {
    /// Root of the manifest of the tree.
    pub root: Digest,
    /// Digest over where the generations are kept and the volume's random id.
    pub lineage: Digest,
}

/// Writes a record.
#[derive(Debug)]
pub(crate) struct RecordWriter {
    path: PathBuf,
    out: BufWriter<File>,
    packs: PackTable,
    known: usize,
    previous: Vec<u8>,
    scratch: Vec<u8>,
}

impl RecordWriter {
    pub(crate) fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).map_err(|error| Error::io("create", path, error))?;
        Ok(Self {
            path: path.to_owned(),
            out: BufWriter::with_capacity(256 << 10, file),
            packs: PackTable::default(),
            known: 0,
            previous: Vec::new(),
            scratch: Vec::new(),
        })
    }

    pub(crate) fn add(&mut self, seen: &Seen) -> Result<()> {
        self.scratch.clear();
        self.scratch.push(TAG_ENTRY);
        self.scratch.push(if seen.racy { FLAG_RACY } else { 0 });
        put_uint(&mut self.scratch, seen.inode);
        put_int(&mut self.scratch, seen.ctime.seconds);
        put_uint(&mut self.scratch, seen.ctime.nanoseconds.into());
        seen.entry.encode(&mut self.scratch, &self.previous, &mut self.packs, Lists::Inline);
        if self.scratch.len() > FRAME_LIMIT as usize {
            let path = crate::walk::display(&seen.entry.path);
            return Err(Error::Unsupported { what: format!("{}: a file of so many parts", path.display()) });
        }
        self.previous.clone_from(&seen.entry.path);
        if self.packs.ids.len() > self.known {
            let mut names = vec![TAG_PACKS];
            self.packs.encode(self.known, &mut names);
            self.known = self.packs.ids.len();
            self.frame(&names)?;
        }
        let scratch = std::mem::take(&mut self.scratch);
        let written = self.frame(&scratch);
        self.scratch = scratch;
        written
    }

    /// Ends the record and syncs it. `manifest` is the root, then the leaves.
    pub(crate) fn finish(mut self, device: u64, subject: Subject, manifest: &[ChunkRef]) -> Result<()> {
        let failed = |path: &Path, error| Error::io("write", path, error);
        let offset = self.out.stream_position().map_err(|error| failed(&self.path, error))?;
        let (mut packs, mut body, mut tail) = (PackTable::default(), Vec::new(), Vec::new());
        put_uint(&mut body, manifest.len() as u64);
        for chunk in manifest {
            body.push(u8::from(chunk.codec == Codec::Zstd));
            encode_chunk(chunk, &mut body, &mut packs);
        }
        packs.encode(0, &mut tail);
        tail.extend_from_slice(&body);
        tail.extend_from_slice(MAGIC);
        tail.extend_from_slice(&offset.to_le_bytes());
        tail.extend_from_slice(&device.to_le_bytes());
        tail.extend_from_slice(&subject.root.0);
        tail.extend_from_slice(&subject.lineage.0);
        let written = self.out.write_all(&tail).and_then(|()| self.out.flush());
        written.and_then(|()| self.out.get_ref().sync_data()).map_err(|error| failed(&self.path, error))
    }

    fn frame(&mut self, payload: &[u8]) -> Result<()> {
        let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        let written = self.out.write_all(&length.to_le_bytes()).and_then(|()| self.out.write_all(payload));
        written.map_err(|error| Error::io("write", &self.path, error))
    }
}

/// Reads a record.
#[derive(Debug)]
pub(crate) struct RecordReader {
    path: PathBuf,
    input: BufReader<std::io::Take<File>>,
    packs: PackTable,
    previous: Vec<u8>,
    frame: Vec<u8>,
    /// The filesystem the tree was on.
    pub device: u64,
    pub subject: Subject,
    /// The root of the manifest, then its leaves.
    pub manifest: Vec<ChunkRef>,
}

impl RecordReader {
    /// Opens the record at `path`. `None` if there is none, or none that was finished.
    pub(crate) fn open(path: &Path) -> Result<Option<Self>> {
        let failed = |error| Error::io("read", path, error);
        let mut file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let length = file.metadata().map_err(failed)?.len();
        let Some(body) = length.checked_sub(TRAILER as u64) else { return Ok(None) };
        let mut trailer = [0; TRAILER];
        file.seek(SeekFrom::Start(body)).and_then(|_| file.read_exact(&mut trailer)).map_err(failed)?;
        let mut reader = Reader::new("scan record", &trailer);
        if reader.array()? != *MAGIC {
            return Ok(None);
        }
        let offset = u64::from_le_bytes(reader.array()?).min(body);
        let device = u64::from_le_bytes(reader.array()?);
        let subject = Subject { root: Digest(reader.array()?), lineage: Digest(reader.array()?) };
        let mut leaves = Vec::new();
        file.seek(SeekFrom::Start(offset)).map_err(failed)?;
        (&file).take(body - offset).read_to_end(&mut leaves).map_err(failed)?;
        file.rewind().map_err(failed)?;
        let manifest = decode_manifest(&leaves)?;
        Ok(Some(Self {
            manifest,
            path: path.to_owned(),
            input: BufReader::with_capacity(256 << 10, file.take(offset)),
            packs: PackTable::default(),
            previous: Vec::new(),
            frame: Vec::new(),
            device,
            subject,
        }))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The next row. A record that is damaged is removed: whoever tries again reads every file.
    pub(crate) fn next(&mut self) -> Result<Option<Seen>> {
        match self.row() {
            Err(Error::Corrupt { what, detail }) => {
                tracing::warn!(%what, %detail, "scan record not usable, it is removed");
                let _ = std::fs::remove_file(&self.path);
                Err(Error::Interrupted { operation: "going by a scan record that was damaged" })
            }
            row => row,
        }
    }

    fn row(&mut self) -> Result<Option<Seen>> {
        loop {
            if !self.read_frame()? {
                return Ok(None);
            }
            let mut reader = Reader::new("scan record", &self.frame);
            match reader.byte()? {
                TAG_PACKS => self.packs.decode(&mut reader)?,
                TAG_ENTRY => {
                    let racy = reader.byte()? & FLAG_RACY != 0;
                    let inode = reader.uint()?;
                    let ctime = Time { seconds: reader.int()?, nanoseconds: reader.uint32()? };
                    let entry = Entry::decode(&mut reader, &self.previous, &self.packs, Lists::Inline)?;
                    self.previous.clone_from(&entry.path);
                    return Ok(Some(Seen { entry, inode, ctime, racy }));
                }
                _ => return Err(reader.error("an unknown frame")),
            }
        }
    }

    fn read_frame(&mut self) -> Result<bool> {
        let failed = |error| Error::io("read", &self.path, error);
        let mut length = [0; 4];
        let read = self.input.read(&mut length).map_err(failed)?;
        if read == 0 {
            return Ok(false);
        }
        self.input.read_exact(&mut length[read..]).map_err(failed)?;
        let length = u32::from_le_bytes(length);
        if length > FRAME_LIMIT {
            return Err(Error::corrupt(self.path.display().to_string(), "a frame too long"));
        }
        self.frame.clear();
        let got = self.input.by_ref().take(length.into()).read_to_end(&mut self.frame).map_err(failed)?;
        if got < length as usize {
            return Err(Error::corrupt(self.path.display().to_string(), "ends early"));
        }
        Ok(true)
    }
}

fn decode_manifest(bytes: &[u8]) -> Result<Vec<ChunkRef>> {
    let mut reader = Reader::new("scan record", bytes);
    let mut packs = PackTable::default();
    packs.decode(&mut reader)?;
    let count = reader.count()?;
    let mut chunks = Vec::with_capacity(count);
    for _ in 0..count {
        let codec = if reader.byte()? == 0 { Codec::Raw } else { Codec::Zstd };
        chunks.push(decode_chunk(&mut reader, &packs, codec)?);
    }
    Ok(chunks)
}

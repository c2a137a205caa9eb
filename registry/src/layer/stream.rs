//! One layer's stream: blob → SHA-256 of the blob → decompression → SHA-256 of the diff ID → archive → files.
//!
//! Two threads a layer, so that one large layer uses two cores: one hashes and decompresses, one makes files. All that
//! lies between them is bounded.

use std::fs::File;
use std::io::{self, BufRead, Read, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use bytes::Bytes;
use rustix::fs::Mode;
use rustix::thread::UnshareFlags;
use sha2::{Digest, Sha256};
use tokio::sync::{mpsc, oneshot};

use super::Compression;
use super::tar::{TarError, TarReader};
use super::unpack::{Over, UnpackError, Unpacked, unpack};
use crate::error::{Error, Result};
use crate::limits::{Limits, RATIO_FREE_BYTES};
use crate::store::TmpDir;

/// Bytes that go from one thread to the next at a time: large enough that the hand-over costs nothing.
const PIECE_BYTES: usize = 256 << 10;
/// Pieces on their way from decompression to the file system: 1 MiB for each layer.
const PIECES: usize = 4;
/// Pieces of the network's size (up to some 100 KiB) that may wait for decompression.
pub(crate) const FEED_PIECES: usize = 16;

/// What the network gives to a stream. Its end is said, so that a cut is not taken for one.
#[derive(Debug)]
pub(crate) enum Feed {
    Data(Bytes),
    End,
}

/// Where a blob comes from.
#[derive(Debug)]
pub(crate) enum Source {
    /// As it arrives; it is written to the file beside.
    Network(mpsc::Receiver<Feed>, File),
    /// From the store.
    Stored(File),
}

/// One layer to be unpacked.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) source: Source,
    /// `sha256:…` of the blob, of the archive in it, and the blob's size.
    pub(crate) digest: String,
    pub(crate) diff_id: String,
    pub(crate) size: u64,
    /// The directory it is unpacked into; it is in `tmp`, which is kept from removal while the threads run.
    pub(crate) root: PathBuf,
    pub(crate) tmp: Arc<TmpDir>,
    pub(crate) limits: Limits,
    /// The layers below, if what the layer is depends on them.
    pub(crate) over: Option<Over>,
}

/// Starts the threads. They end by themselves when the feed is dropped; the answer then goes nowhere.
pub(crate) fn start(job: Job) -> Result<oneshot::Receiver<Result<Unpacked>>> {
    let (answer, result) = oneshot::channel();
    let directory = super::dir::open_root(&job.root).map_err(|e| Error::io("opening", &job.root, e))?;
    let root = job.root.clone();
    std::thread::Builder::new()
        .name("berth-unpack".into())
        .spawn(move || {
            let result = run(job, directory);
            // Nobody waits any more if the pull was dropped.
            let _ = answer.send(result);
        })
        .map_err(|e| Error::io("starting a thread for", root, e))?;
    Ok(result)
}

fn run(job: Job, directory: OwnedFd) -> Result<Unpacked> {
    let Job { source, digest, diff_id, size, root, tmp, limits, over } = job;
    let (pieces_out, pieces_in) = sync_channel(PIECES);
    let (recycled_out, recycled_in) = channel();
    let stop = Arc::new(AtomicBool::new(false));
    let decode = Decode {
        blob: Blob::new(source, size, Arc::clone(&stop), tmp.path().to_path_buf()),
        digest: digest.clone(),
        diff_id,
        limits: limits.clone(),
        out: pieces_out,
        recycled: recycled_in,
    };
    let decode = std::thread::Builder::new()
        .name("berth-decode".into())
        .spawn(move || decode.run())
        .map_err(|e| Error::io("starting a thread for", &root, e))?;
    let unpacked = unpack_pieces(pieces_in, recycled_out, directory, &limits, over.as_ref());
    if matches!(&unpacked, Err(UnpackError::Os { .. } | UnpackError::Limit { .. })) {
        stop.store(true, Ordering::Relaxed);
    }
    let decoded = decode.join().map_err(|_| Error::Interrupted("decompression"))?;
    drop(tmp);
    match (decoded, unpacked) {
        // Content that is not what was asked for is the cause of whatever else went wrong with it.
        (Err(error), _) if !matches!(error, Error::Interrupted(_)) => Err(error),
        (_, Err(error)) => Err(unpack_error(error, &digest, root)),
        (Err(error), Ok(_)) => Err(error),
        (Ok(()), Ok(unpacked)) => Ok(unpacked),
    }
}

fn unpack_error(error: UnpackError, digest: &str, root: PathBuf) -> Error {
    let invalid = |reason: String| Error::InvalidLayer { layer: digest.to_owned(), reason };
    match error {
        UnpackError::Invalid(reason)
        | UnpackError::Misplaced(reason)
        | UnpackError::Tar(TarError::Malformed(reason)) => invalid(reason),
        UnpackError::Tar(TarError::Io(_)) => Error::Interrupted("the transfer of a layer"),
        UnpackError::Limit { what, limit, unit } => {
            Error::TooLarge { what: format!("layer {digest}: {what}"), limit, unit }
        }
        UnpackError::Os { path, source } => {
            let source = io::Error::from(source);
            match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    Error::io("unpacking a layer into", root, source)
                }
                _ => Error::Io { action: "unpacking a layer into", path: root.join(path.trim_matches('"')), source },
            }
        }
    }
}

/// Takes pieces until the stream's end, also behind the archive's: the digest covers all of it.
fn unpack_pieces(
    pieces: Receiver<Piece>,
    recycled: Sender<Vec<u8>>,
    directory: OwnedFd,
    limits: &Limits,
    over: Option<&Over>,
) -> std::result::Result<Unpacked, UnpackError> {
    let thread = |source| UnpackError::Os { path: "this thread's umask".into(), source };
    // SAFETY: CLONE_FS unshares umask, root and working directory of this thread from the others. The thread was
    // started for this function, holds no relative path, and ends with it.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) }.map_err(thread)?;
    rustix::process::umask(Mode::empty());
    let mut reader = TarReader::new(PieceReader { pieces, recycled, piece: Vec::new(), position: 0, ended: false });
    let unpacked = unpack(&mut reader, directory, limits, over)?;
    let mut rest = reader.into_input();
    loop {
        let length = rest.fill_buf().map_err(TarError::Io)?.len();
        if length == 0 {
            return Ok(unpacked);
        }
        rest.consume(length);
    }
}

enum Piece {
    Data(Vec<u8>),
    End,
}

/// The archive as the file-making thread reads it.
#[derive(Debug)]
struct PieceReader {
    pieces: Receiver<Piece>,
    recycled: Sender<Vec<u8>>,
    piece: Vec<u8>,
    position: usize,
    ended: bool,
}

impl BufRead for PieceReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.position == self.piece.len() && !self.ended {
            match self.pieces.recv() {
                Ok(Piece::Data(piece)) => {
                    // Buffers go back: fresh ones cost a page fault for every 4 KiB. Nobody takes it: it is freed.
                    let _ = self.recycled.send(std::mem::replace(&mut self.piece, piece));
                    self.position = 0;
                }
                Ok(Piece::End) => self.ended = true,
                Err(_) => return Err(io::ErrorKind::BrokenPipe.into()),
            }
        }
        Ok(&self.piece[self.position..])
    }

    fn consume(&mut self, count: usize) {
        self.position = (self.position + count).min(self.piece.len());
    }
}

impl Read for PieceReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.fill_buf()?.read(buffer)?;
        self.consume(length);
        Ok(length)
    }
}

struct Decode {
    blob: Blob,
    digest: String,
    diff_id: String,
    limits: Limits,
    out: SyncSender<Piece>,
    recycled: Receiver<Vec<u8>>,
}

/// Why the archive could not be handed on to its end.
enum Stopped {
    /// The blob itself cannot be read.
    Blob(io::Error),
    /// The compressed data is malformed.
    Malformed(io::Error),
    /// The other thread has gone.
    Unpacker,
    Limit(Error),
}

impl Decode {
    fn run(mut self) -> Result<()> {
        let mut diff = Sha256::new();
        let decoded = self.decode(&mut diff);
        let interrupted = || Error::Interrupted("the transfer of a layer");
        let whole = decoded.is_ok();
        let reason = match decoded {
            Ok(()) => None,
            Err(Stopped::Limit(error)) => return Err(error),
            Err(Stopped::Blob(error)) => return Err(self.blob.error(error)),
            Err(Stopped::Unpacker) => None,
            Err(Stopped::Malformed(error)) => Some(format!("its compressed data is malformed: {error}")),
        };
        let unpacker_gone = self.blob.stop.load(Ordering::Relaxed);
        if unpacker_gone {
            return Err(interrupted());
        }
        // To the end, so that wrong content is told apart from a broken image.
        let found = self.blob.finish()?;
        if found != self.digest {
            return Err(Error::DigestMismatch { what: "the layer".into(), expected: self.digest, found });
        }
        if let Some(reason) = reason {
            return Err(Error::InvalidLayer { layer: self.digest, reason });
        }
        if whole {
            let found = format!("sha256:{:x}", diff.finalize());
            if found != self.diff_id {
                let what = format!("the archive in layer {}", self.digest);
                return Err(Error::DigestMismatch { what, expected: self.diff_id, found });
            }
            self.out.send(Piece::End).map_err(|_| interrupted())?;
            return Ok(());
        }
        Err(interrupted())
    }

    fn decode(&mut self, diff: &mut Sha256) -> std::result::Result<(), Stopped> {
        let magic = self.blob.first_bytes().map_err(Stopped::Blob)?;
        let compression = Compression::of_magic(&magic);
        let (limits, out, recycled) = (&self.limits, &self.out, &self.recycled);
        let mut total = 0u64;
        let mut hand_on = |piece: Vec<u8>, read: u64| -> std::result::Result<(), Stopped> {
            total += piece.len() as u64;
            let digest = &self.digest;
            if total > RATIO_FREE_BYTES && total / limits.ratio > read {
                let what = format!("the compression of layer {digest}");
                return Err(Stopped::Limit(Error::TooLarge { what, limit: limits.ratio, unit: "to 1" }));
            }
            // Headers and padding come on top of what the files hold; twice is generous.
            if total / 2 > limits.layer_bytes {
                let what = format!("layer {digest}, unpacked,");
                return Err(Stopped::Limit(Error::TooLarge { what, limit: limits.layer_bytes, unit: "bytes" }));
            }
            diff.update(&piece);
            out.send(Piece::Data(piece)).map_err(|_| Stopped::Unpacker)
        };
        match compression {
            Compression::None => pump(&mut self.blob, |blob| blob, recycled, &mut hand_on),
            Compression::Gzip => {
                let mut decoder = flate2::bufread::MultiGzDecoder::new(&mut self.blob);
                pump(&mut decoder, |decoder| decoder.get_mut(), recycled, &mut hand_on)
            }
            Compression::Zstd => {
                let mut decoder =
                    zstd::stream::read::Decoder::with_buffer(&mut self.blob).map_err(Stopped::Malformed)?;
                pump(&mut decoder, |decoder| decoder.get_mut(), recycled, &mut hand_on)
            }
        }
    }
}

/// Reads full pieces and hands them on, with the count of the blob's bytes read so far.
fn pump<R: Read>(
    reader: &mut R,
    blob: impl Fn(&mut R) -> &mut Blob,
    recycled: &Receiver<Vec<u8>>,
    hand_on: &mut impl FnMut(Vec<u8>, u64) -> std::result::Result<(), Stopped>,
) -> std::result::Result<(), Stopped> {
    loop {
        let mut piece = recycled.try_recv().unwrap_or_default();
        piece.resize(PIECE_BYTES, 0);
        let mut filled = 0;
        while filled < piece.len() {
            match reader.read(&mut piece[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if blob(reader).failed => return Err(Stopped::Blob(error)),
                Err(error) => return Err(Stopped::Malformed(error)),
            }
        }
        if filled == 0 {
            return Ok(());
        }
        piece.truncate(filled);
        let read = blob(reader).read;
        hand_on(piece, read)?;
    }
}

/// A blob as it is read: hashed, and kept in a file where it comes from the network.
struct Blob {
    source: Source,
    piece: Bytes,
    hash: Sha256,
    read: u64,
    size: u64,
    ended: bool,
    /// Reading or writing it failed: not a matter of its content.
    failed: bool,
    write_error: Option<io::Error>,
    stop: Arc<AtomicBool>,
    path: PathBuf,
}

impl Blob {
    fn new(source: Source, size: u64, stop: Arc<AtomicBool>, path: PathBuf) -> Self {
        let (piece, hash) = (Bytes::new(), Sha256::new());
        Self { source, piece, hash, read: 0, size, ended: false, failed: false, write_error: None, stop, path }
    }

    /// Makes at least the four bytes of a magic number available, where the blob has them.
    fn first_bytes(&mut self) -> io::Result<Vec<u8>> {
        let mut start = Vec::new();
        while start.len() < 4 {
            let piece = self.fill_buf()?;
            if piece.is_empty() {
                break;
            }
            start.extend_from_slice(piece);
            self.piece.clear();
        }
        let magic = start.iter().copied().take(4).collect();
        self.piece = start.into();
        Ok(magic)
    }

    fn next_piece(&mut self) -> io::Result<()> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let piece = match &mut self.source {
            Source::Network(feed, _) => match feed.blocking_recv() {
                Some(Feed::Data(piece)) => piece,
                Some(Feed::End) => Bytes::new(),
                None => return Err(io::ErrorKind::ConnectionAborted.into()),
            },
            Source::Stored(file) => {
                let mut buffer = vec![0; PIECE_BYTES];
                let length = file.read(&mut buffer)?;
                buffer.truncate(length);
                buffer.into()
            }
        };
        self.ended = piece.is_empty();
        self.read += piece.len() as u64;
        self.hash.update(&piece);
        if let Source::Network(_, file) = &mut self.source
            && let Err(error) = file.write_all(&piece)
        {
            self.write_error = Some(error);
            return Err(io::ErrorKind::Other.into());
        }
        self.piece = piece;
        Ok(())
    }

    /// Reads what is left, and gives the digest of all.
    fn finish(&mut self) -> Result<String> {
        loop {
            let length = match self.fill_buf() {
                Ok(piece) => piece.len(),
                Err(error) => return Err(self.error(error)),
            };
            if length == 0 {
                break;
            }
            self.consume(length);
        }
        let found = format!("sha256:{:x}", std::mem::take(&mut self.hash).finalize());
        if self.read != self.size {
            tracing::debug!(read = self.read, size = self.size, "a blob has another size than announced");
        }
        Ok(found)
    }

    fn error(&mut self, error: io::Error) -> Error {
        match (self.write_error.take(), &self.source) {
            (Some(error), _) => Error::io("writing a blob to", &self.path, error),
            (None, Source::Stored(_)) if !self.stop.load(Ordering::Relaxed) => {
                Error::io("reading a blob for", &self.path, error)
            }
            _ => Error::Interrupted("the transfer of a layer"),
        }
    }
}

impl BufRead for Blob {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.piece.is_empty()
            && !self.ended
            && let Err(error) = self.next_piece()
        {
            self.failed = true;
            return Err(error);
        }
        Ok(&self.piece)
    }

    fn consume(&mut self, count: usize) {
        let count = count.min(self.piece.len());
        bytes::Buf::advance(&mut self.piece, count);
    }
}

impl Read for Blob {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.fill_buf()?.read(buffer)?;
        self.consume(length);
        Ok(length)
    }
}

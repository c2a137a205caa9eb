//! A reader of tar archives: ustar, GNU (long names, sparse, base-256), PAX (local, global, sparse 0.0, 0.1, 1.0).
//!
//! It reads a stream once, keeps no more of it than one entry's headers, and never follows what it reads: what an entry
//! does to a file system is `unpack`'s to decide.

use std::collections::BTreeMap;
use std::io::{self, BufRead};

use crate::limits::{MAX_EXTENDED_HEADER_BYTES, MAX_PATH_BYTES, MAX_SPARSE_SEGMENTS};

const BLOCK: usize = 512;
/// Bytes of an entry's extended attributes together; Linux takes 64 KiB for one.
const MAX_XATTRS: usize = 1_000;

/// Why an archive cannot be read on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TarError {
    /// The stream itself failed.
    #[error("the archive cannot be read: {0}")]
    Io(#[from] io::Error),
    /// The archive is malformed; which entry, and how.
    #[error("{0}")]
    Malformed(String),
}

type Result<T> = std::result::Result<T, TarError>;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Directory,
    Symlink,
    Hardlink,
    Fifo,
    CharDevice { major: u32, minor: u32 },
    BlockDevice { major: u32, minor: u32 },
}

/// Seconds and nanoseconds since 1970; the nanoseconds count forward also before it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Time {
    pub(crate) seconds: i64,
    pub(crate) nanoseconds: u32,
}

/// A piece of a sparse file that holds data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

/// One entry's headers; of a regular file the data follows in the reader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) path: Vec<u8>,
    pub(crate) kind: Kind,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Time,
    /// Target of a symbolic or hard link.
    pub(crate) link: Vec<u8>,
    /// Extended attributes, unfiltered.
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Size of the file.
    pub(crate) size: u64,
    /// Where the data belongs, in rising order; `None` for an ordinary file.
    pub(crate) sparse: Option<Vec<Segment>>,
}

/// Reads the entries of one archive in order.
#[derive(Debug)]
pub(crate) struct TarReader<R> {
    input: R,
    /// Bytes of the current entry's data that were not read yet, and the padding after them.
    data_left: u64,
    padding: u64,
    global: BTreeMap<Vec<u8>, Vec<u8>>,
    block: Box<[u8; BLOCK]>,
}

/// What extended headers said about the entry to come.
#[derive(Default)]
struct Extended {
    pax: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Segments of PAX sparse format 0.0, whose keys repeat.
    sparse_00: Vec<u64>,
    long_path: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl<R: BufRead> TarReader<R> {
    pub(crate) fn new(input: R) -> Self {
        Self { input, data_left: 0, padding: 0, global: BTreeMap::new(), block: Box::new([0; BLOCK]) }
    }

    /// The stream, wherever the reader stands in it.
    pub(crate) fn into_input(self) -> R {
        self.input
    }

    /// The next entry; data of the former one that was not read is passed over. `None` at the end of the archive.
    pub(crate) fn next_entry(&mut self) -> Result<Option<Entry>> {
        let mut extended = Extended::default();
        let mut extended_bytes = 0u64;
        loop {
            self.skip(self.data_left + self.padding)?;
            (self.data_left, self.padding) = (0, 0);
            if !self.read_header()? {
                return Ok(None);
            }
            let header = Header(&self.block);
            header.verify()?;
            let flag = header.0[156];
            match flag {
                b'x' | b'g' | b'L' | b'K' => {
                    let size = header.size()?;
                    extended_bytes = extended_bytes.saturating_add(size);
                    if extended_bytes > MAX_EXTENDED_HEADER_BYTES {
                        let limit = MAX_EXTENDED_HEADER_BYTES;
                        return Err(malformed(format!("an extended header is larger than {limit} bytes")));
                    }
                    let data = self.read_extended(size)?;
                    match flag {
                        b'L' => extended.long_path = Some(until_nul(&data).to_vec()),
                        b'K' => extended.long_link = Some(until_nul(&data).to_vec()),
                        b'g' => {
                            parse_pax(&data, |key, value| match value {
                                [] => _ = self.global.remove(key),
                                _ => _ = self.global.insert(key.to_vec(), value.to_vec()),
                            })?;
                            let held: u64 = self.global.iter().map(|(k, v)| (k.len() + v.len()) as u64).sum();
                            if held > MAX_EXTENDED_HEADER_BYTES {
                                return Err(malformed("the global headers are too large".into()));
                            }
                        }
                        _ => extended.read_pax(&data)?,
                    }
                }
                // A volume label: a name for the tape.
                b'V' => self.data_left = 0,
                _ => return self.entry(extended).map(Some),
            }
        }
    }

    /// The next piece of the current entry's data, at most `limit` bytes; empty at its end. The bytes count as read.
    pub(crate) fn data<T>(&mut self, limit: u64, use_it: impl FnOnce(&[u8]) -> T) -> Result<Option<T>> {
        let wanted = limit.min(self.data_left);
        if wanted == 0 {
            return Ok(None);
        }
        let available = self.input.fill_buf()?;
        if available.is_empty() {
            return Err(cut());
        }
        let length = available.len().min(usize::try_from(wanted).unwrap_or(usize::MAX));
        let result = use_it(&available[..length]);
        self.input.consume(length);
        self.data_left -= length as u64;
        Ok(Some(result))
    }

    /// Bytes of the current entry's data that were not read yet.
    pub(crate) fn data_left(&self) -> u64 {
        self.data_left
    }

    fn entry(&mut self, extended: Extended) -> Result<Entry> {
        let header = Header(&self.block);
        let pax = |key: &str| extended.pax.get(key.as_bytes()).or_else(|| self.global.get(key.as_bytes()));
        let mut path = match pax("GNU.sparse.name").or(pax("path")).or(extended.long_path.as_ref()) {
            Some(path) => path.clone(),
            None => header.path(),
        };
        let link = match pax("linkpath").or(extended.long_link.as_ref()) {
            Some(link) => link.clone(),
            None => until_nul(&header.0[157..257]).to_vec(),
        };
        for (what, text) in [("path", &path), ("link target", &link)] {
            if text.len() >= MAX_PATH_BYTES || text.contains(&0) {
                return Err(malformed(format!("{}: its {what} is too long or holds a NUL", shown(&path))));
            }
        }
        if path.is_empty() {
            return Err(malformed("an entry has no name".into()));
        }
        let at = |reason: String| malformed(format!("{}: {reason}", shown(&path)));
        let number = |key: &str, range: std::ops::Range<usize>| -> Result<u64> {
            match pax(key) {
                Some(text) => decimal(text).ok_or_else(|| at(format!("{key} is not a number"))),
                None => octal_or_base256(&header.0[range])
                    .and_then(|n| u64::try_from(n).ok())
                    .ok_or_else(|| at(format!("{key} is not a number"))),
            }
        };
        // chown(2) takes 2^32-1 for "leave it".
        let id = |key: &str, range: std::ops::Range<usize>| -> Result<u32> {
            let id = number(key, range)?;
            u32::try_from(id).ok().filter(|id| *id != u32::MAX).ok_or_else(|| at(format!("{key} {id} is too large")))
        };
        let (uid, gid) = (id("uid", 108..116)?, id("gid", 116..124)?);
        let mode = header.mode().ok_or_else(|| at("its mode is not a number".into()))?;
        let mtime = match pax("mtime") {
            Some(text) => pax_time(text).ok_or_else(|| at("its mtime is not a time".into()))?,
            None => {
                let seconds = octal_or_base256(&header.0[136..148]).and_then(|n| i64::try_from(n).ok());
                Time { seconds: seconds.ok_or_else(|| at("its mtime is not a number".into()))?, nanoseconds: 0 }
            }
        };
        let device = || -> Result<(u32, u32)> {
            let part =
                |range: std::ops::Range<usize>| octal_or_base256(&header.0[range]).and_then(|n| u32::try_from(n).ok());
            part(329..337).zip(part(337..345)).ok_or_else(|| at("its device number is not one".into()))
        };
        let kind = match header.0[156] {
            b'1' => Kind::Hardlink,
            b'2' => Kind::Symlink,
            b'3' => device().map(|(major, minor)| Kind::CharDevice { major, minor })?,
            b'4' => device().map(|(major, minor)| Kind::BlockDevice { major, minor })?,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            // Before POSIX, a directory was a file whose name ends in a slash.
            0 if path.ends_with(b"/") => Kind::Directory,
            0 | b'0' | b'7' | b'S' => Kind::File,
            other => return Err(at(format!("entries of type {:?} are not supported", char::from(other)))),
        };
        let stored = if kind == Kind::File { number("size", 124..136)? } else { 0 };
        let xattrs: Vec<_> = self
            .global
            .iter()
            .filter(|(key, _)| !extended.pax.contains_key(*key))
            .chain(&extended.pax)
            .filter_map(|(key, value)| Some((key.strip_prefix(b"SCHILY.xattr.")?.to_vec(), value.clone())))
            .filter(|(key, _)| !key.is_empty() && !key.contains(&0))
            .collect();
        if xattrs.len() > MAX_XATTRS {
            return Err(at(format!("more than {MAX_XATTRS} extended attributes")));
        }
        // What the sparse formats need, before the header's block is read over.
        let real_size_pax = pax("GNU.sparse.realsize").or(pax("GNU.sparse.size")).map(|text| decimal(text));
        let map_01 = pax("GNU.sparse.map").cloned();
        let is_10 = pax("GNU.sparse.major").is_some_and(|major| major.as_slice() == b"1");
        let gnu = (header.0[156] == b'S').then_some(*header.0);

        self.data_left = stored;
        self.padding = (BLOCK as u64 - stored % BLOCK as u64) % BLOCK as u64;
        if kind == Kind::File && stored > i64::MAX as u64 {
            return Err(malformed(format!("{}: its size {stored} is impossible", shown(&path))));
        }
        let mut size = stored;
        let mut sparse = None;
        if kind == Kind::File {
            let name = shown(&path);
            let segments = if let Some(block) = gnu {
                size = octal_or_base256(&block[483..495])
                    .and_then(|n| u64::try_from(n).ok())
                    .ok_or_else(|| malformed(format!("{name}: its real size is not a number")))?;
                Some(self.gnu_sparse_map(&block, &name)?)
            } else if is_10 {
                Some(self.pax_sparse_map(&name)?)
            } else if let Some(text) = map_01 {
                Some(pairs(text.split(|b| *b == b',').map(decimal), &name)?)
            } else if !extended.sparse_00.is_empty() {
                Some(pairs(extended.sparse_00.iter().map(|n| Some(*n)), &name)?)
            } else {
                None
            };
            if let Some(segments) = segments {
                if let Some(real) = real_size_pax {
                    size = real.ok_or_else(|| malformed(format!("{name}: its real size is not a number")))?;
                }
                check_map(&segments, size, self.data_left, &name)?;
                sparse = Some(segments);
            }
        }
        // A trailing slash says nothing that the type does not.
        while path.len() > 1 && path.ends_with(b"/") {
            path.pop();
        }
        Ok(Entry { path, kind, mode, uid, gid, mtime, link, xattrs, size, sparse })
    }

    /// Old GNU: four segments in the header, then blocks of 21 before the data.
    fn gnu_sparse_map(&mut self, header: &[u8; BLOCK], name: &str) -> Result<Vec<Segment>> {
        let mut numbers: Vec<Option<u64>> = Vec::new();
        let field = |bytes: &[u8]| octal_or_base256(bytes).and_then(|n| u64::try_from(n).ok());
        let mut read = |entries: &[u8]| {
            for entry in entries.chunks_exact(24) {
                if entry[0] == 0 && entry[12] == 0 {
                    break;
                }
                numbers.extend([field(&entry[..12]), field(&entry[12..])]);
            }
            numbers.len() / 2
        };
        read(&header[386..482]);
        let mut more = header[482] != 0;
        while more {
            if !self.read_block()? {
                return Err(cut());
            }
            if read(&self.block[..504]) > MAX_SPARSE_SEGMENTS {
                return Err(malformed(format!("{name}: more than {MAX_SPARSE_SEGMENTS} sparse segments")));
            }
            more = self.block[504] != 0;
        }
        pairs(numbers.into_iter(), name)
    }

    /// PAX 1.0: the map stands before the data, as decimal lines, padded to a block.
    fn pax_sparse_map(&mut self, name: &str) -> Result<Vec<Segment>> {
        let not_a_map = || malformed(format!("{name}: its sparse map is malformed"));
        let mut numbers: Vec<u64> = Vec::new();
        let mut digits: Vec<u8> = Vec::new();
        let mut wanted: Option<usize> = None;
        while wanted.is_none_or(|wanted| numbers.len() < wanted) {
            if self.data_left < BLOCK as u64 {
                return Err(not_a_map());
            }
            if !self.read_block()? {
                return Err(cut());
            }
            self.data_left -= BLOCK as u64;
            for byte in self.block.iter() {
                match (byte, wanted) {
                    (b'\n', None) => {
                        let count = decimal(&digits).and_then(|n| usize::try_from(n).ok());
                        let count = count.filter(|n| *n <= MAX_SPARSE_SEGMENTS).ok_or_else(not_a_map)?;
                        wanted = Some(2 * count);
                        digits.clear();
                    }
                    (b'\n', Some(wanted)) if numbers.len() < wanted => {
                        numbers.push(decimal(&digits).ok_or_else(not_a_map)?);
                        digits.clear();
                    }
                    (_, Some(wanted)) if numbers.len() >= wanted => break,
                    (byte, _) if digits.len() < 20 => digits.push(*byte),
                    _ => return Err(not_a_map()),
                }
            }
        }
        pairs(numbers.into_iter().map(Some), name)
    }

    /// Reads a header block; false at the end of the archive: two blocks of zeros, or the end of the stream.
    fn read_header(&mut self) -> Result<bool> {
        if !self.read_block()? {
            return Ok(false);
        }
        if self.block.iter().any(|b| *b != 0) {
            return Ok(true);
        }
        if self.read_block()? && self.block.iter().any(|b| *b != 0) {
            return Err(malformed("a single block of zeros stands between two entries".into()));
        }
        Ok(false)
    }

    /// Fills the block; false if the stream ends before it.
    fn read_block(&mut self) -> Result<bool> {
        let mut filled = 0;
        while filled < BLOCK {
            let available = self.input.fill_buf()?;
            if available.is_empty() {
                return if filled == 0 { Ok(false) } else { Err(cut()) };
            }
            let length = available.len().min(BLOCK - filled);
            self.block[filled..filled + length].copy_from_slice(&available[..length]);
            self.input.consume(length);
            filled += length;
        }
        Ok(true)
    }

    fn read_extended(&mut self, size: u64) -> Result<Vec<u8>> {
        let mut data = Vec::new();
        self.data_left = size;
        self.padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
        while self.data(u64::MAX, |piece| data.extend_from_slice(piece))?.is_some() {}
        Ok(data)
    }

    fn skip(&mut self, mut count: u64) -> Result<()> {
        while count > 0 {
            let available = self.input.fill_buf()?;
            if available.is_empty() {
                return Err(cut());
            }
            let length = available.len().min(usize::try_from(count).unwrap_or(usize::MAX));
            self.input.consume(length);
            count -= length as u64;
        }
        Ok(())
    }
}

impl Extended {
    fn read_pax(&mut self, data: &[u8]) -> Result<()> {
        let mut bad_sparse = false;
        parse_pax(data, |key, value| match key {
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => match decimal(value) {
                Some(number) if self.sparse_00.len() < 2 * MAX_SPARSE_SEGMENTS => self.sparse_00.push(number),
                _ => bad_sparse = true,
            },
            _ => _ = self.pax.insert(key.to_vec(), value.to_vec()),
        })?;
        if bad_sparse { Err(malformed("a sparse map is malformed".into())) } else { Ok(()) }
    }
}

struct Header<'a>(&'a [u8; BLOCK]);

impl Header<'_> {
    /// The checksum, by unsigned or (old Suns) signed bytes.
    fn verify(&self) -> Result<()> {
        let mut unsigned = 0i128;
        let mut signed = 0i128;
        for (i, byte) in self.0.iter().enumerate() {
            let byte = if (148..156).contains(&i) { b' ' } else { *byte };
            unsigned += i128::from(byte);
            signed += i128::from(byte.cast_signed());
        }
        match octal_or_base256(&self.0[148..156]) {
            Some(sum) if sum == unsigned || sum == signed => Ok(()),
            _ => Err(malformed("a header's checksum is wrong: this is no tar archive, or it is damaged".into())),
        }
    }

    fn size(&self) -> Result<u64> {
        octal_or_base256(&self.0[124..136])
            .and_then(|n| u64::try_from(n).ok())
            .ok_or_else(|| malformed("an extended header's size is not a number".into()))
    }

    fn mode(&self) -> Option<u32> {
        octal_or_base256(&self.0[100..108]).and_then(|n| u32::try_from(n & 0o7777).ok())
    }

    /// Name, with ustar's prefix where the header is ustar's; GNU keeps times there.
    fn path(&self) -> Vec<u8> {
        let name = until_nul(&self.0[..100]);
        let prefix = until_nul(&self.0[345..500]);
        if &self.0[257..263] == b"ustar\0" && !prefix.is_empty() {
            [prefix, b"/", name].concat()
        } else {
            name.to_vec()
        }
    }
}

/// A path for a message: lossy, quoted, not too long.
pub(crate) fn shown(path: &[u8]) -> String {
    let text = String::from_utf8_lossy(&path[..path.len().min(200)]);
    format!("{text:?}")
}

fn malformed(reason: String) -> TarError {
    TarError::Malformed(reason)
}

fn cut() -> TarError {
    TarError::Malformed("the archive ends in the middle of an entry".into())
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len())]
}

fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// A number field: octal digits between blanks or NULs, or GNU's base 256 with the highest bit set. Empty is 0.
fn octal_or_base256(field: &[u8]) -> Option<i128> {
    match field.first() {
        Some(first) if first & 0x80 != 0 => {
            // Two's complement over the field less its marking bit; fields have at most 12 bytes, i128 holds them.
            let start = if first & 0x40 != 0 { i128::from(first | 0x80) - 256 } else { i128::from(first & 0x3f) };
            Some(field[1..].iter().fold(start, |n, byte| (n << 8) | i128::from(*byte)))
        }
        _ => {
            let trimmed = field.trim_ascii_start();
            let end = trimmed.iter().position(|b| matches!(b, 0 | b' ')).unwrap_or(trimmed.len());
            let digits = &trimmed[..end];
            if !digits.iter().all(|b| (b'0'..=b'7').contains(b)) {
                return None;
            }
            Some(digits.iter().fold(0, |n, b| n * 8 + i128::from(b - b'0')))
        }
    }
}

/// PAX times are decimal, with any number of digits after the point, and may be negative.
fn pax_time(text: &[u8]) -> Option<Time> {
    let text = std::str::from_utf8(text).ok()?;
    let (negative, text) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds = i64::try_from(decimal(whole.as_bytes())?).ok()?;
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let nanoseconds = format!("{fraction:0<9.9}").parse::<u32>().ok()?;
    Some(match (negative, nanoseconds) {
        (false, _) => Time { seconds, nanoseconds },
        (true, 0) => Time { seconds: -seconds, nanoseconds: 0 },
        (true, _) => Time { seconds: -seconds - 1, nanoseconds: 1_000_000_000 - nanoseconds },
    })
}

/// Records are `LENGTH KEY=VALUE\n`, the length counting itself.
fn parse_pax(mut data: &[u8], mut record: impl FnMut(&[u8], &[u8])) -> Result<()> {
    let bad = || malformed("a PAX header is malformed".into());
    while !data.is_empty() {
        let blank = data.iter().take(20).position(|b| *b == b' ').ok_or_else(bad)?;
        let length = decimal(&data[..blank]).and_then(|n| usize::try_from(n).ok()).ok_or_else(bad)?;
        if length <= blank + 1 || length > data.len() || data[length - 1] != b'\n' {
            return Err(bad());
        }
        let text = &data[blank + 1..length - 1];
        let equals = text.iter().position(|b| *b == b'=').filter(|at| *at > 0).ok_or_else(bad)?;
        record(&text[..equals], &text[equals + 1..]);
        data = &data[length..];
    }
    Ok(())
}

fn pairs(mut numbers: impl Iterator<Item = Option<u64>>, name: &str) -> Result<Vec<Segment>> {
    let bad = || malformed(format!("{name}: its sparse map is malformed"));
    let mut segments = Vec::new();
    while let Some(offset) = numbers.next() {
        let segment = offset.zip(numbers.next().flatten()).ok_or_else(bad)?;
        segments.push(Segment { offset: segment.0, length: segment.1 });
        if segments.len() > MAX_SPARSE_SEGMENTS {
            return Err(malformed(format!("{name}: more than {MAX_SPARSE_SEGMENTS} sparse segments")));
        }
    }
    Ok(segments)
}

/// Segments rise, end within the file, and hold exactly the data that is stored.
fn check_map(segments: &[Segment], size: u64, stored: u64, name: &str) -> Result<()> {
    let mut end = 0u64;
    let mut total = 0u64;
    for segment in segments {
        let next = segment.offset.checked_add(segment.length).filter(|_| segment.offset >= end);
        end = next.ok_or_else(|| malformed(format!("{name}: its sparse segments overlap")))?;
        total += segment.length;
    }
    if end > size || total != stored || size > i64::MAX as u64 {
        return Err(malformed(format!("{name}: its sparse map does not fit its size")));
    }
    Ok(())
}

#[cfg(test)]
#[path = "tar_tests.rs"]
pub(crate) mod tests;

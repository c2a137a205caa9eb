//! Archives: what the suite's images are made of, and what a backend gives and takes.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use super::case::{Stop, Verdict};

const BLOCK_BYTES: usize = 512;
/// One time for all, so that equal images have equal digests.
const MTIME: u64 = 1_700_000_000;
/// How a pax header names an extended attribute.
const XATTR: &str = "SCHILY.xattr.";

/// One file, directory or link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) name: String,
    /// As the archive has it: `0` a file, `1` a hard link, `2` a symbolic link, `5` a directory.
    pub(super) kind: char,
    pub(super) mode: u32,
    pub(super) uid: u64,
    pub(super) gid: u64,
    pub(super) mtime: u64,
    /// Where a link leads.
    pub(super) target: String,
    pub(super) xattrs: BTreeMap<String, Vec<u8>>,
    pub(super) content: Vec<u8>,
}

impl Member {
    fn new(kind: char, name: &str, mode: u32) -> Self {
        let (name, target) = (name.to_owned(), String::new());
        let (xattrs, content) = (BTreeMap::new(), Vec::new());
        Self { name, kind, mode, uid: 0, gid: 0, mtime: MTIME, target, xattrs, content }
    }

    pub(super) fn file(name: &str, content: impl Into<Vec<u8>>) -> Self {
        Self { content: content.into(), ..Self::new('0', name, 0o644) }
    }

    pub(super) fn directory(name: &str) -> Self {
        Self::new('5', name, 0o755)
    }

    pub(super) fn symlink(name: &str, target: &str) -> Self {
        Self { target: target.to_owned(), ..Self::new('2', name, 0o777) }
    }

    pub(super) fn hard_link(name: &str, target: &str) -> Self {
        Self { target: target.to_owned(), ..Self::new('1', name, 0o644) }
    }

    pub(super) fn owned_by(self, uid: u64, gid: u64) -> Self {
        Self { uid, gid, ..self }
    }

    pub(super) fn with_mode(self, mode: u32) -> Self {
        Self { mode, ..self }
    }

    /// Its content, where that is text.
    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.content).into_owned()
    }

    fn header(&self, kind: char, size: usize) -> [u8; BLOCK_BYTES] {
        let mut header = [0_u8; BLOCK_BYTES];
        let mut put = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
        put(0, short(&self.name));
        put(100, &format!("{:07o}\0", self.mode));
        put(108, &format!("{:07o}\0", self.uid));
        put(116, &format!("{:07o}\0", self.gid));
        put(124, &format!("{size:011o}\0"));
        put(136, &format!("{:011o}\0", self.mtime));
        put(148, "        ");
        put(156, &kind.to_string());
        put(157, short(&self.target));
        put(257, "ustar\x0000");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        header
    }
}

/// As much of a name as a header holds.
fn short(text: &str) -> &str {
    text.get(..99).unwrap_or(text)
}

/// The archive of `members`.
pub(super) fn archive(members: &[Member]) -> Vec<u8> {
    let mut archive = Vec::new();
    let mut add = |header: [u8; BLOCK_BYTES], content: &[u8]| {
        archive.extend_from_slice(&header);
        archive.extend_from_slice(content);
        archive.resize(archive.len().next_multiple_of(BLOCK_BYTES), 0);
    };
    for member in members {
        let xattrs = member.xattrs.iter().map(|(name, value)| (format!("{XATTR}{name}"), value.as_slice()));
        let long =
            [("path", &member.name), ("linkpath", &member.target)].into_iter().filter(|(_, text)| short(text) != *text);
        let long = long.map(|(name, text)| (name.to_owned(), text.as_bytes()));
        let records: Vec<u8> = xattrs.chain(long).flat_map(|(name, value)| record(&name, value)).collect();
        if !records.is_empty() {
            add(Member::new('x', "pax", 0o644).header('x', records.len()), &records);
        }
        add(member.header(member.kind, member.content.len()), &member.content);
    }
    archive.resize(archive.len() + 2 * BLOCK_BYTES, 0);
    archive
}

/// A pax record: its own length in front.
fn record(name: &str, value: &[u8]) -> Vec<u8> {
    let rest = [format!(" {name}=").as_bytes(), value, b"\n"].concat();
    let digits = |length: usize| length.to_string().len();
    let length = rest.len() + digits(rest.len() + digits(rest.len()));
    [length.to_string().as_bytes(), &rest].concat()
}

/// What is in an archive, the names without `./` in front or a slash at the end.
pub(super) fn members(archive: &[u8]) -> Verdict<Vec<Member>> {
    let mut members = Vec::new();
    let (mut rest, mut pax) = (archive, BTreeMap::<String, Vec<u8>>::new());
    while let Some((header, after)) = rest.split_at_checked(BLOCK_BYTES) {
        if header.iter().all(|byte| *byte == 0) {
            return Ok(members);
        }
        let size = match pax.get("size") {
            Some(size) => text(size).parse().map_err(|_| broken("a size in a pax header"))?,
            None => number(&header[124..136])?,
        };
        let size = usize::try_from(size).map_err(|_| broken("a size"))?;
        let content = after.get(..size).ok_or_else(|| broken("an end in the middle of a file"))?;
        rest = after.get(size.next_multiple_of(BLOCK_BYTES)..).unwrap_or_default();
        match header[156] {
            b'x' => pax = records(content)?,
            b'g' => {}
            b'L' => drop(pax.insert("path".to_owned(), field(content).into())),
            b'K' => drop(pax.insert("linkpath".to_owned(), field(content).into())),
            kind => members.push(member(header, kind, content, std::mem::take(&mut pax))?),
        }
    }
    Err(broken("no end"))
}

fn member(header: &[u8], kind: u8, content: &[u8], mut pax: BTreeMap<String, Vec<u8>>) -> Verdict<Member> {
    let prefix = if &header[257..263] == b"ustar\0" { field(&header[345..500]) } else { String::new() };
    let name = match pax.remove("path") {
        Some(path) => text(&path),
        None if prefix.is_empty() => field(&header[..100]),
        None => format!("{prefix}/{}", field(&header[..100])),
    };
    let of = |name: &str, at: std::ops::Range<usize>| match pax.get(name) {
        // A time has a fraction.
        Some(value) => text(value).split('.').next().and_then(|value| value.parse().ok()).ok_or_else(|| broken(name)),
        None => number(&header[at]),
    };
    let (uid, gid, mtime) = (of("uid", 108..116)?, of("gid", 116..124)?, of("mtime", 136..148)?);
    let target = pax.remove("linkpath").map_or_else(|| field(&header[157..257]), |path| text(&path));
    let xattrs = pax.into_iter().filter_map(|(name, value)| Some((name.strip_prefix(XATTR)?.to_owned(), value)));
    Ok(Member {
        name: name.trim_start_matches("./").trim_matches('/').to_owned(),
        kind: if kind == 0 { '0' } else { char::from(kind) },
        mode: u32::try_from(number(&header[100..108])?).map_err(|_| broken("a mode"))?,
        uid,
        gid,
        mtime,
        target,
        xattrs: xattrs.collect(),
        content: content.to_vec(),
    })
}

/// `LENGTH NAME=VALUE\n`, as often as there is room.
fn records(mut content: &[u8]) -> Verdict<BTreeMap<String, Vec<u8>>> {
    let mut found = BTreeMap::new();
    while !content.is_empty() {
        let space = content.iter().position(|byte| *byte == b' ').ok_or_else(|| broken("a pax header"))?;
        let length: usize = text(&content[..space]).parse().map_err(|_| broken("a pax header"))?;
        let record = content.get(space + 1..length.saturating_sub(1)).ok_or_else(|| broken("a pax header"))?;
        let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(|| broken("a pax header"))?;
        found.insert(text(&record[..equals]), record[equals + 1..].to_vec());
        content = &content[length..];
    }
    Ok(found)
}

/// Octal digits, or what has more bits with the first one set.
fn number(field_bytes: &[u8]) -> Verdict<u64> {
    if field_bytes[0] & 0x80 != 0 {
        return Ok(field_bytes[1..].iter().fold(0, |number, byte| (number << 8) | u64::from(*byte)));
    }
    let digits = field(field_bytes);
    let digits = digits.trim();
    if digits.is_empty() { Ok(0) } else { u64::from_str_radix(digits, 8).map_err(|_| broken("a number")) }
}

/// What stands before the first NUL.
fn field(bytes: &[u8]) -> String {
    text(bytes.split(|byte| *byte == 0).next().unwrap_or_default())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn broken(what: &str) -> Stop {
    Stop::Failed(format!("it is no whole tar: {what}"))
}

/// What is written to it can be read by who made it.
#[derive(Clone, Default)]
pub(super) struct Sink(Arc<Mutex<Vec<u8>>>);

impl Sink {
    pub(super) fn boxed(&self) -> Box<dyn Write + Send> {
        Box::new(self.clone())
    }

    pub(super) fn taken(&self) -> Vec<u8> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_into_an_archive_is_read_out_of_it() {
        let mut file = Member::file("dir/file", "content").owned_by(1234, 4321).with_mode(0o4750);
        file.xattrs.insert("security.capability".to_owned(), b"\x01\x00\n=".to_vec());
        let long = "d/".repeat(70) + "file";
        let all = [
            Member::symlink(&long, &long),
            Member::directory("dir"),
            file,
            Member::symlink("dir/link", "/file"),
            Member::hard_link("x", "dir/file"),
        ];
        let tar = archive(&all);
        assert_eq!(members(&tar).unwrap(), all);
        assert!(members(&tar[..700]).is_err() && members(b"no tar").is_err());
    }
}

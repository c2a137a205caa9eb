//! Which log files there are, and places in them.

use std::fmt;
use std::fs;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use chrono::{DateTime, TimeDelta, Utc};
use memchr::memchr;

use super::line;
use crate::error::{Error, Result};

/// How far the first line of a file may be later than some line before it (see `ORDER_SLACK_LINES`).
const ORDER_SLACK: TimeDelta = TimeDelta::seconds(10);

/// A place in a log: where a line begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Position {
    pub file: u64,
    pub offset: u64,
}

/// As a cursor, `<file number>:<byte offset>`.
impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.offset)
    }
}

impl FromStr for Position {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parsed = text
            .split_once(':')
            .and_then(|(file, offset)| Some(Self { file: file.parse().ok()?, offset: offset.parse().ok()? }));
        parsed.ok_or_else(|| Error::invalid("cursor", format!("{text:?} is not a cursor that a log record carried")))
    }
}

pub(super) fn path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number}.log"))
}

/// The numbers of the log files, ascending. Other files are none; no directory is an empty log.
pub(super) fn numbers(dir: &Path) -> Result<Vec<u64>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::io("listing", dir)(e)),
    };
    let mut numbers = Vec::new();
    for entry in entries {
        let name = entry.map_err(Error::io("listing", dir))?.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(".log")?.parse::<u64>().ok());
        // `007.log` is not the seventh.
        numbers.extend(number.filter(|number| name.to_str() == Some(&format!("{number}.log"))));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Opens a log file; `None` if it has been rotated away.
pub(super) fn open(dir: &Path, number: u64) -> Result<Option<File>> {
    let path = path(dir, number);
    match File::open(&path) {
        Ok(file) => Ok(Some(file)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io("opening", path)(e)),
    }
}

/// Where the log begins.
pub(super) fn oldest(dir: &Path) -> Result<Position> {
    Ok(Position { file: numbers(dir)?.first().copied().unwrap_or(0), offset: 0 })
}

/// Where the log ends now.
pub(super) fn end(dir: &Path) -> Result<Position> {
    let file = numbers(dir)?.last().copied().unwrap_or(0);
    let offset = open(dir, file)?.map_or(Ok(0), |file| file.metadata().map(|metadata| metadata.len()));
    Ok(Position { file, offset: offset.map_err(Error::io("looking at", path(dir, file)))? })
}

/// A place before which all lines are older than `since`: by the first lines of the files, none is read through.
pub(super) fn before(dir: &Path, since: DateTime<Utc>) -> Result<Position> {
    let numbers = numbers(dir)?;
    for number in numbers.iter().rev() {
        if first_time(dir, *number)?.is_some_and(|first| first + ORDER_SLACK < since) {
            return Ok(Position { file: *number, offset: 0 });
        }
    }
    Ok(Position { file: numbers.first().copied().unwrap_or(0), offset: 0 })
}

fn first_time(dir: &Path, number: u64) -> Result<Option<DateTime<Utc>>> {
    // Enough for the fields before the text, which is all that is needed.
    let mut start = [0; 256];
    let Some(file) = open(dir, number)? else { return Ok(None) };
    let len = file.read_at(&mut start, 0).map_err(Error::io("reading", path(dir, number)))?;
    let start = &start[..len];
    let line = &start[..memchr(b'\n', start).unwrap_or(len)];
    Ok(line::parse(line).map(|line| line.timestamp))
}

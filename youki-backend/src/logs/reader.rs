//! Reads whole lines forward, from one file to the next.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use memchr::{memchr, memrchr};

use super::files::{self, Position};
use crate::error::{Error, Result};

/// Read at once.
const CHUNK_BYTES: usize = 256 << 10;

/// Longest line that is taken: many times what the writer makes. More without a newline is not a log.
const MAX_LINE_BYTES: usize = 4 << 20;

/// A reader at some place of a log.
#[derive(Debug)]
pub(super) struct LineReader {
    dir: PathBuf,
    at: Position,
    /// What begins here or later is not read.
    end: Option<Position>,
    open: Option<File>,
    buffer: Vec<u8>,
    /// In the midst of a line that is too long: all up to its newline is passed over.
    skipping: bool,
    /// About how many bytes were rotated away before they were read, since that was last asked.
    lost_bytes: u64,
}

impl LineReader {
    pub fn new(dir: &Path, at: Position) -> Self {
        Self { dir: dir.to_owned(), at, end: None, open: None, buffer: Vec::new(), skipping: false, lost_bytes: 0 }
    }

    /// Reads to `end` only: who writes faster than it reads would keep it for ever.
    pub fn ending_at(self, end: Position) -> Self {
        Self { end: Some(end), ..self }
    }

    /// Reads on and gives each whole line with its place and the next one's to `each`. False at the end of what is
    /// there now: there may be more later.
    pub fn advance(&mut self, mut each: impl FnMut(Position, Position, &[u8])) -> Result<bool> {
        loop {
            if self.is_at_end() || self.open.is_none() && !self.open_current()? {
                return Ok(false);
            }
            let Some(len) = self.fill()? else {
                // Asked before the last read: what the writer put here before it went on is read first.
                let Some(next) = self.successor()? else { return Ok(false) };
                if self.fill()?.is_none() {
                    self.go_to(next, next - self.at.file - 1);
                }
                continue;
            };
            self.take(len, &mut each);
            return Ok(true);
        }
    }

    /// About how many bytes were rotated away just before what [`advance`](Self::advance) gave last, and where it goes on.
    pub fn take_lost(&mut self) -> Option<(u64, Position)> {
        let lost = std::mem::take(&mut self.lost_bytes);
        (lost > 0).then_some((lost, Position { offset: 0, ..self.at }))
    }

    /// Warns of lines that were not in the format.
    pub fn report_malformed(&self, count: u64) {
        if count > 0 {
            tracing::warn!(dir = %self.dir.display(), count, "skipped lines that are not in the log format");
        }
    }

    /// Opens the file it is at, or the next one if that is gone. False if there is none.
    fn open_current(&mut self) -> Result<bool> {
        loop {
            self.open = files::open(&self.dir, self.at.file)?;
            if self.open.is_some() {
                return Ok(true);
            }
            let Some(next) = self.successor()? else { return Ok(false) };
            self.go_to(next, next - self.at.file);
        }
    }

    fn successor(&self) -> Result<Option<u64>> {
        Ok(files::numbers(&self.dir)?.into_iter().find(|number| *number > self.at.file))
    }

    /// `lost` files before it are gone unread. They were as long as it is, or will be.
    fn go_to(&mut self, number: u64, lost: u64) {
        if lost > 0 {
            tracing::debug!(dir = %self.dir.display(), to = number, lost, "log files are gone unread");
            let len = fs::metadata(files::path(&self.dir, number)).map_or(0, |metadata| metadata.len());
            self.lost_bytes += len.max(1).saturating_mul(lost);
        }
        self.at = Position { file: number, offset: 0 };
        self.open = None;
        self.skipping = false;
    }

    /// Reads from where it is until the buffer holds a newline; the length up to and with the last one. `None` if
    /// there is no newline yet.
    fn fill(&mut self) -> Result<Option<usize>> {
        let Some(file) = &self.open else { return Ok(None) };
        let mut len = 0;
        loop {
            if self.buffer.len() < len + CHUNK_BYTES {
                self.buffer.resize(len + CHUNK_BYTES, 0);
            }
            let count = file
                .read_at(&mut self.buffer[len..], self.at.offset + len as u64)
                .map_err(Error::io("reading", files::path(&self.dir, self.at.file)))?;
            if count == 0 {
                return Ok(None);
            }
            let newline = memrchr(b'\n', &self.buffer[len..len + count]);
            if let Some(newline) = newline {
                return Ok(Some(len + newline + 1));
            }
            len += count;
            if len >= MAX_LINE_BYTES {
                self.skipping = true;
                self.at.offset += len as u64;
                len = 0;
            }
        }
    }

    fn is_at_end(&self) -> bool {
        self.end.is_some_and(|end| self.at >= end)
    }

    fn take(&mut self, len: usize, each: &mut impl FnMut(Position, Position, &[u8])) {
        let mut start = 0;
        while !self.is_at_end()
            && let Some(newline) = memchr(b'\n', &self.buffer[start..len])
        {
            let here = self.at;
            let line = &self.buffer[start..start + newline];
            start += newline + 1;
            self.at.offset += newline as u64 + 1;
            if !std::mem::take(&mut self.skipping) {
                each(here, self.at, line);
            }
        }
        // One long line should not cost its memory for ever.
        if self.buffer.len() > CHUNK_BYTES {
            self.buffer.truncate(CHUNK_BYTES);
            self.buffer.shrink_to_fit();
        }
    }
}

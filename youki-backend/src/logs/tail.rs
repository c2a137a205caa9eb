//! Finds where the last lines begin, from the end backwards.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use memchr::{memchr, memrchr};
use runtime_core::LogStream;

use super::files::{self, Position};
use super::line::{self, Kind};
use crate::error::{Error, Result};

/// Read at once, backwards.
const CHUNK_BYTES: u64 = 64 << 10;

/// How much further back it is looked for the record before a stream's earliest one. Only that tells whether the
/// latter begins a line; where it lies further back, it is taken to.
const CONFIRM_BYTES: u64 = 8 << 20;

/// Longest line that is taken, as forwards.
const MAX_LINE_BYTES: usize = 4 << 20;

/// Where the last lines begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TailStart {
    /// Reading begins here.
    pub start: Position,
    /// Records of a stream (stdout, stderr) before this belong to a line before those wanted.
    pub from: [Position; 2],
}

/// Finds the last `want` lines over both streams.
pub(super) fn locate(dir: &Path, want: usize) -> Result<TailStart> {
    let numbers = files::numbers(dir)?;
    let mut search = Search::new(want);
    let mut end = Position { file: numbers.last().copied().unwrap_or(0), offset: 0 };
    for number in numbers.iter().rev() {
        let Some(file) = files::open(dir, *number)? else { continue };
        let read_failed = || Error::io("reading", files::path(dir, *number));
        let len = file.metadata().map_err(read_failed())?.len();
        if *number == end.file {
            end.offset = len;
        }
        if want == 0 || search.file(&file, *number, len).map_err(read_failed())? {
            break;
        }
    }
    Ok(search.result(end))
}

struct Search {
    want: usize,
    /// Beginnings of lines, by stream, roughly from the end backwards.
    begins: Vec<(Position, LogStream)>,
    /// Of each stream, the earliest record seen: the one before it will tell whether it begins a line.
    unsure: [Option<Position>; 2],
    /// Bytes read since there were enough beginnings.
    beyond: u64,
}

impl Search {
    fn new(want: usize) -> Self {
        Self { want, begins: Vec::new(), unsure: [None; 2], beyond: 0 }
    }

    /// Goes through one file backwards; true when enough was found.
    fn file(&mut self, file: &File, number: u64, len: u64) -> std::io::Result<bool> {
        // `window` holds the file's bytes from `start` on, up to the end of the last line not yet seen.
        let mut window: Vec<u8> = Vec::new();
        let mut start = len;
        let mut torn = true;
        while start > 0 {
            let size = start.min(CHUNK_BYTES);
            start -= size;
            let mut chunk = vec![0; usize::try_from(size).unwrap_or(usize::MAX)];
            file.read_exact_at(&mut chunk, start)?;
            chunk.append(&mut window);
            window = chunk;
            if torn {
                // What follows the last newline is no whole line yet.
                let Some(newline) = memrchr(b'\n', &window) else {
                    window.clear();
                    continue;
                };
                window.truncate(newline + 1);
                torn = false;
            }
            // The first line of the window may begin before it, unless that is where the file begins.
            let whole_from = if start == 0 { Some(0) } else { memchr(b'\n', &window).map(|at| at + 1) };
            if let Some(whole_from) = whole_from.filter(|from| *from < window.len()) {
                self.lines(&window[whole_from..], Position { file: number, offset: start + whole_from as u64 });
                window.truncate(whole_from);
            } else if window.len() > MAX_LINE_BYTES {
                let newline = window.len() - 1;
                window.drain(..newline);
            }
            if self.enough(size) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Takes whole lines, the last first.
    fn lines(&mut self, bytes: &[u8], at: Position) {
        let mut end = bytes.len().saturating_sub(1);
        loop {
            let begin = memrchr(b'\n', &bytes[..end]).map_or(0, |newline| newline + 1);
            if let Some(Kind { stream, partial, is_gap }) = line::parse_kind(&bytes[begin..end]) {
                let here = Position { file: at.file, offset: at.offset + begin as u64 };
                let other = if stream == LogStream::Stdout { LogStream::Stderr } else { LogStream::Stdout };
                if is_gap && let Some(later) = self.unsure[other as usize].take() {
                    self.begins.push((later, other));
                }
                let later = self.unsure[stream as usize].replace(here);
                if let Some(later) = later.filter(|_| !partial) {
                    self.begins.push((later, stream));
                }
            }
            if begin == 0 {
                return;
            }
            end = begin - 1;
        }
    }

    /// Whether the wanted beginnings are known, and none that is still unsure lies among them.
    fn enough(&mut self, bytes_read: u64) -> bool {
        if self.begins.len() < self.want {
            return false;
        }
        self.begins.sort_by_key(|(position, _)| std::cmp::Reverse(*position));
        let last_wanted = self.begins[self.want - 1].0;
        if self.unsure.iter().flatten().all(|unsure| *unsure <= last_wanted) {
            return true;
        }
        self.beyond += bytes_read;
        self.beyond > CONFIRM_BYTES
    }

    fn result(mut self, end: Position) -> TailStart {
        for (index, stream) in [LogStream::Stdout, LogStream::Stderr].into_iter().enumerate() {
            // Nothing before it, or nothing near: it begins a line.
            self.begins.extend(self.unsure[index].map(|position| (position, stream)));
        }
        self.begins.sort_by_key(|(position, _)| std::cmp::Reverse(*position));
        self.begins.truncate(self.want);
        let mut from = [end; 2];
        for (position, stream) in &self.begins {
            from[*stream as usize] = *position;
        }
        TailStart { start: from[0].min(from[1]), from }
    }
}

//! From the container's output to lines of its log.
//!
//! Lines are in the CRI format (`time stream P|F text`), with the time of the read that brought their first byte. A
//! line without its end is carried while the pipe holds more, and becomes a partial one (P) when it is empty, so that
//! a prompt is seen at once.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use super::clock::now_text;
use super::log::Log;

/// One read: what a pipe of [`PIPE_BYTES`] holds is taken in four.
pub(super) const READ_BYTES: usize = 256 << 10;
/// A pipe this large lets a writer run on while its lines are written (`F_SETPIPE_SZ`).
pub(crate) const PIPE_BYTES: i32 = 1 << 20;
/// `2026-11-25T03:21:40.000000000Z stdout F `.
pub(super) const PREFIX_BYTES: usize = 40;
/// A line of the log is no longer than this.
pub(super) const LONGEST_LINE_BYTES: usize = READ_BYTES + PREFIX_BYTES + 1;
/// What formatting needs at most: every byte of a read a line of its own.
const FORMATTED_BYTES: usize = READ_BYTES * (PREFIX_BYTES + 1);

/// What a read brought.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ReadResult {
    /// So many bytes, now at the front of the buffer.
    Bytes(usize),
    /// Nothing now.
    Empty,
    /// No writer is left.
    End,
}

/// One output stream of the container.
#[derive(Debug)]
pub(crate) struct Output {
    pub pipe: Option<OwnedFd>,
    name: &'static str,
    buffer: Mapping,
    /// Bytes at the front of the buffer that are the beginning of a line, and when that began.
    carried: usize,
    carried_since: [u8; 30],
}

/// Memory that is given back when idle.
#[derive(Debug)]
struct Mapping {
    start: *mut u8,
    len: usize,
}

impl Mapping {
    fn new(len: usize) -> io::Result<Self> {
        // SAFETY: an anonymous private mapping at a place of the kernel's choice.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(Self { start: start.cast(), len }) }
    }

    fn as_mut(&mut self) -> &mut [u8] {
        // SAFETY: the mapping is ours alone, readable, writable, zeroed where untouched, and lives as long as self.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.len) }
    }

    fn release(&mut self) {
        // SAFETY: the range is this mapping; its contents are no longer needed.
        unsafe { libc::madvise(self.start.cast(), self.len, libc::MADV_DONTNEED) };
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is this mapping, and nothing borrows it any more.
        unsafe { libc::munmap(self.start.cast(), self.len) };
    }
}

/// Where lines are put together before they are written; shared by both streams.
#[derive(Debug)]
pub(crate) struct Scratch(Mapping);

impl Scratch {
    pub fn new() -> io::Result<Self> {
        Mapping::new(FORMATTED_BYTES).map(Self)
    }

    /// Gives the memory back to the kernel.
    pub fn release(&mut self) {
        self.0.release();
    }
}

impl Output {
    pub fn new(pipe: OwnedFd, name: &'static str) -> io::Result<Self> {
        Ok(Self { pipe: Some(pipe), name, buffer: Mapping::new(READ_BYTES)?, carried: 0, carried_since: [0; 30] })
    }

    /// Reads once, without waiting. [`Output::taken`] gives the bytes, [`Output::log`] writes them.
    pub fn read(&mut self) -> io::Result<ReadResult> {
        let Some(pipe) = &self.pipe else { return Ok(ReadResult::End) };
        let carried = self.carried;
        let room = &mut self.buffer.as_mut()[carried..];
        // SAFETY: the buffer is writable for its whole length.
        let count = unsafe { libc::read(pipe.as_raw_fd(), room.as_mut_ptr().cast(), room.len()) };
        match count {
            0 => Ok(ReadResult::End),
            1.. => Ok(ReadResult::Bytes(count as usize)),
            _ => match io::Error::last_os_error() {
                error if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINTR)) => Ok(ReadResult::Empty),
                error => Err(error),
            },
        }
    }

    /// The bytes of the last read.
    pub fn taken(&mut self, count: usize) -> &[u8] {
        let carried = self.carried;
        &self.buffer.as_mut()[carried..carried + count]
    }

    /// Whether the pipe holds nothing now.
    pub fn is_drained(&self) -> bool {
        let Some(pipe) = &self.pipe else { return true };
        let mut waiting: libc::c_int = 0;
        // SAFETY: FIONREAD writes one int.
        let result = unsafe { libc::ioctl(pipe.as_raw_fd(), libc::FIONREAD, &raw mut waiting) };
        result != 0 || waiting == 0
    }

    /// Writes the `count` bytes of the last read as lines, and carries what is not one yet.
    pub fn log(&mut self, count: usize, log: &mut Log, scratch: &mut Scratch) {
        let drained = self.is_drained();
        let now = now_text();
        let total = self.carried + count;
        let first = if self.carried > 0 { self.carried_since } else { now };
        let name = self.name;
        let bytes = &mut self.buffer.as_mut()[..total];
        let mut lines = Lines { out: scratch.0.as_mut(), used: 0, name };
        let mut start = 0;
        for end in memchr::memchr_iter(b'\n', bytes) {
            lines.push(if start == 0 { &first } else { &now }, b"F", &bytes[start..end]);
            start = end + 1;
        }
        let rest = total - start;
        let time = if start == 0 { first } else { now };
        // A line that fills the whole buffer is written in pieces.
        if rest > 0 && (drained || rest == READ_BYTES) {
            lines.push(&time, b"P", &bytes[start..total]);
            self.carried = 0;
        } else {
            bytes.copy_within(start..total, 0);
            self.carried = rest;
            self.carried_since = time;
        }
        let used = lines.used;
        log.write(&scratch.0.as_mut()[..used]);
    }

    /// Writes what is carried, when no more will come.
    pub fn finish(&mut self, log: &mut Log, scratch: &mut Scratch) {
        if self.carried > 0 {
            self.pipe = None;
            self.log(0, log, scratch);
        }
    }

    /// Gives the memory back to the kernel, unless it is needed.
    pub fn release(&mut self) {
        if self.carried == 0 {
            self.buffer.release();
        }
    }
}

struct Lines<'a> {
    out: &'a mut [u8],
    used: usize,
    name: &'static str,
}

impl Lines<'_> {
    fn push(&mut self, time: &[u8; 30], tag: &[u8], text: &[u8]) {
        for piece in [time.as_slice(), b" ", self.name.as_bytes(), b" ", tag, b" ", text, b"\n"] {
            self.out[self.used..self.used + piece.len()].copy_from_slice(piece);
            self.used += piece.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;

    use super::*;
    use crate::supervisor::resident::log::LogSettings;

    struct Fixture {
        dir: tempfile::TempDir,
        output: Output,
        writer: File,
        log: Log,
        scratch: Scratch,
    }

    fn fixture() -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_NONBLOCK).unwrap();
        let log = Log::blocking(LogSettings { dir: dir.path().to_owned(), max_bytes: 64 << 20, max_files: 10 });
        Fixture {
            output: Output::new(reader, "stdout").unwrap(),
            writer: writer.into(),
            log,
            scratch: Scratch::new().unwrap(),
            dir,
        }
    }

    impl Fixture {
        fn write(&mut self, bytes: &[u8]) {
            self.writer.write_all(bytes).unwrap();
            while let ReadResult::Bytes(count) = self.output.read().unwrap() {
                self.output.log(count, &mut self.log, &mut self.scratch);
            }
        }

        /// Every line without its time.
        fn lines(&self) -> Vec<String> {
            let text = std::fs::read(self.dir.path().join("0.log")).unwrap();
            String::from_utf8_lossy(&text).lines().map(|line| line[31..].to_owned()).collect()
        }
    }

    #[test]
    fn lines_are_whole_and_a_prompt_is_seen_at_once() {
        let mut f = fixture();
        f.write(b"one\n\ntwo\nprompt> ");
        f.write(b"answer\n");
        assert_eq!(f.lines(), ["stdout F one", "stdout F ", "stdout F two", "stdout P prompt> ", "stdout F answer"]);
    }

    #[test]
    fn a_line_longer_than_the_buffer_comes_in_pieces_that_join() {
        let mut f = fixture();
        let long = vec![b'x'; 3 * READ_BYTES + 17];
        for chunk in long.chunks(32 << 10) {
            f.write(chunk);
        }
        f.write(b"\n");
        let joined: String = f.lines().iter().map(|line| line[9..].to_owned()).collect();
        assert_eq!(joined.len(), long.len());
        assert!(f.lines().last().unwrap().starts_with("stdout F"));
    }

    #[test]
    fn the_worst_case_of_two_byte_lines_fits_the_scratch() {
        let mut f = fixture();
        let newlines = vec![b'\n'; 48 << 10];
        f.write(&newlines);
        assert_eq!(f.lines().len(), newlines.len());
    }
}

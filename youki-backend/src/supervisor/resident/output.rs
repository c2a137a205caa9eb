//! From the container's output to its log files.
//!
//! Lines are in the CRI format (`time stream P|F text`), with the time of the read that brought their first byte. A
//! line without its end is carried while the pipe holds more, and becomes a partial one (P) when it is empty, so that
//! a prompt is seen at once. Files are numbered, `<n>.log`, the highest is written; rotation opens the next number and
//! unlinks the oldest, never renames over another. What a full disk does not take is dropped, counted, and said in the
//! log as an empty line tagged `F:dropped=<bytes>` as soon as it takes anything again.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

/// One read: what a pipe of [`PIPE_BYTES`] holds is taken in four.
const READ_BYTES: usize = 256 << 10;
/// A pipe this large lets a writer run on while its lines are written (`F_SETPIPE_SZ`).
pub(crate) const PIPE_BYTES: i32 = 1 << 20;
/// `2026-11-25T03:21:40.000000000Z stdout F `.
const PREFIX_BYTES: usize = 40;
/// What formatting needs at most: every byte of a read a line of its own.
const FORMATTED_BYTES: usize = READ_BYTES * (PREFIX_BYTES + 1);

/// The log files of one container.
#[derive(Debug)]
pub(crate) struct Log {
    dir: PathBuf,
    file: Option<File>,
    number: u64,
    written: u64,
    max_bytes: u64,
    max_files: usize,
    dropped: u64,
}

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

impl Log {
    /// Goes on in the newest file of `dir`, or begins `0.log`. An unreadable directory is an empty one: logging must not
    /// keep a container from running.
    pub fn open(dir: &Path, max_bytes: u64, max_files: usize) -> Self {
        let number = numbers(dir).into_iter().max().unwrap_or(0);
        let mut log = Self {
            dir: dir.to_owned(),
            file: None,
            number,
            written: 0,
            max_bytes,
            max_files: max_files.max(1),
            dropped: 0,
        };
        log.open_current();
        if log.is_torn() {
            // By a power cut: a line glued to it could not be told from it.
            log.rotate();
        }
        log
    }

    fn is_torn(&self) -> bool {
        use std::os::unix::fs::FileExt;
        let mut last = [0];
        let read =
            File::open(self.path()).and_then(|file| file.read_exact_at(&mut last, self.written.saturating_sub(1)));
        self.written > 0 && read.is_ok() && last != *b"\n"
    }

    fn path(&self) -> PathBuf {
        self.dir.join(format!("{}.log", self.number))
    }

    fn open_current(&mut self) {
        let path = self.path();
        match OpenOptions::new().append(true).create(true).open(&path) {
            Ok(file) => {
                self.written = file.metadata().map_or(0, |metadata| metadata.len());
                self.file = Some(file);
            }
            Err(error) => {
                say!("opening {}: {error}", path.display());
                self.file = None;
                self.written = 0;
            }
        }
    }

    /// Appends whole lines. A file takes as many of them as fit, and one at least.
    fn write(&mut self, mut lines: &[u8]) {
        while !lines.is_empty() {
            let room = usize::try_from(self.max_bytes.saturating_sub(self.written)).unwrap_or(usize::MAX);
            let fitting = match lines.len() {
                all if all <= room => all,
                _ => memchr::memrchr(b'\n', &lines[..room]).map_or(0, |end| end + 1),
            };
            if fitting == 0 && self.written > 0 {
                self.rotate();
                continue;
            }
            let first_line = || memchr::memchr(b'\n', lines).map_or(lines.len(), |end| end + 1);
            let (now, later) = lines.split_at(if fitting == 0 { first_line() } else { fitting });
            self.append_or_drop(now);
            lines = later;
        }
    }

    fn append_or_drop(&mut self, lines: &[u8]) {
        if self.dropped > 0 {
            let notice = format!("{} stdout F:dropped={} \n", String::from_utf8_lossy(&now_text()), self.dropped);
            if self.append(notice.as_bytes()) {
                self.dropped = 0;
            }
        }
        if self.dropped > 0 || !self.append(lines) {
            self.dropped += payload_bytes(lines);
        }
    }

    /// Appends all of `bytes`, or none of them.
    fn append(&mut self, bytes: &[u8]) -> bool {
        if self.file.is_none() {
            self.open_current();
        }
        let Some(file) = &mut self.file else { return false };
        match file.write_all(bytes) {
            Ok(()) => {
                self.written += bytes.len() as u64;
                true
            }
            Err(_) => {
                // A torn line would take the next one into itself.
                let _ = file.set_len(self.written);
                false
            }
        }
    }

    fn rotate(&mut self) {
        self.number += 1;
        self.open_current();
        let mut numbers = numbers(&self.dir);
        numbers.sort_unstable();
        let surplus = numbers.len().saturating_sub(self.max_files);
        for number in &numbers[..surplus] {
            let _ = std::fs::remove_file(self.dir.join(format!("{number}.log")));
        }
    }
}

/// How many of the container's bytes these lines stand for.
fn payload_bytes(lines: &[u8]) -> u64 {
    lines
        .split_inclusive(|byte| *byte == b'\n')
        // A whole line's newline is the container's, a partial one's ours.
        .map(|line| {
            line.len().saturating_sub(PREFIX_BYTES + usize::from(line.get(PREFIX_BYTES - 2) == Some(&b'P'))) as u64
        })
        .sum()
}

/// The numbers of the log files in `dir`.
fn numbers(dir: &Path) -> Vec<u64> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.strip_suffix(".log")?.parse().ok()).collect()
}

/// Nanoseconds since the epoch.
pub(crate) fn now_nanos() -> i64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the struct is writable and outlives the call; CLOCK_REALTIME always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_REALTIME, &raw mut time) };
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}

/// Now, as `2026-11-25T03:21:40.000000000Z`.
fn now_text() -> [u8; 30] {
    rfc3339(now_nanos())
}

/// Civil date from days since the epoch, by Howard Hinnant's `civil_from_days`: chrono would be most of this program.
fn rfc3339(nanos: i64) -> [u8; 30] {
    let (seconds, nanos) = (nanos.div_euclid(1_000_000_000), nanos.rem_euclid(1_000_000_000));
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 { month_index + 3 } else { month_index - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let mut text = *b"0000-00-00T00:00:00.000000000Z";
    let mut put = |start: usize, width: usize, mut value: i64| {
        for place in (start..start + width).rev() {
            text[place] = b'0' + (value % 10) as u8;
            value /= 10;
        }
    };
    put(0, 4, year);
    put(5, 2, month);
    put(8, 2, day);
    put(11, 2, second / 3_600);
    put(14, 2, second / 60 % 60);
    put(17, 2, second % 60);
    put(20, 9, nanos);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixture {
        dir: tempfile::TempDir,
        output: Output,
        writer: File,
        log: Log,
        scratch: Scratch,
    }

    fn fixture(max_bytes: u64, max_files: usize) -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_NONBLOCK).unwrap();
        let log = Log::open(dir.path(), max_bytes, max_files);
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
            let mut numbers = numbers(self.dir.path());
            numbers.sort_unstable();
            let text: Vec<u8> = numbers
                .iter()
                .flat_map(|number| std::fs::read(self.dir.path().join(format!("{number}.log"))).unwrap())
                .collect();
            String::from_utf8_lossy(&text).lines().map(|line| line[31..].to_owned()).collect()
        }
    }

    #[test]
    fn times_are_those_of_the_calendar() {
        for nanos in [0, -1, 951_782_400_000_000_000, 1_709_164_799_999_999_999, 4_102_444_800_123_456_789] {
            let expected =
                chrono::DateTime::from_timestamp_nanos(nanos).to_rfc3339_opts(chrono::SecondsFormat::Nanos, true);
            assert_eq!(std::str::from_utf8(&rfc3339(nanos)).unwrap(), expected);
        }
    }

    #[test]
    fn lines_are_whole_and_a_prompt_is_seen_at_once() {
        let mut f = fixture(1 << 20, 10);
        f.write(b"one\n\ntwo\nprompt> ");
        f.write(b"answer\n");
        assert_eq!(f.lines(), ["stdout F one", "stdout F ", "stdout F two", "stdout P prompt> ", "stdout F answer"]);
    }

    #[test]
    fn a_line_longer_than_the_buffer_comes_in_pieces_that_join() {
        let mut f = fixture(64 << 20, 10);
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
        let mut f = fixture(64 << 20, 10);
        let newlines = vec![b'\n'; 48 << 10];
        f.write(&newlines);
        assert_eq!(f.lines().len(), newlines.len());
    }

    #[test]
    fn rotation_keeps_so_many_files_and_the_newest_lines() {
        let mut f = fixture(200, 3);
        for number in 0..100 {
            f.write(format!("line {number}\n").as_bytes());
        }
        let kept = numbers(f.dir.path());
        assert_eq!(kept.len(), 3);
        let lines = f.lines();
        assert_eq!(lines.last().unwrap(), "stdout F line 99");
        assert!(lines.len() < 20);
    }

    #[test]
    fn one_read_of_many_lines_is_spread_over_as_many_files_as_it_needs() {
        let mut f = fixture(4096, 10);
        let lines: String = (0..1000).map(|number| format!("{number}\n")).collect();
        f.write(lines.as_bytes());
        assert_eq!(numbers(f.dir.path()).len(), 10);
        for number in numbers(f.dir.path()) {
            assert!(std::fs::metadata(f.dir.path().join(format!("{number}.log"))).unwrap().len() <= 4096);
        }
        assert_eq!(f.lines().last().unwrap(), "stdout F 999");
    }

    #[test]
    fn a_torn_line_is_left_alone_and_the_next_file_begun() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("4.log"), "2026-11-25T03:21:40.000000000Z stdout F half a li").unwrap();
        assert_eq!(Log::open(dir.path(), 1 << 20, 3).number, 5);
        std::fs::write(dir.path().join("5.log"), "whole\n").unwrap();
        assert_eq!(Log::open(dir.path(), 1 << 20, 3).number, 5);
    }

    #[test]
    fn what_a_full_disk_does_not_take_is_counted_and_said() {
        let mut f = fixture(1 << 20, 3);
        f.write(b"before\n");
        f.log.file = Some(OpenOptions::new().write(true).open("/dev/full").unwrap());
        f.write(b"lost\n");
        f.log.file = None;
        f.write(b"after\n");
        assert_eq!(f.lines(), ["stdout F before", "stdout F:dropped=5 ", "stdout F after"]);
    }
}

//! The files of one log: numbered, rotated, and what a full disk does not take.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use super::notice;
use crate::supervisor::resident::output::PREFIX_BYTES;

/// Where they lie, and how much of them is kept.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub dir: PathBuf,
    /// Size at which a file is followed by the next.
    pub max_bytes: u64,
    /// How many are kept.
    pub max_files: usize,
}

/// The log files of one container.
#[derive(Debug)]
pub(crate) struct LogFiles {
    settings: Settings,
    file: Option<File>,
    number: u64,
    written: u64,
    dropped: u64,
}

impl LogFiles {
    /// Goes on in the newest file of the directory, or begins `0.log`. An unreadable directory is an empty one: logging
    /// must not keep a container from running.
    pub fn open(settings: Settings) -> Self {
        let number = numbers(&settings.dir).into_iter().max().unwrap_or(0);
        let mut log = Self { settings, file: None, number, written: 0, dropped: 0 };
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
        self.settings.dir.join(format!("{}.log", self.number))
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
    pub fn write(&mut self, mut lines: &[u8]) {
        while !lines.is_empty() {
            let room = usize::try_from(self.settings.max_bytes.saturating_sub(self.written)).unwrap_or(usize::MAX);
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
            let notice = notice(self.dropped);
            if self.append(notice.as_bytes()) == notice.len() {
                self.dropped = 0;
            }
        }
        let kept = if self.dropped > 0 { 0 } else { self.append(lines) };
        self.dropped += payload_bytes(&lines[kept..]);
    }

    /// Appends as many whole lines of `bytes` as the disk takes, which a reader may have passed by then; their bytes.
    fn append(&mut self, bytes: &[u8]) -> usize {
        if self.file.is_none() {
            self.open_current();
        }
        let Some(file) = &mut self.file else { return 0 };
        let mut kept = bytes.len();
        if file.write_all(bytes).is_err() {
            let taken = file.metadata().map_or(0, |metadata| metadata.len().saturating_sub(self.written));
            let taken = usize::try_from(taken).unwrap_or(usize::MAX).min(bytes.len());
            kept = memchr::memrchr(b'\n', &bytes[..taken]).map_or(0, |end| end + 1);
            // A torn line would take the next one into itself.
            let _ = file.set_len(self.written + kept as u64);
        }
        self.written += kept as u64;
        kept
    }

    /// Begins the next file. Of those before it so many stay as there may be beside it, and no more bytes than they may have
    /// together: a line may be longer than a file.
    fn rotate(&mut self) {
        self.number += 1;
        self.open_current();
        let mut older = numbers(&self.settings.dir);
        older.retain(|number| *number != self.number);
        older.sort_unstable();
        let beside = self.settings.max_files.max(1) - 1;
        let mut left_bytes = self.settings.max_bytes.saturating_mul(beside as u64);
        let path = |number: &u64| self.settings.dir.join(format!("{number}.log"));
        let mut fits = |number: &u64| {
            let bytes = std::fs::metadata(path(number)).map_or(0, |metadata| metadata.len());
            left_bytes.checked_sub(bytes).inspect(|left| left_bytes = *left).is_some()
        };
        let kept = older.iter().rev().take(beside).take_while(|number| fits(number)).count();
        for number in &older[..older.len() - kept] {
            let _ = std::fs::remove_file(path(number));
        }
    }
}

/// How many of the container's bytes these lines stand for.
pub(super) fn payload_bytes(lines: &[u8]) -> u64 {
    lines.split_inclusive(|byte| *byte == b'\n').map(payload_bytes_of_one).sum()
}

fn payload_bytes_of_one(line: &[u8]) -> u64 {
    match line.get(PREFIX_BYTES - 2..PREFIX_BYTES) {
        // What was dropped before, and would now be forgotten.
        Some(b"F:") => {
            let digits = line.iter().skip_while(|byte| **byte != b'=').skip(1).take_while(|byte| byte.is_ascii_digit());
            digits.fold(0, |number: u64, digit| number.saturating_mul(10).saturating_add(u64::from(digit - b'0')))
        }
        // A whole line's newline is the container's, a partial one's ours.
        Some(b"P ") => line.len().saturating_sub(PREFIX_BYTES + 1) as u64,
        _ => line.len().saturating_sub(PREFIX_BYTES) as u64,
    }
}

/// The numbers of the log files in `dir`.
pub(crate) fn numbers(dir: &Path) -> Vec<u64> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.strip_suffix(".log")?.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(dir: &Path, max_bytes: u64, max_files: usize) -> Settings {
        Settings { dir: dir.to_owned(), max_bytes, max_files }
    }

    fn line(text: &str) -> Vec<u8> {
        format!("2026-11-25T03:21:40.000000000Z stdout F {text}\n").into_bytes()
    }

    /// Every line without its time and stream.
    fn lines(dir: &Path) -> Vec<String> {
        let mut numbers = numbers(dir);
        numbers.sort_unstable();
        let read = |number| std::fs::read_to_string(dir.join(format!("{number}.log"))).unwrap();
        let text: String = numbers.into_iter().map(read).collect();
        text.lines().map(|line| line[38..].to_owned()).collect()
    }

    #[test]
    fn rotation_keeps_so_many_files_and_the_newest_lines() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = LogFiles::open(settings(dir.path(), 200, 3));
        for number in 0..100 {
            log.write(&line(&format!("line {number}")));
        }
        assert_eq!(numbers(dir.path()).len(), 3);
        let lines = lines(dir.path());
        assert_eq!(lines.last().unwrap(), "F line 99");
        assert!(lines.len() < 20);
    }

    #[test]
    fn lines_longer_than_a_file_keep_no_more_than_all_files_may() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = LogFiles::open(settings(dir.path(), 100, 10));
        let long = "x".repeat(300);
        for number in 0..20 {
            log.write(&line(&format!("{number} {long}")));
            let sizes = numbers(dir.path())
                .into_iter()
                .map(|number| std::fs::metadata(dir.path().join(format!("{number}.log"))).unwrap().len());
            let (bytes, one) = (sizes.sum::<u64>(), line(&long).len() as u64 + 3);
            assert!(bytes <= 10 * 100 + one, "{bytes} after line {number}");
        }
        assert!(lines(dir.path()).last().unwrap().starts_with("F 19 "));
    }

    #[test]
    fn what_a_full_disk_took_of_several_lines_stays_whole() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let page = rustix::param::page_size();
        let size = std::ffi::CString::new(format!("size={page}")).unwrap();
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("tmpfs", dir.path(), "tmpfs", flags, Some(size.as_c_str())).unwrap();
        let text = "x".repeat(page * 44 / 100);
        let three: Vec<u8> = (1..=3).flat_map(|number| line(&format!("{number} {text}"))).collect();
        let first = three.len() / 3;
        let mut log = LogFiles::open(settings(dir.path(), 1 << 20, 3));
        log.write(&three[..first]);
        // Of which a full disk takes one and a half.
        log.write(&three[first..]);
        log.write(&line("later"));
        drop(log);
        let found = lines(dir.path());
        rustix::mount::unmount(dir.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
        let dropped = payload_bytes(&three[2 * first..]);
        let expected =
            [format!("F 1 {text}"), format!("F 2 {text}"), format!("F:dropped={dropped} "), "F later".into()];
        assert_eq!(found, expected);
    }

    #[test]
    fn many_lines_are_spread_over_as_many_files_as_they_need() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = LogFiles::open(settings(dir.path(), 4096, 10));
        let many: Vec<u8> = (0..1000).flat_map(|number| line(&number.to_string())).collect();
        log.write(&many);
        assert_eq!(numbers(dir.path()).len(), 10);
        for number in numbers(dir.path()) {
            assert!(std::fs::metadata(dir.path().join(format!("{number}.log"))).unwrap().len() <= 4096);
        }
        assert_eq!(lines(dir.path()).last().unwrap(), "F 999");
    }

    #[test]
    fn a_torn_line_is_left_alone_and_the_next_file_begun() {
        let dir = tempfile::tempdir().unwrap();
        let opened = || LogFiles::open(settings(dir.path(), 1 << 20, 3)).number;
        std::fs::write(dir.path().join("4.log"), "2026-11-25T03:21:40.000000000Z stdout F half a li").unwrap();
        assert_eq!(opened(), 5);
        std::fs::write(dir.path().join("5.log"), "whole\n").unwrap();
        assert_eq!(opened(), 5);
    }

    #[test]
    fn what_a_full_disk_does_not_take_is_counted_and_said() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = LogFiles::open(settings(dir.path(), 1 << 20, 3));
        log.write(&line("before"));
        log.file = Some(OpenOptions::new().write(true).open("/dev/full").unwrap());
        log.write(
            &[line("lost"), notice(1000).into_bytes(), b"2026-11-25T03:21:40.000000000Z stderr P abc\n".to_vec()]
                .concat(),
        );
        log.file = None;
        log.write(&line("after"));
        assert_eq!(lines(dir.path()), ["F before", "F:dropped=1008 ", "F after"]);
    }
}

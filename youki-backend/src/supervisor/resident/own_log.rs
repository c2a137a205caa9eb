//! What the supervisor says of itself: on standard error, which is its container's `supervisor.log`.

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;

use crate::supervisor::MAX_SUPERVISOR_LOG_BYTES;

/// Appends a line. A full disk may not take it, which must not end the supervisor, as `eprintln!` would.
pub(super) fn say(line: fmt::Arguments<'_>) {
    if let Ok(file) = io::stderr().as_fd().try_clone_to_owned() {
        let _ = append(&file.into(), line);
    }
}

/// In one write, so that lines of several processes stay whole. A file that is full is begun anew: all who write to it
/// append.
fn append(mut file: &File, line: fmt::Arguments<'_>) -> io::Result<()> {
    if file.metadata()?.len() >= MAX_SUPERVISOR_LOG_BYTES {
        file.set_len(0)?;
    }
    file.write_all(format!("{line}\n").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_stays_within_its_bound_and_keeps_the_newest_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("supervisor.log");
        let file = File::options().create(true).append(true).open(&path).unwrap();
        let text = "x".repeat(1000);
        for number in 0..3_000 {
            append(&file, format_args!("{number} {text}")).unwrap();
            assert!(file.metadata().unwrap().len() <= MAX_SUPERVISOR_LOG_BYTES + 1_100);
        }
        let kept = std::fs::read_to_string(&path).unwrap();
        assert!(kept.lines().last().unwrap().starts_with("2999 "), "the newest line is there");
        assert!(kept.lines().all(|line| line.ends_with(&text)), "lines are whole");
    }

    #[test]
    fn a_disk_that_takes_nothing_is_no_panic() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        assert!(append(&full, format_args!("lost")).is_err());
    }
}

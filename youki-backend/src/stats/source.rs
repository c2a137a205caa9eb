//! Reads small kernel files with as few system calls and allocations as can be.

use std::fmt;
use std::fmt::Write;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;

/// More than any of these files is long. The kernel formats each whole and gives it in one read; what is longer (block
/// I/O of hundreds of devices) comes in more.
const FIRST_READ_BYTES: usize = 16 << 10;
/// What is shorter ends with its first read.
const SHORT_BYTES: usize = 2048;

/// Where a longer file is cut off: far more than a kernel file with thousands of devices or interfaces.
const MAX_FILE_BYTES: usize = 4 << 20;

/// One buffer for path and content of all files of a reading.
#[derive(Debug, Default)]
pub(super) struct Source {
    path: String,
    content: Vec<u8>,
}

impl Source {
    /// The content of `name` in a cgroup's directory.
    pub fn file(&mut self, dir: &Path, name: &str) -> Option<&str> {
        self.read(format_args!("{}/{name}", dir.to_str()?))
    }

    /// The content of a file; `None` if it is not there or cannot be read (its controller is not enabled).
    pub fn read(&mut self, path: fmt::Arguments<'_>) -> Option<&str> {
        self.path.clear();
        self.path.write_fmt(path).ok()?;
        let file = openat(CWD, self.path.as_str(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
        if self.content.is_empty() {
            self.content.resize(FIRST_READ_BYTES, 0);
        }
        let mut len = 0;
        loop {
            match rustix::io::read(&file, &mut self.content[len..]) {
                Ok(0) => break,
                Ok(count) => len += count,
                Err(Errno::INTR) => continue,
                Err(_) => return None,
            }
            if len < SHORT_BYTES {
                // Such a file is made whole at the first read: a second would only say that this was the end. A longer one may
                // come a page at a time.
                break;
            }
            if len == self.content.len() {
                if len >= MAX_FILE_BYTES {
                    break;
                }
                self.content.resize(len * 2, 0);
            }
        }
        std::str::from_utf8(&self.content[..len]).ok()
    }
}

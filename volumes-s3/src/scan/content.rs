//! Reads the content of a file, and of its holes only how long they are.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;

use rustix::fs::{FileType, Mode, OFlags, SeekFrom, Stat, openat};
use rustix::io::Errno;

use crate::walk::Found;

/// Opens a regular file to be read. Whoever owns the tree may put a device into its place meanwhile, and to open one may do
/// something to the host: what there is is looked at before. `None` if it is no regular file any more.
pub(super) fn open_file(found: &Found<'_>) -> std::result::Result<Option<(File, Stat)>, Errno> {
    let there = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let there = match openat(found.directory, found.name, there, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(None),
        there => there?,
    };
    let stat = rustix::fs::fstat(&there)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Ok(None);
    }
    let path = format!("/proc/self/fd/{}", there.as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOATIME;
    let file = rustix::fs::open(path, flags, Mode::empty())?;
    Ok(Some((file.into(), stat)))
}

/// The next run of data at or after `position`: where it starts and ends. Both are `size` when only a hole is left.
pub(super) fn next_run(file: &File, position: u64, size: u64) -> io::Result<(u64, u64)> {
    let start = match rustix::fs::seek(file, SeekFrom::Data(position)) {
        Ok(start) => start.min(size),
        Err(Errno::NXIO) => return Ok((size, size)),
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok((position, size)),
        Err(error) => return Err(error.into()),
    };
    let end = match rustix::fs::seek(file, SeekFrom::Hole(start)) {
        Ok(end) => end.clamp(start, size),
        Err(Errno::NXIO) => size,
        Err(error) => return Err(error.into()),
    };
    Ok((start, end))
}

/// Reads a file from a position, leaving its own alone.
pub(super) struct At<'a> {
    pub file: &'a File,
    pub position: u64,
}

impl io::Read for At<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.position)?;
        self.position += read as u64;
        Ok(read)
    }
}

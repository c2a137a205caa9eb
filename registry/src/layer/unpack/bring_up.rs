//! Hard links to files of the layers below: overlayfs shares no inode between layers, so the file comes up with every
//! name it has.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, SeekFrom};
use rustix::io::Errno;

use super::super::below::{Below, Found};
use super::super::dir;
use super::super::finalise::copy_attributes_at;
use super::super::tar::shown;
use super::{OsContext as _, Result, UnpackError, Unpacker};

impl Unpacker<'_> {
    /// Makes `real` (`name` in `parent`) a link to `target`, which this layer does not hold.
    pub(super) fn link_below(&mut self, parent: BorrowedFd<'_>, name: &[u8], real: &[u8], target: &[u8]) -> Result<()> {
        let Some(below) = self.below else {
            self.out.unsettled = true;
            return Ok(());
        };
        let still_there = self.shown_below(target)?;
        let is_shared = still_there.is_some();
        // What this layer removes is still there to be linked, as a file of its own.
        let found = match still_there {
            Some(found) => Some(found),
            None => below.lookup(target).on(target)?,
        };
        let refuse = |why: String| UnpackError::Misplaced(format!("{}: a hard link to {why}", shown(real)));
        let found = found.ok_or_else(|| refuse(format!("{}, which does not exist", shown(target))))?;
        if dir::is_dir(&found.stat) {
            return Err(refuse("a directory".into()));
        }
        if dir::file_type(&found.stat) == FileType::RegularFile {
            self.count_bytes(u64::try_from(found.stat.st_size).unwrap_or(0))?;
        }
        if dir::stat(parent, name).on(real)?.is_some() {
            self.remove(parent, name, real)?;
        }
        copy_file(below, &found, target, parent, name).on(real)?;
        if is_shared { self.share_names(below, &found, target, parent, name) } else { Ok(()) }
    }

    /// Lets every name that the file `found` has below, where nothing hides it, be the file `name` in `parent`.
    fn share_names(
        &mut self,
        below: &Below,
        found: &Found,
        target: &[u8],
        parent: BorrowedFd<'_>,
        name: &[u8],
    ) -> Result<()> {
        let mut names = below.links_of(found).on(target)?;
        if !names.iter().any(|other| other == target) {
            names.push(target.to_vec());
        }
        let from = dir::c(name).on(target)?;
        for other in names {
            let is_it = |shown: Found| (shown.stat.st_dev, shown.stat.st_ino) == (found.stat.st_dev, found.stat.st_ino);
            if dir::stat_path(self.root.as_fd(), &other).on(&other)?.is_none()
                && self.shown_below(&other)?.is_some_and(is_it)
            {
                let (other_parent, other_name) = dir::split(&other);
                let directory = self.make_directory(other_parent)?;
                let to = dir::c(other_name).on(&other)?;
                rustix::fs::linkat(parent, from.as_c_str(), directory.as_fd(), to.as_c_str(), AtFlags::empty())
                    .on(&other)?;
            }
        }
        Ok(())
    }
}

/// Copies what is no directory, with every attribute, to `name` in `parent`.
fn copy_file(below: &Below, found: &Found, path: &[u8], parent: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<()> {
    let (stat, c_name) = (&found.stat, dir::c(name)?);
    let (source_parent, source_name) = dir::split(path);
    let source_parent = dir::open_dir(below.root(found.layer), source_parent)?;
    match dir::file_type(stat) {
        FileType::RegularFile => {
            let source = below.open(found, path, OFlags::RDONLY)?;
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = rustix::fs::openat(parent, c_name.as_c_str(), flags, Mode::from_raw_mode(0o600))?;
            copy_data(&source, &file, u64::try_from(stat.st_size).unwrap_or(0))?;
        }
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(&source_parent, dir::c(source_name)?.as_c_str(), Vec::new())?;
            rustix::fs::symlinkat(target.as_c_str(), parent, c_name.as_c_str())?;
        }
        kind => rustix::fs::mknodat(parent, c_name.as_c_str(), kind, Mode::from_raw_mode(0o600), stat.st_rdev)?,
    }
    copy_attributes_at(source_parent.as_fd(), source_name, parent, name, stat)
}

/// Copies a file's data and leaves its holes.
fn copy_data(from: &OwnedFd, to: &OwnedFd, size: u64) -> rustix::io::Result<()> {
    let mut at = 0u64;
    while at < size {
        let start = match rustix::fs::seek(from, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error),
        };
        let end = rustix::fs::seek(from, SeekFrom::Hole(start))?;
        let mut position = start;
        while position < end {
            let (mut input, mut output) = (position, position);
            let length = usize::try_from(end - position).unwrap_or(usize::MAX).min(1 << 30);
            let count = rustix::fs::copy_file_range(from, Some(&mut input), to, Some(&mut output), length)?;
            if count == 0 {
                break;
            }
            position += count as u64;
        }
        at = end.max(start + 1);
    }
    rustix::fs::ftruncate(to, size)
}

//! A tree as a tar stream, with every attribute.

use std::collections::HashMap;
use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Dir, FileType, Mode, OFlags, Stat, fgetxattr, flistxattr, fstat, fstatfs, openat, readlinkat};
use tar::{Builder, EntryType, Header};

use super::{LEASE_PATIENCE, MAX_DEPTH, XATTR_PREFIX, open_regular};

/// Longest list of names, and longest value, that the kernel has.
const MAX_XATTR_BYTES: usize = 64 << 10;
/// Most that is taken of a file that does not say how large it is. Those of `/proc` and `/sys` have some KiB.
const MAX_UNSIZED_BYTES: u64 = 64 << 20;
/// What files of `/sys` say that they have, whatever that is. Those of `/proc` say nothing.
const SYSFS_SIZE: i64 = 4096;
/// Types of the filesystems whose files the kernel makes up: `/proc`, `/sys`, cgroups of both versions, message queues,
/// terminals. Some of their files cannot be read, others never end, and none is of use elsewhere.
const MADE_UP: [u64; 6] = [0x9fa0, 0x6265_6572, 0x0027_e0eb, 0x6367_7270, 0x1980_0202, 0x1cd1];

/// A block where a header is expected that can be none: its checksum is no number.
const NO_HEADER: [u8; 512] = [0xff; 512];

/// Writes what `source` (an `O_PATH` descriptor will do) is as a tar: under the name `top`, or, without one, what is in
/// that directory. What is mounted beneath is walked as it is seen, but for the kernel's own filesystems: of these there is
/// the directory alone. Sockets are left out: a tar has none.
/// One that fails is no whole archive to whoever reads it.
pub(crate) fn pack(source: BorrowedFd<'_>, top: Option<&Path>, out: impl Write) -> io::Result<()> {
    let output = Output { out, is_closed: false };
    let mut pack = Pack { builder: Builder::new(output), links: HashMap::new(), is_within_file: false };
    match pack.all(source, top) {
        Ok(()) => pack.builder.into_inner()?.flush(),
        Err(error) => {
            pack.spoil();
            Err(error)
        }
    }
}

/// Where a tar goes.
struct Output<W> {
    out: W,
    /// Nothing is taken any more.
    is_closed: bool,
}

impl<W: Write> Write for Output<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.is_closed { Err(io::ErrorKind::BrokenPipe.into()) } else { self.out.write(bytes) }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

struct Pack<W: Write> {
    builder: Builder<Output<W>>,
    /// Files of several names, by device and inode: the name under which each went out.
    links: HashMap<(u64, u64), PathBuf>,
    /// A file's content goes out: what follows is taken for more of it.
    is_within_file: bool,
}

impl<W: Write> Pack<W> {
    fn all(&mut self, source: BorrowedFd<'_>, top: Option<&Path>) -> io::Result<()> {
        let stat = fstat(source)?;
        match (FileType::from_raw_mode(stat.st_mode), top) {
            (FileType::Directory, top) => {
                let dir = openat(source, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
                if let Some(top) = top {
                    self.directory(&dir, top, &stat)?;
                }
                match is_made_up(&dir)? {
                    true => Ok(()),
                    false => self.entries(dir, top.unwrap_or(Path::new("")), 0),
                }
            }
            (FileType::RegularFile, Some(top)) => {
                // Not blocking: one of `/proc` may have nothing to give yet.
                match open_regular(source, OFlags::RDONLY, LEASE_PATIENCE)? {
                    Some((file, stat)) if is_made_as_read(&stat) => self.made_as_read(&file, top, &stat),
                    Some((file, stat)) => self.file(file, top, &stat),
                    None => Ok(()),
                }
            }
            (FileType::Symlink, Some(top)) => {
                let target = readlinkat(source, "", Vec::new())?;
                self.symlink(top, &target, &stat)
            }
            (kind, Some(top)) => self.special(top, kind, &stat),
            (_, None) => Err(io::ErrorKind::NotADirectory.into()),
        }
    }

    /// Keeps what has gone out from being read as a whole archive: the builder writes an archive's end when it is dropped,
    /// and most readers take the end of the bytes between two files for one, too.
    fn spoil(&mut self) {
        let output = self.builder.get_mut();
        if !self.is_within_file {
            // The failure itself is what is told.
            let _ = output.write_all(&NO_HEADER).and_then(|()| output.flush());
        }
        output.is_closed = true;
    }

    fn entries(&mut self, dir: OwnedFd, path: &Path, depth: usize) -> io::Result<()> {
        if depth > MAX_DEPTH {
            return Err(io::Error::other(format!("directories are nested deeper than {MAX_DEPTH}")));
        }
        // No descriptor more for reading it: there is one for each level.
        let mut dir = Dir::new(dir)?;
        while let Some(entry) = dir.read() {
            let entry = entry?;
            let name = entry.file_name();
            if name != c"." && name != c".." {
                let path = path.join(OsStr::from_bytes(name.to_bytes()));
                match self.entry(dir.fd()?, name, &path, depth) {
                    // It was removed while its directory was read.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    other => other?,
                }
            }
        }
        Ok(())
    }

    fn entry(&mut self, parent: BorrowedFd<'_>, name: &CStr, path: &Path, depth: usize) -> io::Result<()> {
        let there = openat(parent, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        let stat = fstat(&there)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let dir = openat(&there, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
                drop(there);
                let stat = fstat(&dir)?;
                self.directory(&dir, path, &stat)?;
                if stat.st_dev != fstat(parent)?.st_dev && is_made_up(&dir)? {
                    return Ok(());
                }
                self.entries(dir, path, depth + 1)
            }
            FileType::RegularFile => match open_regular(&there, OFlags::RDONLY, LEASE_PATIENCE)? {
                Some((file, stat)) => self.file(file, path, &stat),
                None => Ok(()),
            },
            FileType::Symlink => {
                let target = readlinkat(&there, "", Vec::new())?;
                self.symlink(path, &target, &stat)
            }
            kind => self.special(path, kind, &stat),
        }
    }

    fn directory(&mut self, dir: &OwnedFd, path: &Path, stat: &Stat) -> io::Result<()> {
        self.attributes(Some(dir.as_fd()), stat)?;
        self.builder.append_data(&mut header(EntryType::Directory, stat), path, io::empty())
    }

    fn file(&mut self, file: File, path: &Path, stat: &Stat) -> io::Result<()> {
        if stat.st_nlink > 1 {
            if let Some(first) = self.links.get(&(stat.st_dev, stat.st_ino)) {
                let first = first.clone();
                return self.builder.append_link(&mut header(EntryType::Link, stat), path, first);
            }
            self.links.insert((stat.st_dev, stat.st_ino), path.to_owned());
        }
        self.attributes(Some(file.as_fd()), stat)?;
        let mut header = header(EntryType::Regular, stat);
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        header.set_size(size);
        self.is_within_file = true;
        self.builder.append_data(&mut header, path, Exactly { file, left: size })?;
        self.is_within_file = false;
        Ok(())
    }

    /// One whose size only its end tells. In memory: a tar says it first.
    fn made_as_read(&mut self, file: &File, path: &Path, stat: &Stat) -> io::Result<()> {
        let mut content = Vec::new();
        file.take(MAX_UNSIZED_BYTES + 1).read_to_end(&mut content)?;
        if content.len() as u64 > MAX_UNSIZED_BYTES {
            return Err(io::Error::other(format!(
                "it does not say its size, and has more than {MAX_UNSIZED_BYTES} bytes"
            )));
        }
        self.attributes(Some(file.as_fd()), stat)?;
        let mut header = header(EntryType::Regular, stat);
        header.set_size(content.len() as u64);
        self.builder.append_data(&mut header, path, content.as_slice())
    }

    fn symlink(&mut self, path: &Path, target: &CStr, stat: &Stat) -> io::Result<()> {
        self.attributes(None, stat)?;
        let target = Path::new(OsStr::from_bytes(target.to_bytes()));
        self.builder.append_link(&mut header(EntryType::Symlink, stat), path, target)
    }

    fn special(&mut self, path: &Path, kind: FileType, stat: &Stat) -> io::Result<()> {
        let kind = match kind {
            FileType::CharacterDevice => EntryType::Char,
            FileType::BlockDevice => EntryType::Block,
            FileType::Fifo => EntryType::Fifo,
            _ => return Ok(()),
        };
        self.attributes(None, stat)?;
        let mut header = header(kind, stat);
        header.set_device_major(rustix::fs::major(stat.st_rdev))?;
        header.set_device_minor(rustix::fs::minor(stat.st_rdev))?;
        self.builder.append_data(&mut header, path, io::empty())
    }

    /// What the header of the entry that follows has no place for: the time to the nanosecond, extended attributes.
    fn attributes(&mut self, fd: Option<BorrowedFd<'_>>, stat: &Stat) -> io::Result<()> {
        let mut all: Vec<(String, Vec<u8>)> =
            vec![("mtime".to_owned(), pax_time(stat.st_mtime, stat.st_mtime_nsec as i64).into_bytes())];
        if let Some(fd) = fd {
            let mut names = vec![0u8; MAX_XATTR_BYTES];
            // A filesystem without them has none.
            let used = flistxattr(fd, &mut names).unwrap_or(0);
            for name in names[..used].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
                // Overlay's own, and the host's labels, are no part of the tree.
                let Ok(name) = std::str::from_utf8(name) else { continue };
                if name.starts_with("trusted.") || name == "security.selinux" {
                    continue;
                }
                let mut value = vec![0u8; MAX_XATTR_BYTES];
                if let Ok(size) = fgetxattr(fd, name, &mut value) {
                    value.truncate(size);
                    all.push((format!("{XATTR_PREFIX}{name}"), value));
                }
            }
        }
        self.builder.append_pax_extensions(all.iter().map(|(name, value)| (name.as_str(), value.as_slice())))
    }
}

/// Whether the kernel makes a file's content as it is read, by the looks of it: it takes no room. A small file whose
/// content lies in its inode looks so, too, and may be read in the same way.
fn is_made_as_read(stat: &Stat) -> bool {
    stat.st_blocks == 0 && stat.st_size <= SYSFS_SIZE
}

fn is_made_up(dir: &OwnedFd) -> io::Result<bool> {
    Ok(MADE_UP.contains(&(fstatfs(dir)?.f_type as u64)))
}

fn header(kind: EntryType, stat: &Stat) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(stat.st_mode & 0o7777);
    header.set_uid(stat.st_uid.into());
    header.set_gid(stat.st_gid.into());
    header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
    header.set_size(0);
    header
}

/// As many bytes as the header promised, whatever the file becomes meanwhile: zeros for what is no longer there.
struct Exactly {
    file: File,
    left: u64,
}

impl Read for Exactly {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if wanted == 0 {
            return Ok(0);
        }
        let count = match self.file.read(&mut buffer[..wanted])? {
            0 => {
                buffer[..wanted].fill(0);
                wanted
            }
            count => count,
        };
        self.left -= count as u64;
        Ok(count)
    }
}

/// A time as pax writes it: a decimal fraction, which before 1970 counts down, as the kernel's nanoseconds do not.
pub(super) fn pax_time(seconds: i64, nanos: i64) -> String {
    match seconds {
        ..0 if nanos > 0 => format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - nanos),
        _ => format!("{seconds}.{nanos:09}"),
    }
}

#[cfg(test)]
mod tests {
    use tar::Archive;

    use super::*;

    #[test]
    fn what_failed_is_no_whole_archive() {
        let dir = tempfile::tempdir().unwrap();
        let mut deep = dir.path().to_owned();
        for _ in 0..MAX_DEPTH + 2 {
            deep.push("d");
        }
        std::fs::create_dir_all(&deep).unwrap();
        let mut out = Vec::new();
        pack(File::open(dir.path()).unwrap().as_fd(), Some(Path::new("top")), &mut out).unwrap_err();
        let mut archive = Archive::new(&out[..]);
        let entries: Vec<_> = archive.entries().unwrap().map(|entry| entry.is_ok()).collect();
        assert!(entries.len() > MAX_DEPTH && entries.last() == Some(&false), "it ends as a whole one");
        std::fs::remove_dir_all(dir.path().join("d")).unwrap();
        std::fs::write(dir.path().join("file"), "x").unwrap();
        out.clear();
        pack(File::open(dir.path()).unwrap().as_fd(), Some(Path::new("top")), &mut out).unwrap();
        assert!(Archive::new(&out[..]).entries().unwrap().all(|entry| entry.is_ok()));
    }
}

//! What the layers below show at a path, as overlayfs merges them.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{OFlags, Stat};
use rustix::io::{Errno, Result};

use super::dir;

/// The layers below one layer, the nearest first.
#[derive(Debug, Default)]
pub(crate) struct Below {
    roots: Vec<OwnedFd>,
}

/// Something that shows through.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) stat: Stat,
    /// The layer it stands in, as an index from the nearest.
    pub(crate) layer: usize,
}

impl Below {
    /// `roots`, the nearest first; those beneath one that hides everything must be left out.
    pub(crate) fn new(roots: Vec<OwnedFd>) -> Self {
        Self { roots }
    }

    /// The root of a layer that a [`Found`] names.
    pub(crate) fn root(&self, layer: usize) -> BorrowedFd<'_> {
        self.roots[layer].as_fd()
    }

    /// What shows at `path`. No link is followed: a link or file on the way means that nothing is there.
    pub(crate) fn lookup(&self, path: &[u8]) -> Result<Option<Found>> {
        let mut merged: Vec<(usize, OwnedFd)> = Vec::new();
        for (layer, root) in self.roots.iter().enumerate() {
            merged.push((layer, dir::open_dir(root.as_fd(), b"")?));
        }
        let names: Vec<&[u8]> = path.split(|b| *b == b'/').filter(|name| !name.is_empty()).collect();
        if names.is_empty() {
            let Some((layer, root)) = merged.first() else { return Ok(None) };
            return Ok(Some(Found { stat: rustix::fs::fstat(root)?, layer: *layer }));
        }
        for (at, name) in names.iter().enumerate() {
            let last = at + 1 == names.len();
            let mut next: Vec<(usize, OwnedFd)> = Vec::new();
            for (layer, parent) in &merged {
                let Some(stat) = dir::stat(parent.as_fd(), name)? else { continue };
                if dir::is_whiteout(&stat) {
                    break;
                }
                if !dir::is_dir(&stat) {
                    if next.is_empty() && last {
                        return Ok(Some(Found { stat, layer: *layer }));
                    }
                    break;
                }
                if last {
                    return Ok(Some(Found { stat, layer: *layer }));
                }
                let directory = dir::open_dir(parent.as_fd(), name)?;
                let opaque = dir::is_opaque(directory.as_fd())?;
                next.push((*layer, directory));
                if opaque {
                    break;
                }
            }
            if next.is_empty() {
                return Ok(None);
            }
            merged = next;
        }
        Ok(None)
    }

    /// All paths in the layer of `found` that are hard links of the same file.
    pub(crate) fn links_of(&self, found: &Found) -> Result<Vec<Vec<u8>>> {
        let mut paths = Vec::new();
        if found.stat.st_nlink < 2 {
            return Ok(paths);
        }
        let mut todo: Vec<Vec<u8>> = vec![Vec::new()];
        while let Some(directory) = todo.pop() {
            let handle = dir::open_dir(self.root(found.layer), &directory)?;
            for name in dir::names(handle.as_fd())? {
                let Some(stat) = dir::stat(handle.as_fd(), &name)? else { continue };
                let path = dir::join(&directory, &name);
                if dir::is_dir(&stat) {
                    todo.push(path);
                } else if stat.st_ino == found.stat.st_ino {
                    paths.push(path);
                    if usize::try_from(found.stat.st_nlink).is_ok_and(|links| paths.len() >= links) {
                        return Ok(paths);
                    }
                }
            }
        }
        Ok(paths)
    }

    /// Where the link `found` at `path` points to.
    pub(crate) fn read_link(&self, found: &Found, path: &[u8]) -> Result<Vec<u8>> {
        let (parent, name) = dir::split(path);
        let parent = dir::open_dir(self.root(found.layer), parent)?;
        Ok(rustix::fs::readlinkat(&parent, dir::c(name)?.as_c_str(), Vec::new())?.into_bytes())
    }

    /// Opens what stands at `path` in the layer of `found`, for reading.
    pub(crate) fn open(&self, found: &Found, path: &[u8], flags: OFlags) -> Result<OwnedFd> {
        match dir::open(self.root(found.layer), path, flags | OFlags::NOFOLLOW) {
            Err(Errno::LOOP) => Err(Errno::NOENT),
            other => other,
        }
    }
}

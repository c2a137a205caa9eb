//! Where in a layer a path of its archive leads: its own links are followed, and those of the layers below where they
//! are looked at; never out of it.

use std::os::fd::{AsFd as _, OwnedFd};
use std::rc::Rc;

use rustix::fs::{FileType, Mode};
use rustix::io::Errno;

use super::super::below::Found;
use super::super::dir::{self, parts_reversed};
use super::super::tar::shown;
use super::{MAX_HANDLES, OsContext as _, Result, UnpackError, Unpacker};
use crate::limits::MAX_PATH_BYTES;

/// Symbolic links followed on one path, as in the kernel.
const MAX_LINKS: usize = 40;

/// What this layer holds at a resolved path.
pub(super) enum Walked {
    Directory(OwnedFd),
    Missing,
    NotADirectory,
}

impl Unpacker<'_> {
    /// The directory that `path` names, made where it is missing.
    pub(super) fn parent(&mut self, path: &[u8]) -> Result<(Rc<OwnedFd>, Vec<u8>)> {
        if path.is_empty() {
            return Ok((Rc::clone(&self.root), Vec::new()));
        }
        if let Some((handle, real)) = self.handles.get(path) {
            return Ok((Rc::clone(handle), real.clone()));
        }
        let (handle, real) = match dir::open_dir(self.root.as_fd(), path) {
            Ok(handle) => (Rc::new(handle), path.to_vec()),
            Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR) => self.walk(path)?,
            Err(error) => return Err(error).on(path),
        };
        // A way through a link below ends when an entry takes the link's place, which nothing here would notice.
        if self.below.is_none() || real == path {
            if self.handles.len() >= MAX_HANDLES {
                self.handles.clear();
            }
            self.handles.insert(path.to_vec(), (Rc::clone(&handle), real.clone()));
        }
        Ok((handle, real))
    }

    /// Walks a directory path name by name, making what is missing.
    fn walk(&mut self, path: &[u8]) -> Result<(Rc<OwnedFd>, Vec<u8>)> {
        let (real, walked) = self.resolve(path)?;
        if let Walked::NotADirectory = walked {
            return Err(UnpackError::Misplaced(format!("{}: is no directory, but has entries beneath", shown(&real))));
        }
        if real.split(|b| *b == b'/').count() > self.limits.path_depth {
            let limit = self.limits.path_depth as u64;
            return Err(UnpackError::Limit { what: "directories within directories", limit, unit: "levels" });
        }
        let handle = self.make_directory(&real)?;
        Ok((handle, real))
    }

    /// Opens the directory `real`, a resolved path; what is missing of it is made, and implied.
    pub(super) fn make_directory(&mut self, real: &[u8]) -> Result<Rc<OwnedFd>> {
        let mut current = Rc::clone(&self.root);
        let mut at: Vec<u8> = Vec::new();
        for name in real.split(|b| *b == b'/').filter(|name| !name.is_empty()) {
            at = dir::join(&at, name);
            let c_name = dir::c(name).on(&at)?;
            match rustix::fs::mkdirat(current.as_fd(), c_name.as_c_str(), Mode::from_raw_mode(0o755)) {
                Ok(()) => {
                    self.note(&at)?;
                    self.out.implied.insert(at.clone());
                }
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error).on(&at),
            }
            current = Rc::new(dir::open_dir(current.as_fd(), name).on(&at)?);
        }
        Ok(current)
    }

    /// The real path of a directory path, and what this layer holds there. Behind a name that this layer does not hold,
    /// names are taken as they are, unless the layers below are looked at.
    pub(super) fn resolve(&mut self, path: &[u8]) -> Result<(Vec<u8>, Walked)> {
        let root = Rc::clone(&self.root);
        let mut todo: Vec<Vec<u8>> = parts_reversed(path);
        let mut real: Vec<u8> = Vec::new();
        let mut links = 0;
        let mut walked = Walked::Directory(dir::open_dir(root.as_fd(), b"").on(path)?);
        while let Some(name) = todo.pop() {
            if name == b".." {
                // Of what is missing here only the layers below know where its parent is.
                self.out.unsettled |= self.below.is_none() && matches!(walked, Walked::Missing);
                real = dir::split(&real).0.to_vec();
                walked = match dir::open_dir(root.as_fd(), &real) {
                    Ok(handle) => Walked::Directory(handle),
                    Err(Errno::NOENT) => Walked::Missing,
                    Err(error) => return Err(error).on(&real),
                };
                continue;
            }
            let next = dir::join(&real, &name);
            if next.len() >= MAX_PATH_BYTES {
                return Err(UnpackError::Invalid(format!("{}: its real path is too long", shown(path))));
            }
            let here = match &walked {
                Walked::Directory(current) => dir::stat(current.as_fd(), &name).on(&next)?.map(|stat| (current, stat)),
                _ => None,
            };
            let target = match here {
                Some((current, stat)) => match dir::file_type(&stat) {
                    FileType::Directory => {
                        walked = Walked::Directory(dir::open_dir(current.as_fd(), &name).on(&next)?);
                        real = next;
                        continue;
                    }
                    FileType::Symlink => {
                        let c_name = dir::c(&name).on(&next)?;
                        rustix::fs::readlinkat(current, c_name.as_c_str(), Vec::new()).on(&next)?.into_bytes()
                    }
                    _ => return Ok((next, Walked::NotADirectory)),
                },
                None => match self.link_target_below(&next)? {
                    Some(target) => target,
                    None => {
                        real = next;
                        walked = Walked::Missing;
                        continue;
                    }
                },
            };
            links += 1;
            if links > MAX_LINKS {
                return Err(UnpackError::Misplaced(format!("{}: too many symbolic links", shown(path))));
            }
            if target.starts_with(b"/") {
                real.clear();
                walked = Walked::Directory(dir::open_dir(root.as_fd(), b"").on(path)?);
            }
            todo.extend(parts_reversed(&target));
        }
        Ok((real, walked))
    }

    /// Removes from the layers below before any entry is made: a whiteout acts on them only, wherever it stands.
    pub(super) fn remove_below(&mut self, path: &[u8], emptied: bool) -> Result<()> {
        if emptied {
            let (real, _) = self.resolve(path)?;
            self.out.opaque.insert(real);
        } else {
            let (parent, name) = dir::split(path);
            let (real, _) = self.resolve(parent)?;
            self.whiteouts.insert(dir::join(&real, name));
        }
        Ok(())
    }

    /// What the layers below show at `path`, which this layer does not hold.
    pub(super) fn shown_below(&self, path: &[u8]) -> Result<Option<Found>> {
        let Some(below) = self.below else { return Ok(None) };
        let hides = |ancestor: &[u8]| self.whiteouts.contains(ancestor) || self.out.opaque.contains(ancestor);
        if self.whiteouts.contains(path) || self.out.opaque.contains(&b""[..]) || dir::ancestors(path).any(hides) {
            return Ok(None);
        }
        // Nothing shows through what is no directory here.
        for ancestor in dir::ancestors(path) {
            match dir::stat_path(self.root.as_fd(), ancestor).on(ancestor)? {
                Some(stat) if !dir::is_dir(&stat) => return Ok(None),
                Some(_) => {}
                None => break,
            }
        }
        below.lookup(path).on(path)
    }

    fn link_target_below(&self, path: &[u8]) -> Result<Option<Vec<u8>>> {
        match (self.below, self.shown_below(path)?) {
            (Some(below), Some(found)) if dir::file_type(&found.stat) == FileType::Symlink => {
                below.read_link(&found, path).map(Some).on(path)
            }
            _ => Ok(None),
        }
    }
}

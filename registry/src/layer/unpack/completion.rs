//! The end of a layer: marks of what is removed, then the attributes of directories that nothing is put into any more.

use std::collections::BTreeSet;
use std::os::fd::AsFd as _;
use std::rc::Rc;

use rustix::fs::{FileType, Mode};
use rustix::io::Errno;

use super::super::dir;
use super::attributes::set_fd_xattr;
use super::{OsContext as _, Result, Unpacked, Unpacker};

impl Unpacker<'_> {
    /// Makes whiteouts and opaque marks, then completes the directories.
    pub(super) fn finish(mut self) -> Result<Unpacked> {
        self.handles.clear();
        let root = Rc::clone(&self.root);
        for path in std::mem::take(&mut self.whiteouts) {
            match dir::stat_path(root.as_fd(), &path).on(&path)? {
                Some(stat) if dir::is_dir(&stat) => {
                    self.out.opaque.insert(path.clone());
                    self.out.replaced.insert(path);
                }
                // Something new stands there, which hides what is below anyway.
                Some(_) => {}
                None => self.out.whiteouts.push(path),
            }
        }
        self.out.root_opaque = self.out.opaque.remove(&b""[..]);
        let mut opaque = BTreeSet::new();
        for path in std::mem::take(&mut self.out.opaque) {
            // A later entry may have put something else there.
            match dir::open_dir(root.as_fd(), &path) {
                Ok(handle) => {
                    dir::set_opaque(handle.as_fd()).on(&path)?;
                    opaque.insert(path);
                }
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(error) => return Err(error).on(&path),
            }
        }
        self.out.opaque = opaque;
        let out = &mut self.out;
        let mut whiteouts = Vec::new();
        for path in std::mem::take(&mut out.whiteouts) {
            // Where nothing shows through, the mark would itself be seen in listings.
            let hidden = out.root_opaque || dir::ancestors(&path).any(|ancestor| out.opaque.contains(ancestor));
            if hidden {
                continue;
            }
            let (parent, name) = dir::split(&path);
            let handle = match dir::open_dir(root.as_fd(), parent) {
                Ok(handle) => handle,
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
                Err(error) => return Err(error).on(&path),
            };
            let name = dir::c(name).on(&path)?;
            let mode = Mode::empty();
            rustix::fs::mknodat(&handle, name.as_c_str(), FileType::CharacterDevice, mode, 0).on(&path)?;
            whiteouts.push(path);
        }
        out.whiteouts = whiteouts;
        for (path, completion) in self.directories.iter().rev() {
            let handle = dir::open_dir(root.as_fd(), path).on(path)?;
            if let Some(mode) = completion.mode {
                rustix::fs::fchmod(&handle, Mode::from_raw_mode(mode & 0o7777)).on(path)?;
            }
            if let Some(acl) = &completion.default_acl {
                set_fd_xattr(handle.as_fd(), dir::DEFAULT_ACL_XATTR, acl, path)?;
            }
            rustix::fs::futimens(&handle, &dir::timestamps(completion.mtime)).on(path)?;
        }
        Ok(self.out)
    }
}

//! [`DirWatch`]: being told of what changes in a directory.

use std::ffi::{CStr, CString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::error::{Error, Result};

/// Tells when something in a directory changes, or it is removed.
#[derive(Debug)]
pub(crate) struct DirWatch {
    events: AsyncFd<OwnedFd>,
    /// Watch of the directory above, and the name of ours in it. An open file in a removed directory keeps that one
    /// from reporting its own end.
    above: Option<(i32, CString)>,
}

/// What changed in a directory.
#[derive(Debug)]
pub(crate) enum Changed {
    /// These came, went or are others.
    Names(Vec<String>),
    /// The kernel had more to tell than it keeps: any may have.
    Any,
    /// The directory is gone, and there will be no more.
    Gone,
}

impl DirWatch {
    pub fn new(dir: &Path) -> Result<Self> {
        Self::with(dir, WatchFlags::empty())
    }

    /// One that is also told of what goes.
    pub fn with_removals(dir: &Path) -> Result<Self> {
        Self::with(dir, WatchFlags::DELETE)
    }

    /// One that is also told of what is only touched.
    pub fn with_touches(dir: &Path) -> Result<Self> {
        Self::with(dir, WatchFlags::DELETE | WatchFlags::ATTRIB)
    }

    fn with(dir: &Path, more: WatchFlags) -> Result<Self> {
        let failed = || Error::io("watching", dir);
        let events = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).map_err(|e| failed()(e.into()))?;
        let add = |path: &Path, what: WatchFlags| {
            inotify::add_watch(&events, path, what | WatchFlags::ONLYDIR)
                .map_err(|e| Error::io("watching", path)(e.into()))
        };
        add(dir, more | WatchFlags::MODIFY | WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::DELETE_SELF)?;
        let above = match (dir.parent(), dir.file_name().map(|name| CString::new(name.as_bytes()))) {
            (Some(parent), Some(Ok(name))) => Some((add(parent, WatchFlags::DELETE | WatchFlags::MOVED_FROM)?, name)),
            _ => None,
        };
        // SAFETY: it owns the descriptor, which stays open and the same until it is dropped.
        let events = unsafe { AsyncFd::register_with_interest(events, Interest::READABLE) };
        Ok(Self { events: events.map_err(|e| failed()(e.into()))?, above })
    }

    /// Waits for a change, and tells of what. Cancel-safe.
    pub async fn names(&self) -> Result<Changed> {
        let (mut names, mut lost) = (Vec::new(), false);
        let there = self.changed(|name| match name {
            Some(name) => names.extend(name.to_str().ok().map(str::to_owned)),
            None => lost = true,
        });
        Ok(match there.await? {
            false => Changed::Gone,
            true if lost => Changed::Any,
            true => Changed::Names(names),
        })
    }

    /// Waits for a change; false if the directory is gone and there will be none. `each` is given the name of what
    /// changed, came or went, or `None` where the kernel had more to tell than it keeps. Cancel-safe.
    pub async fn changed(&self, mut each: impl FnMut(Option<&CStr>)) -> Result<bool> {
        let failed = |error: Errno| Error::io("watching", "a directory")(error.into());
        let mut guard = self.events.readable().await.map_err(Error::io("watching", "a directory"))?;
        let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(guard.get_inner(), &mut buffer);
        let mut there = true;
        loop {
            match reader.next() {
                Ok(event) if event.events().contains(ReadFlags::QUEUE_OVERFLOW) => each(None),
                Ok(event) if self.above.as_ref().is_some_and(|(above, _)| *above == event.wd()) => {
                    there &= self.above.as_ref().is_some_and(|(_, name)| event.file_name() != Some(name.as_c_str()));
                }
                Ok(event) if event.events().intersects(ReadFlags::IGNORED | ReadFlags::DELETE_SELF) => there = false,
                Ok(event) => {
                    if let Some(name) = event.file_name() {
                        each(Some(name));
                    }
                }
                Err(Errno::WOULDBLOCK) => break,
                Err(Errno::INTR) => {}
                Err(error) => return Err(failed(error)),
            }
        }
        guard.clear_ready();
        Ok(there)
    }
}

//! A container's root filesystem, for those who read or write in it from outside.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, MoveMountFlags, OpenTreeFlags, mount_change, move_mount, open_tree};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

use super::{Container, Observed};
use crate::error::{Error, Result};
use crate::files::open_within;
use crate::lock::ContainerLock;
use crate::runtime::Inner;
use crate::supervisor::Overlay;

/// What of it is seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum View {
    /// What the container sees: volumes and all that is mounted.
    Whole,
    /// The root filesystem alone.
    RootAlone,
}

impl Inner {
    /// Does `work` with a descriptor of the root of `container`, on a thread of its own. One that has ended is mounted for
    /// that time, in a mount namespace that nobody else has, and cannot be started or removed meanwhile.
    pub(super) async fn in_root<T: Send + 'static>(
        &self,
        container: &Container,
        view: View,
        work: impl FnOnce(BorrowedFd<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let id = container.record.id.to_string();
        let init = match self.observe(container).await? {
            Observed::Supervised(status) if status.pid > 0 => Some(status.pid),
            Observed::Ended(_) => None,
            observed => return Err(Error::NotRunning { id, state: observed.state().word() }),
        };
        let opened: Box<dyn FnOnce() -> Result<(OwnedFd, Option<ContainerLock>)> + Send> = match init {
            Some(pid) => Box::new(move || Ok((of_running(pid, view)?, None))),
            None => {
                let (lock, container) = self.lock(container).await?;
                let Some(record) = self.exit_record(&container)? else {
                    return Err(Error::NotRunning { id, state: "being started" });
                };
                self.wait_for_supervisor(&container, &record).await?;
                Box::new(move || Ok((of_ended(&container, view)?, Some(lock))))
            }
        };
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let worker = move || {
            // The lock is held until the work is done.
            let result = opened().and_then(|(root, _lock)| work(root.as_fd()));
            let _ = sender.send(result);
        };
        std::thread::Builder::new()
            .name("berth-rootfs".to_owned())
            .spawn(worker)
            .map_err(Error::io("starting", "a thread"))?;
        receiver.await.map_err(|_| Error::io("working in", "the root filesystem")(io::Error::other("it broke off")))?
    }
}

fn of_running(pid: i32, view: View) -> Result<OwnedFd> {
    let root = format!("/proc/{pid}/root");
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    if view == View::Whole {
        return openat(CWD, &root, flags, Mode::empty()).map_err(|error| Error::io("opening", root)(error.into()));
    }
    let alone = || -> io::Result<OwnedFd> {
        let namespace = File::open(format!("/proc/{pid}/ns/mnt"))?;
        // SAFETY: this thread is ours alone, and shares its root and working directory with others no longer.
        unsafe { unshare_unsafe(UnshareFlags::FS) }?;
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Mount))?;
        // A copy of this one mount, without what is mounted on it.
        Ok(open_tree(CWD, "/", OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?)
    };
    alone().map_err(Error::io("opening", root))
}

fn of_ended(container: &Container, view: View) -> Result<OwnedFd> {
    let paths = &container.paths;
    let failed = |error: rustix::io::Errno| Error::io("leaving", "the host's mount table")(error.into());
    // SAFETY: this thread is ours alone, and nothing else of it depends on its namespaces.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.map_err(failed)?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).map_err(failed)?;
    let (upper, work, rootfs) = (paths.upper(), paths.work(), paths.rootfs());
    let layers = &container.record.image.layers;
    Overlay { layers, upper: &upper, work: &work, rootfs: &rootfs, volatile: false }.mount()?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open =
        || openat(CWD, &rootfs, flags, Mode::empty()).map_err(|error| Error::io("opening", &rootfs)(error.into()));
    let root = open()?;
    if view == View::Whole {
        let mut mounts: Vec<_> = container.record.mounts.iter().collect();
        mounts.sort_by_key(|mount| mount.target.matches('/').count());
        for mount in mounts {
            bind(&mount.source, root.as_fd(), &mount.target).map_err(Error::io("mounting", &mount.source))?;
        }
    }
    Ok(root)
}

/// Mounts `source` at `target` within `root`, where that exists. Any other error is one: what is copied would go beneath the
/// mount, and be seen no more.
fn bind(source: &Path, root: BorrowedFd<'_>, target: &str) -> io::Result<()> {
    let place = match open_within(root, Path::new(target), OFlags::PATH) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
        other => other?,
    };
    let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let tree = open_tree(CWD, source, clone)?;
    let both = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(&tree, "", &place, "", both)?)
}

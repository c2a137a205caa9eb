//! A container's root filesystem, for those who read or write in it from outside.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::mount::{
    MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount_change, move_mount, open_tree, unmount,
};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::thread::{ThreadNameSpaceType, UnshareFlags, move_into_thread_name_spaces, unshare_unsafe};

use super::{Container, Observed};
use crate::driven;
use crate::error::{Error, Result};
use crate::files::open_within;
use crate::lock::ContainerLock;
use crate::mount_attributes;
use crate::record::MountRecord;
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
        // Of one that has ended it has the lock.
        let Some(inner) = self.weak.upgrade() else { return self.in_root_itself(container, view, work).await };
        let container = container.clone();
        driven::while_waited_for(async move { inner.in_root_itself(&container, view, work).await }).await
    }

    async fn in_root_itself<T: Send + 'static>(
        &self,
        container: &Container,
        view: View,
        work: impl FnOnce(BorrowedFd<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let id = container.record.id.to_string();
        let running = loop {
            match self.observe(container).await? {
                Observed::Supervised(status) if status.pid > 0 => {
                    if let Some(init) = self.hold_init(container, status.pid).await? {
                        break Some(init);
                    }
                }
                Observed::Ended(_) => break None,
                observed => return Err(Error::NotRunning { id, state: observed.state().word() }),
            }
        };
        let opened: Box<dyn FnOnce() -> Result<Root> + Send> = match running {
            Some(init) => Box::new(move || of_running(&init, view)),
            None => {
                let (lock, mut container) = self.lock(container).await?;
                let Some(record) = self.exit_record(&container)? else {
                    return Err(Error::NotRunning { id, state: "being started" });
                };
                self.wait_for_supervisor(&container, &record).await?;
                let image = &mut container.record.image;
                image.layers = self.images.layers_of(&image.digest, &image.layers).await?;
                Box::new(move || of_ended(&container, view, lock))
            }
        };
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let worker = move || {
            // Told only when the root is left.
            let result = opened().and_then(|root| work(root.fd.as_fd()));
            let _ = sender.send(result);
        };
        std::thread::Builder::new()
            .name("berth-rootfs".to_owned())
            .spawn(worker)
            .map_err(Error::io("starting", "a thread"))?;
        receiver.await.map_err(|_| Error::io("working in", "the root filesystem")(io::Error::other("it broke off")))?
    }

    /// Holds the init of a container that was said to be `pid`. Said again once it is held, it was no other process of that
    /// number; `None` if it is not.
    async fn hold_init(&self, container: &Container, pid: i32) -> Result<Option<Init>> {
        let process = Pid::from_raw(pid).ok_or(Errno::SRCH).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()));
        match self.observe(container).await? {
            Observed::Supervised(status) if status.pid == pid => {}
            _ => return Ok(None),
        }
        let process = process.map_err(|error| Error::io("opening", format!("process {pid}"))(error.into()))?;
        Ok(Some(Init { pid, process }))
    }
}

/// The first process of a container that runs.
struct Init {
    pid: i32,
    process: OwnedFd,
}

/// A container's root, held.
struct Root {
    fd: OwnedFd,
    /// Goes after the descriptor, which would keep it mounted.
    _mounted: Option<Mounted>,
}

/// The root of an ended container, mounted in this thread's mount namespace.
struct Mounted {
    rootfs: PathBuf,
    /// Given back last: whoever starts the container mounts it again.
    _lock: ContainerLock,
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // With what is mounted on it. Nothing holds any of it, so the kernel has let go of its directories by then.
        if let Err(error) = unmount(&self.rootfs, UnmountFlags::DETACH) {
            tracing::warn!(path = %self.rootfs.display(), %error, "cannot be unmounted");
        }
    }
}

fn of_running(init: &Init, view: View) -> Result<Root> {
    let root = format!("/proc/{}/root", init.pid);
    let open = || -> io::Result<OwnedFd> {
        if view == View::RootAlone {
            // On a thread more, so that this one keeps the host's `/proc`.
            return std::thread::scope(|scope| {
                let take = || root_mount(init.process.as_fd());
                let taker = std::thread::Builder::new().name("berth-rootfs".to_owned()).spawn_scoped(scope, take)?;
                taker.join().map_err(|_| io::Error::other("it broke off"))?
            });
        }
        let opened = openat(CWD, &root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        // As long as it has not ended, its number is nobody else's.
        match poll(&mut [PollFd::new(&init.process, PollFlags::IN)], Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))? {
            0 => Ok(opened),
            _ => Err(Errno::SRCH.into()),
        }
    };
    let fd = open().map_err(Error::io("opening", &root))?;
    Ok(Root { fd, _mounted: None })
}

/// A copy of the mount that is the root of `process`, without what is mounted on it. Leaves the calling thread in the mount
/// namespace of `process`.
fn root_mount(process: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // SAFETY: this thread is ours alone, and shares its root and working directory with others no longer.
    unsafe { unshare_unsafe(UnshareFlags::FS) }?;
    move_into_thread_name_spaces(process, ThreadNameSpaceType::MOUNT)?;
    Ok(open_tree(CWD, "/", OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?)
}

fn of_ended(container: &Container, view: View, lock: ContainerLock) -> Result<Root> {
    let paths = &container.paths;
    let failed = |error: Errno| Error::io("leaving", "the host's mount table")(error.into());
    // SAFETY: this thread is ours alone, and nothing else of it depends on its namespaces.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.map_err(failed)?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).map_err(failed)?;
    let (upper, work, rootfs) = (paths.upper(), paths.work(), paths.rootfs());
    let layers = &container.record.image.layers;
    Overlay { layers, upper: &upper, work: &work, rootfs: &rootfs, volatile: false }.mount()?;
    let mounted = Mounted { rootfs: rootfs.clone(), _lock: lock };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = openat(CWD, &rootfs, flags, Mode::empty()).map_err(|e| Error::io("opening", &rootfs)(e.into()))?;
    let root = Root { fd, _mounted: Some(mounted) };
    if view == View::Whole {
        let mut mounts: Vec<_> = container.record.mounts.iter().collect();
        mounts.sort_by_key(|mount| mount.target.matches('/').count());
        for mount in mounts {
            bind(mount, root.fd.as_fd()).map_err(Error::io("mounting", &mount.source))?;
        }
    }
    Ok(root)
}

/// Mounts what is to be at a target within `root`, where that exists, as the container has it. Any other error is one: what is
/// copied would go beneath the mount, and be seen no more.
fn bind(mount: &MountRecord, root: BorrowedFd<'_>) -> io::Result<()> {
    let place = match open_within(root, Path::new(&mount.target), OFlags::PATH) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
        other => other?,
    };
    let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let tree = open_tree(CWD, &mount.source, clone)?;
    if mount.readonly {
        mount_attributes::set_recursively(&tree, libc::MOUNT_ATTR_RDONLY, 0)?;
    }
    let both = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(&tree, "", &place, "", both)?)
}

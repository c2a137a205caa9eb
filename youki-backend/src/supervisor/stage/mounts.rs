//! What is mounted in a container's root: the helper takes the sources while it sees the host, and the init puts them
//! in their places once it stands in the root, by the calls that work on descriptors (Linux 5.12).

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, StatxFlags, fstat, open, stat, statx};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, mount, mount_bind_recursive, mount_remount, move_mount, open_tree,
};

use super::root_path::{Make, open_or_make};
use crate::bundle::{MountPlan, MountSource, RootPlan, is_own};
use crate::error::{Error, Result};
use crate::mount_attributes;

/// Mounts waiting for their places.
#[derive(Debug)]
pub(super) struct RootMounts {
    plan: RootPlan,
    /// For each mount of the plan what is mounted, if it is the host's.
    binds: Vec<Option<OwnedFd>>,
}

impl RootMounts {
    /// Takes detached mounts of the host's directories and files. No mount table changes.
    pub fn prepare(plan: RootPlan) -> Result<Self> {
        let binds = plan.mounts.iter().map(|mount| match &mount.source {
            MountSource::Bind(source) => {
                take(source, mount.attributes).map(Some).map_err(|error| failed(mount, &error))
            }
            MountSource::Filesystem { .. } => Ok(None),
        });
        Ok(Self { binds: binds.collect::<Result<_>>()?, plan })
    }

    /// Mounts everything, hides and protects what is to be, and enters the working directory. For the init, which
    /// stands in its namespaces and its root, with all capabilities.
    pub fn attach(&self) -> Result<()> {
        let root = open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|error| Error::io("opening", "the container's root")(error.into()))?;
        let null = null_device().map_err(Error::io("opening", "/dev/null of the container"))?;
        let mut own = Own::begin().map_err(Error::io("looking at", "/proc and /dev of the container"))?;
        for (mount, bind) in self.plan.mounts.iter().zip(&self.binds) {
            place(root.as_fd(), mount, bind.as_ref(), &mut own).map_err(|error| failed(mount, &error))?;
        }
        for path in &self.plan.read_only_paths {
            protect(path).map_err(Error::io("making read-only", path))?;
        }
        for path in &self.plan.masked {
            hide(path, &null).map_err(Error::io("hiding", path))?;
        }
        self.enter_workdir(root.as_fd())?;
        if self.plan.read_only {
            mount_attributes::set(&root, libc::MOUNT_ATTR_RDONLY, 0).map_err(Error::io("making read-only", "/"))?;
        }
        Ok(())
    }

    /// What the image and the volumes lack is made, as docker does.
    fn enter_workdir(&self, root: BorrowedFd<'_>) -> Result<()> {
        let path = &self.plan.workdir;
        let entered = open_or_make(root, Path::new(path), Make::Directory).and_then(rustix::process::fchdir);
        entered.map_err(|errno| match errno {
            Errno::NOTDIR | Errno::LOOP => Error::invalid("command.workdir", format!("{path:?} is not a directory")),
            Errno::INVAL => Error::invalid("command.workdir", format!("{path:?} does not exist and contains `..`")),
            _ => Error::io("entering the working directory", path)(errno.into()),
        })
    }
}

fn failed(mount: &MountPlan, error: &io::Error) -> Error {
    let source = match &mount.source {
        MountSource::Bind(source) => source.display().to_string(),
        MountSource::Filesystem { kind, .. } => kind.clone(),
    };
    let options = if mount.attributes & libc::MOUNT_ATTR_RDONLY == 0 { "rw" } else { "ro" };
    Error::Mount { mount: format!("{source} at {} ({options})", mount.target), reason: error.to_string() }
}

/// A detached mount of `source` and of what is mounted beneath it, of which no change on the host is seen later.
fn take(source: &Path, attributes: u64) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let tree = open_tree(CWD, source, flags)?;
    mount_attributes::set_recursively(&tree, attributes, libc::MS_PRIVATE)?;
    Ok(tree)
}

/// The mounts of the runtime's own that stand already, each with its path and the kernel's number for it. A target's text was
/// checked, but a link of the image may lead it to one of them.
struct Own(Vec<(String, u64)>);

impl Own {
    /// Those of libcontainer.
    fn begin() -> io::Result<Self> {
        let own = ["/proc", "/dev"].into_iter().map(|path| {
            let found = statx(CWD, path, AtFlags::empty(), StatxFlags::MNT_ID)?;
            Ok((path.to_owned(), found.stx_mnt_id))
        });
        Ok(Self(own.collect::<io::Result<_>>()?))
    }

    /// One that is mounted at `target` now.
    fn add(&mut self, target: &str, mounted: &OwnedFd) -> io::Result<()> {
        if is_own(target) {
            self.0.push((target.to_owned(), mount_number(mounted)?));
        }
        Ok(())
    }

    /// An error if `place`, to which `target` led, lies in one of them, and `target` does not say so.
    fn refuse(&self, target: &str, place: &OwnedFd) -> io::Result<()> {
        let number = mount_number(place)?;
        let said = |path: &str| target.strip_prefix(path).is_some_and(|rest| rest.starts_with('/'));
        match self.0.iter().find(|(path, own)| *own == number && !said(path)) {
            Some((path, _)) => Err(io::Error::other(format!("a link leads it into the runtime's own {path}"))),
            None => Ok(()),
        }
    }
}

fn mount_number(file: &OwnedFd) -> io::Result<u64> {
    Ok(statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?.stx_mnt_id)
}

fn place(root: BorrowedFd<'_>, mount: &MountPlan, bind: Option<&OwnedFd>, own: &mut Own) -> io::Result<()> {
    let made;
    let source = match (&mount.source, bind) {
        (MountSource::Filesystem { kind, options }, _) => {
            made = make_filesystem(kind, options, mount.attributes)?;
            &made
        }
        (MountSource::Bind(_), Some(taken)) => taken,
        (MountSource::Bind(_), None) => return Err(Errno::NOENT.into()),
    };
    let is_dir = is_directory(source)?;
    let target = open_or_make(root, Path::new(&mount.target), if is_dir { Make::Directory } else { Make::File })?;
    own.refuse(&mount.target, &target)?;
    // The kernel would say no more than that an argument is invalid.
    match (is_dir, is_directory(&target)?) {
        (true, false) => return Err(Errno::NOTDIR.into()),
        (false, true) => return Err(Errno::ISDIR.into()),
        _ => {}
    }
    let empty = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(source, "", &target, "", empty)?;
    own.add(&mount.target, source)
}

fn is_directory(file: &OwnedFd) -> io::Result<bool> {
    Ok(FileType::from_raw_mode(fstat(file)?.st_mode) == FileType::Directory)
}

fn make_filesystem(kind: &str, options: &[(String, String)], attributes: u64) -> io::Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    if !options.iter().any(|(name, _)| name == "source") {
        fsconfig_set_string(&context, "source", kind)?;
    }
    for (name, value) in options {
        fsconfig_set_string(&context, name, value.as_str())?;
    }
    fsconfig_create(&context)?;
    // All of them lie in the low half.
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::from_bits_retain(attributes as u32))?)
}

/// What files are hidden behind. The image has no say in it: `/dev` is the runtime's own.
fn null_device() -> io::Result<File> {
    let file = File::from(open("/dev/null", OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?);
    let metadata = file.metadata()?;
    if !metadata.file_type().is_char_device() || metadata.rdev() != libc::makedev(1, 3) {
        return Err(io::Error::other("it is not the null device"));
    }
    Ok(file)
}

/// What this kernel has not needs no protection.
fn protect(path: &str) -> io::Result<()> {
    match mount_bind_recursive(path, path) {
        Err(Errno::NOENT) => return Ok(()),
        other => other?,
    }
    let sealed = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    Ok(mount_remount(path, sealed, c"")?)
}

fn hide(path: &str, null: &File) -> io::Result<()> {
    let found = match stat(path) {
        Err(Errno::NOENT) => return Ok(()),
        other => other?,
    };
    if FileType::from_raw_mode(found.st_mode) == FileType::Directory {
        return Ok(mount("tmpfs", path, "tmpfs", MountFlags::RDONLY, None)?);
    }
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let cover = open_tree(null, "", flags)?;
    Ok(move_mount(&cover, "", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

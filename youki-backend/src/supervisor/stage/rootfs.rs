//! The root filesystem: an overlay of the image's layers, mounted in the supervisor's mount namespace.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mount::{MountFlags, mount as mount_filesystem};

use super::fill;
use crate::container::remove_dir;
use crate::error::{Error, Result};

/// The options of mount(2) end at a page.
const MAX_OPTIONS_BYTES: usize = 4095;

/// An overlay to be mounted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Overlay<'a> {
    /// Lower directories, bottom first.
    pub layers: &'a [PathBuf],
    /// The writable layer.
    pub upper: &'a Path,
    /// The work directory.
    pub work: &'a Path,
    /// Where it is mounted.
    pub rootfs: &'a Path,
    /// The writable layer need not survive a power cut.
    pub volatile: bool,
}

impl Overlay<'_> {
    /// Mounts it. The root's own attributes are the writable layer's, which takes on those of the image the first time.
    /// Layers are named by descriptor, `/proc/self/fd/N`: some 250 of them fit the page that mount(2) takes
    /// its options from, where their paths would fill it at 48, and no kernel newer than 5.11 is needed.
    pub fn mount(&self) -> Result<()> {
        // What an earlier attempt left in it would be refused after a volatile mount, and is of no use after any.
        remove_dir(self.work)?;
        let first_time = !self.upper.exists();
        for dir in [self.work, self.upper, self.rootfs] {
            fs::create_dir_all(dir).map_err(Error::io("creating", dir))?;
        }
        let open = |path: &std::path::Path| {
            openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
                .map_err(|error| Error::io("opening", path)(error.into()))
        };
        // Overlay wants a lower directory, also for an image without layers: the empty mount point serves.
        let lowest = if self.layers.is_empty() { Some(self.rootfs) } else { None };
        let layers =
            self.layers.iter().rev().map(PathBuf::as_path).chain(lowest).map(open).collect::<Result<Vec<_>>>()?;
        if let (true, Some(top)) = (first_time, self.layers.last()) {
            fill::copy_directory_attributes(top, self.upper).map_err(Error::io("taking on the attributes of", top))?;
        }
        let (upper, work) = (open(self.upper)?, open(self.work)?);
        let name = |fd: &std::os::fd::OwnedFd| format!("/proc/self/fd/{}", fd.as_raw_fd());
        let lower = layers.iter().map(name).collect::<Vec<_>>().join(":");
        // redirect_dir and metacopy: an image's own xattrs must not make overlay look anywhere else.
        let options = format!(
            "lowerdir={lower},upperdir={},workdir={},redirect_dir=nofollow,metacopy=off,index=off{}",
            name(&upper),
            name(&work),
            if self.volatile { ",volatile" } else { "" }
        );
        if options.len() > MAX_OPTIONS_BYTES {
            return Err(Error::Unsupported { what: format!("an image of {} layers", layers.len()) });
        }
        let options =
            std::ffi::CString::new(options).map_err(|error| Error::io("mounting", self.rootfs)(error.into()))?;
        mount_filesystem("overlay", self.rootfs, "overlay", MountFlags::empty(), options.as_c_str())
            .map_err(|error| Error::io("mounting the overlay at", self.rootfs)(error.into()))?;
        self.check_mount_points()
    }

    /// What libcontainer mounts itself, whose errors do not say where. Through a link it would be another place than the
    /// one that is masked, and made safe.
    fn check_mount_points(&self) -> Result<()> {
        for name in ["proc", "dev"] {
            let found = match fs::symlink_metadata(self.rootfs.join(name)) {
                Ok(found) if found.is_dir() => continue,
                Ok(found) => found,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(Error::io("looking at", self.rootfs.join(name))(error)),
            };
            let what = if found.is_symlink() { "a symbolic link" } else { "a file" };
            let reason = format!("the image has {what} there, where a directory belongs");
            return Err(Error::Mount { mount: format!("/{name}"), reason });
        }
        Ok(())
    }
}

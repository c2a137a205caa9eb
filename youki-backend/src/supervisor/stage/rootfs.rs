//! The root filesystem: an overlay of the image's layers, mounted in the supervisor's mount namespace.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mount::{MountFlags, mount as mount_filesystem};

use super::{CreatePlan, fill};
use crate::error::{Error, Result};

/// The options of mount(2) end at a page.
const MAX_OPTIONS_BYTES: usize = 4095;

/// Mounts it. The root's own attributes are the writable layer's, which takes on those of the image the first time.
/// Layers are named by descriptor, `/proc/self/fd/N`: some 250 of them fit the page that mount(2) takes
/// its options from, where their paths would fill it at 48, and no kernel newer than 5.11 is needed.
pub(super) fn mount(plan: &CreatePlan) -> Result<()> {
    // What an earlier attempt left in it would be refused after a volatile mount, and is of no use after any.
    match fs::remove_dir_all(&plan.work) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(Error::io("clearing", &plan.work)(error)),
        _ => {}
    }
    let first_time = !plan.upper.exists();
    for dir in [&plan.work, &plan.upper, &plan.rootfs] {
        fs::create_dir_all(dir).map_err(Error::io("creating", dir))?;
    }
    let open = |path: &std::path::Path| {
        openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|error| Error::io("opening", path)(error.into()))
    };
    // Overlay wants a lower directory, also for an image without layers: the empty mount point serves.
    let lowest = if plan.layers.is_empty() { Some(&plan.rootfs) } else { None };
    let layers = plan.layers.iter().rev().chain(lowest).map(|layer| open(layer)).collect::<Result<Vec<_>>>()?;
    if let (true, Some(top)) = (first_time, plan.layers.last()) {
        fill::copy_directory_attributes(top, &plan.upper).map_err(Error::io("taking on the attributes of", top))?;
    }
    let (upper, work) = (open(&plan.upper)?, open(&plan.work)?);
    let name = |fd: &std::os::fd::OwnedFd| format!("/proc/self/fd/{}", fd.as_raw_fd());
    let lower = layers.iter().map(name).collect::<Vec<_>>().join(":");
    // redirect_dir and metacopy: an image's own xattrs must not make overlay look anywhere else.
    let options = format!(
        "lowerdir={lower},upperdir={},workdir={},redirect_dir=nofollow,metacopy=off,index=off{}",
        name(&upper),
        name(&work),
        if plan.volatile { ",volatile" } else { "" }
    );
    if options.len() > MAX_OPTIONS_BYTES {
        return Err(Error::Unsupported { what: format!("an image of {} layers", layers.len()) });
    }
    let options = std::ffi::CString::new(options).map_err(|error| Error::io("mounting", &plan.rootfs)(error.into()))?;
    mount_filesystem("overlay", &plan.rootfs, "overlay", MountFlags::empty(), options.as_c_str())
        .map_err(|error| Error::io("mounting the overlay at", &plan.rootfs)(error.into()))
}

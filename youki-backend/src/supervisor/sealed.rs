//! Executables that a container cannot write to.
//!
//! A container can make the runtime execute itself inside it (`#!/proc/self/exe`) and then open the running file for
//! writing (CVE-2019-5736). So helpers are executed through a detached read-only mount of their file: opened through
//! it, the file refuses to be written, and the page cache is still shared by all that run it.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::error::{Error, Result};
use crate::mount_attributes;

/// A descriptor of `executable` on a read-only mount of its own; execute it as `/proc/self/fd/N`.
pub(crate) fn open(executable: &Path) -> Result<OwnedFd> {
    let sealed = || -> io::Result<OwnedFd> {
        let mount = open_tree(CWD, executable, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
        mount_attributes::set(&mount, libc::MOUNT_ATTR_RDONLY, 0)?;
        Ok(mount)
    };
    sealed().map_err(Error::io("sealing", executable))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;
    use std::process::Command;

    #[test]
    fn a_sealed_executable_runs_and_refuses_to_be_written() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        // Closed for writing, or it could not be executed.
        let file = tempfile::NamedTempFile::new().unwrap().into_temp_path();
        std::fs::copy("/bin/true", &file).unwrap();
        let sealed = open(&file.canonicalize().unwrap()).unwrap();
        let path = format!("/proc/self/fd/{}", sealed.as_raw_fd());
        assert!(Command::new(&path).status().unwrap().success());
        let error = std::fs::OpenOptions::new().write(true).open(&path).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EROFS));
    }
}

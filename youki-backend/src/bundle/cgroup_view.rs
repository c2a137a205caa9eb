//! What a container sees at `/sys/fs/cgroup` on cgroup v1: its own cgroups, read-only.
//!
//! libcontainer would mount them writable: root in the container could raise its own limits. It cannot be given binds
//! instead, since the create helper hides `/sys/fs/cgroup` from it, and any cgroup mount that it can see it also uses.
//! So the helper takes detached mounts of the container's cgroups while it still sees them, which no mountinfo lists
//! ([`CgroupView::prepare`]), and the init attaches them once it stands in its root filesystem
//! ([`CgroupView::attach`]).

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{CWD, Mode, mkdirat, symlinkat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_string,
    fsmount, fsopen, move_mount, open_tree,
};

use crate::mount_attributes;

/// Detached mounts, waiting for their place.
#[derive(Debug)]
pub(crate) struct CgroupView {
    tmpfs: OwnedFd,
    hierarchies: Vec<(String, OwnedFd)>,
}

impl CgroupView {
    /// Takes a mount of each of the container's cgroups: `(name, directory)`, the name as it shall appear below
    /// `/sys/fs/cgroup` (`pids`, or `cpu,cpuacct`, which is given a link for each part). Read-only unless `writable`,
    /// which is for privileged containers. Needs CAP_SYS_ADMIN; touches no file and no mount table.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn prepare(cgroups: &[(&str, &Path)], writable: bool) -> io::Result<Self> {
        let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(&context, "mode", "755")?;
        // Room for the directories and links alone.
        fsconfig_set_string(&context, "size", "64k")?;
        fsconfig_create(&context)?;
        let sealed =
            MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let tmpfs = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, sealed)?;
        let mut hierarchies = Vec::with_capacity(cgroups.len());
        for (name, directory) in cgroups {
            mkdirat(&tmpfs, *name, Mode::from_raw_mode(0o755))?;
            for part in name.split(',').filter(|part| part != name) {
                symlinkat(*name, &tmpfs, part)?;
            }
            let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
            let mount = open_tree(CWD, *directory, flags)?;
            set_attributes(&mount, writable)?;
            hierarchies.push(((*name).to_owned(), mount));
        }
        set_attributes(&tmpfs, writable)?;
        Ok(Self { tmpfs, hierarchies })
    }

    /// Mounts them at `target`, which is an empty directory, normally `/sys/fs/cgroup`. For the container's init, in its
    /// own mount namespace and root, before its capabilities are dropped.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn attach(&self, target: &Path) -> io::Result<()> {
        move_mount(&self.tmpfs, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
        for (name, mount) in &self.hierarchies {
            let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
            move_mount(mount, "", &self.tmpfs, name.as_str(), flags)?;
        }
        Ok(())
    }
}

/// Seals a mount: no device, no setuid, no program, and no write unless `writable`.
fn set_attributes(mount: &OwnedFd, writable: bool) -> io::Result<()> {
    let read_only = if writable { 0 } else { libc::MOUNT_ATTR_RDONLY };
    let sealed = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;
    mount_attributes::set(mount, sealed | read_only, libc::MS_PRIVATE)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;

    use super::*;

    /// Names the cgroup to the child process.
    const CGROUP: &str = "BERTH_TEST_CGROUP_VIEW";

    /// In a mount namespace of its own, like the create helper: the cgroups are hidden before the view is attached.
    #[test]
    fn a_hidden_cgroup_is_shown_read_only() {
        // The test runs itself again as the helper: unshare acts on one thread, and the test runner has several.
        if let Some(cgroup) = std::env::var_os(CGROUP) {
            return in_own_namespace(Path::new(&cgroup));
        }
        if !rustix::process::geteuid().is_root() || !Path::new("/sys/fs/cgroup/pids").is_dir() {
            eprintln!("skipped: needs root and cgroup v1");
            return;
        }
        let cgroup = Path::new("/sys/fs/cgroup/pids").join(format!("berth-test-view-{}", std::process::id()));
        fs::create_dir(&cgroup).unwrap();
        let (_, module) = module_path!().split_once("::").unwrap();
        let output = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                &format!("{module}::a_hidden_cgroup_is_shown_read_only"),
                "--nocapture",
                "--test-threads=1",
            ])
            .env(CGROUP, &cgroup)
            .output();
        fs::remove_dir(&cgroup).unwrap();
        let output = output.unwrap();
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success() && text.contains("view seen"), "{text}");
    }

    fn in_own_namespace(cgroup: &Path) {
        use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount};
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("cgroup");
        fs::create_dir(&target).unwrap();
        // SAFETY: only this thread's mount namespace changes; nothing else in this process depends on it.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }.unwrap();
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
        let view = CgroupView::prepare(&[("pids", cgroup), ("cpu,cpuacct", cgroup)], false).unwrap();
        unmount("/sys/fs/cgroup", UnmountFlags::DETACH).unwrap();
        mount("tmpfs", "/sys/fs/cgroup", "tmpfs", MountFlags::empty(), None).unwrap();
        let mounted = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        assert!(!mounted.contains("- cgroup "), "libcontainer would find: {mounted}");

        view.attach(&target).unwrap();
        assert_eq!(fs::read_to_string(target.join("pids/pids.max")).unwrap(), "max\n");
        assert_eq!(fs::read_to_string(target.join("cpuacct/pids.max")).unwrap(), "max\n");
        for result in [
            fs::write(target.join("pids/pids.max"), "5"),
            fs::create_dir(target.join("pids/sub")),
            fs::create_dir(target.join("other")),
        ] {
            assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EROFS));
        }
        println!("view seen");
        unmount(&target, UnmountFlags::DETACH).unwrap();
    }
}

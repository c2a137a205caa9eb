//! What is mounted in the container, in order: the kernel's filesystems, then the files of `/etc` and the user's
//! mounts, the shallower first.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use runtime_core::ServiceSpec;
use runtime_core::spec::StorageSpec;
use serde::{Deserialize, Serialize};

use super::{EtcFiles, VolumeMount};
use crate::error::{Error, Result};

/// Size of `/dev/shm` where the spec names none; Docker's.
const DEFAULT_SHM_BYTES: u64 = 64 << 20;
/// Mode of a tmpfs's root where the spec names none: anyone may write, nobody may remove another's files.
const DEFAULT_TMPFS_MODE: u32 = 0o1777;
/// Largest mode a tmpfs can have.
const MAX_MODE: u32 = 0o7777;

/// Mount points that are the runtime's own.
const OWN: [&str; 4] = ["/proc", "/dev", "/dev/pts", "/sys"];
/// Files of `/proc` that may be mounted over: those that lxcfs imitates, and no other (CVE-2019-16884).
const PROC_FILES: [&str; 8] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/slabinfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
];

/// No device, no setuid, no program.
const SEALED: u64 = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;

/// One mount, as the init makes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MountPlan {
    /// What is mounted.
    pub source: MountSource,
    /// Absolute path in the container; made where the image lacks it.
    pub target: String,
    /// `MOUNT_ATTR_*`; for a bind they hold for everything mounted beneath it, too.
    pub attributes: u64,
}

/// What a mount shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum MountSource {
    /// A filesystem of the kernel's.
    Filesystem {
        /// `tmpfs`, `proc`, …
        kind: String,
        /// As fsconfig(2) takes them.
        options: Vec<(String, String)>,
    },
    /// A directory or file of the host's, with what is mounted beneath it.
    Bind(PathBuf),
}

/// All mounts but `/proc` and `/dev`, which are libcontainer's, checked. `volumes` are the spec's binds and volumes and the image's, resolved to host paths.
pub(super) fn mounts(
    spec: &ServiceSpec,
    volumes: &[VolumeMount],
    etc: &EtcFiles<'_>,
    cgroup_v2: bool,
) -> Result<Vec<MountPlan>> {
    let mut user = Vec::new();
    check(spec)?;
    for (index, storage) in spec.storage.iter().enumerate() {
        if let StorageSpec::Tmpfs { target, size, mode } = storage {
            let mode = mode.unwrap_or(DEFAULT_TMPFS_MODE);
            if mode > MAX_MODE {
                return Err(Error::invalid(format!("storage[{index}].mode"), format!("{mode:o} is not a mode")));
            }
            let mut options = vec![("mode", format!("{mode:o}"))];
            options.extend(size.map(|size| ("size", size.as_u64().to_string())));
            user.push((target_of(spec, target)?, filesystem("tmpfs", target, &options, SEALED)));
        }
    }
    let mut seen: BTreeSet<String> = user.iter().map(|(target, _)| target.clone()).collect();
    for volume in volumes {
        let target = target_of(spec, &volume.target)?;
        if !seen.insert(target.clone()) {
            return Err(Error::invalid(field_of(spec, &volume.target), format!("{target} is mounted twice")));
        }
        require(spec, volume)?;
        user.push((target, bind(&volume.source, &volume.target, volume.readonly)));
    }
    let mut all = system(spec, cgroup_v2)?;
    all.retain(|mount| !seen.contains(&mount.target));
    for (source, target) in
        [(etc.hosts, "/etc/hosts"), (etc.hostname, "/etc/hostname"), (etc.resolv_conf, "/etc/resolv.conf")]
    {
        if !seen.contains(target) {
            // As docker has it: what the user mounts there is as he says, these follow the root.
            user.push((target.to_owned(), bind(source, target, spec.read_only)));
        }
    }
    user.sort_by_key(|(target, _)| target.matches('/').count());
    all.extend(user.into_iter().map(|(_, mount)| mount));
    Ok(all)
}

/// Checks the targets of a spec's storage, and refuses what is not built.
///
/// # Errors
/// [`Error::InvalidSpec`] naming `storage[n].target`; [`Error::Unsupported`] for a bucket as files.
pub(crate) fn check(spec: &ServiceSpec) -> Result<()> {
    let mut seen: Vec<String> = Vec::new();
    for (index, storage) in spec.storage.iter().enumerate() {
        if let StorageSpec::S3 { .. } = storage {
            return Err(Error::Unsupported { what: format!("storage[{index}]: a bucket as files (type s3)") });
        }
        if let StorageSpec::Named { name, .. } = storage {
            volumes_s3::check_name(name)?;
        }
        let field = || format!("storage[{index}].target");
        let target = normal_target(storage.target()).map_err(|reason| Error::invalid(field(), reason))?;
        refuse_own(&target).map_err(|reason| Error::invalid(field(), reason))?;
        if let Some(first) = seen.iter().position(|known| *known == target) {
            return Err(Error::invalid(field(), format!("{target} is the target of storage[{first}] too")));
        }
        seen.push(target);
    }
    Ok(())
}

/// A mount target in its shortest form, or what is wrong with it.
pub(super) fn normal_target(target: &str) -> std::result::Result<String, String> {
    if !target.starts_with('/') {
        return Err(format!("{target:?} is not absolute"));
    }
    if target.contains('\0') {
        return Err("it holds a NUL character".to_owned());
    }
    let mut normal = String::with_capacity(target.len());
    for part in target.split('/').filter(|part| !part.is_empty() && *part != ".") {
        if part == ".." {
            return Err(format!("{target:?} contains `..`"));
        }
        normal.push('/');
        normal.push_str(part);
    }
    if normal.is_empty() { Err("the root itself cannot be mounted over".to_owned()) } else { Ok(normal) }
}

/// Whether a target, in its shortest form, is a mount of the runtime's own that nobody may cover.
pub(crate) fn is_own(target: &str) -> bool {
    refuse_own(target).is_err()
}

fn refuse_own(target: &str) -> std::result::Result<(), String> {
    if OWN.contains(&target) {
        return Err(format!("{target} is the runtime's own mount"));
    }
    if target.starts_with("/proc/") && !PROC_FILES.contains(&target) {
        return Err(format!("{target} is within the kernel's /proc"));
    }
    if target == "/sys/fs/cgroup" || target.starts_with("/sys/fs/cgroup/") {
        return Err("the container's own cgroups are shown at /sys/fs/cgroup".to_owned());
    }
    Ok(())
}

/// A target that came from the spec or from the image, checked once more: it may not have passed [`check`].
fn target_of(spec: &ServiceSpec, target: &str) -> Result<String> {
    let invalid = |reason| Error::invalid(field_of(spec, target), reason);
    let normal = normal_target(target).map_err(invalid)?;
    refuse_own(&normal).map_err(invalid)?;
    Ok(normal)
}

/// A bind's source must exist: unlike docker, Berth makes no directory on the host by a typing error.
fn require(spec: &ServiceSpec, volume: &VolumeMount) -> Result<()> {
    let bind = |storage: &StorageSpec| matches!(storage, StorageSpec::Bind { target, .. } if *target == volume.target);
    let Some(index) = spec.storage.iter().position(bind) else { return Ok(()) };
    let invalid = |reason: String| Error::invalid(format!("storage[{index}].source"), reason);
    if !volume.source.is_absolute() {
        return Err(invalid(format!("{} is not absolute", volume.source.display())));
    }
    let found = std::fs::metadata(&volume.source);
    found.map(drop).map_err(|error| invalid(format!("{}: {error}", volume.source.display())))
}

/// Names where a target came from.
fn field_of(spec: &ServiceSpec, target: &str) -> String {
    match spec.storage.iter().position(|storage| storage.target() == target) {
        Some(index) => format!("storage[{index}].target"),
        None => "image.config.Volumes".to_owned(),
    }
}

/// The kernel's filesystems that the init mounts.
fn system(spec: &ServiceSpec, cgroup_v2: bool) -> Result<Vec<MountPlan>> {
    let shm = spec.shm_size.map_or(DEFAULT_SHM_BYTES, runtime_core::spec::ByteSize::as_u64);
    if shm == 0 {
        return Err(Error::invalid("shm_size", "it must be larger than 0"));
    }
    let text = |text: &str| text.to_owned();
    let sys = SEALED | if spec.privileged { 0 } else { libc::MOUNT_ATTR_RDONLY };
    let pts = [("ptmxmode", text("0666")), ("mode", text("0620")), ("gid", text("5"))];
    let shm_options = [("source", text("shm")), ("mode", text("1777")), ("size", shm.to_string())];
    let mut mounts = vec![
        filesystem("devpts", "/dev/pts", &pts, libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC),
        filesystem("sysfs", "/sys", &[], sys),
        filesystem("mqueue", "/dev/mqueue", &[], SEALED),
        filesystem("tmpfs", "/dev/shm", &shm_options, SEALED),
    ];
    if cgroup_v2 {
        // On v1 the helper attaches a read-only view itself: see `cgroup_view`.
        mounts.push(filesystem("cgroup2", "/sys/fs/cgroup", &[], sys));
    }
    Ok(mounts)
}

fn bind(source: &Path, target: &str, readonly: bool) -> MountPlan {
    let attributes = if readonly { libc::MOUNT_ATTR_RDONLY } else { 0 };
    MountPlan { source: MountSource::Bind(source.to_owned()), target: target.to_owned(), attributes }
}

fn filesystem(kind: &str, target: &str, options: &[(&str, String)], attributes: u64) -> MountPlan {
    let options = options.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    let source = MountSource::Filesystem { kind: kind.to_owned(), options };
    MountPlan { source, target: target.to_owned(), attributes }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(storage: Vec<StorageSpec>) -> ServiceSpec {
        ServiceSpec { storage, ..ServiceSpec::new("i") }
    }

    fn anonymous(target: &str) -> StorageSpec {
        StorageSpec::Anonymous { target: target.into() }
    }

    fn volume(target: &str, readonly: bool) -> VolumeMount {
        VolumeMount { source: "/src".into(), target: target.into(), readonly }
    }

    fn built(spec: &ServiceSpec, volumes: &[VolumeMount], cgroup_v2: bool) -> Result<Vec<MountPlan>> {
        let file = Path::new("/run/x");
        mounts(spec, volumes, &EtcFiles { hosts: file, hostname: file, resolv_conf: file }, cgroup_v2)
    }

    fn targets(mounts: &[MountPlan]) -> Vec<&str> {
        mounts.iter().map(|mount| mount.target.as_str()).collect()
    }

    fn at<'a>(mounts: &'a [MountPlan], target: &str) -> &'a MountPlan {
        mounts.iter().find(|mount| mount.target == target).unwrap()
    }

    fn option<'a>(mounts: &'a [MountPlan], target: &str, name: &str) -> Option<&'a str> {
        let MountSource::Filesystem { options, .. } = &at(mounts, target).source else { return None };
        options.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    fn is_read_only(mounts: &[MountPlan], target: &str) -> bool {
        at(mounts, target).attributes & libc::MOUNT_ATTR_RDONLY != 0
    }

    #[test]
    fn a_plain_container_has_dockers_mounts() {
        let mounts = built(&spec(vec![]), &[], false).unwrap();
        assert_eq!(
            targets(&mounts),
            ["/dev/pts", "/sys", "/dev/mqueue", "/dev/shm", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf"]
        );
        assert!(is_read_only(&mounts, "/sys") && !is_read_only(&mounts, "/dev/shm"));
        assert_eq!(option(&mounts, "/dev/shm", "size"), Some("67108864"));
        assert!(is_read_only(&built(&spec(vec![]), &[], true).unwrap(), "/sys/fs/cgroup"));
        assert!(!is_read_only(&mounts, "/etc/hosts"));
        let of_read_only = built(&ServiceSpec { read_only: true, ..spec(vec![]) }, &[], false).unwrap();
        assert!(is_read_only(&of_read_only, "/etc/hosts") && !is_read_only(&of_read_only, "/dev/shm"));
    }

    #[test]
    fn a_mount_comes_after_what_it_lies_in_and_replaces_a_default() {
        let tmpfs =
            StorageSpec::Tmpfs { target: "/a/b/c".into(), size: Some("1Ki".parse().unwrap()), mode: Some(0o700) };
        let storage = vec![tmpfs, anonymous("/dev/shm"), anonymous("/a"), anonymous("/etc/hosts"), anonymous("/etc")];
        let volumes =
            [volume("/dev/shm", false), volume("/a", true), volume("/etc/hosts", false), volume("/etc", false)];
        let mounts = built(&spec(storage), &volumes, false).unwrap();
        assert_eq!(
            targets(&mounts)[3..],
            ["/a", "/etc", "/dev/shm", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/a/b/c"]
        );
        assert_eq!(option(&mounts, "/a/b/c", "mode"), Some("700"));
        assert_eq!(option(&mounts, "/a/b/c", "size"), Some("1024"));
        assert_eq!(at(&mounts, "/a/b/c").attributes, SEALED);
        assert!(is_read_only(&mounts, "/a") && !is_read_only(&mounts, "/dev/shm"));
        assert_eq!(at(&mounts, "/dev/shm").source, MountSource::Bind("/src".into()));
    }

    #[test]
    fn a_bad_target_is_refused_by_its_field() {
        for target in [
            "",
            "data",
            "/",
            "//",
            "/./",
            "/a/../b",
            "/a\0b",
            "/proc",
            "/proc/",
            "/proc/sys",
            "/dev",
            "/sys",
            "/sys/fs/cgroup/x",
        ] {
            let error = built(&spec(vec![anonymous("/ok"), anonymous(target)]), &[], false).unwrap_err();
            assert!(
                matches!(error, Error::InvalidSpec { ref field, .. } if field == "storage[1].target"),
                "{target:?}: {error}"
            );
            let error = built(&spec(vec![]), &[volume(target, false)], false).unwrap_err();
            assert!(
                matches!(error, Error::InvalidSpec { ref field, .. } if field == "image.config.Volumes"),
                "{target:?}"
            );
        }
        assert!(check(&spec(vec![anonymous("/proc/cpuinfo"), anonymous("/sys/kernel/x")])).is_ok());
    }

    #[test]
    fn the_source_of_a_bind_must_exist() {
        for (source, accepted) in [("/etc", true), ("/no/such/source", false), ("etc", false)] {
            let bind = StorageSpec::Bind { source: source.into(), target: "/b".into(), readonly: false };
            let volumes = [VolumeMount { source: source.into(), target: "/b".into(), readonly: false }];
            let result = built(&spec(vec![bind]), &volumes, false);
            assert_eq!(result.is_ok(), accepted, "{source}");
            if let Err(error) = result {
                assert!(error.to_string().starts_with("storage[0].source: "), "{error}");
            }
        }
    }

    #[test]
    fn the_same_target_twice_is_refused() {
        let error = built(&spec(vec![anonymous("/a"), anonymous("/b"), anonymous("//a/.")]), &[], false).unwrap_err();
        assert_eq!(error.to_string(), "storage[2].target: /a is the target of storage[0] too");
        assert!(built(&spec(vec![]), &[volume("/v", false), volume("/v/", false)], false).is_err());
    }

    #[test]
    fn what_is_not_built_or_makes_no_sense_is_refused() {
        let s3 = StorageSpec::S3 { bucket: "b".into(), prefix: None, target: "/s3".into(), readonly: false };
        assert_eq!(built(&spec(vec![s3]), &[], false).unwrap_err().code(), "unsupported.here");
        let tmpfs = StorageSpec::Tmpfs { target: "/t".into(), size: None, mode: Some(0o10000) };
        assert!(built(&spec(vec![tmpfs]), &[], false).unwrap_err().to_string().starts_with("storage[0].mode"));
        let mut no_shm = spec(vec![]);
        no_shm.shm_size = Some(runtime_core::spec::ByteSize::new(0));
        assert_eq!(built(&no_shm, &[], false).unwrap_err().code(), "spec.invalid");
    }
}

//! What is mounted in the container, in order: the kernel's filesystems, then the files of `/etc` and the user's
//! mounts, the shallower first.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Mount, MountBuilder};
use runtime_core::ServiceSpec;
use runtime_core::spec::StorageSpec;

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

/// All mounts, checked. `volumes` are the spec's binds and volumes and the image's, resolved to host paths.
pub(super) fn mounts(
    spec: &ServiceSpec,
    volumes: &[VolumeMount],
    etc: &EtcFiles<'_>,
    cgroup_v2: bool,
) -> Result<Vec<Mount>> {
    let mut user = Vec::new();
    check(spec)?;
    for (index, storage) in spec.storage.iter().enumerate() {
        if let StorageSpec::Tmpfs { target, size, mode } = storage {
            let mode = mode.unwrap_or(DEFAULT_TMPFS_MODE);
            if mode > MAX_MODE {
                return Err(Error::invalid(format!("storage[{index}].mode"), format!("{mode:o} is not a mode")));
            }
            let mut options =
                vec!["nosuid".to_owned(), "nodev".to_owned(), "noexec".to_owned(), format!("mode={mode:o}")];
            options.extend(size.map(|size| format!("size={}", size.as_u64())));
            user.push((target_of(spec, target)?, mount("tmpfs", "tmpfs", target, options)?));
        }
    }
    let mut seen: BTreeSet<String> = user.iter().map(|(target, _)| target.clone()).collect();
    for volume in volumes {
        let target = target_of(spec, &volume.target)?;
        if !seen.insert(target.clone()) {
            return Err(Error::invalid(field_of(spec, &volume.target), format!("{target} is mounted twice")));
        }
        require(spec, volume)?;
        user.push((target, bind(&volume.source, &volume.target, volume.readonly)?));
    }
    let mut all: Vec<Mount> = Vec::new();
    for (target, mount) in system(spec, cgroup_v2)? {
        if !seen.contains(target) {
            all.push(mount);
        }
    }
    for (source, target) in
        [(etc.hosts, "/etc/hosts"), (etc.hostname, "/etc/hostname"), (etc.resolv_conf, "/etc/resolv.conf")]
    {
        if !seen.contains(target) {
            user.push((target.to_owned(), bind(source, target, false)?));
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

/// The kernel's filesystems, by target.
fn system(spec: &ServiceSpec, cgroup_v2: bool) -> Result<Vec<(&'static str, Mount)>> {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let shm = spec.shm_size.map_or(DEFAULT_SHM_BYTES, runtime_core::spec::ByteSize::as_u64);
    if shm == 0 {
        return Err(Error::invalid("shm_size", "it must be larger than 0"));
    }
    let sealed = ["nosuid", "noexec", "nodev"];
    let mut sys = words(&sealed);
    if !spec.privileged {
        sys.push("ro".to_owned());
    }
    let mut shm_options = words(&sealed);
    shm_options.extend(["mode=1777".to_owned(), format!("size={shm}")]);
    let dev = words(&["nosuid", "strictatime", "mode=755", "size=65536k"]);
    let pts = words(&["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]);
    let mut mounts = vec![
        ("/proc", mount("proc", "proc", "/proc", words(&sealed))?),
        ("/dev", mount("tmpfs", "tmpfs", "/dev", dev)?),
        ("/dev/pts", mount("devpts", "devpts", "/dev/pts", pts)?),
        ("/sys", mount("sysfs", "sysfs", "/sys", sys.clone())?),
        ("/dev/mqueue", mount("mqueue", "mqueue", "/dev/mqueue", words(&sealed))?),
        ("/dev/shm", mount("tmpfs", "shm", "/dev/shm", shm_options)?),
    ];
    if cgroup_v2 {
        // On v1 the helper attaches a read-only view itself: see `cgroup_view`.
        mounts.push(("/sys/fs/cgroup", mount("cgroup", "cgroup", "/sys/fs/cgroup", sys)?));
    }
    Ok(mounts)
}

fn bind(source: &Path, target: &str, readonly: bool) -> Result<Mount> {
    // `ro` alone leaves what is mounted beneath the source writable.
    let words: &[&str] = if readonly { &["rbind", "ro", "rro"] } else { &["rbind"] };
    let source = source.to_str().ok_or_else(|| Error::Configuration {
        what: source.display().to_string(),
        reason: "a path that is not UTF-8 cannot be mounted".to_owned(),
    })?;
    mount("bind", source, target, words.iter().map(|word| (*word).to_owned()).collect())
}

fn mount(kind: &str, source: &str, target: &str, options: Vec<String>) -> Result<Mount> {
    MountBuilder::default()
        .typ(kind)
        .source(PathBuf::from(source))
        .destination(PathBuf::from(target))
        .options(options)
        .build()
        .map_err(|error| Error::invalid("storage", format!("{target}: {error}")))
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

    fn built(spec: &ServiceSpec, volumes: &[VolumeMount], cgroup_v2: bool) -> Result<Vec<Mount>> {
        let file = Path::new("/run/x");
        mounts(spec, volumes, &EtcFiles { hosts: file, hostname: file, resolv_conf: file }, cgroup_v2)
    }

    fn targets(mounts: &[Mount]) -> Vec<&str> {
        mounts.iter().map(|mount| mount.destination().to_str().unwrap()).collect()
    }

    fn options<'a>(mounts: &'a [Mount], target: &str) -> Vec<&'a str> {
        let mount = mounts.iter().find(|mount| mount.destination() == Path::new(target)).unwrap();
        mount.options().as_ref().unwrap().iter().map(String::as_str).collect()
    }

    #[test]
    fn a_plain_container_has_dockers_mounts() {
        let mounts = built(&spec(vec![]), &[], false).unwrap();
        assert_eq!(
            targets(&mounts),
            [
                "/proc",
                "/dev",
                "/dev/pts",
                "/sys",
                "/dev/mqueue",
                "/dev/shm",
                "/etc/hosts",
                "/etc/hostname",
                "/etc/resolv.conf"
            ]
        );
        assert!(options(&mounts, "/sys").contains(&"ro"));
        assert!(options(&mounts, "/dev/shm").contains(&"size=67108864"));
        assert!(options(&built(&spec(vec![]), &[], true).unwrap(), "/sys/fs/cgroup").contains(&"ro"));
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
            targets(&mounts)[5..],
            ["/a", "/etc", "/dev/shm", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/a/b/c"]
        );
        assert_eq!(options(&mounts, "/a/b/c"), ["nosuid", "nodev", "noexec", "mode=700", "size=1024"]);
        assert_eq!(options(&mounts, "/a"), ["rbind", "ro", "rro"]);
        assert_eq!(options(&mounts, "/dev/shm"), ["rbind"]);
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

//! Device nodes of the container, and which devices it may use.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxDevice, LinuxDeviceBuilder, LinuxDeviceType};
use runtime_core::ServiceSpec;
use runtime_core::spec::DeviceSpec;

use super::mounts;
use crate::cgroup::{Access, DeviceKind, DeviceRule};
use crate::error::{Error, Result};

/// What every container may use; Docker's list. Making nodes is allowed, opening them is not.
const DEFAULT_RULES: [DeviceRule; 11] = [
    DeviceRule { kind: Some(DeviceKind::Char), major: None, minor: None, access: Access::MKNOD },
    DeviceRule { kind: Some(DeviceKind::Block), major: None, minor: None, access: Access::MKNOD },
    // null, zero, full, random, urandom
    char_device(1, Some(3)),
    char_device(1, Some(5)),
    char_device(1, Some(7)),
    char_device(1, Some(8)),
    char_device(1, Some(9)),
    // tty, console, ptmx, and the pseudo-terminals
    char_device(5, Some(0)),
    char_device(5, Some(1)),
    char_device(5, Some(2)),
    char_device(136, None),
];

/// Directories and names of `/dev` that are the container's own, never the host's.
const OWN: [&str; 9] = ["pts", "shm", "fd", "mqueue", "console", "ptmx", "hugepages", "core", "log"];
/// Most device nodes that a privileged container gets; a host has some hundreds.
const MAX_DEVICES: usize = 4096;
/// How deep `/dev` is searched for them.
const MAX_DEPTH: usize = 6;

/// The device nodes beyond the default ones.
pub(super) fn nodes(spec: &ServiceSpec) -> Result<Vec<LinuxDevice>> {
    let mut nodes = Vec::new();
    for (index, device) in spec.devices.iter().enumerate() {
        let path = checked(device, index)?;
        nodes.push(node(&path, index)?);
    }
    if spec.privileged {
        let mut found = Vec::new();
        host_nodes(Path::new("/dev"), 0, &mut found);
        found.retain(|device| nodes.iter().all(|known: &LinuxDevice| known.path() != device.path()));
        nodes.append(&mut found);
    }
    Ok(nodes)
}

const fn char_device(major: u32, minor: Option<u32>) -> DeviceRule {
    DeviceRule { kind: Some(DeviceKind::Char), major: Some(major), minor, access: Access::ALL }
}

/// The devices that the container may use; any other is refused.
///
/// # Errors
/// [`Error::InvalidSpec`] for a device that the host lacks.
pub(crate) fn device_rules(spec: &ServiceSpec) -> Result<Vec<DeviceRule>> {
    if spec.privileged {
        return Ok(vec![DeviceRule::ALL]);
    }
    let mut rules: Vec<DeviceRule> = DEFAULT_RULES.into();
    for (index, device) in spec.devices.iter().enumerate() {
        let node = node(&checked(device, index)?, index)?;
        let access = Access { read: device.read, write: device.write, mknod: device.mknod };
        if !(access.read || access.write || access.mknod) {
            return Err(Error::invalid(format!("devices[{index}]"), "none of read, write and mknod is granted"));
        }
        let kind = if node.typ() == LinuxDeviceType::B { DeviceKind::Block } else { DeviceKind::Char };
        // Both were made from the numbers of a device: they fit.
        let number = |number: i64| u32::try_from(number).ok();
        rules.push(DeviceRule { kind: Some(kind), major: number(node.major()), minor: number(node.minor()), access });
    }
    Ok(rules)
}

fn checked(device: &DeviceSpec, index: usize) -> Result<PathBuf> {
    let field = || format!("devices[{index}].path");
    let path = mounts::normal_target(&device.path).map_err(|reason| Error::invalid(field(), reason))?;
    match path.strip_prefix("/dev/") {
        Some(rest) if !OWN.iter().any(|own| rest.split('/').next() == Some(own)) => Ok(path.into()),
        Some(_) => Err(Error::invalid(field(), format!("{path} is the container's own"))),
        None => Err(Error::invalid(field(), format!("{path} is not beneath /dev"))),
    }
}

/// The node at `path` on the host.
fn node(path: &Path, index: usize) -> Result<LinuxDevice> {
    let field = || format!("devices[{index}].path");
    let metadata =
        fs::metadata(path).map_err(|error| Error::invalid(field(), format!("{}: {error}", path.display())))?;
    of(path, &metadata).ok_or_else(|| Error::invalid(field(), format!("{} is not a device", path.display())))
}

fn of(path: &Path, metadata: &fs::Metadata) -> Option<LinuxDevice> {
    let typ = match metadata.file_type() {
        kind if kind.is_char_device() => LinuxDeviceType::C,
        kind if kind.is_block_device() => LinuxDeviceType::B,
        _ => return None,
    };
    LinuxDeviceBuilder::default()
        .path(path)
        .typ(typ)
        .major(i64::from(libc::major(metadata.rdev())))
        .minor(i64::from(libc::minor(metadata.rdev())))
        .file_mode(metadata.mode() & 0o7777)
        .uid(metadata.uid())
        .gid(metadata.gid())
        .build()
        .ok()
}

/// All device nodes beneath `dir`; what cannot be read is passed over, as docker does.
fn host_nodes(dir: &Path, depth: usize, found: &mut Vec<LinuxDevice>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let own = depth == 0 && entry.file_name().to_str().is_none_or(|name| OWN.contains(&name));
        if own || found.len() >= MAX_DEVICES {
            continue;
        }
        // Of the entry itself: links in /dev lead to nodes that are found as such.
        let Ok(metadata) = entry.metadata() else { continue };
        if metadata.is_dir() && depth < MAX_DEPTH {
            host_nodes(&entry.path(), depth + 1, found);
        } else if let Some(device) = of(&entry.path(), &metadata) {
            found.push(device);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(path: &str, access: (bool, bool, bool)) -> ServiceSpec {
        let mut spec = ServiceSpec::new("i");
        spec.devices = vec![DeviceSpec { path: path.into(), read: access.0, write: access.1, mknod: access.2 }];
        spec
    }

    #[test]
    fn rules_are_dockers_with_the_specs_devices_after_them() {
        let texts = |spec: &ServiceSpec| -> Vec<String> {
            device_rules(spec).unwrap().iter().map(DeviceRule::to_string).collect()
        };
        let default = [
            "c *:* m",
            "b *:* m",
            "c 1:3 rwm",
            "c 1:5 rwm",
            "c 1:7 rwm",
            "c 1:8 rwm",
            "c 1:9 rwm",
            "c 5:0 rwm",
            "c 5:1 rwm",
            "c 5:2 rwm",
            "c 136:* rwm",
        ];
        assert_eq!(texts(&ServiceSpec::new("i")), default);
        assert_eq!(texts(&spec("/dev/zero", (true, false, false))).last().unwrap(), "c 1:5 r");
        assert_eq!(texts(&spec("/dev/zero", (true, true, true))).last().unwrap(), "c 1:5 rwm");
        let mut privileged = ServiceSpec::new("i");
        privileged.privileged = true;
        assert_eq!(texts(&privileged), ["a *:* rwm"]);
    }

    #[test]
    fn a_device_that_cannot_be_offered_is_refused_by_its_field() {
        for path in ["/dev/no-such-device", "/etc/passwd", "/dev", "/dev/pts/0", "/dev/../etc/passwd", "dev/null"] {
            let error = nodes(&spec(path, (true, true, false))).unwrap_err();
            assert!(error.to_string().starts_with("devices[0].path: "), "{path}: {error}");
            assert_eq!(device_rules(&spec(path, (true, true, false))).unwrap_err().code(), "spec.invalid");
        }
        assert_eq!(device_rules(&spec("/dev/null", (false, false, false))).unwrap_err().code(), "spec.invalid");
    }

    #[test]
    fn nodes_are_those_of_the_host() {
        let nodes_found = nodes(&spec("/dev/null", (true, true, false))).unwrap();
        assert_eq!((nodes_found[0].major(), nodes_found[0].minor()), (1, 3));
        let mut privileged = ServiceSpec::new("i");
        privileged.privileged = true;
        let all = nodes(&privileged).unwrap();
        assert!(all.iter().any(|device| device.path() == Path::new("/dev/null")));
        assert!(
            all.iter().all(|device| !device.path().starts_with("/dev/pts") && device.path() != Path::new("/dev/ptmx"))
        );
    }
}

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
const OWN: [&str; 12] =
    ["pts", "shm", "fd", "mqueue", "console", "ptmx", "hugepages", "core", "log", "stdin", "stdout", "stderr"];
/// Most device nodes that a privileged container gets; a host has some hundreds.
const MAX_DEVICES: usize = 4096;
/// How deep `/dev` is searched for them.
const MAX_DEPTH: usize = 6;

/// The device nodes beyond the default ones.
pub(super) fn nodes(spec: &ServiceSpec) -> Result<Vec<LinuxDevice>> {
    let mut nodes: Vec<LinuxDevice> = Vec::new();
    for (index, device) in spec.devices.iter().enumerate() {
        for offered in offered(device, index)? {
            let path = offered.path().display();
            let is_same = |known: &&LinuxDevice| known.path() == offered.path();
            if let Some(known) = nodes.iter().find(is_same)
                && numbers(known) != numbers(&offered)
            {
                return Err(Error::invalid(
                    format!("devices[{index}].path"),
                    format!("{path} is another device already"),
                ));
            }
            if nodes.iter().all(|known| known.path() != offered.path()) {
                nodes.push(offered);
            }
        }
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
        let access = Access { read: device.read, write: device.write, mknod: device.mknod };
        if !(access.read || access.write || access.mknod) {
            return Err(Error::invalid(format!("devices[{index}]"), "none of read, write and mknod is granted"));
        }
        for node in offered(device, index)? {
            let kind = if node.typ() == LinuxDeviceType::B { DeviceKind::Block } else { DeviceKind::Char };
            // Both were made from the numbers of a device: they fit.
            let number = |number: i64| u32::try_from(number).ok();
            rules.push(DeviceRule {
                kind: Some(kind),
                major: number(node.major()),
                minor: number(node.minor()),
                access,
            });
        }
    }
    Ok(rules)
}

fn checked(path: &str, index: usize) -> Result<PathBuf> {
    let field = || format!("devices[{index}].path");
    let path = mounts::normal_target(path).map_err(|reason| Error::invalid(field(), reason))?;
    match path.strip_prefix("/dev/") {
        Some(rest) if !OWN.iter().any(|own| rest.split('/').next() == Some(own)) => Ok(path.into()),
        Some(_) => Err(Error::invalid(field(), format!("{path} is the container's own"))),
        None => Err(Error::invalid(field(), format!("{path} is not beneath /dev"))),
    }
}

/// What `device` offers, by its paths in the container: a node of the host's, or all beneath a directory.
fn offered(device: &DeviceSpec, index: usize) -> Result<Vec<LinuxDevice>> {
    let (path, inside) = device.paths();
    let (path, inside) = (checked(path, index)?, checked(inside, index)?);
    let invalid = |reason: String| Error::invalid(format!("devices[{index}].path"), reason);
    let metadata = fs::metadata(&path).map_err(|error| invalid(format!("{}: {error}", path.display())))?;
    if !metadata.is_dir() {
        let node = of(&inside, &metadata).ok_or_else(|| invalid(format!("{} is not a device", path.display())))?;
        return Ok(vec![node]);
    }
    // Where a link leads: its own entries stand beneath that.
    let dir = fs::canonicalize(&path).map_err(|error| invalid(format!("{}: {error}", path.display())))?;
    let mut found = Vec::new();
    host_nodes(&dir, 1, &mut found);
    if found.is_empty() {
        return Err(invalid(format!("{} holds no device", path.display())));
    }
    for node in &mut found {
        if let Ok(rest) = node.path().strip_prefix(&dir) {
            let inside = inside.join(rest);
            node.set_path(inside);
        }
    }
    Ok(found)
}

fn numbers(device: &LinuxDevice) -> (LinuxDeviceType, i64, i64) {
    (device.typ(), device.major(), device.minor())
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
        let paths = ["/dev/no-such-device", "/etc/passwd", "/dev", "/dev/pts/0", "/dev/../etc/passwd", "dev/null"];
        let others =
            ["/dev/zero:/etc/zero", "/dev/zero:/dev/pts/1", "/dev/zero:/dev/../zero", "/dev/no-such:/dev/zero"];
        for path in paths.into_iter().chain(others) {
            let error = nodes(&spec(path, (true, true, false))).unwrap_err();
            assert!(error.to_string().starts_with("devices[0].path: "), "{path}: {error}");
            assert_eq!(device_rules(&spec(path, (true, true, false))).unwrap_err().code(), "spec.invalid");
        }
        assert_eq!(device_rules(&spec("/dev/null", (false, false, false))).unwrap_err().code(), "spec.invalid");
    }

    #[test]
    fn a_path_in_the_container_is_not_taken_twice() {
        let two = |one: &str, other: &str| {
            let mut spec = spec(one, (true, true, true));
            spec.devices.push(DeviceSpec { path: other.into(), ..spec.devices[0].clone() });
            nodes(&spec)
        };
        assert_eq!(two("/dev/zero:/dev/x", "/dev/zero:/dev/x").unwrap().len(), 1);
        assert!(two("/dev/zero:/dev/x", "/dev/null:/dev/x").unwrap_err().to_string().starts_with("devices[1].path: "));
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

//! Checks of the host, each by doing what a container will need.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount};
use rustix::thread::UnshareFlags;
use youki_backend::Config;

use super::{Check, Verdict};

type Found = Result<String, String>;

/// cgroup v1 controllers that a container's limits, statistics, devices and end need.
const CONTROLLERS_V1: [&str; 6] = ["cpu", "cpuacct", "memory", "pids", "devices", "freezer"];
/// Those of v2.
const CONTROLLERS_V2: [&str; 3] = ["cpu", "memory", "pids"];
/// The other executables.
const HELPERS: [&str; 2] = ["berth-create", "berth-supervisor"];
/// Less space than this on the root's filesystem is worth a warning.
const LITTLE_SPACE_BYTES: u64 = 1 << 30;

/// All of them; blocking.
pub fn checks(config: &Config) -> Vec<Check> {
    vec![
        Check::from("user", Verdict::Fail, is_root()),
        Check::from("kernel", Verdict::Fail, kernel()),
        Check::from("root", Verdict::Fail, writable(&config.root)),
        Check::from("run-dir", Verdict::Fail, writable(&config.run_dir)),
        Check::from("space", Verdict::Warn, space(&config.root)),
        Check::from("cgroup", Verdict::Fail, cgroup()),
        Check::from("overlay", Verdict::Fail, overlay(&config.root)),
        Check::from("seccomp", Verdict::Fail, seccomp()),
        Check::from("helpers", Verdict::Fail, helpers(config)),
        Check::from("nft", Verdict::Warn, nft()),
        Check::from("forwarding", Verdict::Warn, forwarding(&config.network.bridge)),
    ]
}

fn is_root() -> Found {
    if rustix::process::geteuid().is_root() {
        Ok("root".to_owned())
    } else {
        Err("not root: run it by sudo".to_owned())
    }
}

/// pidfd_open came with 5.3, close_range with 5.9, idmapped mounts and `mount_setattr` with 5.12.
fn kernel() -> Found {
    let name = rustix::system::uname();
    let release = name.release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= (5, 12) { Ok(release) } else { Err(format!("{release} is too old: 5.12 is needed")) }
}

fn writable(dir: &Path) -> Found {
    let (shown, there) = (dir.display(), existing(dir));
    if !there.is_dir() {
        return Err(format!("{} is no directory", there.display()));
    }
    let probe = Scratch::new(there)?;
    fs::write(probe.0.join("probe"), b"x").map_err(|error| format!("writing in {}: {error}", there.display()))?;
    Ok(if there == dir { shown.to_string() } else { format!("{shown} can be made in {}", there.display()) })
}

/// What there is of `dir`: it is not for a check to make what an open may refuse.
fn existing(dir: &Path) -> &Path {
    dir.ancestors().find(|path| path.symlink_metadata().is_ok()).unwrap_or(Path::new("."))
}

fn space(root: &Path) -> Found {
    let root = existing(root);
    let filesystem = rustix::fs::statvfs(root).map_err(|error| format!("{}: {error}", root.display()))?;
    let bytes = filesystem.f_bavail.saturating_mul(filesystem.f_frsize);
    let found = format!("{} free", crate::output::decimal_size(bytes));
    if bytes < LITTLE_SPACE_BYTES { Err(found) } else { Ok(found) }
}

fn cgroup() -> Found {
    let mounts = fs::read_to_string("/proc/self/mounts").map_err(|error| format!("/proc/self/mounts: {error}"))?;
    let (version, have, need) = controllers(&mounts, |path| fs::read_to_string(path).ok());
    let missing: Vec<&str> = need.iter().copied().filter(|name| !have.iter().any(|one| one == name)).collect();
    if missing.is_empty() {
        Ok(format!("{version}: {}", have.join(" ")))
    } else {
        Err(format!("{version}: missing {}; there are {}", missing.join(" "), have.join(" ")))
    }
}

/// The hierarchy in use, the controllers it has, and those that are needed.
fn controllers(
    mounts: &str,
    read: impl Fn(&Path) -> Option<String>,
) -> (&'static str, Vec<String>, &'static [&'static str]) {
    let mounts = || mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()).filter(|fields| fields.len() >= 4);
    let v1: Vec<String> = mounts()
        .filter(|fields| fields[2] == "cgroup")
        .flat_map(|fields| fields[3].split(',').map(str::to_owned).collect::<Vec<_>>())
        .filter(|option| CONTROLLERS_V1.contains(&option.as_str()) || ["cpuset", "blkio"].contains(&option.as_str()))
        .collect();
    let v2 = mounts().find(|fields| fields[2] == "cgroup2").map(|fields| PathBuf::from(fields[1]));
    // As the runtime chooses: a host may have another one of v1 alone beside v2.
    let limits = |option: &String| ["pids", "memory", "devices"].contains(&option.as_str());
    if v1.iter().any(limits) || v2.is_none() && !v1.is_empty() {
        return ("v1", v1, &CONTROLLERS_V1);
    }
    let have = v2.and_then(|dir| read(&dir.join("cgroup.controllers"))).unwrap_or_default();
    ("v2", have.split_whitespace().map(str::to_owned).collect(), &CONTROLLERS_V2)
}

/// Mounts an overlay on the root's filesystem, in a mount namespace of a thread's own, which goes with it.
fn overlay(root: &Path) -> Found {
    let root = existing(root);
    let scratch = Scratch::new(root)?;
    let dir = scratch.0.clone();
    let thread = std::thread::Builder::new().name("berth-doctor".to_owned());
    let mounting = thread.spawn(move || mount_overlay(&dir)).map_err(|error| format!("a thread: {error}"))?;
    mounting.join().map_err(|_| "the thread that mounts it ended early".to_owned())??;
    Ok(format!("can be mounted in {}", root.display()))
}

fn mount_overlay(dir: &Path) -> Result<(), String> {
    let failed = |what: &'static str| move |error: rustix::io::Errno| format!("{what}: {error}");
    let made = |error: std::io::Error| format!("creating in {}: {error}", dir.display());
    for name in ["lower", "upper", "work", "merged"] {
        fs::create_dir(dir.join(name)).map_err(made)?;
    }
    fs::write(dir.join("lower/file"), b"lower").map_err(made)?;
    // SAFETY: the thread is this function's own and ends with it. Nothing else of it is changed: unsharing the mount
    // namespace also unshares the root and working directories, which no other thread then sees change.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }.map_err(failed("unshare"))?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .map_err(failed("making / private"))?;
    let options = format!(
        "lowerdir={0}/lower,upperdir={0}/upper,workdir={0}/work,redirect_dir=nofollow,metacopy=off,index=off",
        dir.display()
    );
    let options = std::ffi::CString::new(options).map_err(|error| error.to_string())?;
    let merged = dir.join("merged");
    mount("overlay", &merged, "overlay", MountFlags::empty(), Some(options.as_c_str())).map_err(failed("mount"))?;
    let removed = fs::remove_file(merged.join("file"));
    let unmounted = unmount(&merged, UnmountFlags::DETACH).map_err(failed("umount"));
    removed.map_err(|error| format!("removing a file of a lower layer: {error}"))?;
    unmounted
}

fn seccomp() -> Found {
    let path = "/proc/sys/kernel/seccomp/actions_avail";
    let actions =
        fs::read_to_string(path).map_err(|error| format!("{path}: {error}: the kernel has no seccomp filters"))?;
    if actions.contains("errno") {
        Ok(format!("actions: {}", actions.trim()))
    } else {
        Err(format!("{path}: no errno"))
    }
}

fn helpers(config: &Config) -> Found {
    let own = std::env::current_exe().map_err(|error| format!("/proc/self/exe: {error}"))?;
    let beside = own.parent().unwrap_or(Path::new("/"));
    let dir = config.helper_dir.as_deref().unwrap_or(beside);
    let missing: Vec<&str> = HELPERS.into_iter().filter(|name| !dir.join(name).is_file()).collect();
    if missing.is_empty() {
        Ok(format!("in {}", dir.display()))
    } else {
        Err(format!("{} missing in {}", missing.join(" and "), dir.display()))
    }
}

fn nft() -> Found {
    let output = Command::new("nft").args(["list", "tables"]).stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("nft: {error}: the default network needs it (package nftables)"))?;
    if output.status.success() {
        return Ok("answers".to_owned());
    }
    Err(format!("nft list tables: {}", String::from_utf8_lossy(&output.stderr).trim()))
}

/// No host needs it on, nor off: it is told, since it changes what a host with several networks does. A firewall that drops
/// what it does not know would have to know the bridge.
fn forwarding(bridge: &str) -> Found {
    let path = "/proc/sys/net/ipv4/ip_forward";
    let value = fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?;
    let chains = Command::new("nft").args(["list", "chains"]).stdin(Stdio::null()).output();
    let chains = chains.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    if let Some(chain) = dropping_chain(&chains) {
        return Err(format!(
            "{chain} drops what no rule of its own accepts: unless it has some, containers reach nothing and nobody reaches \
             published ports from outside: `nft insert rule {chain} iifname {bridge} accept`, and the same with oifname"
        ));
    }
    Ok(match value.trim() {
        "0" => "off: the first container on a bridge turns it on, for all interfaces of the host".to_owned(),
        _ => "on".to_owned(),
    })
}

/// The first of `nft list chains` that drops what is forwarded, as `ip filter FORWARD`.
fn dropping_chain(listed: &str) -> Option<String> {
    let (mut table, mut chain) = ("", "");
    for line in listed.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("table ") {
            table = name.trim_end_matches([' ', '{']);
        } else if let Some(name) = line.strip_prefix("chain ") {
            chain = name.trim_end_matches([' ', '{']);
        } else if line.contains("hook forward") && line.contains("policy drop") {
            return Some(format!("{table} {chain}"));
        }
    }
    None
}

/// A directory that goes when it is dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new(parent: &Path) -> Result<Self, String> {
        let path = parent.join(format!(".doctor-{:016x}", rand::random::<u64>()));
        fs::create_dir(&path).map_err(|error| format!("creating {}: {error}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Left behind it does no harm, and there is nobody to tell.
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hierarchy_is_told_from_the_mounts() {
        let hybrid = "cgroup /sys/fs/cgroup/memory cgroup rw,nosuid,memory 0 0\n\
                      cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,cpu,cpuacct 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        let (version, have, _) = controllers(hybrid, |_| None);
        assert_eq!((version, have), ("v1", vec!["memory".to_owned(), "cpu".into(), "cpuacct".into()]));
        let v2 = "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n";
        let read = |path: &Path| {
            (path == Path::new("/sys/fs/cgroup/cgroup.controllers")).then(|| "cpu io memory pids\n".to_owned())
        };
        let (version, have, need) = controllers(v2, read);
        assert_eq!((version, have.len(), need), ("v2", 4, &CONTROLLERS_V2[..]));
        let beside = format!("{v2}cgroup /sys/fs/cgroup/freezer cgroup rw,freezer 0 0\n");
        assert_eq!(controllers(&beside, read).0, "v2");
        assert_eq!(controllers("", |_| None).1, Vec::<String>::new());
    }

    #[test]
    fn a_firewall_that_drops_what_is_forwarded_is_found() {
        let chain = |policy: &str| {
            format!(
                "table ip nat {{\n\tchain POSTROUTING {{\n\t\ttype nat hook postrouting priority srcnat; policy accept;\n\t}}\n}}\n\
                 table ip filter {{\n\tchain FORWARD {{\n\t\ttype filter hook forward priority filter; policy {policy};\n\t}}\n}}\n"
            )
        };
        assert_eq!(dropping_chain(&chain("drop")).as_deref(), Some("ip filter FORWARD"));
        assert_eq!(dropping_chain(&chain("accept")), None);
    }

    #[test]
    fn what_is_not_there_is_not_made() {
        let parent = tempfile::tempdir().unwrap();
        let missing = parent.path().join("a/b");
        assert!(writable(&missing).unwrap().contains("can be made in"));
        assert_eq!(existing(&missing), parent.path());
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0);
        fs::create_dir_all(&missing).unwrap();
        assert_eq!(writable(&missing).unwrap(), missing.display().to_string());
        fs::write(missing.join("file"), "").unwrap();
        for path in [missing.join("file"), missing.join("file/below/it")] {
            assert!(writable(&path).unwrap_err().contains("file is no directory"), "{}", path.display());
        }
    }

    #[test]
    fn a_scratch_directory_goes() {
        let parent = tempfile::tempdir().unwrap();
        let path = {
            let scratch = Scratch::new(parent.path()).unwrap();
            assert!(scratch.0.is_dir());
            scratch.0.clone()
        };
        assert!(!path.exists());
    }
}

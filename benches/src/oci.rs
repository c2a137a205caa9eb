//! A bundle for the peers, with what Berth gives its containers: the same mounts, namespaces, capabilities, limits and
//! filter, on a plain directory as root.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::image::{APPLETS, PATH};

/// Docker's default profile (moby `profiles/seccomp` v0.2.3) as it is left for the default capabilities on x86_64.
const DOCKER_SECCOMP: &str = include_str!("../data/docker-seccomp.json");
const CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];
const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];
/// Character devices that every container may use: major, minor (`None`: all).
const DEVICES: [(u32, Option<u32>); 9] = [
    (1, Some(3)),
    (1, Some(5)),
    (1, Some(7)),
    (1, Some(8)),
    (1, Some(9)),
    (5, Some(0)),
    (5, Some(1)),
    (5, Some(2)),
    (136, None),
];

/// What differs between bundles.
#[derive(Debug)]
pub struct Bundle<'a> {
    /// Where it is made.
    pub dir: &'a Path,
    /// The command.
    pub args: &'a [&'a str],
    /// Path of the cgroup.
    pub cgroup: String,
    /// Whether with Docker's filter.
    pub seccomp: bool,
    /// A host file to be mounted read-only: source and target.
    pub bind: Option<(&'a Path, &'a str)>,
}

impl Bundle<'_> {
    /// Writes root filesystem and `config.json`.
    pub fn make(&self, busybox: &Path) -> Result<()> {
        make_root(&self.dir.join("rootfs"), busybox)?;
        for (name, text) in [
            ("hosts", "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"),
            ("hostname", "bench\n"),
            ("resolv.conf", "nameserver 127.0.0.1\n"),
        ] {
            fs::write(self.dir.join(name), text)?;
        }
        let config = serde_json::to_vec_pretty(&self.config()?)?;
        fs::write(self.dir.join("config.json"), config).context("writing config.json")
    }

    fn config(&self) -> Result<Value> {
        let sealed = ["nosuid", "noexec", "nodev"];
        let system = |target: &str, kind: &str, source: &str, options: &[&str]| json!({"destination": target, "type": kind, "source": source, "options": options});
        let bind = |source: PathBuf, target: &str, options: &[&str]| json!({"destination": target, "type": "bind", "source": source, "options": options});
        let mut mounts = vec![
            system("/proc", "proc", "proc", &sealed),
            system("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            system(
                "/dev/pts",
                "devpts",
                "devpts",
                &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
            ),
            system("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
            system("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "ro"]),
            system("/dev/mqueue", "mqueue", "mqueue", &sealed),
            system("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=67108864"]),
        ];
        mounts.extend(self.bind.map(|(source, target)| bind(source.to_owned(), target, &["rbind", "ro"])));
        for name in ["hosts", "hostname", "resolv.conf"] {
            mounts.push(bind(self.dir.join(name), &format!("/etc/{name}"), &["rbind"]));
        }
        let device = |(major, minor): &(u32, Option<u32>)| {
            let mut rule = json!({"allow": true, "type": "c", "major": major, "access": "rwm"});
            if let Some(minor) = minor {
                rule["minor"] = json!(minor);
            }
            rule
        };
        let mut rules = vec![
            json!({"allow": false, "access": "rwm"}),
            json!({"allow": true, "type": "c", "access": "m"}),
            json!({"allow": true, "type": "b", "access": "m"}),
        ];
        rules.extend(DEVICES.iter().map(device));
        let nofile = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)?;
        let namespaces = ["pid", "ipc", "uts", "mount", "cgroup", "network"].map(|kind| json!({"type": kind}));
        let mut config = json!({
            "ociVersion": "1.0.2",
            "hostname": "bench",
            "root": {"path": "rootfs", "readonly": false},
            "process": {
                "terminal": false,
                "user": {"uid": 0, "gid": 0},
                "args": self.args,
                "env": [format!("PATH={PATH}"), "HOSTNAME=bench", "HOME=/root"],
                "cwd": "/",
                "capabilities": {"bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES},
                "rlimits": [
                    {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
                    {"type": "RLIMIT_NOFILE", "soft": nofile.0, "hard": nofile.1},
                ],
                "oomScoreAdj": 0,
            },
            "mounts": mounts,
            "linux": {
                "namespaces": namespaces,
                "cgroupsPath": self.cgroup,
                "rootfsPropagation": "private",
                "maskedPaths": MASKED,
                "readonlyPaths": READ_ONLY,
                "resources": {"devices": rules, "pids": {"limit": 2048}},
            },
        });
        if self.seccomp {
            config["linux"]["seccomp"] = serde_json::from_str(DOCKER_SECCOMP)?;
        }
        Ok(config)
    }
}

/// A root filesystem of busybox alone, as in the image that Berth runs.
fn make_root(root: &Path, busybox: &Path) -> Result<()> {
    for dir in ["bin", "dev", "etc", "proc", "root", "sys", "tmp"] {
        fs::DirBuilder::new().recursive(true).mode(0o755).create(root.join(dir))?;
    }
    fs::copy(busybox, root.join("bin/busybox")).context("copying busybox")?;
    for applet in APPLETS {
        fs::hard_link(root.join("bin/busybox"), root.join("bin").join(applet))?;
    }
    for file in ["hosts", "hostname", "resolv.conf"] {
        fs::write(root.join("etc").join(file), "")?;
    }
    Ok(())
}

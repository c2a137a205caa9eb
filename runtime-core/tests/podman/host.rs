//! A podman of the test's own: storage, configuration and images in a directory, bridge and rules in a network namespace,
//! and what it mounts in a mount namespace. All of it is removed at the end.

use std::fs;
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

pub const IMAGE: &str = "localhost/conformance:1";
/// Name, uid and gid of a user of the image.
pub const USER: (&str, u32, u32) = ("app", 1000, 1001);
/// Reference, ENTRYPOINT and CMD.
pub const ECHO_IMAGES: [(&str, &[&str], &[&str]); 4] = [
    ("localhost/both:1", &["/bin/echo", "entry"], &["cmd"]),
    ("localhost/cmd:1", &[], &["/bin/echo", "cmd"]),
    ("localhost/entrypoint:1", &["/bin/echo", "entry"], &[]),
    ("localhost/neither:1", &[], &[]),
];

/// An image with settings of its own.
pub const CONFIGURED_IMAGE: &str = "localhost/configured:1";
pub const CONFIGURED: [&str; 7] = [
    "ENV SETTING=of the image",
    "ENV PATH=/bin",
    "WORKDIR /tmp",
    "USER app",
    "STOPSIGNAL SIGUSR1",
    "VOLUME /volume",
    "EXPOSE 8080/tcp",
];

/// Limits of every container, by name: the host may lack CAP_SYS_RESOURCE, and podman would raise them.
pub const ULIMITS: [(&str, &str); 2] = [("nofile", "1024:1024"), ("nproc", "1024:1024")];
/// The host may have cgroup v1, which crun refuses.
const CONTAINERS_CONF: &str = r#"
[containers]
log_driver = "k8s-file"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
runtime = "runc"
[network]
network_backend = "netavark"
"#;

/// Where podman gives each container's network namespace a name.
const NAMED_NAMESPACES: &str = "/run/netns";

#[derive(Debug)]
pub struct Host {
    directory: PathBuf,
    /// Holds the mount namespace, whose [`NAMED_NAMESPACES`] are this podman's alone.
    mounts: Child,
}

impl Host {
    pub fn new() -> Self {
        let directory = std::env::temp_dir().join(format!("podman-proof-{}", std::process::id()));
        fs::create_dir(&directory).unwrap();
        let host = Self { mounts: hold_mounts(&directory), directory };
        let at = |name: &str| host.directory.join(name);
        let networks = format!("{CONTAINERS_CONF}network_config_dir = {:?}\n", at("networks"));
        fs::write(at("containers.conf"), networks).unwrap();
        succeed(Command::new("ip").args(["netns", "add", &namespace(&host.directory)]));
        succeed(Command::new("ip").args(["-n", &namespace(&host.directory), "link", "set", "lo", "up"]));
        let (graph, run) = (at("graph"), at("run"));
        // vfs: small images, no mounts to be left behind.
        fs::write(
            at("storage.conf"),
            format!("[storage]\ndriver = \"vfs\"\ngraphroot = {graph:?}\nrunroot = {run:?}\n"),
        )
        .unwrap();
        fs::write(at("policy.json"), r#"{"default":[{"type":"insecureAcceptAnything"}]}"#).unwrap();
        let archive = host.archive();
        fs::write(at("auth.json"), "{}").unwrap();
        host.import(&archive, IMAGE, &[]);
        host.import(&archive, CONFIGURED_IMAGE, &CONFIGURED.map(str::to_owned));
        for (reference, entrypoint, cmd) in ECHO_IMAGES {
            let lists = [("ENTRYPOINT", entrypoint), ("CMD", cmd)].into_iter().filter(|(_, words)| !words.is_empty());
            let changes: Vec<String> =
                lists.map(|(key, words)| format!("{key} {}", serde_json::to_string(words).unwrap())).collect();
            host.import(&archive, reference, &changes);
        }
        host
    }

    /// `podman` with this host's configuration.
    pub fn podman(&self) -> Command {
        podman(&self.directory)
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Waits for each podman whose caller has gone: until the network namespaces that it has named have no name any more.
    /// Some podman may never be done; what it leaves goes with the mount namespace.
    fn wait_for_namespaces(&self) {
        let deadline = Instant::now() + Duration::from_secs(30);
        let mut list = within(&self.directory);
        list.arg("ls").arg(NAMED_NAMESPACES);
        while list.output().is_ok_and(|listed| !listed.stdout.is_empty()) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// A root filesystem that holds busybox under all its names.
    fn archive(&self) -> PathBuf {
        let root = self.directory.join("root");
        for directory in ["bin", "etc", "tmp", "dev"] {
            fs::create_dir_all(root.join(directory)).unwrap();
        }
        fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox-static is installed");
        let names = Command::new("/bin/busybox").arg("--list").output().unwrap().stdout;
        for name in String::from_utf8(names).unwrap().lines().filter(|name| *name != "busybox") {
            symlink("busybox", root.join("bin").join(name)).unwrap();
        }
        let (name, uid, gid) = USER;
        fs::write(root.join("etc/passwd"), format!("root:x:0:0::/:/bin/sh\n{name}:x:{uid}:{gid}::/:/bin/sh\n"))
            .unwrap();
        fs::write(root.join("etc/group"), format!("root:x:0:\n{name}:x:{gid}:\n")).unwrap();
        // As the image's VOLUME, for its USER.
        fs::create_dir(root.join("volume")).unwrap();
        fs::set_permissions(root.join("volume"), fs::Permissions::from_mode(0o777)).unwrap();
        let archive = self.directory.join("root.tar");
        succeed(Command::new("tar").arg("-C").arg(&root).arg("-cf").arg(&archive).arg("."));
        archive
    }

    fn import(&self, archive: &Path, reference: &str, changes: &[String]) {
        let mut import = self.podman();
        import.args(["import", "--quiet"]);
        for change in changes {
            import.arg("--change").arg(change);
        }
        succeed(import.arg(archive).arg(reference).stdout(Stdio::null()));
    }
}

pub fn podman(directory: &Path) -> Command {
    let mut command = within(directory);
    // Entering leads to the root directory.
    command.args(["env", "--chdir"]).arg(directory).arg("podman");
    configured(command, directory)
}

/// Begins a command in both namespaces.
fn within(directory: &Path) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={NAMED_NAMESPACES}/{}", namespace(directory)));
    command.arg(format!("--mount={}", mounts(directory).display()));
    command
}

/// Leads to the mount namespace.
fn mounts(directory: &Path) -> PathBuf {
    directory.join("mounts")
}

/// Makes the mount namespace, which lasts as long as the process that is returned, and that no longer than this one.
fn hold_mounts(directory: &Path) -> Child {
    let script = format!("mount -t tmpfs none {NAMED_NAMESPACES} && echo made && exec sleep infinity");
    fs::create_dir_all(NAMED_NAMESPACES).unwrap();
    let mut holder = Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private", "sh", "-c", &script])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut made = [0; 5];
    holder.stdout.as_mut().unwrap().read_exact(&mut made).expect("a mount namespace");
    symlink(format!("/proc/{}/ns/mnt", holder.id()), mounts(directory)).unwrap();
    holder
}

/// The same where the suite's registry is to be reached.
pub fn podman_in_the_hosts_network(directory: &Path) -> Command {
    configured(Command::new("podman"), directory)
}

fn configured(mut command: Command, directory: &Path) -> Command {
    command
        .current_dir(directory) // its monitors leave files where they are
        .env("CONTAINERS_CONF", directory.join("containers.conf"))
        .env("CONTAINERS_STORAGE_CONF", directory.join("storage.conf"))
        .stdin(Stdio::null());
    command
}

/// As the directory.
fn namespace(directory: &Path) -> String {
    directory.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn succeed(command: &mut Command) {
    let status = command.status().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(status.success(), "{command:?}: {status}");
}

impl Drop for Host {
    fn drop(&mut self) {
        // Its processes are gone by then, and with it go bridge and rules.
        let namespace = namespace(&self.directory);
        let removed = self.podman().args(["rm", "--all", "--force", "--time", "0"]).output();
        self.wait_for_namespaces();
        if let Err(error) = removed.and_then(|_| fs::remove_dir_all(&self.directory)) {
            eprintln!("{}: {error}", self.directory.display());
        }
        let _ = Command::new("ip").args(["netns", "delete", &namespace]).status();
        // It has done nothing but hold what is gone now.
        let _ = self.mounts.kill().and_then(|()| self.mounts.wait());
    }
}

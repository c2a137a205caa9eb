//! Against real cgroups of their own. Without root they have nothing to check, and say so.

use std::process::{Child, Command, Stdio};

use super::*;

/// A cgroup `/berth-test-<name>-<pid>` that is emptied and removed when the test ends.
pub(crate) struct Scratch(pub CgroupPaths);

impl Scratch {
    pub fn new(name: &str) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("not root: not checked");
            return None;
        }
        Some(Self::of(&Hierarchy::detect().unwrap(), name))
    }

    /// One in each hierarchy there is: on a hybrid host also in the v2 tree, which has no controllers but all of v2's
    /// own files.
    fn each(name: &str) -> Vec<Self> {
        let mut all: Vec<Self> = Self::new(name).into_iter().collect();
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let v2: String =
            table.lines().filter(|line| line.contains(" - cgroup2 ")).map(|line| line.to_owned() + "\n").collect();
        if let (Some(Dirs::V1(_)), Some(unified)) = (all.first().map(|scratch| &scratch.0.dirs), mounts::find(&v2)) {
            all.push(Self::of(&unified, name));
        }
        all
    }

    fn of(hierarchy: &Hierarchy, name: &str) -> Self {
        let cgroup = hierarchy.container_dirs(&format!("/berth-test-{name}-{}", std::process::id()));
        for dir in cgroup.distinct() {
            fs::create_dir(dir).unwrap();
        }
        if let (Dirs::V1(_), Some(dir)) = (&cgroup.dirs, cgroup.dir("cpuset")) {
            // A new v1 cpuset takes nobody in until it has both.
            for file in ["cpuset.cpus", "cpuset.mems"] {
                fs::write(dir.join(file), fs::read(dir.parent().unwrap().join(file)).unwrap()).unwrap();
            }
        }
        Self(cgroup)
    }

    pub fn add(&self, pid: u32) {
        for dir in self.0.distinct() {
            fs::write(dir.join("cgroup.procs"), pid.to_string()).unwrap();
        }
    }

    /// A shell in the cgroup; it begins with `script` once it is in.
    pub fn shell(&self, script: &str) -> Child {
        let mut child = Command::new("sh")
            .args(["-c", &format!("read go; {script}")])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        self.add(child.id());
        drop(child.stdin.take());
        child
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        self.0.kill_all(Duration::from_secs(10)).unwrap();
        self.0.remove().unwrap();
        assert!(!self.0.exists());
    }
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < deadline, "{what}: not after 10 s");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn kill_all_ends_processes_that_keep_forking_and_those_in_sub_cgroups() {
    for scratch in Scratch::each("kill") {
        let mut forking = scratch.shell("while :; do (sleep 60 & sleep 60 & sleep 0.001) & done");
        let mut beneath = scratch.shell("sleep 60; true");
        let controller = if matches!(scratch.0.dirs, Dirs::V1(_)) { "freezer" } else { "" };
        let sub = scratch.0.dir(controller).unwrap().join("exec-1");
        fs::create_dir(&sub).unwrap();
        fs::write(sub.join("cgroup.procs"), beneath.id().to_string()).unwrap();
        until("forked", || scratch.0.pids().unwrap().len() > 20);
        assert!(scratch.0.pids().unwrap().contains(&beneath.id()));
        scratch.0.kill_all(Duration::from_secs(20)).unwrap();
        assert_eq!(scratch.0.pids().unwrap(), Vec::<u32>::new());
        forking.wait().unwrap();
        beneath.wait().unwrap();
    }
}

#[test]
fn a_frozen_cgroup_does_not_run_and_can_be_killed() {
    for scratch in Scratch::each("freeze") {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("count");
        let mut child = scratch.shell(&format!("while :; do echo x >> {}; sleep 0.01; done", file.display()));
        let size = || fs::metadata(&file).map_or(0, |m| m.len());
        until("running", || size() > 0);
        scratch.0.freeze(Duration::from_secs(5)).unwrap();
        let before = size();
        thread::sleep(Duration::from_millis(100));
        assert_eq!(size(), before);
        scratch.0.thaw().unwrap();
        until("running again", || size() > before);
        scratch.0.freeze(Duration::from_secs(5)).unwrap();
        scratch.0.kill_all(Duration::from_secs(5)).unwrap();
        child.wait().unwrap();
    }
}

#[test]
fn directories_that_cannot_be_removed_are_each_named() {
    let Some(scratch) = Scratch::new("busy") else { return };
    let mut child = scratch.shell("sleep 60");
    let error = scratch.0.remove().unwrap_err();
    assert_eq!(error.code(), "io.failed", "{error}");
    assert_eq!(matches!(error, Error::Several(_)), scratch.0.distinct().len() > 1, "{error}");
    for dir in scratch.0.distinct() {
        assert!(error.to_string().contains(dir.to_str().unwrap()) && dir.exists(), "{error}");
    }
    scratch.0.kill_all(Duration::from_secs(5)).unwrap();
    child.wait().unwrap();
}

#[test]
fn a_device_that_no_rule_allows_is_refused() {
    let node = |kind, major, minor, access| DeviceRule { kind: Some(kind), major, minor, access };
    let rules = [
        node(DeviceKind::Block, None, None, Access::MKNOD),
        node(DeviceKind::Char, Some(1), Some(3), Access::ALL),
        node(DeviceKind::Char, Some(1), Some(5), Access { read: true, write: false, mknod: false }),
    ];
    for scratch in Scratch::each("devices") {
        let dir = tempfile::tempdir().unwrap();
        let said = |limited: bool| {
            if limited {
                scratch.0.limit_devices(&rules).unwrap();
            }
            let script = "exec 2> said; mknod disk b 7 255 && echo made >&2; [ -e full ] || mknod full c 1 7; \
                          (: > /dev/null) && echo null >&2; (: < /dev/zero) && echo zero >&2; \
                          (: > /dev/zero); (: < full); mknod console c 5 1; rm -f disk console";
            let mut child = scratch.shell(&format!("cd {}; {script}", dir.path().display()));
            child.wait().unwrap();
            fs::read_to_string(dir.path().join("said")).unwrap()
        };
        let (before, after) = (said(false), said(true));
        assert!(!before.contains("Operation not permitted"), "{before}");
        let words = ["made", "null", "zero"];
        assert!(words.iter().all(|word| after.lines().any(|line| line == *word)), "{after}");
        assert_eq!(after.matches("Operation not permitted").count(), 3, "{:?}: {after}", scratch.0.dirs);
    }
}

#[test]
fn devices_that_cannot_be_limited_are_refused_or_all_allowed() {
    let pids = ("pids".to_owned(), PathBuf::from("/sys/fs/cgroup/pids/berth/none"));
    let cgroup = CgroupPaths { path: "/berth/none".to_owned(), dirs: Dirs::V1([pids].into()) };
    let null = DeviceRule { kind: Some(DeviceKind::Char), major: Some(1), minor: Some(3), access: Access::ALL };
    let error = cgroup.limit_devices(&[null]).unwrap_err();
    assert_eq!(error.code(), "unsupported.here", "{error}");
    cgroup.limit_devices(&[DeviceRule::ALL]).unwrap();
}

#[test]
fn what_does_not_exist_is_empty_dead_thawed_and_removed() {
    let cgroup = Hierarchy::detect().unwrap().container_dirs("/berth-test-none/never");
    assert_eq!(cgroup.pids().unwrap(), Vec::<u32>::new());
    cgroup.kill_all(Duration::ZERO).unwrap();
    cgroup.remove().unwrap();
    cgroup.thaw().unwrap();
    assert_eq!(cgroup.oom_kill_count(), None);
    assert!(!cgroup.exists());
}

//! The cgroups of a container: where they are, who is in them, how they are frozen, emptied and removed.
//!
//! On v1 a container has one directory per controller, at the same path beneath each controller's mount; on v2 one.
//! A host with both (hybrid) is v1, if v1 has `pids`, `memory` or `devices`: its v2 tree has no controllers then, and neither
//! that nor systemd's named hierarchy is ours. Everything here blocks; none of it may run on a tokio worker.

mod devices;
mod join;
mod kill;
mod mounts;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
pub(crate) use devices::{Access, DeviceKind, DeviceRule};
pub(crate) use kill::kill_dir;

/// How long [`CgroupPaths::remove`] tries again while the kernel still lets go of the last process. A process leaves
/// its cgroup a moment after it has been reaped, and v1 tells nobody when.
const REMOVE_PATIENCE: Duration = Duration::from_secs(2);

/// How deep cgroups beneath a container's are looked for: a container could nest them without end.
const MAX_DEPTH: usize = 32;

/// Whether `name` can be that of a root's parent cgroup.
///
/// # Errors
/// [`Error::Configuration`].
pub(crate) fn check_parent(name: &str) -> Result<()> {
    let plain = |part: &str| {
        !matches!(part, "" | "." | "..") && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
    };
    if name.split('/').all(plain) {
        return Ok(());
    }
    let reason = "only letters, digits, '_', '.', '-' and '/' between names are allowed".to_owned();
    Err(Error::Configuration { what: format!("cgroup parent {name:?}"), reason })
}

/// The cgroup hierarchies of this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Hierarchy {
    /// One tree per controller; several controllers may share one.
    V1 {
        /// Mount point by controller (`cpu`, `memory`, …).
        controllers: BTreeMap<String, PathBuf>,
    },
    /// One tree for all.
    V2 {
        /// Its mount point.
        root: PathBuf,
    },
}

impl Hierarchy {
    /// Finds them in this process's mount table.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be read, [`Error::Configuration`] when no cgroup file system is mounted.
    pub fn detect() -> Result<Self> {
        const TABLE: &str = "/proc/self/mountinfo";
        let table = fs::read(TABLE).map_err(Error::io("reading", TABLE))?;
        mounts::find(&String::from_utf8_lossy(&table)).ok_or_else(|| Error::Configuration {
            what: "cgroups".to_owned(),
            reason: "no cgroup file system is mounted; mount cgroup2 on /sys/fs/cgroup".to_owned(),
        })
    }

    /// Where the cgroup `path` (absolute, as `/berth/web-rep-0`) is, or would be.
    pub fn container_dirs(&self, path: &str) -> CgroupPaths {
        let relative = path.trim_start_matches('/');
        let dirs = match self {
            Self::V1 { controllers } => {
                Dirs::V1(controllers.iter().map(|(name, mount)| (name.clone(), mount.join(relative))).collect())
            }
            Self::V2 { root } => Dirs::V2(root.join(relative)),
        };
        CgroupPaths { path: path.to_owned(), dirs }
    }
}

/// Where one container's cgroup is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CgroupPaths {
    /// The path beneath the hierarchies' roots.
    pub path: String,
    /// The directories.
    pub dirs: Dirs,
}

/// The directories of one cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Dirs {
    /// By controller; controllers that are mounted together have the same one.
    V1(BTreeMap<String, PathBuf>),
    /// The one.
    V2(PathBuf),
}

impl CgroupPaths {
    /// The directory of a controller; on v2 the one directory for any name.
    pub fn dir(&self, controller: &str) -> Option<&Path> {
        match &self.dirs {
            Dirs::V1(dirs) => dirs.get(controller).map(PathBuf::as_path),
            Dirs::V2(dir) => Some(dir),
        }
    }

    /// Each directory once.
    pub fn distinct(&self) -> BTreeSet<&Path> {
        match &self.dirs {
            Dirs::V1(dirs) => dirs.values().map(PathBuf::as_path).collect(),
            Dirs::V2(dir) => BTreeSet::from([dir.as_path()]),
        }
    }

    /// Whether any of its directories exists.
    pub fn exists(&self) -> bool {
        self.distinct().iter().any(|dir| dir.exists())
    }

    /// All processes in it and beneath it, in this process's PID namespace, ascending. On v1 those of any controller:
    /// a process that is just joining is in some of them only. Empty when the cgroup does not exist.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn pids(&self) -> Result<Vec<u32>> {
        let mut pids = BTreeSet::new();
        for dir in self.distinct() {
            collect_pids(dir, &mut pids, MAX_DEPTH)?;
        }
        Ok(pids.into_iter().collect())
    }

    /// How many of its processes the kernel killed for want of memory. `None` where the kernel does not say (no
    /// memory controller, no such cgroup).
    pub fn oom_kill_count(&self) -> Option<u64> {
        let file = match &self.dirs {
            Dirs::V1(dirs) => dirs.get("memory")?.join("memory.oom_control"),
            Dirs::V2(dir) => dir.join("memory.events"),
        };
        crate::stats::parse::keyed(&fs::read_to_string(file).ok()?, "oom_kill")
    }

    /// Stops every process of it where it is, and returns when all are.
    ///
    /// # Errors
    /// [`Error::Unsupported`] without a freezer, [`Error::Io`], also (`TimedOut`) when a process could not be stopped
    /// in `patience` (it is in an uninterruptible sleep); the cgroup is thawed again then.
    pub fn freeze(&self, patience: Duration) -> Result<()> {
        kill::freeze(self, patience)
    }

    /// Whether it is frozen as a whole. `false` where the kernel does not say.
    pub fn is_frozen(&self) -> bool {
        match &self.dirs {
            Dirs::V1(dirs) => freezer_state(dirs).trim_end() == "FROZEN",
            Dirs::V2(dir) => crate::stats::parse::keyed(&read_or_empty(dir, "cgroup.events"), "frozen") == Some(1),
        }
    }

    /// Whether they are frozen, or about to be.
    pub fn is_to_freeze(&self) -> bool {
        match &self.dirs {
            Dirs::V1(dirs) => matches!(freezer_state(dirs).trim_end(), "FREEZING" | "FROZEN"),
            Dirs::V2(dir) => read_or_empty(dir, "cgroup.freeze").trim_end() == "1",
        }
    }

    /// Lets them go on. A cgroup that does not exist holds nobody.
    ///
    /// # Errors
    /// As [`freeze`](Self::freeze).
    pub fn thaw(&self) -> Result<()> {
        kill::thaw(self)
    }

    /// Kills every process of it and beneath it, also those that fork meanwhile, and returns when all are dead: not
    /// necessarily reaped, which is their parents' business. A cgroup that does not exist is empty.
    ///
    /// # Errors
    /// [`Error::StopTimedOut`] with those still there after `patience`; [`Error::Io`].
    pub fn kill_all(&self, patience: Duration) -> Result<()> {
        kill::kill_all(self, patience)
    }

    /// Kills every process of it and beneath it without waiting for their ends: for the parent that must reap them.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn signal_all(&self) -> Result<()> {
        kill::signal_all(self)
    }

    /// Removes it and what is beneath it. One that does not exist is removed.
    ///
    /// # Errors
    /// [`Error::Several`] or [`Error::Io`] with each directory that stayed, after all were tried.
    pub fn remove(&self) -> Result<()> {
        let deadline = Instant::now() + REMOVE_PATIENCE;
        let mut errors = Vec::new();
        for dir in self.distinct() {
            if let Err(error) = remove_tree(dir, deadline, MAX_DEPTH) {
                errors.push(Error::io("removing", dir)(error));
            }
        }
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.remove(0)),
            _ => Err(Error::Several(errors)),
        }
    }
}

/// What the kernel says of v1's freezer; nothing where there is none.
fn freezer_state(dirs: &BTreeMap<String, PathBuf>) -> String {
    dirs.get("freezer").map(|dir| read_or_empty(dir, "freezer.state")).unwrap_or_default()
}

fn read_or_empty(dir: &Path, file: &str) -> String {
    fs::read_to_string(dir.join(file)).unwrap_or_default()
}

fn collect_pids(dir: &Path, into: &mut BTreeSet<u32>, depth: usize) -> Result<()> {
    let file = dir.join("cgroup.procs");
    let text = match fs::read_to_string(&file) {
        Ok(text) => text,
        // ENODEV: removed between open and read. EOPNOTSUPP: a threaded cgroup, whose processes its parent lists.
        Err(e) if gone(&e) || e.raw_os_error() == Some(libc::EOPNOTSUPP) => String::new(),
        Err(e) => return Err(Error::io("reading", file)(e)),
    };
    // 0 stands for a process outside this PID namespace: it cannot be named from here.
    into.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()).filter(|pid| *pid != 0));
    if depth > 0 {
        for child in children(dir).map_err(Error::io("listing", dir))? {
            collect_pids(&child, into, depth - 1)?;
        }
    }
    Ok(())
}

/// The cgroups directly beneath one.
fn children(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::metadata(dir).and_then(|metadata| match metadata.nlink() {
        // Itself and its name above: the kernel counts the directories beneath, and there are none.
        2 => Ok(None),
        _ => fs::read_dir(dir).map(Some),
    }) {
        Ok(Some(entries)) => entries,
        Ok(None) => return Ok(Vec::new()),
        Err(e) if gone(&e) => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = match entry {
            Ok(entry) => entry,
            Err(e) if gone(&e) => break,
            Err(e) => return Err(e),
        };
        // The type comes with the entry: no stat for the dozens of files beside them.
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

fn remove_tree(dir: &Path, deadline: Instant, depth: usize) -> io::Result<()> {
    let mut pause = Duration::from_micros(200);
    loop {
        // Nearly always there is nothing beneath, and this is all.
        match fs::remove_dir(dir) {
            Ok(()) => return Ok(()),
            Err(e) if gone(&e) => return Ok(()),
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline => {
                let beneath = if depth > 0 { children(dir)? } else { Vec::new() };
                if beneath.is_empty() {
                    // Nothing tells when a v1 cgroup's last task is gone.
                    thread::sleep(pause);
                    pause = (pause * 2).min(Duration::from_millis(50));
                }
                for child in beneath {
                    remove_tree(&child, deadline, depth - 1)?;
                }
            }
            Err(e) => return Err(e),
        }
    }
}

/// Whether a file of a cgroup could not be had because the cgroup is no more.
pub(crate) fn gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV))
}

#[cfg(test)]
pub(crate) mod tests;

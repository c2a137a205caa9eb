//! Making a container's cgroup, and getting into it.
//!
//! On v1 a process joins by writing `0` to its own `tasks` files: a write to `cgroup.procs` waits 7 to 16 ms for an RCU
//! grace period when none came for a while, one to `tasks` by the process itself does not.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{CgroupPaths, Dirs};
use crate::error::{Error, Result};

/// The hierarchy in which an exec has a cgroup of its own: the freezer limits and counts nothing, so a directory more
/// changes no number, and by it the exec's processes can be found and stopped.
const EXEC_CONTROLLER: &str = "freezer";

impl CgroupPaths {
    /// Makes its directories. On v1 a new cpuset has no CPU and no memory node, and nobody can join it: it gets its
    /// parent's.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Configuration`] on v2 beneath a cgroup with processes of its own.
    pub fn create(&self) -> Result<()> {
        for dir in self.distinct() {
            make_dir(dir)?;
        }
        match &self.dirs {
            Dirs::V1(dirs) => dirs.get("cpuset").map_or(Ok(()), |cpuset| inherit_cpuset(cpuset)),
            Dirs::V2(dir) => {
                // The root of the hierarchy is as many steps up as the path is long.
                let depth = self.path.split('/').filter(|part| !part.is_empty()).count();
                let above: Vec<&Path> = dir.ancestors().skip(1).take(depth).collect();
                above.into_iter().rev().try_for_each(enable_controllers)
            }
        }
    }

    /// Moves the calling process, which must be single-threaded, into it.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn join(&self) -> Result<()> {
        for file in self.join_files(None) {
            fs::write(&file, "0").map_err(Error::io("joining", file))?;
        }
        Ok(())
    }

    /// The files a process writes `0` to in order to join; with `exec_dir` from [`CgroupPaths::make_exec_dir`] in
    /// place of the directory it lies in.
    pub fn join_files(&self, exec_dir: Option<&Path>) -> Vec<PathBuf> {
        match &self.dirs {
            Dirs::V1(dirs) => {
                let freezer = dirs.get(EXEC_CONTROLLER).map(PathBuf::as_path);
                self.distinct()
                    .into_iter()
                    .map(|dir| if Some(dir) == freezer { exec_dir.unwrap_or(dir) } else { dir })
                    .map(|dir| dir.join("tasks"))
                    .collect()
            }
            Dirs::V2(dir) => vec![exec_dir.unwrap_or(dir).join("cgroup.procs")],
        }
    }

    /// Makes a cgroup for exec number `number` beneath it, if there is a hierarchy for it.
    ///
    /// # Errors
    /// The kernel's.
    pub fn make_exec_dir(&self, number: u64) -> io::Result<Option<PathBuf>> {
        let Some(parent) = self.dir(EXEC_CONTROLLER) else { return Ok(None) };
        let dir = parent.join(format!("exec-{number}"));
        fs::create_dir(&dir)?;
        Ok(Some(dir))
    }
}

/// What limits and counts need of v2's controllers. Those that never go with processes in between stand first: the others
/// would make the cgroup one of threads.
const CONTROLLERS: [&str; 5] = ["memory", "io", "cpu", "cpuset", "pids"];

/// Lets the cgroups beneath `dir` have what this host has: a controller that it has not is missed when a limit is set.
fn enable_controllers(dir: &Path) -> Result<()> {
    let file = dir.join("cgroup.subtree_control");
    let read = |file: &Path| fs::read_to_string(file).map_err(Error::io("reading", file));
    let (available, enabled) = (read(&dir.join("cgroup.controllers"))?, read(&file)?);
    let among = |list: &str, name: &str| list.split_whitespace().any(|one| one == name);
    for controller in CONTROLLERS.iter().filter(|name| among(&available, name) && !among(&enabled, name)) {
        match fs::write(&file, format!("+{controller}")) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EOPNOTSUPP)) => {
                return Err(Error::Configuration {
                    what: "cgroup parent".to_owned(),
                    reason: format!(
                        "processes in {} keep its cgroups from being limited (cgroup v2 has processes in leaves only); \
                         name another by --cgroup-parent, or move them",
                        dir.display()
                    ),
                });
            }
            // As without it: who asks for its limit is told.
            _ => {}
        }
    }
    Ok(())
}

fn make_dir(dir: &Path) -> Result<()> {
    match fs::create_dir(dir) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::create_dir_all(dir).map_err(Error::io("creating", dir))
        }
        Err(error) => Err(Error::io("creating", dir)(error)),
    }
}

fn inherit_cpuset(dir: &Path) -> Result<()> {
    for name in ["cpuset.cpus", "cpuset.mems"] {
        let file = dir.join(name);
        let own = fs::read_to_string(&file).map_err(Error::io("reading", &file))?;
        if !own.trim().is_empty() {
            continue;
        }
        let Some(parent) = dir.parent() else { continue };
        let mut inherited = fs::read_to_string(parent.join(name)).map_err(Error::io("reading", parent.join(name)))?;
        if inherited.trim().is_empty() {
            inherit_cpuset(parent)?;
            inherited = fs::read_to_string(parent.join(name)).map_err(Error::io("reading", parent.join(name)))?;
        }
        fs::write(&file, inherited.trim()).map_err(Error::io("writing", &file))?;
    }
    Ok(())
}

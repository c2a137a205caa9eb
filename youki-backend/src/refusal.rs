//! What keeps a root from being opened, found before anything of it is made, and the claims on what only one root may have.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, XattrFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::cgroup::{CgroupPaths, Hierarchy};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::record;
use crate::recovery::{VERSION_FILE, boot_id};

/// The attribute of a cgroup that names the root it belongs to.
const CGROUP_OWNER: &str = "trusted.berth.root";
/// The file of a run directory that names the root it belongs to.
const RUN_DIR_OWNER: &str = "root";
/// The file of a root that names the run directory it is used with.
const RUN_DIR: &str = "run-dir.json";
/// What the overlay cannot be made on (fs/overlayfs, NFS): no whiteouts, no xattrs, or no upper at all.
const UNSUITABLE_FILESYSTEMS: [(u64, &str); 2] = [(0x794c_7630, "overlayfs"), (0x6969, "NFS")];

/// Checks all that can be told of `config` without making anything. Returns the cgroup hierarchy of this host.
///
/// # Errors
/// [`Error::NotRoot`], [`Error::Configuration`], [`Error::Volume`], [`Error::Io`].
pub(crate) fn refuse(config: &Config) -> Result<Hierarchy> {
    if !rustix::process::geteuid().is_root() {
        return Err(Error::NotRoot);
    }
    config.check()?;
    let root = canonical(&config.root)?;
    refuse_unsuitable(&root)?;
    let hierarchy = Hierarchy::detect()?;
    let parent = cgroup_parent(config, &hierarchy);
    owner_is(config, &parent, &root)?;
    run_dir_is(&config.run_dir, &root)?;
    used_with(&root, &config.run_dir)?;
    Ok(hierarchy)
}

/// What [`RUN_DIR`] holds.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct UsedWith {
    /// Directories of another boot hold nothing that runs.
    boot_id: String,
    run_dir: PathBuf,
}

/// The path that `root` has, or will have once it is made.
pub(crate) fn canonical(root: &Path) -> Result<PathBuf> {
    let mut there = std::path::absolute(root).map_err(Error::io("resolving", root))?;
    let mut missing = Vec::new();
    loop {
        match (std::fs::canonicalize(&there), there.file_name().map(ToOwned::to_owned)) {
            (Ok(found), _) => return Ok(missing.iter().rev().fold(found, |path, name| path.join(name))),
            (Err(error), Some(name)) if error.kind() == std::io::ErrorKind::NotFound => {
                missing.push(name);
                there.pop();
            }
            (Err(error), _) => return Err(Error::io("resolving", root)(error)),
        }
    }
}

fn refuse_unsuitable(root: &Path) -> Result<()> {
    let there = root.ancestors().find(|path| path.exists()).unwrap_or(root);
    let magic = rustix::fs::statfs(there).map_err(|error| Error::io("reading", there)(error.into()))?.f_type as u64;
    match UNSUITABLE_FILESYSTEMS.iter().find(|(known, _)| *known == magic) {
        Some((_, name)) => Err(Error::Configuration {
            what: format!("root {}", root.display()),
            reason: format!("it lies on {name}, which cannot hold an overlay's writable layer"),
        }),
        None => Ok(()),
    }
}

fn cgroup_parent(config: &Config, hierarchy: &Hierarchy) -> CgroupPaths {
    hierarchy.container_dirs(&format!("/{}", config.cgroup_parent))
}

/// Whether `parent` is `root`'s already; an error if it is another root's.
fn owner_is(config: &Config, parent: &CgroupPaths, root: &Path) -> Result<bool> {
    let Some(dir) = parent.distinct().into_iter().next() else { return Ok(true) };
    match cgroup_owner(dir)? {
        Some(owner) if owner == root => Ok(true),
        Some(owner) if is_root(&owner) => {
            let what = format!("cgroup parent {:?}", config.cgroup_parent);
            let reason = format!("it is used by the root {}; name another by --cgroup-parent", owner.display());
            Err(Error::Configuration { what, reason })
        }
        _ => Ok(false),
    }
}

/// The root that a parent cgroup was claimed for, if it was.
pub(crate) fn cgroup_owner(dir: &Path) -> Result<Option<PathBuf>> {
    let mut owner = [0u8; 4096];
    match rustix::fs::getxattr(dir, CGROUP_OWNER, &mut owner) {
        Ok(length) => Ok(Some(OsStr::from_bytes(&owner[..length]).into())),
        Err(rustix::io::Errno::NODATA | rustix::io::Errno::NOENT) => Ok(None),
        Err(error) => Err(Error::io("reading the owner of", dir)(error.into())),
    }
}

/// Whether there is a root at `path`. One that is gone owns nothing.
pub(crate) fn is_root(path: &Path) -> bool {
    path.join(VERSION_FILE).exists()
}

/// One parent cgroup is one root's: two would kill each other's containers. Whose it is stands in an attribute of the
/// cgroup itself, and is forgotten with it.
pub(crate) fn claim_cgroup_parent(config: &Config, hierarchy: &Hierarchy) -> Result<()> {
    let parent = cgroup_parent(config, hierarchy);
    parent.create()?;
    let Some(dir) = parent.distinct().into_iter().next() else { return Ok(()) };
    let root = config.root.as_os_str().as_encoded_bytes();
    if owner_is(config, &parent, &config.root)? {
        return Ok(());
    }
    let _lock = lock_directory(dir)?;
    loop {
        if owner_is(config, &parent, &config.root)? {
            return Ok(());
        }
        // Two roots may come at one moment: who is second finds the first. That of a root that is gone is in the way only.
        let flags = match cgroup_owner(dir)? {
            None => XattrFlags::CREATE,
            Some(owner) if is_root(&owner) => continue,
            Some(_) => XattrFlags::REPLACE,
        };
        match rustix::fs::setxattr(dir, CGROUP_OWNER, root, flags) {
            Err(Errno::EXIST | Errno::NODATA) => {}
            other => return other.map_err(|error| Error::io("claiming", dir)(error.into())),
        }
    }
}

/// One run directory is one root's, too: sockets, locks and addresses are found there by the containers' names alone. And a
/// root has one: by another, its containers would look as if they had lost their supervisors.
pub(crate) fn claim_run_dir(layout: &Layout) -> Result<()> {
    let Layout { root, run } = layout;
    if run_dir_is(run, root)? && used_with(root, run)? {
        return Ok(());
    }
    // One after the other: all who claim the same root, then all who claim the same directory.
    let _locks = [lock_directory(root)?, lock_directory(run)?];
    if !used_with(root, run)? {
        let now = UsedWith { boot_id: boot_id()?, run_dir: canonical(run)? };
        // A disk that is full or read-only keeps nobody out.
        if let Err(error) = record::write(&root.join(RUN_DIR), &now) {
            tracing::debug!(error = error.chain(), "another run directory would not be refused");
        }
    }
    if !run_dir_is(run, root)? {
        record::write_bytes(&run.join(RUN_DIR_OWNER), root.as_os_str().as_encoded_bytes())?;
    }
    Ok(())
}

/// A root that has nothing on the host any more may be used with any run directory.
pub(crate) fn release_run_dir(layout: &Layout) -> Result<()> {
    let path = layout.root.join(RUN_DIR);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io("removing", path)(error)),
        _ => Ok(()),
    }
}

fn lock_directory(path: &Path) -> Result<std::fs::File> {
    let directory = std::fs::File::open(path).map_err(Error::io("opening", path))?;
    rustix::fs::flock(&directory, FlockOperation::LockExclusive)
        .map_err(|error| Error::io("locking", path)(error.into()))?;
    Ok(directory)
}

/// Whether `root` is known to be used with `run_dir`; an error if it is, in this boot, used with another that is still its
/// own.
fn used_with(root: &Path, run_dir: &Path) -> Result<bool> {
    let Some(used) = record::read_intact::<UsedWith>(&root.join(RUN_DIR))? else { return Ok(false) };
    if used.boot_id != boot_id()? {
        return Ok(false);
    }
    if used.run_dir == canonical(run_dir)? {
        return Ok(true);
    }
    match run_dir_is(&used.run_dir, root) {
        Ok(true) => Err(Error::Configuration {
            what: format!("run directory {}", run_dir.display()),
            reason: format!(
                "the root {} is used with {}; name that by --run-dir, or remove it once no container runs",
                root.display(),
                used.run_dir.display()
            ),
        }),
        _ => Ok(false),
    }
}

/// Whether `run_dir` is `root`'s already; an error if it is another root's.
fn run_dir_is(run_dir: &Path, root: &Path) -> Result<bool> {
    let path = run_dir.join(RUN_DIR_OWNER);
    let owner = match std::fs::read(&path) {
        Ok(owner) => PathBuf::from(OsString::from_vec(owner)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(Error::io("reading", path)(error)),
    };
    if owner != root && is_root(&owner) {
        return Err(Error::Configuration {
            what: format!("run directory {}", run_dir.display()),
            reason: format!("it is used by the root {}; name another by --run-dir", owner.display()),
        });
    }
    Ok(owner == root)
}

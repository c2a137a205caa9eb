//! The machine's disk: the suite, the programs that it runs, their libraries, and a little of a system around them. All
//! of it comes from this host and lies where it lies here, since the suite has paths compiled in.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::SLOWNESS_VARIABLE;
use crate::process::{must_run, output_of};

/// Programs of the host that the suite and the runtime call; packages of them are among those that xtask provides.
const HOST_PROGRAMS: &[&str] =
    &["busybox", "curl", "ip", "mkfs.ext4", "mount", "nft", "setpriv", "sh", "skopeo", "umount"];
/// Files and directories of the host that these read, where it has them.
const HOST_FILES: &[&str] = &[
    "/etc/containers",
    "/etc/group",
    "/etc/hostname",
    "/etc/hosts",
    "/etc/iproute2",
    "/etc/mke2fs.conf",
    "/etc/nsswitch.conf",
    "/etc/passwd",
    "/etc/protocols",
    "/etc/services",
    "/etc/ssl/certs/ca-certificates.crt",
    "/usr/share/containers",
];
/// Directories that are there, empty.
const DIRECTORIES: &[&str] =
    &["dev", "proc", "sys", "run", "tmp", "root", "var/tmp", "mnt", "usr/local/bin", "vm/modules"];
/// As Debian 12 has them, so that a library is found under either name.
const MERGED: &[(&str, &str)] = &[("bin", "usr/bin"), ("sbin", "usr/sbin"), ("lib", "usr/lib"), ("lib64", "usr/lib64")];

/// Room on it for what the suite makes. The file is sparse.
const DISK_BYTES: u64 = 8 << 30;
/// Debug information is half of a program, and no test reads it.
const STRIP_ABOVE_BYTES: u64 = 8 << 20;

/// Run by the machine as process 1.
const INIT: &str = include_str!("init.sh");

/// What is put on it.
#[derive(Debug)]
pub(super) struct Contents<'a> {
    /// The suite's executable.
    pub suite: &'a Path,
    /// Other programs, by their paths.
    pub programs: Vec<PathBuf>,
    /// Names, in the order of loading, and files.
    pub modules: Vec<(String, PathBuf)>,
    /// Where the suite is started.
    pub working_directory: PathBuf,
    /// Set for it.
    pub environment: Vec<(&'static str, String)>,
    /// Passed to it.
    pub args: Vec<String>,
    /// Passed to it, where the processor is emulated.
    pub slowness: u32,
}

/// Makes it in `dir`; returns the image.
pub(super) fn make(dir: &Path, contents: &Contents<'_>) -> Result<PathBuf> {
    let tree = Tree::new(dir.join("tree"))?;
    for program in HOST_PROGRAMS {
        tree.program(&in_path(program).with_context(|| format!("{program} is not in PATH"))?)?;
    }
    for program in contents.programs.iter().map(PathBuf::as_path).chain([contents.suite]) {
        tree.program(program)?;
    }
    for file in HOST_FILES.iter().map(Path::new).filter(|path| path.exists()) {
        tree.copy(file)?;
    }
    tree.applets()?;
    fs::create_dir_all(tree.at(&contents.working_directory)).context("making the suite's directory")?;
    for (name, path) in &contents.modules {
        let target = tree.root.join("vm/modules").join(name);
        fs::copy(path, &target).with_context(|| format!("copying {}", path.display()))?;
    }
    tree.script("vm/init", INIT)?;
    tree.script("vm/run", &run_script(contents))?;

    let image = dir.join("disk.ext4");
    let _of_an_earlier_run = fs::remove_file(&image);
    let file = fs::File::create(&image).with_context(|| format!("creating {}", image.display()))?;
    file.set_len(DISK_BYTES).with_context(|| format!("sizing {}", image.display()))?;
    // It is used once, so it needs no journal.
    must_run(Command::new("mkfs.ext4").args(["-q", "-F", "-O", "^has_journal", "-d"]).arg(&tree.root).arg(&image))?;
    fs::remove_dir_all(&tree.root).with_context(|| format!("removing {}", tree.root.display()))?;
    Ok(image)
}

fn run_script(contents: &Contents<'_>) -> String {
    let mut script = "#!/bin/sh\n".to_owned();
    for (name, value) in &contents.environment {
        script += &format!("export {name}={}\n", quoted(value));
    }
    // The kernel's command line says so where the processor is not emulated.
    script += &format!("grep -qw berth.fast /proc/cmdline || export {SLOWNESS_VARIABLE}={}\n", contents.slowness);
    script += &format!("cd {}\n", quoted(&contents.working_directory.display().to_string()));
    script += &quoted(&contents.suite.display().to_string());
    script += " --color=never";
    for arg in &contents.args {
        script += " ";
        script += &quoted(arg);
    }
    script + "\n"
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// The root directory in the making.
struct Tree {
    root: PathBuf,
}

impl Tree {
    fn new(root: PathBuf) -> Result<Self> {
        let _of_an_earlier_run = fs::remove_dir_all(&root);
        for directory in DIRECTORIES.iter().chain(MERGED.iter().map(|(_, target)| target)) {
            fs::create_dir_all(root.join(directory)).with_context(|| format!("making {}", root.display()))?;
        }
        for (name, target) in MERGED {
            symlink(target, root.join(name)).with_context(|| format!("making {}", root.display()))?;
        }
        let sticky = fs::Permissions::from_mode(0o1777);
        for directory in ["tmp", "var/tmp"] {
            fs::set_permissions(root.join(directory), sticky.clone()).context("opening /tmp")?;
        }
        Ok(Self { root })
    }

    fn at(&self, path: &Path) -> PathBuf {
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// A program and the libraries that it is linked with.
    fn program(&self, path: &Path) -> Result<()> {
        self.file(path)?;
        libraries(path).iter().try_for_each(|library| self.file(library))
    }

    /// One file, under its path; without debug information, if that is much.
    fn file(&self, path: &Path) -> Result<()> {
        let target = self.at(path);
        if target.exists() {
            return Ok(());
        }
        let parent = target.parent().context("a file lies in a directory")?;
        fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))?;
        let large = path.metadata().is_ok_and(|metadata| metadata.len() > STRIP_ABOVE_BYTES);
        if large && output_of(Command::new("strip").arg("-o").arg(&target).arg(path)).is_some() {
            return Ok(());
        }
        fs::copy(path, &target).with_context(|| format!("copying {}", path.display())).map(drop)
    }

    fn copy(&self, path: &Path) -> Result<()> {
        if !path.is_dir() {
            return self.file(path);
        }
        for entry in fs::read_dir(path).with_context(|| format!("listing {}", path.display()))? {
            self.copy(&entry?.path())?;
        }
        Ok(())
    }

    fn script(&self, path: &str, text: &str) -> Result<()> {
        let path = self.root.join(path);
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))
            .with_context(|| format!("making {} executable", path.display()))
    }

    /// What is not there is busybox's.
    fn applets(&self) -> Result<()> {
        let list = output_of(Command::new("busybox").arg("--list")).context("busybox lists no applets")?;
        let present: BTreeSet<_> = ["usr/bin", "usr/sbin"]
            .iter()
            .filter_map(|dir| fs::read_dir(self.root.join(dir)).ok())
            .flat_map(|entries| entries.flatten().map(|entry| entry.file_name()))
            .collect();
        for applet in list.lines().filter(|name| !present.contains(std::ffi::OsStr::new(name))) {
            let link = self.root.join("usr/local/bin").join(applet);
            symlink("/usr/bin/busybox", &link).with_context(|| format!("linking {}", link.display()))?;
        }
        Ok(())
    }
}

/// What ld.so would load; nothing for a static program.
fn libraries(program: &Path) -> Vec<PathBuf> {
    let text = output_of(Command::new("ldd").arg(program)).unwrap_or_default();
    // `name => /path (address)`, or `/path (address)`
    text.lines()
        .filter_map(|line| {
            line.rsplit_once(" (").map(|(left, _)| left.rsplit_once("=> ").map_or(left, |(_, path)| path))
        })
        .map(str::trim)
        .filter(|path| path.starts_with('/'))
        .map(PathBuf::from)
        .collect()
}

fn in_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let found = std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|path| path.is_file())?;
    // Under the name that the merged directories have.
    let dir = fs::canonicalize(found.parent()?).ok()?;
    Some(dir.join(program))
}

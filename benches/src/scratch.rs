//! A root, run directory and cgroup parent of the measurement's own, and their end.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use runtime_core::Runtime;
use youki_backend::{Config, YoukiRuntime};

use crate::peer::{self, Peers};
use crate::{Options, image};

/// Helper executables of the runtime, and its command.
const PROGRAMS: [&str; 3] = ["berth", "berth-supervisor", "berth-create"];

/// What measurements of containers begin with.
#[derive(Debug)]
pub struct Setup {
    /// What the image is made of.
    pub busybox: PathBuf,
    /// Where it all lies.
    pub scratch: Scratch,
    /// Reference of the image, which the runtime has.
    pub image: String,
    /// Berth, in this process.
    pub runtime: YoukiRuntime,
    /// Starts the others.
    pub peers: Peers,
}

impl Setup {
    /// Makes it. Says what is missing.
    pub async fn new(options: &Options) -> Result<Self> {
        let busybox = peer::require_busybox()?;
        let scratch = Scratch::new(options)?;
        let image = image::serve(&busybox)?;
        let runtime = YoukiRuntime::open(scratch.config.clone()).await?;
        runtime.pull_image(&image).await?;
        let peers = Peers::start(&scratch.dir)?;
        Ok(Self { busybox, scratch, image, runtime, peers })
    }
}

/// Where a measurement keeps everything; removed when it is dropped.
#[derive(Debug)]
pub struct Scratch {
    /// On the filesystem that is measured.
    pub dir: PathBuf,
    /// Berth's configuration.
    pub config: Config,
    programs: PathBuf,
    run_dir: PathBuf,
}

impl Scratch {
    /// Makes it. Says what of Berth is missing.
    pub fn new(options: &Options) -> Result<Self> {
        let programs = match &options.helper_dir {
            Some(dir) => dir.clone(),
            None => std::env::current_exe()?.parent().context("this program has no directory")?.to_owned(),
        };
        for program in PROGRAMS {
            let hint = "build it with `cargo build --release -p youki-backend --bins`, or give --helper-dir";
            ensure!(programs.join(program).is_file(), "{program} is not in {}: {hint}", programs.display());
        }
        let name = format!("berth-bench-{}", std::process::id());
        let dir = options.scratch.clone().unwrap_or_else(std::env::temp_dir).join(&name);
        let run_dir = Path::new("/run").join(&name);
        for new in [&dir, &run_dir] {
            fs::create_dir_all(new).with_context(|| format!("making {}", new.display()))?;
        }
        let mut config = Config::new(dir.join("root"));
        config.run_dir = run_dir.clone();
        config.cgroup_parent = name;
        config.keeper = false;
        config.helper_dir = Some(programs.clone());
        "berthbench0".clone_into(&mut config.network.bridge);
        "10.239.0.0/24".clone_into(&mut config.network.subnet);
        Ok(Self { dir, config, programs, run_dir })
    }

    /// The command, on this root.
    pub fn berth(&self) -> Command {
        let mut command = Command::new(self.programs.join("berth"));
        command
            .env("BERTH_ROOT", &self.config.root)
            .env("BERTH_RUN_DIR", &self.config.run_dir)
            .env("BERTH_CGROUP_PARENT", &self.config.cgroup_parent)
            .env("BERTH_BRIDGE", &self.config.network.bridge)
            .env("BERTH_SUBNET", &self.config.network.subnet)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        command
    }

    /// A new directory within.
    pub fn subdirectory(&self, name: &str) -> Result<PathBuf> {
        let dir = self.dir.join(name);
        fs::create_dir_all(&dir)?;
        Ok(dir)
    }

    /// A cgroup for a peer's container.
    pub fn peer_cgroup(&self, name: &str) -> String {
        format!("/{}-peer/{name}", self.config.cgroup_parent)
    }

    /// Takes away what the runtime has outside of its directories.
    pub async fn close(&self, runtime: YoukiRuntime) -> Result<()> {
        for inspect in runtime.inspect_all().await? {
            runtime.remove(&inspect.id.parse()?, true).await?;
        }
        runtime.dismantle().await.context("dismantling the root")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        remove_cgroups(&format!("{}-peer", self.config.cgroup_parent));
        // Commands make it; a measurement that failed, was interrupted, or opened no runtime, has not dismantled it.
        let _ = self.berth().args(["shutdown", "--dismantle"]).status();
        remove_cgroups(&self.config.cgroup_parent);
        for dir in [&self.dir, &self.run_dir] {
            if let Err(error) = fs::remove_dir_all(dir) {
                eprintln!("side-by-side: {} is left behind: {error}", dir.display());
            }
        }
    }
}

/// Wall and CPU time of a command that must succeed.
pub fn timed(command: &mut Command) -> Result<Cost> {
    use nix::sys::resource::{UsageWho, getrusage};
    use nix::sys::time::TimeValLike;
    let cpu = || -> Result<i64> {
        let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
        Ok((usage.user_time() + usage.system_time()).num_microseconds())
    };
    let before = cpu()?;
    let began = Instant::now();
    let status = command.status().with_context(|| format!("starting {}", command.get_program().to_string_lossy()))?;
    let wall = began.elapsed();
    if !status.success() {
        bail!("{command:?}: {status}");
    }
    Ok(Cost { wall, cpu: Duration::from_micros((cpu()? - before).max(0) as u64) })
}

/// What a command took.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    /// From before its start until it was reaped.
    pub wall: Duration,
    /// User and system time of it and of what it waited for.
    pub cpu: Duration,
}

/// Removes the empty cgroup `name`, and what is beneath it, in all v1 hierarchies and in v2.
fn remove_cgroups(name: &str) {
    let Ok(hierarchies) = fs::read_dir("/sys/fs/cgroup") else { return };
    let roots = hierarchies.flatten().map(|entry| entry.path()).chain([PathBuf::from("/sys/fs/cgroup")]);
    roots.for_each(|root| remove_cgroup(&root.join(name)));
}

fn remove_cgroup(dir: &Path) {
    for inner in fs::read_dir(dir).into_iter().flatten().flatten() {
        if inner.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroup(&inner.path());
        }
    }
    let _ = fs::remove_dir(dir);
}

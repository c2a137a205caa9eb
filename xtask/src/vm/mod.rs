//! `cargo xtask vm`: the integration suite on a kernel with cgroup v2 and nothing else.
//!
//! The development machine and many others have v1, so what is promised of v2 is shown in a virtual machine: Debian's
//! kernel in QEMU, a disk with the suite's programs and what they need ([`disk`]), and a script that mounts, runs the
//! suite and tells its exit code ([`qemu`]).

mod cpio;
mod disk;
mod kernel;
mod qemu;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::Workspace;
use crate::process::{cargo, run};
use crate::system::{self, BUILD, RUN, TEST};
use crate::tools::Tool;

/// What it takes.
const PACKAGES: &[&str] = &["e2fsprogs", "binutils"];
const TOOLS: &[Tool] = &[Tool::DockerRegistry, Tool::Weed, Tool::Qemu, Tool::Kernel];

/// Names the topics of the suite that are run, parted by commas.
pub(crate) const TOPICS_VARIABLE: &str = "BERTH_TEST_TOPICS";
/// Says how much slower than a usual one the suite's machine is.
pub(crate) const SLOWNESS_VARIABLE: &str = "BERTH_TEST_SLOWNESS";
/// Topics of the suite that are run in the short form: each exercises what is different on v2.
const SHORT: &str = "conformance,cgroup_v2,limits,outcomes,isolation";

/// How long the machine may take, boot and all; emulated, the whole suite takes a good part of it.
const FULL_TIME_LIMIT: Duration = Duration::from_secs(90 * 60);
const SHORT_TIME_LIMIT: Duration = Duration::from_secs(20 * 60);

/// How much slower an emulated processor is taken to be. The suite's `BERTH_TEST_SLOWNESS`: it stretches its patience
/// and cuts its repetitions by it.
const EMULATED_SLOWNESS: u32 = 10;

/// Which tests are run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Scope {
    /// The suite, whole or what the arguments for the test program select.
    Full(Vec<String>),
    /// A part that is worth running every time.
    Short,
}

/// Installs what is missing, and runs the suite in a machine. Its exit code is the suite's.
pub(crate) fn command(workspace: &Workspace, args: &[String]) -> Result<ExitCode> {
    system::require_root("vm")?;
    system::provide(workspace, &[BUILD, RUN, TEST].concat(), &[])?;
    provide(workspace)?;
    let scope = match args {
        [flag] if flag == "--short" => Scope::Short,
        _ => Scope::Full(args.to_vec()),
    };
    Ok(if run_suite(workspace, &scope)? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Makes the emulator, the kernel and the suite's servers available.
///
/// # Errors
/// Says why there can be no machine here.
pub(crate) fn provide(workspace: &Workspace) -> Result<()> {
    if !cfg!(target_arch = "x86_64") {
        bail!("the machine is an x86_64 one, and its programs are this host's");
    }
    system::provide(workspace, PACKAGES, TOOLS)
}

/// Builds the suite, boots, and runs it. False when a test fails or the machine does not get to the end.
pub(crate) fn run_suite(workspace: &Workspace, scope: &Scope) -> Result<bool> {
    let dir = workspace.target.join("vm");
    std::fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
    // Disk and result are there: another run waits until this one has read them.
    let _alone = locked(&dir.join("lock"))?;

    let suite = build_suite(workspace)?;
    let tool = |tool: Tool| tool.find(workspace).with_context(|| format!("{} is missing", tool.name()));
    let (registry, weed) = (tool(Tool::DockerRegistry)?, tool(Tool::Weed)?);
    let kernel = kernel::Kernel::of(&tool(Tool::Kernel)?)?;

    let begin = Instant::now();
    let initrd = kernel.initrd(&dir)?;
    let mut environment = vec![
        ("BERTH_TEST_DOCKER_REGISTRY", registry.display().to_string()),
        ("BERTH_TEST_WEED", weed.display().to_string()),
    ];
    let (args, time_limit) = match scope {
        Scope::Full(args) => {
            environment.extend(std::env::var(TOPICS_VARIABLE).ok().map(|topics| (TOPICS_VARIABLE, topics)));
            (args.clone(), FULL_TIME_LIMIT)
        }
        Scope::Short => {
            environment.push((TOPICS_VARIABLE, SHORT.to_owned()));
            (Vec::new(), SHORT_TIME_LIMIT)
        }
    };
    let helpers = workspace.target.join("debug");
    let ours = ["berth", "berth-create", "berth-supervisor"].map(|name| helpers.join(name));
    let contents = disk::Contents {
        suite: &suite,
        programs: ours.into_iter().chain([registry, weed]).collect(),
        modules: kernel.guest_modules()?,
        working_directory: workspace.root.join("youki-backend"),
        environment,
        args,
        slowness: EMULATED_SLOWNESS,
    };
    let disk = disk::make(&dir, &contents)?;
    println!("A disk for Linux {} was made in {:.1} s", kernel.version, begin.elapsed().as_secs_f64());
    let machine = qemu::Machine { program: tool(Tool::Qemu)?, kernel: kernel.image.clone(), initrd, disk, dir };
    let ended = machine.run(time_limit)?;
    println!(
        "\nThe machine ran for {:.1} s ({}); the suite {}",
        ended.took.as_secs_f64(),
        ended.accelerator,
        ended.said()
    );
    Ok(ended.code == Some(0))
}

/// The lock at `path`; waits for another run of this command.
fn locked(path: &Path) -> Result<File> {
    let lock = || {
        let file = File::create(path)?;
        if file.try_lock().is_err() {
            println!("Waiting for another machine of this target directory");
            file.lock()?;
        }
        std::io::Result::Ok(file)
    };
    lock().with_context(|| format!("locking {}", path.display()))
}

/// Builds the suite and the runtime's programs; returns the suite's executable.
fn build_suite(workspace: &Workspace) -> Result<PathBuf> {
    // As `cargo xtask test` builds it, so that nothing is built twice.
    let words = ["test", "--test", "integration", "--workspace", "--all-features", "--no-run"];
    if !run(cargo(workspace).args(words))?.success() {
        bail!("the suite did not build; the compiler's messages are above");
    }
    let output = cargo(workspace)
        .args(words)
        .args(["--quiet", "--message-format", "json"])
        .output()
        .context("asking cargo for the suite's executable")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let of_suite =
        |line: &&str| line.contains(r#""reason":"compiler-artifact""#) && line.contains(r#""name":"integration""#);
    let line = text.lines().find(of_suite).context("cargo names no test program of the suite")?;
    let (_, rest) = line.split_once(r#""executable":""#).context("cargo built no test program of the suite")?;
    let (path, _) = rest.split_once('"').context("cargo's message is cut off")?;
    Ok(PathBuf::from(path))
}

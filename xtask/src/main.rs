//! The workspace's own commands: `cargo xtask demo`, `test`, `vm` and `bench`.
//!
//! This is the first stage. It links nothing but the standard library, so that it builds on a machine that has only a
//! Rust toolchain; it installs what is missing and then runs the real work. The demo's second stage, which links the
//! runtime, is this same program built with the feature `demo`.

#[cfg(feature = "demo")]
mod demo;
mod process;
#[cfg(test)]
mod specification;
mod system;
mod test;
mod tools;
mod vm;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use crate::process::{cargo, run};

const USAGE: &str = "\
The workspace's own commands. Run as root: containers need it.

Usage: cargo xtask <COMMAND> [--no-install] [OPTIONS]

Commands:
  demo    The main job from end to end on an embedded registry and an embedded S3 endpoint, then cleans up
            --image REF                        pull this image instead of one made here
            --s3-endpoint URL --s3-bucket B    keep the volume there (credentials from the usual AWS chain)
  test    Everything: format, lints, docs, licences, unit and doc tests, and the integration suite against
          Debian's docker-registry and SeaweedFS; a part of that suite again in a machine with cgroup v2
  vm      The integration suite, whole, in a QEMU machine with cgroup v2 only
            --short                            that part of it which `test` runs
            what follows else is passed on to the suite (a name to look for, --exact, --skip NAME)
  bench   Side-by-side measurements; what follows is passed on to the bench program

Options:
  --no-install    Install nothing; say what is missing and stop
  -h, --help      This text

System packages are installed with apt-get; programs that are needed only here go beneath target/tools.
";

/// The hidden subcommand that the demo's first stage runs.
const DEMO_SECOND_STAGE: &str = "demo-second-stage";
/// Access key and secret key of the demo's embedded S3 endpoint.
const DEMO_S3_CREDENTIALS: (&str, &str) = ("demo", "demo-secret");

/// What every command is given.
pub(crate) struct Workspace {
    /// The directory of the workspace's Cargo.toml.
    pub root: PathBuf,
    /// Cargo's target directory.
    pub target: PathBuf,
    /// Whether missing things may be installed.
    pub install: bool,
}

fn main() -> ExitCode {
    match dispatch(std::env::args().skip(1).collect()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(mut args: Vec<String>) -> Result<ExitCode> {
    let own_args = args.iter().position(|arg| arg == "--").unwrap_or(args.len());
    let names_none = args.iter().all(|arg| arg == "--no-install");
    if names_none || args[..own_args].iter().any(|arg| arg == "-h" || arg == "--help") {
        print!("{USAGE}");
        return Ok(if names_none { ExitCode::from(2) } else { ExitCode::SUCCESS });
    }
    let install = !args[..own_args].iter().any(|arg| arg == "--no-install");
    if !install {
        args.retain(|arg| arg != "--no-install");
    }
    let command = args.remove(0);
    let workspace = Workspace::find(install)?;
    match command.as_str() {
        "demo" => demo_first_stage(&workspace, &args),
        "test" if args.is_empty() => test::run_all(&workspace),
        "vm" => vm::command(&workspace, args.strip_prefix(&["--".to_owned()]).unwrap_or(&args)),
        // Cargo passes on a `--` of its own user's: `cargo xtask bench -- run`.
        "bench" => bench(&workspace, args.strip_prefix(&["--".to_owned()]).unwrap_or(&args)),
        #[cfg(feature = "demo")]
        DEMO_SECOND_STAGE => demo::run(&args),
        #[cfg(feature = "demo")]
        demo::agent::COMMAND => demo::agent::run(&args),
        "test" => usage_error(&format!("test takes no {:?}", args[0])),
        other => usage_error(&format!("there is no command {other:?}")),
    }
}

fn usage_error(what: &str) -> Result<ExitCode> {
    eprintln!("xtask: {what}\n\n{USAGE}");
    Ok(ExitCode::from(2))
}

impl Workspace {
    fn find(install: bool) -> Result<Self> {
        // Cargo sets this for `cargo run`, which is what the alias `cargo xtask` is.
        let manifest_dir =
            std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
        let root = manifest_dir.parent().context("xtask does not lie in a workspace")?.to_owned();
        let target = match std::env::var_os("CARGO_TARGET_DIR") {
            Some(dir) => std::path::absolute(dir)?,
            None => root.join("target"),
        };
        Ok(Self { root, target, install })
    }

    /// Where programs go that only xtask needs.
    pub fn tools(&self) -> PathBuf {
        self.target.join("tools")
    }
}

/// Installs what the demo needs, builds it with the runtime and its helpers, and runs it.
fn demo_first_stage(workspace: &Workspace, args: &[String]) -> Result<ExitCode> {
    system::require_root("demo")?;
    system::provide(workspace, &[system::BUILD, system::RUN].concat(), &[])?;
    println!("Building the demo and the runtime's helpers");
    // One build for both, so that what they share is built once.
    let packages = ["build", "--quiet", "-p", "xtask", "-p", "youki-backend", "--features", "xtask/demo"];
    let programs = ["--bin", "xtask", "--bin", "berth-supervisor", "--bin", "berth-create"];
    if !run(cargo(workspace).args(packages).args(programs))?.success() {
        bail!("the demo did not build; the compiler's messages are above");
    }
    let program = workspace.target.join("debug").join("xtask");
    exec_demo(&program, args)
}

fn exec_demo(program: &Path, args: &[String]) -> Result<ExitCode> {
    let mut command = std::process::Command::new(program);
    command.arg(DEMO_SECOND_STAGE).args(args);
    if !args.iter().any(|arg| arg.starts_with("--s3-bucket")) {
        // The embedded endpoint's, where the AWS chain looks first.
        command.env("AWS_ACCESS_KEY_ID", DEMO_S3_CREDENTIALS.0).env("AWS_SECRET_ACCESS_KEY", DEMO_S3_CREDENTIALS.1);
        command.env("AWS_REGION", "us-east-1").env_remove("AWS_SESSION_TOKEN");
    }
    Ok(process::exit_code(run(&mut command)?))
}

/// Builds the bench program as it ships and passes the arguments on.
fn bench(workspace: &Workspace, args: &[String]) -> Result<ExitCode> {
    system::require_root("bench")?;
    system::provide(workspace, &[system::BUILD, system::RUN].concat(), &[])?;
    let helpers = ["build", "--release", "-p", "youki-backend", "--bins"];
    if !run(cargo(workspace).args(helpers))?.success() {
        bail!("the runtime's helpers did not build");
    }
    let status = run(cargo(workspace).args(["run", "--release", "-p", "benches", "--"]).args(args))?;
    Ok(process::exit_code(status))
}

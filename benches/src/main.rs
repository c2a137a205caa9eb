//! Measures Berth beside its peers, interleaved in one run on one machine, so that the ratios mean something where the
//! absolute figures do not.
//!
//! `cargo xtask bench -- run`, or `cargo run --release -p benches -- run` with the release binaries of `youki-backend`
//! beside this one. Needs root. Installs nothing: what is missing is named. `RESULTS.md` has figures taken with it.

mod attach;
mod conmon;
mod containerd;
mod crun;
mod exec;
mod image;
mod logs;
mod many;
mod memory;
mod oci;
mod peer;
mod podman;
mod pull;
mod report;
mod run;
mod scratch;
mod volumes;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

/// Side-by-side measurements of Berth against its peers
#[derive(Debug, Parser)]
#[command(name = "side-by-side", disable_help_subcommand = true)]
struct Cli {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    command: Command,
}

/// What all measurements share.
#[derive(Debug, Args)]
struct Options {
    /// Print one JSON document instead of tables
    #[arg(long, global = true)]
    json: bool,
    /// Where roots and bundles are made, on the filesystem to measure; removed afterwards
    #[arg(long, global = true, value_name = "DIR")]
    scratch: Option<PathBuf>,
    /// Directory of berth, berth-supervisor and berth-create; by default this program's own
    #[arg(long, global = true, value_name = "DIR")]
    helper_dir: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// create + start + wait + remove of /bin/true, against `crun run`
    Run(run::Settings),
    /// /bin/true in a running container, against `crun exec`
    Exec(exec::Settings),
    /// The same with a bridge, an address and a published port, and what they cost, against podman and containerd
    Network(attach::Settings),
    /// Memory of the supervisors of idle containers, against conmon
    Memory(memory::Settings),
    /// Opening, listing and statistics of a root with many running containers
    Many(many::Settings),
    /// Pull of an image into an empty store, against podman
    Pull(pull::Settings),
    /// Sync of a volume, first, changed and unchanged, and its restore, against rclone
    Volumes(volumes::Settings),
    /// Log throughput, and CPU a byte, against conmon
    Logs(logs::Settings),
    /// Runs peers where they accept the cgroup tree
    #[command(name = peer::SUBCOMMAND, hide = true)]
    PeerNamespace {
        /// Also with a network of their own
        #[arg(long)]
        own_network: bool,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Command::PeerNamespace { own_network } = cli.command {
        // Before any thread is started: it changes its mount namespace.
        return ended(peer::serve(own_network));
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return ended(Err(error.into())),
    };
    ended(runtime.block_on(until_a_signal(measure(&cli))))
}

/// Gives `work` up at its next await when somebody wants this to end: what it has made goes as it is dropped.
async fn until_a_signal(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        outcome = work => outcome,
        _ = interrupt.recv() => anyhow::bail!("interrupted"),
        _ = terminate.recv() => anyhow::bail!("told to end"),
    }
}

async fn measure(cli: &Cli) -> anyhow::Result<()> {
    anyhow::ensure!(nix::unistd::geteuid().is_root(), "the measurements start containers: run them as root");
    let options = &cli.options;
    let reports = match &cli.command {
        Command::Run(settings) => run::measure(options, settings).await?,
        Command::Exec(settings) => exec::measure(options, settings).await?,
        Command::Network(settings) => attach::measure(options, settings).await?,
        Command::Memory(settings) => memory::measure(options, settings).await?,
        Command::Many(settings) => many::measure(options, settings).await?,
        Command::Pull(settings) => pull::measure(options, settings).await?,
        Command::Volumes(settings) => volumes::measure(options, settings).await?,
        Command::Logs(settings) => logs::measure(options, settings).await?,
        Command::PeerNamespace { .. } => Vec::new(),
    };
    report::print(&reports, options.json)
}

fn ended(outcome: anyhow::Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("side-by-side: {error:#}");
            ExitCode::FAILURE
        }
    }
}

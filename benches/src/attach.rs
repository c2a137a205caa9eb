//! What a network costs: a run of `/bin/true` with a bridge and an address, and with a published port, beside the same
//! without a network, against podman with netavark.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use runtime_core::ContainerId;
use runtime_core::spec::{NetworkMode, PortMapping, PortProtocol};
use youki_backend::{CreateOptions, YoukiRuntime};

use crate::peer::{self, Peers};
use crate::report::Report;
use crate::run::{milliseconds, spec};
use crate::scratch::{Scratch, Setup, timed};
use crate::{Options, image};

/// Repetitions that are not counted: bridges are made, caches fill, the filter is compiled.
const WARM_UP: usize = 2;
const SIDES: [&str; 3] = ["berth embedded", "berth run --rm", "podman run --rm"];
/// What podman calls the image.
const PODMAN_IMAGE: &str = "localhost/bench:1";

#[derive(Debug, Args)]
pub struct Settings {
    /// Repetitions of each side
    #[arg(long, default_value_t = 20)]
    runs: usize,
    /// Pause before each run, in milliseconds
    #[arg(long, default_value_t = 0)]
    apart_ms: u64,
}

/// What network a run has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Network {
    None,
    Bridge,
    Published,
}

const NETWORKS: [Network; 3] = [Network::None, Network::Bridge, Network::Published];

pub async fn measure(options: &Options, settings: &Settings) -> Result<Vec<Report>> {
    peer::require("podman", "apt-get install --no-install-recommends podman netavark")?;
    peer::require("crun", "apt-get install crun")?;
    let Setup { busybox, scratch, image, runtime, peers } = Setup::new(options).await?;
    drop(peers);
    let mut podman = Podman::new(&scratch, &busybox)?;
    let mut runs = NETWORKS.map(|network| {
        let what = match network {
            Network::None => "no network",
            Network::Bridge => "bridge and address",
            Network::Published => "bridge, address and a published port",
        };
        Report::new(format!("run /bin/true, Docker's seccomp profile, {what}"), "ms", &SIDES)
    });
    let title = "attach and detach: the difference between a run with and one without";
    let mut attach = Report::new(title, "ms", &SIDES);
    for round in 0..settings.runs + WARM_UP {
        for turn in 0..SIDES.len() {
            let side = (round + turn) % SIDES.len();
            let mut took = [0.0; NETWORKS.len()];
            for offset in 0..NETWORKS.len() {
                let index = (round + offset) % NETWORKS.len();
                tokio::time::sleep(Duration::from_millis(settings.apart_ms)).await;
                let number = (round * NETWORKS.len() + index) as u32;
                let time = match side {
                    0 => embedded(&runtime, &image, number, NETWORKS[index]).await?,
                    1 => command(&scratch, &image, NETWORKS[index])?,
                    _ => podman.run(NETWORKS[index])?,
                };
                took[index] = milliseconds(time);
            }
            if round >= WARM_UP {
                for (report, time) in runs.iter_mut().zip(took) {
                    report.add(side, time);
                }
                attach.add(side, took[1] - took[0]);
            }
        }
    }
    drop(podman);
    scratch.close(runtime).await?;
    Ok(runs.into_iter().chain([attach]).map(Report::finished).collect())
}

async fn embedded(runtime: &YoukiRuntime, image: &str, number: u32, network: Network) -> Result<Duration> {
    let id = ContainerId::new("bench-net", number);
    let mut spec = spec(image, &["/bin/true"], true);
    if network != Network::None {
        spec.network.mode = NetworkMode::Bridge;
    }
    if network == Network::Published {
        spec.port_mappings = vec![PortMapping {
            host_port: None,
            host_port_end: None,
            container_port: 80,
            protocol: PortProtocol::Tcp,
            host_ip: None,
        }];
    }
    let began = Instant::now();
    runtime.create(&id, &spec, CreateOptions::default()).await?;
    runtime.start(&id).await?;
    let outcome = runtime.wait(&id).await?;
    runtime.remove(&id, false).await?;
    let took = began.elapsed();
    ensure!(outcome.exit_code == 0, "/bin/true ended with {outcome:?}");
    Ok(took)
}

fn command(scratch: &Scratch, image: &str, network: Network) -> Result<Duration> {
    let mut berth = scratch.berth();
    berth.args(["run", "--rm"]).args(flags(network));
    Ok(timed(berth.args([image, "/bin/true"]))?.wall)
}

/// The same for both commands.
fn flags(network: Network) -> &'static [&'static str] {
    match network {
        Network::None => &["--network", "none"],
        Network::Bridge => &["--network", "bridge"],
        Network::Published => &["--network", "bridge", "-p", "80"],
    }
}

/// podman on storage, configuration and a network namespace of the measurement's own: bridge and rules go with it.
struct Podman {
    peers: Peers,
    cgroup_parent: String,
    graph: PathBuf,
}

impl Podman {
    fn new(scratch: &Scratch, busybox: &Path) -> Result<Self> {
        let dir = scratch.subdirectory("podman")?;
        let (graph, run) = (dir.join("graph"), dir.join("run"));
        let configuration = dir.join("containers.conf");
        // Limits are not raised, which not every root may; a host with both cgroup versions has no systemd's.
        fs::write(
            &configuration,
            format!(
                "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\nlog_driver = \"k8s-file\"\n\
                 [engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"none\"\nruntime = \"crun\"\n\
                 [network]\nnetwork_backend = \"netavark\"\nnetwork_config_dir = {:?}\n",
                dir.join("networks")
            ),
        )?;
        let storage = dir.join("storage.conf");
        fs::write(&storage, format!("[storage]\ndriver = \"overlay\"\ngraphroot = {graph:?}\nrunroot = {run:?}\n"))?;
        let environment =
            [("CONTAINERS_CONF", configuration.as_path()), ("CONTAINERS_STORAGE_CONF", storage.as_path())];
        let mut peers = Peers::in_own_network(&dir, &environment)?;
        let tar = dir.join("root.tar");
        fs::write(&tar, image::layer(busybox)?)?;
        let tar = tar.to_str().context("the scratch directory's name is no text")?;
        peers.run(&["podman", "import", "--quiet", tar, PODMAN_IMAGE])?;
        let cgroup_parent = scratch.peer_cgroup("podman");
        Ok(Self { peers, cgroup_parent, graph })
    }

    fn run(&mut self, network: Network) -> Result<Duration> {
        let mut words = vec!["podman", "run", "--rm", "--cgroup-parent", &self.cgroup_parent];
        words.extend(flags(network));
        words.extend([PODMAN_IMAGE, "/bin/true"]);
        self.peers.run(&words)
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        // It mounts its store over itself.
        let overlay = self.graph.join("overlay");
        if let Some(overlay) = overlay.to_str() {
            let _ = self.peers.run(&["umount", overlay]);
        }
    }
}

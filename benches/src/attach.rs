//! What a network costs: a run of `/bin/true` with a bridge and an address, and with a published port, beside the same
//! without a network, against podman with netavark and containerd with CNI.

use std::time::Duration;

use anyhow::Result;
use clap::Args;
use runtime_core::ContainerId;
use runtime_core::spec::{NetworkMode, PortMapping, PortProtocol};
use youki_backend::YoukiRuntime;

use crate::Options;
use crate::containerd::Containerd;
use crate::podman::Podman;
use crate::report::Report;
use crate::run::{milliseconds, spec, to_its_end};
use crate::scratch::{Scratch, Setup, timed};

/// Repetitions that are not counted: bridges are made, caches fill, the filter is compiled.
const WARM_UP: usize = 2;
const SIDES: [&str; 4] = ["berth embedded", "berth run --rm", "podman run --rm", "ctr run --rm"];
/// `ctr` publishes no ports.
const CTR: usize = 3;

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
    Podman::require()?;
    Containerd::require()?;
    let Setup { busybox, scratch, image, runtime, peers } = Setup::new(options).await?;
    drop(peers);
    let mut podman = Podman::new(&scratch, &busybox)?;
    let mut containerd = Containerd::start(&scratch, &image)?;
    let mut runs = NETWORKS.map(|network| {
        let what = match network {
            Network::None => "no network",
            Network::Bridge => "bridge and address",
            Network::Published => "bridge, address and a published port",
        };
        let sides = if network == Network::Published { &SIDES[..CTR] } else { &SIDES };
        Report::new(format!("run /bin/true, Docker's seccomp profile, {what}"), "ms", sides)
    });
    let title = "attach and detach: the difference between a run with and one without";
    let mut attach = Report::new(title, "ms", &SIDES);
    for round in 0..settings.runs + WARM_UP {
        for turn in 0..SIDES.len() {
            let side = (round + turn) % SIDES.len();
            let mut took = [None; NETWORKS.len()];
            for offset in 0..NETWORKS.len() {
                let index = (round + offset) % NETWORKS.len();
                if side == CTR && NETWORKS[index] == Network::Published {
                    continue;
                }
                tokio::time::sleep(Duration::from_millis(settings.apart_ms)).await;
                let number = (round * NETWORKS.len() + index) as u32;
                let time = match side {
                    0 => embedded(&runtime, &image, number, NETWORKS[index]).await?,
                    1 => command(&scratch, &image, NETWORKS[index])?,
                    2 => podman.run(flags(NETWORKS[index]))?,
                    _ => containerd.run(NETWORKS[index] != Network::None)?,
                };
                took[index] = Some(milliseconds(time));
            }
            if round >= WARM_UP {
                for (report, time) in runs.iter_mut().zip(took) {
                    time.into_iter().for_each(|time| report.add(side, time));
                }
                if let [Some(without), Some(with), _] = took {
                    attach.add(side, with - without);
                }
            }
        }
    }
    drop((podman, containerd));
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
        spec.port_mappings =
            vec![PortMapping { host_port: None, container_port: 80, protocol: PortProtocol::Tcp, host_ip: None }];
    }
    let [.., all] = to_its_end(runtime, &id, &spec).await?;
    Ok(all)
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

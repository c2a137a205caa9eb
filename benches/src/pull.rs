//! Pull and unpack of an image into an empty store.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;

use crate::Options;
use crate::peer;
use crate::report::Report;
use crate::scratch::{Scratch, timed};

#[derive(Debug, Args)]
pub struct Settings {
    /// The image, on a registry of this host: the network must not be what is measured
    #[arg(long, value_name = "REFERENCE")]
    image: String,
    /// Pulls of each side
    #[arg(long, default_value_t = 3)]
    runs: usize,
}

pub async fn measure(options: &Options, settings: &Settings) -> Result<Vec<Report>> {
    peer::require("podman", "apt-get install --no-install-recommends podman")?;
    let mut scratch = Scratch::new(options)?;
    let sides = ["berth pull", "podman pull"];
    let mut wall = Report::new(format!("pull of {}", settings.image), "s", &sides);
    let mut cpu = Report::new(format!("pull of {}: CPU of the tool", settings.image), "s", &sides);
    let mut bytes = 0;
    for round in 0..settings.runs {
        for turn in 0..2 {
            // A signal may have come meanwhile.
            tokio::task::yield_now().await;
            let side = (round + turn) % 2;
            // What the last one left in the page cache is not this one's to write.
            nix::unistd::sync();
            let store = scratch.subdirectory("store")?;
            let cost = if side == 0 {
                scratch.config.root = store.join("root");
                let cost = timed(scratch.berth().args(["pull", "--quiet", &settings.image]))?;
                bytes = compressed_bytes(&scratch)?;
                cost
            } else {
                let mut podman = Command::new("podman");
                podman.arg("--root").arg(store.join("graph")).arg("--runroot").arg(store.join("run"));
                podman.args(["--storage-driver", "overlay", "--cgroup-manager", "cgroupfs"]);
                podman.args(["pull", "--quiet", "--tls-verify=false", &settings.image]);
                timed(podman.stdout(std::process::Stdio::null()))?
            };
            wall.add(side, cost.wall.as_secs_f64());
            cpu.add(side, cost.cpu.as_secs_f64());
            // podman mounts its store over itself.
            let _ = nix::mount::umount(&store.join("graph/overlay"));
            fs::remove_dir_all(&store).with_context(|| format!("emptying {}", store.display()))?;
        }
    }
    let rate = |side: usize| bytes as f64 / 1e6 / wall.sides[side].percentile(50.0);
    wall.notes.push(format!(
        "{:.1} MB compressed: berth {:.2} MB/s, podman {:.2} MB/s at p50",
        bytes as f64 / 1e6,
        rate(0),
        rate(1)
    ));
    Ok(vec![wall.finished(), cpu.finished()])
}

/// Bytes of the compressed layers and config that the store has.
fn compressed_bytes(scratch: &Scratch) -> Result<u64> {
    let output = scratch.berth().args(["images", "--json"]).stdout(std::process::Stdio::piped()).output()?;
    let images: serde_json::Value = serde_json::from_slice(&output.stdout).context("berth images --json")?;
    images[0]["size_bytes"].as_u64().context("the size of the image")
}

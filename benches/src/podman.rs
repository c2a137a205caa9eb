//! podman, with crun and netavark.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::image;
use crate::peer::{self, Peers};
use crate::scratch::Scratch;

/// What it calls the image.
const IMAGE: &str = "localhost/bench:1";

/// podman on storage, configuration and a network namespace of the measurement's own: bridge and rules go with it.
#[derive(Debug)]
pub struct Podman {
    peers: Peers,
    cgroup_parent: String,
    graph: PathBuf,
}

impl Podman {
    /// Says what is missing.
    pub fn require() -> Result<()> {
        peer::require("podman", "apt-get install --no-install-recommends podman netavark iptables")?;
        peer::require("crun", "apt-get install crun").map(drop)
    }

    /// Gives it an image of `busybox` alone.
    pub fn new(scratch: &Scratch, busybox: &Path) -> Result<Self> {
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
        peers.run(&["podman", "import", "--quiet", tar, IMAGE])?;
        let cgroup_parent = scratch.peer_cgroup("podman");
        Ok(Self { peers, cgroup_parent, graph })
    }

    /// Runs `/bin/true` with more flags.
    pub fn run(&mut self, flags: &[&str]) -> Result<Duration> {
        let mut words = vec!["podman", "run", "--rm", "--cgroup-parent", &self.cgroup_parent];
        words.extend(flags);
        words.extend([IMAGE, "/bin/true"]);
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

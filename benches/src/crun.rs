//! crun's commands.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::peer::Peers;
use crate::scratch::Scratch;

/// crun on a state directory of the measurement's own.
#[derive(Debug)]
pub struct Crun {
    state: String,
}

impl Crun {
    /// Makes the state directory.
    pub fn new(scratch: &Scratch) -> Result<Self> {
        Ok(Self { state: text(&scratch.subdirectory("crun-state")?)?.to_owned() })
    }

    /// The state directory.
    pub fn state(&self) -> &str {
        &self.state
    }

    /// Creates, starts, waits for and deletes a container.
    pub fn run(&self, peers: &mut Peers, bundle: &Path, id: &str) -> Result<Duration> {
        self.command(peers, &["run", "-b", text(bundle)?, id])
    }

    /// Creates and starts a container.
    pub fn run_detached(&self, peers: &mut Peers, bundle: &Path, id: &str) -> Result<Duration> {
        self.command(peers, &["run", "-d", "-b", text(bundle)?, id])
    }

    /// Starts a container that was created.
    pub fn start(&self, peers: &mut Peers, id: &str) -> Result<Duration> {
        self.command(peers, &["start", id])
    }

    /// Runs a program in a container and waits for it.
    pub fn exec(&self, peers: &mut Peers, id: &str, program: &str) -> Result<Duration> {
        self.command(peers, &["exec", id, program])
    }

    /// Kills a container and removes it.
    pub fn delete(&self, peers: &mut Peers, id: &str) -> Result<Duration> {
        self.command(peers, &["delete", "--force", id])
    }

    fn command(&self, peers: &mut Peers, words: &[&str]) -> Result<Duration> {
        let mut command = vec!["crun", "--root", &self.state, "--cgroup-manager", "cgroupfs"];
        command.extend(words);
        peers.run(&command)
    }
}

/// A path as an argument.
pub fn text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", PathBuf::from(path).display()))
}

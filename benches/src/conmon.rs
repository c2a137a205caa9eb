//! conmon with crun, as podman starts it.

use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::crun::{Crun, text};
use crate::peer::{self, Peers};

/// The longest that conmon may take to have a container created.
const CREATE_TIMEOUT: Duration = Duration::from_secs(10);

/// A container that conmon has had created, and waits to be started.
#[derive(Debug)]
pub struct Conmon {
    /// conmon itself.
    pub pid: i32,
    /// The container's init.
    pub init: i32,
}

impl Conmon {
    /// Says what is missing.
    pub fn require() -> Result<()> {
        peer::require("conmon", "apt-get install conmon")?;
        peer::require("crun", "apt-get install crun").map(drop)
    }

    /// Creates `id` from the bundle in `dir`; its log is `dir/log`, begun anew at each `max_log_bytes`.
    pub fn create(peers: &mut Peers, crun: &Crun, dir: &Path, id: &str, max_log_bytes: u64) -> Result<Self> {
        let runtime = peer::require("crun", "apt-get install crun")?;
        let own = dir.join("conmon");
        fs::create_dir_all(&own)?;
        let (bundle, own_text) = (text(dir)?, text(&own)?);
        let pid_file = format!("{own_text}/pid");
        let init_file = format!("{own_text}/init");
        let log = format!("k8s-file:{bundle}/log");
        let max = max_log_bytes.to_string();
        let root = format!("--runtime-arg=--root={}", crun.state());
        peers.run(&[
            "conmon",
            "--api-version",
            "1",
            "-c",
            id,
            "-u",
            id,
            "-n",
            id,
            "-r",
            text(&runtime)?,
            "-b",
            bundle,
            "-p",
            &init_file,
            "-P",
            &pid_file,
            "--exit-dir",
            own_text,
            "--persist-dir",
            own_text,
            "--socket-dir-path",
            own_text,
            "-l",
            &log,
            "--log-size-max",
            &max,
            "--no-sync-log",
            "--log-level",
            "error",
            &root,
            "--runtime-arg=--cgroup-manager=cgroupfs",
        ])?;
        Ok(Self { pid: number(&own.join("pid"))?, init: number(&own.join("init"))? })
    }
}

/// The number that a file holds, once it is there.
fn number(path: &Path) -> Result<i32> {
    let began = Instant::now();
    loop {
        match fs::read_to_string(path) {
            Ok(text) if !text.trim().is_empty() => return text.trim().parse().context("a process id"),
            _ if began.elapsed() > CREATE_TIMEOUT => bail!("conmon wrote no {}", path.display()),
            _ => sleep(Duration::from_millis(2)),
        }
    }
}

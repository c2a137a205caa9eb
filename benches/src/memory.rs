//! Memory of the supervisors of idle containers.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use runtime_core::{ContainerId, Runtime};
use youki_backend::CreateOptions;

use crate::Options;
use crate::conmon::Conmon;
use crate::crun::Crun;
use crate::oci::Bundle;
use crate::report::Report;
use crate::run::spec;
use crate::scratch::Setup;

/// After the start: buffers are given back by then.
const SETTLE: Duration = Duration::from_secs(2);
const IDLE: [&str; 2] = ["/bin/sleep", "1000000"];
const MAX_LOG_BYTES: u64 = 10 << 20;

#[derive(Debug, Args)]
pub struct Settings {
    /// Containers of each side
    #[arg(long, default_value_t = 20)]
    containers: u32,
}

pub async fn measure(options: &Options, settings: &Settings) -> Result<Vec<Report>> {
    Conmon::require()?;
    let Setup { busybox, scratch, image, runtime, mut peers } = Setup::new(options).await?;
    let crun = Crun::new(&scratch)?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for number in 0..settings.containers {
        let id = ContainerId::new("idle", number);
        runtime.create(&id, &spec(&image, &IDLE, true), CreateOptions::default()).await?;
        runtime.start(&id).await?;
        let init = runtime.get_container_pid(&id).await?.context("an idle container has ended")?;
        ours.push(parent(init as i32)?);
        let name = format!("idle-{number}");
        let dir = scratch.subdirectory(&name)?;
        Bundle { dir: &dir, args: &IDLE, cgroup: scratch.peer_cgroup(&name), seccomp: true, bind: None }
            .make(&busybox)?;
        let conmon = Conmon::create(&mut peers, &crun, &dir, &name, MAX_LOG_BYTES)?;
        crun.start(&mut peers, &name)?;
        theirs.push(conmon.pid);
    }
    tokio::time::sleep(SETTLE).await;
    let title = |what: &str| format!("{what} of a supervisor, {} idle containers", settings.containers);
    let sides = ["berth-supervisor", "conmon"];
    let mut private = Report::new(title("private memory"), "KiB", &sides);
    let mut shared = Report::new(title("PSS"), "KiB", &sides);
    for (side, pids) in [ours, theirs].into_iter().enumerate() {
        for pid in pids {
            let memory = memory(pid)?;
            private.add(side, memory.private as f64);
            shared.add(side, memory.pss as f64);
        }
    }
    for number in 0..settings.containers {
        crun.delete(&mut peers, &format!("idle-{number}"))?;
    }
    drop(peers);
    scratch.close(runtime).await?;
    Ok(vec![private.finished(), shared.finished()])
}

/// In KiB.
struct Memory {
    private: u64,
    pss: u64,
}

fn memory(pid: i32) -> Result<Memory> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    let field = |name: &str| -> Result<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("{path}: {name}"))?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    };
    Ok(Memory { private: field("Private_Clean:")? + field("Private_Dirty:")?, pss: field("Pss:")? })
}

/// The parent of a process.
pub fn parent(pid: i32) -> Result<i32> {
    let path = Path::new("/proc").join(pid.to_string()).join("stat");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    // The name, in parentheses, may hold anything.
    let fields = text.rsplit_once(") ").map(|(_, fields)| fields).unwrap_or_default();
    fields.split(' ').nth(1).context("a parent")?.parse().context("its process id")
}

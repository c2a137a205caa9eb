//! `/bin/true` in a running container.

use std::time::Instant;

use anyhow::{Result, ensure};
use clap::Args;
use runtime_core::{ContainerId, Runtime};
use youki_backend::CreateOptions;

use crate::Options;
use crate::crun::Crun;
use crate::oci::Bundle;
use crate::peer::{self};
use crate::report::Report;
use crate::run::{milliseconds, spec};
use crate::scratch::{Setup, timed};

const WARM_UP: usize = 5;
const IDLE: [&str; 2] = ["/bin/sleep", "1000000"];

#[derive(Debug, Args)]
pub struct Settings {
    /// Repetitions of each side
    #[arg(long, default_value_t = 100)]
    runs: usize,
}

pub async fn measure(options: &Options, settings: &Settings) -> Result<Vec<Report>> {
    peer::require("crun", "apt-get install crun")?;
    let Setup { busybox, scratch, image, runtime, mut peers } = Setup::new(options).await?;
    let mut reports = Vec::new();
    for seccomp in [false, true] {
        let id = ContainerId::new("idle", u32::from(seccomp));
        runtime.create(&id, &spec(&image, &IDLE, seccomp), CreateOptions::default()).await?;
        runtime.start(&id).await?;
        let name = format!("exec-{seccomp}");
        let dir = scratch.subdirectory(&name)?;
        let cgroup = scratch.peer_cgroup(&name);
        Bundle { dir: &dir, args: &IDLE, cgroup, seccomp, bind: None }.make(&busybox)?;
        let crun = Crun::new(&scratch)?;
        crun.run_detached(&mut peers, &dir, &name)?;

        let filter = if seccomp { "Docker's seccomp profile" } else { "no seccomp" };
        let sides = ["berth embedded", "berth exec", "crun exec"];
        let mut report = Report::new(format!("exec /bin/true, {filter}"), "ms", &sides);
        let command = ["/bin/true".to_owned()];
        for round in 0..settings.runs + WARM_UP {
            for turn in 0..3 {
                let side = (round + turn) % 3;
                let time = match side {
                    0 => {
                        let began = Instant::now();
                        let (code, ..) = runtime.exec(&id, &command).await?;
                        let time = began.elapsed();
                        ensure!(code == 0, "/bin/true ended with {code}");
                        time
                    }
                    1 => timed(scratch.berth().args(["exec", &id.to_string(), "/bin/true"]))?.wall,
                    _ => crun.exec(&mut peers, &name, "/bin/true")?,
                };
                if round >= WARM_UP {
                    report.add(side, milliseconds(time));
                }
            }
        }
        reports.push(report.finished());
        runtime.remove(&id, true).await?;
        crun.delete(&mut peers, &name)?;
    }
    drop(peers);
    scratch.close(runtime).await?;
    Ok(reports)
}

//! create + start + wait + remove of `/bin/true`, logs on, no network but the loopback of its own.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Args;
use runtime_core::spec::{NetworkMode, SeccompSpec};
use runtime_core::{ContainerId, ServiceSpec};
use youki_backend::{CreateOptions, YoukiRuntime};

use crate::Options;
use crate::crun::Crun;
use crate::oci::Bundle;
use crate::peer::{self, Peers};
use crate::report::Report;
use crate::scratch::{Scratch, Setup, timed};

/// Repetitions that are not counted: caches fill, the filter is compiled.
const WARM_UP: usize = 3;

#[derive(Debug, Args)]
pub struct Settings {
    /// Repetitions of each side
    #[arg(long, default_value_t = 30)]
    runs: usize,
    /// Pause before each run of the second pair of tables, in milliseconds
    #[arg(long, default_value_t = 120)]
    apart_ms: u64,
}

pub async fn measure(options: &Options, settings: &Settings) -> Result<Vec<Report>> {
    peer::require("crun", "apt-get install crun")?;
    let Setup { busybox, scratch, image, runtime, mut peers } = Setup::new(options).await?;
    let crun = Crun::new(&scratch)?;
    let mut reports = Vec::new();
    for apart in [Duration::ZERO, Duration::from_millis(settings.apart_ms)] {
        for seccomp in [false, true] {
            let mut side =
                Sides { scratch: &scratch, runtime: &runtime, peers: &mut peers, crun: &crun, image: &image, seccomp };
            reports.extend(side.interleaved(settings.runs, apart, &busybox).await?);
        }
    }
    drop(peers);
    scratch.close(runtime).await?;
    Ok(reports)
}

/// What the three sides need.
struct Sides<'a> {
    scratch: &'a Scratch,
    runtime: &'a YoukiRuntime,
    peers: &'a mut Peers,
    crun: &'a Crun,
    image: &'a str,
    seccomp: bool,
}

impl Sides<'_> {
    async fn interleaved(&mut self, runs: usize, apart: Duration, busybox: &Path) -> Result<Vec<Report>> {
        let filter = if self.seccomp { "Docker's seccomp profile" } else { "no seccomp" };
        let pace = if apart.is_zero() { "back to back".to_owned() } else { format!("{} ms apart", apart.as_millis()) };
        let title = format!("run /bin/true, {filter}, {pace}");
        let mut report = Report::new(&title, "ms", &["berth embedded", "berth run --rm", "crun run"]);
        let mut stages = Report::new(format!("{title}: stages of embedded"), "ms", &["create", "start", "wait", "all"]);
        stages.compared_with = "sum";
        let bundle = self.scratch.subdirectory(&format!("run-{}-{}", self.seccomp, apart.as_millis()))?;
        let cgroup = self.scratch.peer_cgroup("run");
        let args = &["/bin/true"];
        Bundle { dir: &bundle, args, cgroup, seccomp: self.seccomp, bind: None }.make(busybox)?;
        for round in 0..runs + WARM_UP {
            // The order rotates, so that no side always comes after the same other one.
            for turn in 0..3 {
                tokio::time::sleep(apart).await;
                let side = (round + turn) % 3;
                let time = match side {
                    0 => {
                        let took = self.embedded(round as u32).await?;
                        if round >= WARM_UP {
                            for (stage, time) in took.into_iter().enumerate() {
                                stages.add(stage, milliseconds(time));
                            }
                        }
                        took[3]
                    }
                    1 => self.command()?,
                    _ => self.crun.run(self.peers, &bundle, "bench")?,
                };
                if round >= WARM_UP {
                    report.add(side, milliseconds(time));
                }
            }
        }
        Ok(vec![report.finished(), stages.finished()])
    }

    async fn embedded(&self, round: u32) -> Result<[Duration; 4]> {
        let id = ContainerId::new("bench", round);
        to_its_end(self.runtime, &id, &spec(self.image, &["/bin/true"], self.seccomp)).await
    }

    fn command(&self) -> Result<Duration> {
        let mut berth = self.scratch.berth();
        berth.args(["run", "--rm", "--network", "none"]);
        if !self.seccomp {
            berth.args(["--security-opt", "seccomp=unconfined"]);
        }
        Ok(timed(berth.args([self.image, "/bin/true"]))?.wall)
    }
}

/// Runs a container that removes itself. Times of create, start, the wait for its end and removal, and of all.
pub async fn to_its_end(runtime: &YoukiRuntime, id: &ContainerId, spec: &ServiceSpec) -> Result<[Duration; 4]> {
    let began = Instant::now();
    runtime.create(id, spec, CreateOptions::default()).await?;
    let created = Instant::now();
    let mut watched = runtime.watch(id).await?;
    runtime.start(id).await?;
    let started = Instant::now();
    let outcome = watched.wait().await?;
    let ended = Instant::now();
    ensure!(outcome.exit_code == 0, "/bin/true ended with {outcome:?}");
    Ok([created - began, started - created, ended - started, ended - began])
}

/// A container as the peers' bundle describes it.
pub fn spec(image: &str, args: &[&str], seccomp: bool) -> ServiceSpec {
    let mut spec = ServiceSpec::new(image);
    spec.command.args = Some(args.iter().map(|arg| (*arg).to_owned()).collect());
    spec.network.mode = NetworkMode::None;
    spec.seccomp = if seccomp { SeccompSpec::Default } else { SeccompSpec::Unconfined };
    spec.remove_on_exit = true;
    spec
}

pub fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

//! A root with many running containers: what it costs to open it, to list them, and to read their statistics.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;
use runtime_core::ContainerId;
use youki_backend::{CreateOptions, YoukiRuntime};

use crate::Options;
use crate::report::Report;
use crate::run::{milliseconds, spec};
use crate::scratch::{Setup, timed};

const IDLE: [&str; 2] = ["/bin/sleep", "1000000"];
const SIDES: [&str; 5] = ["YoukiRuntime::open", "berth ps", "berth stats --no-stream", "berth --version", "/bin/true"];

#[derive(Debug, Args)]
pub struct Settings {
    /// Containers that run
    #[arg(long, default_value_t = 200)]
    containers: u32,
    /// Repetitions of each side
    #[arg(long, default_value_t = 30)]
    runs: usize,
}

pub async fn measure(options: &Options, settings: &Settings) -> Result<Vec<Report>> {
    let Setup { scratch, image, runtime, peers, .. } = Setup::new(options).await?;
    drop(peers);
    let began = Instant::now();
    for number in 0..settings.containers {
        let id = ContainerId::new("many", number);
        runtime.create(&id, &spec(&image, &IDLE, true), CreateOptions::default()).await?;
        runtime.start(&id).await?;
    }
    let started = began.elapsed();
    let mut report = Report::new(format!("with {} running containers", settings.containers), "ms", &SIDES);
    report.compared_with = "start of a program";
    report.notes.push(format!("created and started one after another in {:.3} s", started.as_secs_f64()));
    for round in 0..settings.runs {
        for turn in 0..SIDES.len() {
            let side = (round + turn) % SIDES.len();
            let berth = |words: &[&str]| -> Result<Duration> { Ok(timed(scratch.berth().args(words))?.wall) };
            let took = match side {
                0 => {
                    let began = Instant::now();
                    let opened = YoukiRuntime::open(scratch.config.clone()).await?;
                    let took = began.elapsed();
                    drop(opened);
                    took
                }
                1 => berth(&["ps"])?,
                2 => berth(&["stats", "--no-stream"])?,
                3 => berth(&["--version"])?,
                _ => timed(Command::new("/bin/true").stdin(Stdio::null()))?.wall,
            };
            report.add(side, milliseconds(took));
        }
    }
    scratch.close(runtime).await?;
    Ok(vec![report.finished()])
}

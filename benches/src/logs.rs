//! Log throughput of a container that writes as fast as it can, and what each byte costs the supervisor.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use nix::time::clock_getcpuclockid;
use nix::unistd::Pid;
use runtime_core::spec::StorageSpec;
use runtime_core::{ContainerId, Runtime};
use youki_backend::{CreateOptions, YoukiRuntime};

use crate::Options;
use crate::conmon::Conmon;
use crate::crun::{Crun, text};
use crate::memory::parent;
use crate::oci::Bundle;
use crate::report::Report;
use crate::run::spec;
use crate::scratch::{Scratch, Setup};

/// Length of a line with its newline, and bytes written for it.
const LINES: [(usize, u64); 3] = [(100, 512 << 20), (1000, 512 << 20), (2, 32 << 20)];
/// The supervisor has taken everything once it used no CPU for so long after the writer was done.
const QUIET: Duration = Duration::from_millis(50);
const TIMEOUT: Duration = Duration::from_secs(120);
/// One log file of Berth's default of 100 MiB in ten; conmon begins its only file anew at the same size.
const LOG_FILE_BYTES: u64 = 10 << 20;
const SOURCE: &str = "/lines";

#[derive(Debug, Args)]
pub struct Settings {
    /// Repetitions of each side and line length
    #[arg(long, default_value_t = 5)]
    runs: u32,
}

pub async fn measure(options: &Options, settings: &Settings) -> Result<Vec<Report>> {
    Conmon::require()?;
    let Setup { busybox, scratch, image, runtime, mut peers } = Setup::new(options).await?;
    let crun = Crun::new(&scratch)?;
    let mut reports = Vec::new();
    for (line, bytes) in LINES {
        let lines = write_lines(&scratch, line, bytes)?;
        // The init becomes the sleep when the writer is done: that can be seen from outside.
        let writer = format!("dd if={SOURCE} bs=64k 2>/dev/null; exec /bin/sleep 1000000");
        let args = ["/bin/sh", "-c", &writer];
        let sides = ["berth-supervisor", "conmon k8s-file"];
        let mut time = Report::new(format!("{line}-byte lines: time a megabyte"), "ms/MB", &sides);
        let mut cpu = Report::new(format!("{line}-byte lines: CPU of the supervisor a byte"), "ns/B", &sides);
        for round in 0..settings.runs {
            for turn in 0..2 {
                let side = ((round + turn) % 2) as usize;
                nix::unistd::sync();
                let taken = if side == 0 {
                    ours(&runtime, &image, &args, &lines, round).await?
                } else {
                    let name = format!("logs-{line}-{round}");
                    let dir = scratch.subdirectory(&name)?;
                    let bind = Some((lines.as_path(), SOURCE));
                    let cgroup = scratch.peer_cgroup(&name);
                    Bundle { dir: &dir, args: &args, cgroup, seccomp: false, bind }.make(&busybox)?;
                    let conmon = Conmon::create(&mut peers, &crun, &dir, &name, LOG_FILE_BYTES)?;
                    let began = Instant::now();
                    crun.start(&mut peers, &name)?;
                    let taken = drained(conmon.pid, conmon.init, began)?;
                    crun.delete(&mut peers, &name)?;
                    fs::remove_dir_all(&dir)?;
                    taken
                };
                time.add(side, taken.time.as_secs_f64() * 1e3 / (bytes as f64 / 1e6));
                cpu.add(side, taken.cpu.as_nanos() as f64 / bytes as f64);
            }
        }
        let rate = |side: usize| 1e3 / time.sides[side].percentile(50.0);
        let note = format!("berth {:.1} MB/s, conmon {:.1} MB/s at p50: {:.2}x", rate(0), rate(1), rate(0) / rate(1));
        time.notes.push(note);
        reports.extend([time.finished(), cpu.finished()]);
        fs::remove_file(lines)?;
    }
    drop(peers);
    scratch.close(runtime).await?;
    Ok(reports)
}

/// What a log of all the bytes took.
struct Taken {
    time: Duration,
    cpu: Duration,
}

async fn ours(runtime: &YoukiRuntime, image: &str, args: &[&str], lines: &Path, round: u32) -> Result<Taken> {
    let id = ContainerId::new("logs", round);
    let mut spec = spec(image, args, false);
    let source = text(lines)?.to_owned();
    spec.storage.push(StorageSpec::Bind { source, target: SOURCE.to_owned(), readonly: true });
    runtime.create(&id, &spec, CreateOptions::default()).await?;
    let init = runtime.get_container_pid(&id).await?;
    let began = Instant::now();
    runtime.start(&id).await?;
    let init = match init {
        Some(init) => init,
        None => runtime.get_container_pid(&id).await?.context("the writer has ended")?,
    } as i32;
    let supervisor = parent(init)?;
    let taken = tokio::task::spawn_blocking(move || drained(supervisor, init, began)).await??;
    runtime.remove(&id, true).await?;
    Ok(taken)
}

/// Waits until the writer is done and the supervisor has taken all that it wrote.
fn drained(supervisor: i32, init: i32, began: Instant) -> Result<Taken> {
    let clock = clock_getcpuclockid(Pid::from_raw(supervisor)).context("the supervisor has ended")?;
    let cpu = || clock.now().map(Duration::from).context("the supervisor has ended");
    let comm = format!("/proc/{init}/comm");
    while fs::read_to_string(&comm).context("the writer has ended")?.trim() != "sleep" {
        if began.elapsed() > TIMEOUT {
            bail!("the writer was not done within {} s", TIMEOUT.as_secs());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let mut last = (Instant::now(), cpu()?);
    while last.0.elapsed() < QUIET {
        std::thread::sleep(Duration::from_micros(500));
        let now = cpu()?;
        if now != last.1 {
            last = (Instant::now(), now);
        }
    }
    Ok(Taken { time: last.0 - began, cpu: last.1 })
}

/// A file of `bytes` bytes in lines of `line`, in the page cache when the writers read it.
fn write_lines(scratch: &Scratch, line: usize, bytes: u64) -> Result<PathBuf> {
    let path = scratch.dir.join("lines");
    let mut file = BufWriter::new(File::create(&path)?);
    let mut text = vec![b'x'; line];
    text[line - 1] = b'\n';
    for _ in 0..bytes / line as u64 {
        file.write_all(&text)?;
    }
    file.flush()?;
    Ok(path)
}

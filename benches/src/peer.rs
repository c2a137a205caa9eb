//! Runs the peers.
//!
//! crun refuses a host with both cgroup versions, so a helper process with a mount namespace of its own hides the v2
//! half, and starts the peers. It takes their times itself: the way to it is not counted, and it is small and
//! single-threaded, so that starting a program from it is as cheap as can be.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use serde::{Deserialize, Serialize};

/// The hidden subcommand that is the helper process.
pub const SUBCOMMAND: &str = "peer-namespace";
/// The v2 half of a host that has both.
const UNIFIED: &str = "/sys/fs/cgroup/unified";

/// The helper process.
#[derive(Debug)]
pub struct Peers {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    errors: PathBuf,
}

/// A program to start and wait for.
#[derive(Debug, Serialize, Deserialize)]
struct Request {
    command: Vec<String>,
    /// Where its standard error goes.
    errors: PathBuf,
}

#[derive(Debug, Serialize, Deserialize)]
struct Answer {
    nanoseconds: u64,
    /// `None` after a signal, or when it could not be started.
    code: Option<i32>,
}

impl Peers {
    /// Starts the helper. What the peers write to standard error goes to a file in `dir`.
    pub fn start(dir: &Path) -> Result<Self> {
        Self::spawn(dir, &[], &[])
    }

    /// The same with a network namespace of its own, and more environment.
    pub fn in_own_network(dir: &Path, environment: &[(&str, &Path)]) -> Result<Self> {
        let mut peers = Self::spawn(dir, &["--own-network"], environment)?;
        peers.run(&["ip", "link", "set", "lo", "up"])?;
        Ok(peers)
    }

    fn spawn(dir: &Path, flags: &[&str], environment: &[(&str, &Path)]) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg(SUBCOMMAND)
            .args(flags)
            .envs(environment.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting the process that runs the peers")?;
        let (Some(to), Some(from)) = (child.stdin.take(), child.stdout.take()) else { bail!("it has no pipes") };
        Ok(Self { child, to, from: BufReader::new(from), errors: dir.join("peer.stderr") })
    }

    /// Runs a command to its end and returns the time from before its start until it was reaped.
    pub fn run(&mut self, command: &[&str]) -> Result<Duration> {
        let request =
            Request { command: command.iter().map(|word| (*word).to_owned()).collect(), errors: self.errors.clone() };
        writeln!(self.to, "{}", serde_json::to_string(&request)?)?;
        let mut line = String::new();
        self.from.read_line(&mut line)?;
        let answer: Answer = serde_json::from_str(&line).context("the process that runs the peers ended")?;
        if answer.code != Some(0) {
            let said = fs::read_to_string(&self.errors).unwrap_or_default();
            bail!("{}: exit code {:?}: {}", command.join(" "), answer.code, said.trim());
        }
        Ok(Duration::from_nanos(answer.nanoseconds))
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The helper process: one line of JSON for each command on standard input, one for its outcome on standard output.
pub fn serve(own_network: bool) -> Result<()> {
    let network = if own_network { CloneFlags::CLONE_NEWNET } else { CloneFlags::empty() };
    unshare(CloneFlags::CLONE_NEWNS | network).context("leaving the host's namespaces")?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_PRIVATE | MsFlags::MS_REC, none).context("privatising the mount table")?;
    if Path::new(UNIFIED).is_dir() {
        mount(Some("none"), UNIFIED, Some("tmpfs"), MsFlags::empty(), none).context("hiding cgroup v2")?;
    }
    for line in std::io::stdin().lines() {
        let request: Request = serde_json::from_str(&line?)?;
        let Some((program, args)) = request.command.split_first() else { bail!("an empty command") };
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&request.errors)?);
        let began = Instant::now();
        let code = command.status().ok().and_then(|status| status.code());
        let answer = Answer { nanoseconds: began.elapsed().as_nanos() as u64, code };
        println!("{}", serde_json::to_string(&answer)?);
    }
    Ok(())
}

/// The path of a program that must be there, else how to get it.
pub fn require(program: &str, how: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|dir| dir.join(program)).find(|file| file.is_file());
    found.with_context(|| format!("{program} is not in PATH. To have it: {how}"))
}

/// busybox, which must be static: it is the whole root filesystem.
pub fn require_busybox() -> Result<PathBuf> {
    let path = require("busybox", "apt-get install busybox-static")?;
    let dynamic =
        names_a_loader(&fs::read(&path)?).with_context(|| format!("{} is no ELF executable", path.display()))?;
    ensure!(!dynamic, "{} is not static. To have one that is: apt-get install busybox-static", path.display());
    Ok(path)
}

/// Whether a 64-bit little-endian ELF executable has a program header PT_INTERP; `None` for anything else.
fn names_a_loader(elf: &[u8]) -> Option<bool> {
    const PT_INTERP: u64 = 3;
    let number = |at: usize, bytes: usize| -> Option<u64> {
        let field = elf.get(at..at.checked_add(bytes)?)?;
        Some(field.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    };
    if !elf.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let (table, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
    for index in 0..count {
        if number(usize::try_from(table.checked_add(index * size)?).ok()?, 4)? == PT_INTERP {
            return Some(true);
        }
    }
    Some(false)
}

//! Boots the machine, passes on what it prints, and finds out how the suite ended.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// The machine's memory.
const MEMORY: &str = "3072";
/// Where KVM works the machine is up by then; where it only seems to (nested virtualisation), it never is.
const KVM_BOOTS_WITHIN: Duration = Duration::from_secs(10);
/// Emulated.
const BOOTS_WITHIN: Duration = Duration::from_secs(180);
/// The line that says it is up begins so.
const UP: &str = "berth-vm: Linux ";

/// What it is made of.
#[derive(Debug)]
pub(super) struct Machine {
    pub program: PathBuf,
    pub kernel: PathBuf,
    pub initrd: PathBuf,
    pub disk: PathBuf,
    /// For the file that the exit code comes in.
    pub dir: PathBuf,
}

/// How it went.
#[derive(Debug)]
pub(super) struct Ended {
    /// The suite's exit code; `None` if the machine did not get that far.
    pub code: Option<i32>,
    /// `kvm` or `tcg`.
    pub accelerator: &'static str,
    pub took: Duration,
}

impl Ended {
    /// The end of a sentence that begins with "the suite".
    pub fn said(&self) -> String {
        match self.code {
            Some(0) => "passed".to_owned(),
            Some(code) => format!("FAILED with {code}"),
            None => "did NOT get to its end: the machine stopped or took too long".to_owned(),
        }
    }
}

impl Machine {
    /// Runs until it powers itself off, at most `time_limit`. By KVM where that boots, else emulated.
    pub fn run(&self, time_limit: Duration) -> Result<Ended> {
        let kvm = fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok();
        if kvm {
            match self.boot("kvm", KVM_BOOTS_WITHIN, time_limit)? {
                Some(ended) => return Ok(ended),
                None => println!("With KVM it is not up after {KVM_BOOTS_WITHIN:?}: it is emulated"),
            }
        }
        match self.boot("tcg", BOOTS_WITHIN, time_limit)? {
            Some(ended) => Ok(ended),
            None => bail!("the machine was not up after {BOOTS_WITHIN:?}; what it said is above"),
        }
    }

    /// `None` if it was not up in time.
    fn boot(&self, accelerator: &'static str, up_within: Duration, time_limit: Duration) -> Result<Option<Ended>> {
        let result = self.dir.join("exit-code");
        let _of_an_earlier_run = fs::remove_file(&result);
        let begin = Instant::now();
        let mut child = self
            .command(accelerator, &result)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {}", self.program.display()))?;
        let lines = lines_of(&mut child)?;
        let mut up = false;
        let finished = loop {
            let limit = if up { time_limit } else { up_within };
            match lines.recv_timeout(limit.saturating_sub(begin.elapsed())) {
                Ok(line) => {
                    up |= line.starts_with(UP);
                    println!("  │ {line}");
                }
                Err(RecvTimeoutError::Disconnected) => break true,
                Err(RecvTimeoutError::Timeout) => break false,
            }
        };
        if !finished {
            child.kill().context("stopping the machine")?;
        }
        child.wait().context("waiting for the machine")?;
        if !up {
            return Ok(None);
        }
        let code = fs::read_to_string(&result).ok().and_then(|text| text.trim().parse().ok());
        Ok(Some(Ended { code, accelerator, took: begin.elapsed() }))
    }

    fn command(&self, accelerator: &str, result: &Path) -> Command {
        let mut command = Command::new(&self.program);
        let (processor, fast) = match accelerator {
            "kvm" => ("host,arch-capabilities=off", " berth.fast"),
            // Page tables of five levels only make emulated ones slower.
            _ => ("max,la57=off", ""),
        };
        command.args(["-machine", "q35", "-accel", accelerator, "-cpu", processor, "-smp", "2", "-m", MEMORY]);
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-nic", "none"]);
        command.args(["-serial", "stdio", "-serial"]).arg(format!("file:{}", result.display()));
        command.arg("-kernel").arg(&self.kernel).arg("-initrd").arg(&self.initrd);
        command.arg("-append").arg(format!(
            "console=ttyS0 quiet panic=-1 psi=1 cgroup_no_v1=all mitigations=off random.trust_cpu=on{fast}"
        ));
        let drive = format!("file={},if=none,id=disk,format=raw,cache=unsafe,discard=unmap", self.disk.display());
        command.args(["-drive", &drive, "-device", "virtio-blk-pci,drive=disk"]);
        command.args(["-object", "rng-random,id=random,filename=/dev/urandom"]);
        command.args(["-device", "virtio-rng-pci,rng=random"]);
        self.name_unpacked_parts(&mut command);
        command
    }

    /// An emulator that was unpacked and not installed finds its libraries, modules and firmware only by name.
    fn name_unpacked_parts(&self, command: &mut Command) {
        let root = self.program.ancestors().nth(3).unwrap_or(Path::new("/"));
        if root == Path::new("/") {
            return;
        }
        let libraries = root.join("usr/lib/x86_64-linux-gnu");
        command
            .env("LD_LIBRARY_PATH", format!("{}:{}", libraries.display(), root.join("lib/x86_64-linux-gnu").display()));
        command.env("QEMU_MODULE_DIR", libraries.join("qemu"));
        for firmware in ["usr/share/qemu", "usr/share/seabios"] {
            command.arg("-L").arg(root.join(firmware));
        }
    }
}

/// What it prints, line by line, until it ends.
fn lines_of(child: &mut Child) -> Result<Receiver<String>> {
    let (sender, receiver) = channel();
    let output = child.stdout.take().context("the machine has no output")?;
    std::thread::spawn(move || {
        let mut reader = BufReader::new(output);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            line.clear();
            if sender.send(text).is_err() {
                break;
            }
        }
    });
    Ok(receiver)
}

//! containerd, as `ctr` has it run containers: with runc, and CNI's `bridge` and `portmap` for their network.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use crate::crun::text;
use crate::peer::{self, Peers};
use crate::scratch::Scratch;

/// How to have it, and its plugins.
const HOW: &str = "apt-get install --no-install-recommends containerd runc containernetworking-plugins iptables";
/// Where Debian has the plugins of CNI, and where ctr looks for them and for networks.
const PLUGINS: &str = "/usr/lib/cni";
const SOUGHT_PLUGINS: &str = "/opt/cni/bin";
const SOUGHT_NETWORKS: &str = "/etc/cni/net.d";
/// The longest that it may take to answer, and to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// A daemon with root, state and socket of the measurement's own, in the mount and network namespace of its peers.
#[derive(Debug)]
pub struct Containerd {
    peers: Peers,
    socket: String,
    pid_file: PathBuf,
    image: String,
    runs: u32,
}

impl Containerd {
    /// Says what is missing.
    pub fn require() -> Result<()> {
        for program in ["containerd", "ctr", "runc", "iptables"] {
            peer::require(program, HOW)?;
        }
        ensure!(Path::new(PLUGINS).join("bridge").is_file(), "{PLUGINS} has no bridge. To have it: {HOW}");
        Ok(())
    }

    /// Starts it and gives it `image`, which Berth has.
    pub fn start(scratch: &Scratch, image: &str) -> Result<Self> {
        let dir = scratch.subdirectory("containerd")?;
        let mut peers = Peers::in_own_network(&dir, &[])?;
        let network = json!({"cniVersion": "0.4.0", "name": "bench", "plugins": [
            {"type": "bridge", "bridge": "benchcni0", "isGateway": true, "ipMasq": true, "ipam": {
                "type": "host-local", "subnet": "10.238.0.0/16", "routes": [{"dst": "0.0.0.0/0"}],
                "dataDir": dir.join("leases")}},
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ]});
        // ctr has no flag for either directory, and the host's /etc and /opt are not the measurement's to change.
        for over in ["/etc", "/opt"] {
            let layer = |name: &str| -> Result<String> {
                Ok(text(&scratch.subdirectory(&format!("containerd{over}/{name}"))?)?.to_owned())
            };
            let options = format!("lowerdir={over},upperdir={},workdir={}", layer("upper")?, layer("work")?);
            peers.run(&["mount", "-t", "overlay", "overlay", "-o", &options, over])?;
        }
        let plugins = format!("mkdir -p {SOUGHT_NETWORKS} /opt/cni && ln -sfn {PLUGINS} {SOUGHT_PLUGINS}");
        peers.run(&["sh", "-c", &plugins])?;
        let file = dir.join("bench.conflist");
        fs::write(&file, network.to_string())?;
        peers.run(&["cp", text(&file)?, SOUGHT_NETWORKS])?;

        let at = |name: &str| dir.join(name);
        let socket = text(&at("socket"))?.to_owned();
        let configuration = at("config.toml");
        fs::write(
            &configuration,
            format!(
                "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
                 [grpc]\naddress = {socket:?}\n[plugins.\"io.containerd.internal.v1.opt\"]\npath = {:?}\n",
                at("root"),
                at("state"),
                at("opt")
            ),
        )?;
        let pid_file = at("pid");
        let start = "setsid containerd -l error -c \"$1\" >\"$2\" 2>&1 </dev/null & echo $! >\"$3\"";
        peers.run(&["sh", "-c", start, "sh", text(&configuration)?, text(&at("said"))?, text(&pid_file)?])?;
        let mut containerd = Self { peers, socket, pid_file, image: image.to_owned(), runs: 0 };
        containerd.until_it_answers().with_context(|| fs::read_to_string(at("said")).unwrap_or_default())?;
        let archive = at("image.tar");
        let saved = scratch.berth().args(["save", "-o", text(&archive)?, image]).status()?;
        ensure!(saved.success(), "berth save {image}: {saved}");
        containerd.ctr(&["images", "import", text(&archive)?])?;
        Ok(containerd)
    }

    /// Runs `/bin/true` under its default seccomp profile, in a network of CNI's or none.
    pub fn run(&mut self, with_network: bool) -> Result<Duration> {
        self.runs += 1;
        let (image, name) = (self.image.clone(), format!("bench-{}", self.runs));
        let mut words = vec!["run", "--rm", "--seccomp"];
        words.extend(with_network.then_some("--cni"));
        words.extend([image.as_str(), &name, "/bin/true"]);
        self.ctr(&words)
    }

    fn ctr(&mut self, words: &[&str]) -> Result<Duration> {
        let mut command = vec!["ctr", "-a", &self.socket];
        command.extend(words);
        self.peers.run(&command)
    }

    fn until_it_answers(&mut self) -> Result<()> {
        let began = Instant::now();
        while let Err(error) = self.ctr(&["version"]) {
            if began.elapsed() > PATIENCE {
                return Err(error.context("containerd does not answer"));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    fn end(&self) -> Result<()> {
        let pid = fs::read_to_string(&self.pid_file)?;
        let alive = || Path::new("/proc").join(pid.trim()).exists();
        Command::new("kill").arg(pid.trim()).stderr(Stdio::null()).status()?;
        let began = Instant::now();
        while alive() {
            if began.elapsed() > PATIENCE {
                bail!("containerd, process {}, does not end", pid.trim());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("side-by-side: {error:#}");
        }
    }
}

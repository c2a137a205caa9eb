//! The flags of `run` and `create`, and the spec that they make.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args};
use runtime_core::spec::{
    DEFAULT_INTERVAL, DEFAULT_RETRIES, DEFAULT_TIMEOUT, HealthCheck, HealthSpec, PortMapping, PortRange,
};
use runtime_core::{ContainerId, PullPolicy, RegistryAuth, ServiceSpec};

use crate::cli::parse_pull_policy;
use crate::failure::{Failure, Result};
use crate::flag_values::{self as values, SecurityOption};
use crate::log_flags::logs;
use crate::mount_flag::mount;
use crate::publish::{expose, publish};

#[derive(Debug, Default, Args)]
pub struct RunArgs {
    /// Start it, print its id, and leave it running
    #[arg(short, long)]
    pub detach: bool,
    /// Remove it when it ends
    #[arg(long)]
    pub rm: bool,
    /// Write its id to this file, which must not exist
    #[arg(long, value_name = "FILE")]
    pub cidfile: Option<PathBuf>,
    /// Say nothing of the pull
    #[arg(short, long)]
    pub quiet: bool,
    /// Its name [default: 12 random hexadecimal digits]
    #[arg(long)]
    pub name: Option<String>,
    /// Pass standard input on
    #[arg(short, long)]
    pub interactive: bool,
    /// Give it a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Run a tiny init that passes signals on and reaps orphans
    #[arg(long)]
    pub init: bool,
    /// Set a variable; with its name alone, from the own environment
    #[arg(short, long, value_name = "NAME[=VALUE]", action = ArgAction::Append)]
    pub env: Vec<String>,
    /// Read variables from a file
    #[arg(long, value_name = "FILE", action = ArgAction::Append)]
    pub env_file: Vec<PathBuf>,
    /// Mount a named volume, a host path, or a volume that dies with the container
    #[arg(short, long, value_name = "[NAME|/SOURCE:]/TARGET[:ro]", action = ArgAction::Append)]
    pub volume: Vec<String>,
    /// Mount a volume, a host path or a filesystem in memory
    #[arg(long, value_name = "type=bind|volume|tmpfs,source=…,target=…[,readonly]", action = ArgAction::Append)]
    pub mount: Vec<String>,
    /// Mount a filesystem in memory
    #[arg(long, value_name = "/TARGET[:size=64m,mode=1777]", action = ArgAction::Append)]
    pub tmpfs: Vec<String>,
    /// Start in this directory
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// Run as
    #[arg(short, long, value_name = "NAME|UID[:GROUP|GID]")]
    pub user: Option<String>,
    /// Limit its memory: b, k, m, g
    #[arg(short, long, value_name = "BYTES")]
    pub memory: Option<String>,
    /// Limit its memory and swap together [default: twice its memory]
    #[arg(long, value_name = "BYTES")]
    pub memory_swap: Option<String>,
    /// Limit its CPU time, in CPUs
    #[arg(long, value_name = "NUMBER")]
    pub cpus: Option<String>,
    /// Relative weight when CPUs are short
    #[arg(short, long, value_name = "WEIGHT")]
    pub cpu_shares: Option<u64>,
    /// CPUs it may run on (0-2,4)
    #[arg(long, value_name = "LIST")]
    pub cpuset_cpus: Option<String>,
    /// Limit its processes and threads; -1 for no limit [default: 2048]
    #[arg(long, value_name = "NUMBER")]
    pub pids_limit: Option<i64>,
    /// bridge, none, host, a network's name, or container:NAME for that of another container
    #[arg(long, visible_alias = "net", value_name = "NETWORK")]
    pub network: Option<String>,
    /// A further name of it in its network
    #[arg(long, visible_alias = "net-alias", value_name = "NAME", action = ArgAction::Append)]
    pub network_alias: Vec<String>,
    /// Publish a port on the host; ranges (8000-8010:80) and /udp too
    #[arg(short, long, value_name = "[[IP:][PORT]:]PORT", action = ArgAction::Append)]
    pub publish: Vec<String>,
    /// Publish all ports that the image exposes, each at a free one of the host
    #[arg(short = 'P', long)]
    pub publish_all: bool,
    /// Count a port among those that the image exposes
    #[arg(long, value_name = "PORT", action = ArgAction::Append)]
    pub expose: Vec<String>,
    /// Its host name [default: its name]
    #[arg(short = 'h', long, value_name = "NAME")]
    pub hostname: Option<String>,
    /// A line for /etc/hosts
    #[arg(long, value_name = "HOST:ADDRESS", action = ArgAction::Append)]
    pub add_host: Vec<String>,
    /// A name server
    #[arg(long, value_name = "ADDRESS", action = ArgAction::Append)]
    pub dns: Vec<String>,
    /// A search domain
    #[arg(long, value_name = "DOMAIN", action = ArgAction::Append)]
    pub dns_search: Vec<String>,
    /// Make the root filesystem read-only
    #[arg(long)]
    pub read_only: bool,
    /// Add a capability, or ALL
    #[arg(long, value_name = "CAPABILITY", action = ArgAction::Append)]
    pub cap_add: Vec<String>,
    /// Take a capability, or ALL
    #[arg(long, value_name = "CAPABILITY", action = ArgAction::Append)]
    pub cap_drop: Vec<String>,
    /// All capabilities and devices, no seccomp, nothing masked
    #[arg(long)]
    pub privileged: bool,
    /// seccomp=unconfined|FILE, no-new-privileges
    #[arg(long, value_name = "OPTION", action = ArgAction::Append)]
    pub security_opt: Vec<String>,
    /// Offer a host device, or all in a directory; in the container under another path, too
    #[arg(long, value_name = "/DEV/HOST[:/DEV/CONTAINER][:rwm]", action = ArgAction::Append)]
    pub device: Vec<String>,
    /// Set a resource limit
    #[arg(long, value_name = "NAME=SOFT[:HARD]", action = ArgAction::Append)]
    pub ulimit: Vec<String>,
    /// Set a kernel parameter of its namespaces
    #[arg(long, value_name = "NAME=VALUE", action = ArgAction::Append)]
    pub sysctl: Vec<String>,
    /// Size of /dev/shm [default: 64m]
    #[arg(long, value_name = "BYTES")]
    pub shm_size: Option<String>,
    /// Label it
    #[arg(short, long, value_name = "NAME[=VALUE]", action = ArgAction::Append)]
    pub label: Vec<String>,
    /// json-file or local: both are Berth's log
    #[arg(long, value_name = "DRIVER")]
    pub log_driver: Option<String>,
    /// max-size=BYTES, max-file=NUMBER: how much of its output is kept
    #[arg(long, value_name = "NAME=VALUE", action = ArgAction::Append)]
    pub log_opt: Vec<String>,
    /// In place of the image's entrypoint
    #[arg(long, value_name = "COMMAND")]
    pub entrypoint: Option<String>,
    /// The signal that asks it to stop [default: the image's, else TERM]
    #[arg(long, value_name = "SIGNAL")]
    pub stop_signal: Option<String>,
    /// Seconds between that signal and KILL; -1 for never [default: 10]
    #[arg(long, value_name = "SECONDS")]
    pub stop_timeout: Option<i64>,
    /// When to ask the registry: always, missing or never
    #[arg(long, value_name = "POLICY", default_value = "missing", value_parser = parse_pull_policy)]
    pub pull: PullPolicy,
    /// What to take from an image for several platforms [default: this host's]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    pub platform: Option<String>,
    /// Credentials for the registry
    #[arg(long, value_name = "USER:PASSWORD")]
    pub creds: Option<String>,
    /// Restart it when it ends by itself: no, always, unless-stopped, on-failure, on-failure:N
    #[arg(long, value_name = "POLICY")]
    pub restart: Option<String>,
    /// Check its health by this line for its shell: it is well if that ends with 0
    #[arg(long, value_name = "COMMAND")]
    pub health_cmd: Option<String>,
    /// Time between two checks [default: 30s]
    #[arg(long, value_name = "DURATION", requires = "health_cmd")]
    pub health_interval: Option<String>,
    /// Time a check may take [default: 30s]
    #[arg(long, value_name = "DURATION", requires = "health_cmd")]
    pub health_timeout: Option<String>,
    /// Failures in a row that make it unhealthy [default: 3]
    #[arg(long, value_name = "NUMBER", requires = "health_cmd")]
    pub health_retries: Option<u32>,
    /// Time after its start in which failures do not count [default: 0s]
    #[arg(long, value_name = "DURATION", requires = "health_cmd")]
    pub health_start_period: Option<String>,
    /// Leave the image's health check out
    #[arg(long, conflicts_with = "health_cmd")]
    pub no_healthcheck: bool,
    /// Print help
    #[arg(long, action = ArgAction::Help)]
    pub help: Option<bool>,
    /// The image, and what it is to run
    #[arg(required = true, num_args = 1.., trailing_var_arg = true, value_names = ["IMAGE", "COMMAND"])]
    pub image_and_command: Vec<String>,
}

impl RunArgs {
    /// The container's id: `--name`, else a random one.
    pub fn id(&self) -> Result<ContainerId> {
        let name = match &self.name {
            Some(name) => name.clone(),
            // 48 random bits.
            None => format!("{:012x}", rand::random::<u64>() >> 16),
        };
        let id = ContainerId::new(name, 0);
        id.validate().map_err(|error| Failure::from(error).of_flag("--name"))?;
        Ok(id)
    }

    /// Credentials for the pull.
    pub fn auth(&self) -> Result<Option<RegistryAuth>> {
        self.creds.as_deref().map(values::credentials).transpose()
    }

    /// What is asked for.
    pub fn spec(&self) -> Result<ServiceSpec> {
        let Some((image, command)) = self.image_and_command.split_first() else {
            return Err(Failure::usage("an image is needed"));
        };
        let mut spec = ServiceSpec::new(image);
        spec.image.pull_policy = self.pull;
        spec.platform.clone_from(&self.platform);
        spec.stdin = self.interactive;
        spec.tty = self.tty;
        spec.init = self.init;
        spec.remove_on_exit = self.rm;
        self.set_command(&mut spec, command)?;
        self.set_resources(&mut spec)?;
        self.set_storage(&mut spec)?;
        self.set_network(&mut spec)?;
        self.set_security(&mut spec)?;
        spec.logs = logs(self.log_driver.as_deref(), &self.log_opt)?;
        spec.labels = self.label.iter().map(|text| values::label(text)).collect::<Result<_>>()?;
        Ok(spec)
    }

    fn set_command(&self, spec: &mut ServiceSpec, command: &[String]) -> Result<()> {
        if !command.is_empty() {
            spec.command.args = Some(command.to_vec());
        }
        // An empty one takes the image's away; any drops the image's CMD.
        spec.command.entrypoint = self
            .entrypoint
            .as_ref()
            .map(|entrypoint| if entrypoint.is_empty() { Vec::new() } else { vec![entrypoint.clone()] });
        spec.command.workdir.clone_from(&self.workdir);
        spec.env = values::environment(&self.env_file, &self.env)?;
        spec.user.clone_from(&self.user);
        spec.stop_signal.clone_from(&self.stop_signal);
        spec.stop_timeout = self.stop_timeout.map(values::stop_timeout);
        spec.health = self.health()?;
        spec.no_healthcheck = self.no_healthcheck;
        spec.restart_policy = self.restart.as_deref().map(values::restart).transpose()?.unwrap_or_default();
        Ok(())
    }

    /// Docker's values for what is left out, or 0.
    fn health(&self) -> Result<Option<HealthSpec>> {
        let Some(line) = &self.health_cmd else { return Ok(None) };
        let time = |flag, text: &Option<String>, default| match text {
            None => Ok(default),
            Some(text) => values::time_span(flag, text).map(|time| if time.is_zero() { default } else { time }),
        };
        Ok(Some(HealthSpec {
            check: HealthCheck::Command { command: vec!["/bin/sh".to_owned(), "-c".to_owned(), line.clone()] },
            start_grace: time("--health-start-period", &self.health_start_period, Duration::ZERO)?,
            interval: time("--health-interval", &self.health_interval, DEFAULT_INTERVAL)?,
            timeout: time("--health-timeout", &self.health_timeout, DEFAULT_TIMEOUT)?,
            retries: self.health_retries.filter(|retries| *retries != 0).unwrap_or(DEFAULT_RETRIES),
        }))
    }

    fn set_resources(&self, spec: &mut ServiceSpec) -> Result<()> {
        let resources = &mut spec.resources;
        resources.memory = self.memory.as_deref().map(|text| values::memory("--memory", text)).transpose()?;
        // Docker reads 0 as no limit.
        resources.memory = resources.memory.filter(|memory| memory.as_u64() != 0);
        if let Some(text) = &self.memory_swap {
            resources.swap = values::swap(text, resources.memory)?;
        }
        resources.cpu = match self.cpus.as_deref() {
            None | Some("0") => None,
            Some(text) => Some(values::cpus(text)?),
        };
        resources.pids = self.pids_limit.map(values::pids_limit).transpose()?;
        resources.cpu_shares = self.cpu_shares.filter(|shares| *shares != 0);
        resources.cpuset = self.cpuset_cpus.clone().filter(|list| !list.is_empty());
        // 0 stands for the default, as with docker.
        let shm_size = self.shm_size.as_deref().map(|text| values::memory("--shm-size", text)).transpose()?;
        spec.shm_size = shm_size.filter(|size| size.as_u64() > 0);
        spec.rlimits = self.ulimit.iter().map(|text| values::ulimit(text)).collect::<Result<_>>()?;
        Ok(())
    }

    fn set_storage(&self, spec: &mut ServiceSpec) -> Result<()> {
        // Needed for paths that begin with a dot alone.
        let cwd = std::env::current_dir().ok();
        let cwd = cwd.as_deref();
        for text in &self.volume {
            spec.storage.push(values::volume(text, cwd)?);
        }
        for text in &self.mount {
            spec.storage.push(mount(text, cwd)?);
        }
        for text in &self.tmpfs {
            spec.storage.push(values::tmpfs(text)?);
        }
        Ok(())
    }

    fn set_network(&self, spec: &mut ServiceSpec) -> Result<()> {
        if let Some(network) = &self.network {
            spec.network.mode = values::network(network)?;
        }
        spec.network.aliases.clone_from(&self.network_alias);
        for text in &self.publish {
            let published = publish(text)?;
            spec.port_mappings.extend(published.mappings);
            spec.port_ranges.extend(published.range);
        }
        spec.publish_all = self.publish_all;
        for text in &self.expose {
            let exposed = expose(text)?;
            let published = |one: &PortMapping| {
                let same =
                    |other: &PortMapping| other.container_port == one.container_port && other.protocol == one.protocol;
                let range =
                    |range: &PortRange| range.container_port == one.container_port && range.protocol == one.protocol;
                spec.port_mappings.iter().any(same) || spec.port_ranges.iter().any(range)
            };
            let more: Vec<PortMapping> = exposed.into_iter().filter(|one| !published(one)).collect();
            // Without --publish-all it is said, and of no effect: every port can be reached within the network.
            if self.publish_all {
                spec.port_mappings.extend(more);
            }
        }
        spec.hostname.clone_from(&self.hostname);
        spec.extra_hosts = self.add_host.iter().map(|text| values::extra_host(text)).collect::<Result<_>>()?;
        spec.dns.clone_from(&self.dns);
        spec.dns_search.clone_from(&self.dns_search);
        Ok(())
    }

    fn set_security(&self, spec: &mut ServiceSpec) -> Result<()> {
        spec.read_only = self.read_only;
        spec.privileged = self.privileged;
        spec.capabilities.clone_from(&self.cap_add);
        spec.drop_capabilities.clone_from(&self.cap_drop);
        for text in &self.security_opt {
            match values::security_option(text)? {
                SecurityOption::Seccomp(seccomp) => spec.seccomp = seccomp,
                SecurityOption::NoNewPrivileges(asked) => spec.no_new_privileges = asked,
                SecurityOption::AsItIs => {}
            }
        }
        spec.devices = self.device.iter().map(|text| values::device(text)).collect::<Result<_>>()?;
        spec.sysctls = self.sysctl.iter().map(|text| values::assignment("--sysctl", text)).collect::<Result<_>>()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use runtime_core::spec::{NetworkMode, SeccompSpec, StorageSpec};

    use super::*;
    use crate::cli::{Cli, Command};

    fn args(line: &str) -> impl std::ops::Deref<Target = RunArgs> {
        let words =
            ["berth", "run"].into_iter().chain(line.split(' ').map(|word| if word == "''" { "" } else { word }));
        match Cli::read(words).unwrap_or_else(|error| panic!("{line}: {error}")).command {
            Command::Run(args) => *args,
            _ => unreachable!(),
        }
    }

    #[test]
    fn flags_become_fields_of_the_spec() {
        let spec = args(
            "--rm -i -e A=1 -v data:/data:ro --tmpfs /t:size=1m -w /srv -u 5:6 -m 64m --cpus 0.5 --pids-limit 9 \
             --network none -h me --read-only --cap-add NET_ADMIN --cap-drop ALL --security-opt no-new-privileges \
             --security-opt seccomp=unconfined --stop-signal INT --stop-timeout 3 --pull never --label a=b \
             -p 8080:80 -p 9000-9001:9000-9001/udp -P --expose 70 --expose 80 --network-alias db \
             --ulimit nofile=5 --sysctl x.y=1 --shm-size 1m --add-host db:1.2.3.4 --dns 9.9.9.9 img sh -c true",
        )
        .spec()
        .unwrap();
        assert_eq!((spec.image.name.as_str(), spec.image.pull_policy), ("img", PullPolicy::Never));
        assert_eq!(spec.command.args.unwrap(), ["sh", "-c", "true"]);
        assert_eq!(spec.command.workdir.as_deref(), Some("/srv"));
        assert_eq!(spec.command.entrypoint, None);
        assert!(spec.stdin && spec.remove_on_exit && spec.read_only && spec.no_new_privileges);
        assert_eq!(spec.env["A"], "1");
        assert_eq!(spec.user.as_deref(), Some("5:6"));
        assert_eq!(spec.resources.memory.unwrap().as_u64(), 64 << 20);
        assert_eq!((spec.resources.cpu, spec.resources.pids), (Some(0.5), Some(9)));
        assert_eq!(spec.network.mode, NetworkMode::None);
        assert_eq!(spec.hostname.as_deref(), Some("me"));
        let ports: Vec<_> = spec.port_mappings.iter().map(|port| (port.host_port, port.container_port)).collect();
        assert_eq!(ports, [(Some(8080), 80), (Some(9000), 9000), (Some(9001), 9001), (None, 70)]);
        assert!(spec.publish_all);
        assert_eq!(spec.network.aliases, ["db"]);
        assert_eq!((spec.capabilities, spec.drop_capabilities), (vec!["NET_ADMIN".into()], vec!["ALL".into()]));
        assert_eq!(spec.seccomp, SeccompSpec::Unconfined);
        assert_eq!((spec.stop_signal.as_deref(), spec.stop_timeout), (Some("INT"), Some(Duration::from_secs(3))));
        assert_eq!((spec.labels["a"].as_str(), spec.sysctls["x.y"].as_str()), ("b", "1"));
        assert_eq!(spec.rlimits["nofile"].hard, 5);
        assert_eq!(spec.shm_size.unwrap().as_u64(), 1 << 20);
        assert_eq!((spec.extra_hosts, spec.dns), (vec!["db:1.2.3.4".to_owned()], vec!["9.9.9.9".to_owned()]));
        let targets: Vec<&str> = spec.storage.iter().map(StorageSpec::target).collect();
        assert_eq!(targets, ["/data", "/t"]);
    }

    #[test]
    fn a_size_of_nothing_is_the_default() {
        for flag in ["--shm-size 0", "-m 0"] {
            let spec = args(&format!("{flag} img")).spec().unwrap();
            assert_eq!((spec.shm_size, spec.resources.memory), (None, None), "{flag}");
        }
    }

    #[test]
    fn entrypoints_and_commands_are_dockers() {
        for (line, entrypoint, command) in [
            ("img", None, None),
            ("img a b", None, Some(&["a", "b"][..])),
            ("--entrypoint /e img", Some(&["/e"][..]), None),
            ("--entrypoint /e img a", Some(&["/e"]), Some(&["a"])),
            ("--entrypoint '' img a", Some(&[]), Some(&["a"])),
        ] {
            let spec = args(line).spec().unwrap();
            let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
            assert_eq!(spec.command.entrypoint, entrypoint.map(owned), "{line}");
            assert_eq!(spec.command.args, command.map(owned), "{line}");
        }
    }

    #[test]
    fn a_name_is_checked_and_a_random_one_is_valid() {
        assert_eq!(args("--name web img").id().unwrap().to_string(), "web-rep-0");
        for bad in ["web-rep-1", "../x", "-", "a/b"] {
            assert!(args(&format!("--name={bad} img")).id().is_err(), "{bad}");
        }
        let (one, other) = (args("img").id().unwrap(), args("img").id().unwrap());
        assert_ne!(one, other);
        assert_eq!(one.service.len(), 12);
    }
}

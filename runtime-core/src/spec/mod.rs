//! [`ServiceSpec`]: what a container shall be. Read from YAML or JSON; unknown fields are errors.

mod byte_size;
pub mod duration;
mod health;
mod ports;
mod storage;
mod tagged;

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::image::PullPolicy;
pub use byte_size::{ByteSize, InvalidByteSize};
pub use health::{DEFAULT_INTERVAL, DEFAULT_RETRIES, DEFAULT_START_GRACE, DEFAULT_TIMEOUT, HealthCheck, HealthSpec};
pub use ports::{EndpointProtocol, EndpointSpec, PortMapping, PortProtocol, PortRange};
pub use storage::StorageSpec;

/// All that is asked of a container. Only the image is required.
///
/// ```
/// let spec: runtime_core::ServiceSpec = serde_yaml_ng::from_str("
/// image: { name: docker.io/library/busybox:latest }
/// command: { args: [sleep, infinity] }
/// resources: { memory: 64Mi, cpu: 0.5 }
/// storage: [{ type: named, name: data, target: /data }]
/// ").unwrap();
/// assert_eq!(spec.resources.memory.unwrap().as_u64(), 64 << 20);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceSpec {
    /// The image.
    pub image: ImageSpec,
    /// What to run; Docker's rules for what is left out.
    #[serde(default)]
    pub command: CommandSpec,
    /// Environment. `$E:VAR` is taken from the agent's environment, `$S:name` from its secrets provider.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Limits.
    #[serde(default)]
    pub resources: ResourcesSpec,
    /// Mounts and volumes.
    #[serde(default)]
    pub storage: Vec<StorageSpec>,
    /// Host devices to offer.
    #[serde(default)]
    pub devices: Vec<DeviceSpec>,
    /// Capabilities added to the default set (`NET_ADMIN` or `CAP_NET_ADMIN`; `ALL`).
    #[serde(default)]
    pub capabilities: Vec<String>,
    /// Capabilities taken from the default set (`ALL` takes all).
    #[serde(default)]
    pub drop_capabilities: Vec<String>,
    /// All capabilities and devices, no seccomp, nothing masked.
    #[serde(default)]
    pub privileged: bool,
    /// System call filter.
    #[serde(default)]
    pub seccomp: SeccompSpec,
    /// Processes can gain no privilege by exec (`PR_SET_NO_NEW_PRIVS`).
    #[serde(default)]
    pub no_new_privileges: bool,
    /// Which network.
    #[serde(default)]
    pub network: NetworkSpec,
    /// Names for what the service offers: kept, not acted on.
    #[serde(default)]
    pub endpoints: Vec<EndpointSpec>,
    /// Published ports.
    #[serde(default)]
    pub port_mappings: Vec<PortMapping>,
    /// Ports that are published wherever there is room in a range.
    #[serde(default)]
    pub port_ranges: Vec<PortRange>,
    /// Publish also what the image exposes, each at an ephemeral port of the host.
    #[serde(default)]
    pub publish_all: bool,
    /// Share the host's network; the same as `network: {mode: host}`.
    #[serde(default)]
    pub host_network: bool,
    /// Host name; the container's name if `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Name servers; the host's if empty.
    #[serde(default)]
    pub dns: Vec<String>,
    /// Search domains; the host's if empty.
    #[serde(default)]
    pub dns_search: Vec<String>,
    /// Lines for `/etc/hosts`: `host:ip`, where `host-gateway` as address stands for the host's.
    #[serde(default)]
    pub extra_hosts: Vec<String>,
    /// Health check; the image's HEALTHCHECK if `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthSpec>,
    /// Not even the image's HEALTHCHECK.
    #[serde(default)]
    pub no_healthcheck: bool,
    /// What to do when the container ends by itself.
    #[serde(default)]
    pub restart_policy: RestartPolicy,
    /// Where output goes, and how much is kept.
    #[serde(default)]
    pub logs: LogsSpec,
    /// `name|uid[:group|gid]`; the image's if `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The root filesystem is read-only.
    #[serde(default)]
    pub read_only: bool,
    /// Resource limits by name (`nofile`, `core`, …).
    #[serde(default)]
    pub rlimits: BTreeMap<String, RlimitSpec>,
    /// Kernel parameters of the container's own namespaces.
    #[serde(default)]
    pub sysctls: BTreeMap<String, String>,
    /// Signal that asks the container to stop, by name or number; the image's, else TERM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
    /// Time between that signal and KILL, where the caller of stop names none.
    #[serde(default, with = "duration::option", skip_serializing_if = "Option::is_none")]
    pub stop_timeout: Option<Duration>,
    /// Free-form labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// `os/arch[/variant]` to take from an image index; the host's if `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
    /// Run a tiny init that reaps orphans.
    #[serde(default)]
    pub init: bool,
    /// Keep standard input open for `attach` or a foreground run.
    #[serde(default)]
    pub stdin: bool,
    /// Give the container a terminal.
    #[serde(default)]
    pub tty: bool,
    /// Size of `/dev/shm`; 64 MiB if `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shm_size: Option<ByteSize>,
    /// It is removed as soon as it ends, by whoever supervises it: its writable layer need not survive a power cut.
    #[serde(default)]
    pub remove_on_exit: bool,

    /// The agent's business: parsed, kept, not acted on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<Value>,
    /// The agent's business: parsed, kept, not acted on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale: Option<Value>,
    /// The agent's business: parsed, kept, not acted on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub depends: Option<Value>,
    /// The agent's business: parsed, kept, not acted on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errors: Option<Value>,
    /// The agent's business: parsed, kept, not acted on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_mode: Option<Value>,
    /// The agent's business: parsed, kept, not acted on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_selector: Option<Value>,
}

impl ServiceSpec {
    /// A spec that runs `image` as it is.
    #[must_use]
    pub fn new(image: impl Into<String>) -> Self {
        Self { image: ImageSpec { name: image.into(), ..ImageSpec::default() }, ..Self::default() }
    }

    /// The network asked for, `host_network` included.
    #[must_use]
    pub fn network_mode(&self) -> &NetworkMode {
        if self.host_network { &NetworkMode::Host } else { &self.network.mode }
    }
}

/// Which image, and when to ask its registry.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageSpec {
    /// Reference: `registry/repository:tag` or `@digest`; Docker's short forms too.
    pub name: String,
    /// When to ask the registry.
    #[serde(default)]
    pub pull_policy: PullPolicy,
}

/// What to run, by Docker's rules: an entrypoint drops the image's CMD; only args keep its ENTRYPOINT.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CommandSpec {
    /// In place of the image's ENTRYPOINT.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    /// In place of the image's CMD.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub args: Option<Vec<String>>,
    /// In place of the image's WORKDIR; absolute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
}

/// Limits. `None`: no limit, but for pids.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResourcesSpec {
    /// CPUs, in cores (`0.5`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<f64>,
    /// Memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<ByteSize>,
    /// GPUs; for the agent's scheduler.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<Value>,
    /// Processes and threads; 2048 if `None`, no limit if -1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids: Option<i64>,
    /// Swap beyond the memory limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub swap: Option<ByteSize>,
    /// Relative weight when CPUs are short, 2 to 262144; 1024 is usual.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_shares: Option<u64>,
    /// CPUs it may run on (`0-2,4`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpuset: Option<String>,
    /// Block I/O.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io: Option<IoSpec>,
}

/// Block I/O limits.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IoSpec {
    /// Relative weight, 10 to 1000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u16>,
}

/// A host device offered to the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceSpec {
    /// The device node on the host, or a directory of them; in the container it has the same path, unless another follows a
    /// colon: `/dev/sda:/dev/xvda`.
    pub path: String,
    /// May be read.
    #[serde(default = "yes")]
    pub read: bool,
    /// May be written.
    #[serde(default = "yes")]
    pub write: bool,
    /// May be made by mknod.
    #[serde(default)]
    pub mknod: bool,
}

impl DeviceSpec {
    /// Its paths on the host and in the container.
    #[must_use]
    pub fn paths(&self) -> (&str, &str) {
        // Names of devices hold colons, as in /dev/disk/by-path.
        match self.path.find(":/") {
            Some(colon) => (&self.path[..colon], &self.path[colon + 1..]),
            None => (&self.path, &self.path),
        }
    }
}

fn yes() -> bool {
    true
}

/// Soft and hard resource limit; `u64::MAX` for none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RlimitSpec {
    /// What is enforced.
    pub soft: u64,
    /// How far the process may raise it.
    pub hard: u64,
}

/// System call filter.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SeccompSpec {
    /// Docker's default profile.
    #[default]
    Default,
    /// None.
    Unconfined,
    /// A profile file in Docker's format on the host.
    File(String),
}

/// The network a container is attached to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkSpec {
    /// Which.
    #[serde(default)]
    pub mode: NetworkMode,
    /// Further names of the container in it.
    #[serde(default)]
    pub aliases: Vec<String>,
}

/// `bridge` (the default network), `none`, `host`, or the name of a network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", from = "String")]
#[allow(missing_docs)] // each variant is its name
pub enum NetworkMode {
    #[default]
    Bridge,
    None,
    Host,
    Named(String),
}

impl NetworkMode {
    /// The container whose network is joined, of a mode `container:NAME`.
    #[must_use]
    pub fn container(&self) -> Option<&str> {
        match self {
            Self::Named(name) => name.strip_prefix("container:"),
            Self::Bridge | Self::None | Self::Host => None,
        }
    }
}

impl From<String> for NetworkMode {
    fn from(text: String) -> Self {
        match text.as_str() {
            "bridge" | "" => Self::Bridge,
            "none" => Self::None,
            "host" => Self::Host,
            _ => Self::Named(text),
        }
    }
}

impl From<NetworkMode> for String {
    fn from(mode: NetworkMode) -> Self {
        mode.to_string()
    }
}

impl fmt::Display for NetworkMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bridge => "bridge",
            Self::None => "none",
            Self::Host => "host",
            Self::Named(name) => name,
        })
    }
}

/// What to do when the container ends by itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RestartPolicy {
    /// Whether.
    #[serde(default)]
    pub kind: RestartKind,
    /// Give up after so many restarts since it was last started by hand; `None`: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_attempts: Option<u32>,
    /// Wait so long before the first, doubled each time up to a minute and begun anew once an attempt ran for 10 s; 100 ms
    /// if `None`, as docker.
    #[serde(default, with = "duration::option", skip_serializing_if = "Option::is_none")]
    pub delay: Option<Duration>,
}

/// When to restart. What was told to stop, or to end by a signal, is never restarted; neither does anything restart by
/// itself after a reboot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RestartKind {
    /// Never.
    #[default]
    No,
    /// Whenever it ends by itself.
    Always,
    /// The same: nothing is restarted that was stopped.
    UnlessStopped,
    /// When it ends with another exit code than 0, by a signal, or for want of memory.
    OnFailure,
}

impl FromStr for RestartKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "no" => Ok(Self::No),
            "always" => Ok(Self::Always),
            "unless-stopped" | "unless_stopped" => Ok(Self::UnlessStopped),
            "on-failure" | "on_failure" => Ok(Self::OnFailure),
            _ => Err(format!("{text:?} is not a restart policy: no, always, unless-stopped or on-failure")),
        }
    }
}

/// Where output goes, and how much of it is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogsSpec {
    /// Where it is shipped to; for the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<String>,
    /// All that a container keeps, in about ten files, so at least 40 KiB; the runtime's configured size if `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_size_bytes: Option<u64>,
    /// How long it is kept; for the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<String>,
    /// What happens when the disk is slower than the container; the runtime's configured mode if `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<LogMode>,
    /// What a non-blocking log holds in memory until its disk takes it, 1 MiB if `None`. Not for a blocking one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_buffer_bytes: Option<u64>,
}

/// What happens when a container writes faster than its log can be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogMode {
    /// The container waits, as with docker.
    #[default]
    Blocking,
    /// The container never waits: what a bounded buffer does not hold is dropped, by whole lines, counted, and said in the
    /// log.
    NonBlocking,
}

#[cfg(test)]
mod tests;

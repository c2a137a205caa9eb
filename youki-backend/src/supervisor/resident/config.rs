//! What a resident supervisor is told when it is executed, and the descriptors it finds.

use std::path::PathBuf;

use runtime_core::spec::RestartPolicy;
use serde::{Deserialize, Serialize};

use crate::network::Departure;

/// The connection to the agent that creates the container.
pub(crate) const CONTROL_FD: i32 = 0;
/// Listens for further connections.
pub(crate) const LISTENER_FD: i32 = 3;
/// The helper's result: lines `build`, `pid N`, `done`, or `error TEXT`.
pub(crate) const RESULT_FD: i32 = 4;
/// The init's errno when its `execve` fails; the end of file when it succeeds.
pub(crate) const ERRNO_FD: i32 = 5;
/// Read ends of the container's output. With a terminal the first is a socket, on which the init sends that.
pub(crate) const OUTPUT_FDS: [i32; 2] = [6, 7];
/// Write end of the container's standard input, when it is kept open.
pub(crate) const STDIN_FD: i32 = 8;
/// The plan by which the container is built again: in memory that is no file's, for it may hold secrets. A container that
/// has no restart policy may get one while it runs, so it is there for all but those that are removed with their end; and
/// for these where execs take variables from it.
pub(crate) const PLAN_FD: i32 = 9;
/// Beside it the executable that does so, by the version of this supervisor.
pub(crate) const STAGE_FD: i32 = 10;
/// The host's network namespace, for a supervisor that has to take its container off a network.
pub(crate) const HOST_NETWORK_FD: i32 = 11;
/// Sockets at the container's published ports, kept from the host's processes as long as it runs; then nothing more.
pub(crate) const FIRST_HELD_FD: i32 = 12;

/// Passed as one JSON argument.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ResidentConfig {
    /// `<root>/containers/<id>`.
    pub container_dir: PathBuf,
    /// libcontainer's directory of this container, which holds its notify socket.
    pub state_dir: PathBuf,
    /// Our socket, unlinked at the end.
    pub socket: PathBuf,
    /// The container's cgroup, as `/berth/web-rep-0`.
    pub cgroup_path: String,
    /// Which attempt this is.
    pub attempt: u32,
    /// The helper that builds the container.
    pub helper_pid: i32,
    /// The container's standard input is kept open.
    pub stdin: bool,
    /// The journal of events; none where the agent is older than that.
    #[serde(default)]
    pub events: Option<PathBuf>,
    /// The container has a terminal.
    #[serde(default)]
    pub terminal: bool,
    /// What is done when the container ends by itself.
    #[serde(default)]
    pub restart: RestartPolicy,
    /// The signal that asks it to stop, 0 where the agent is older than restarts.
    #[serde(default)]
    pub stop_signal: i32,
    /// Its network namespace is the container's own, which is ours as well.
    #[serde(default)]
    pub own_network: bool,
    /// How many sockets are held.
    #[serde(default)]
    pub held_sockets: i32,
    /// Size at which a log file is followed by the next.
    pub log_file_max_bytes: u64,
    /// How many are kept.
    pub log_files: usize,
    /// What a non-blocking log holds back in memory; none for a blocking one.
    #[serde(default)]
    pub log_buffer_bytes: Option<u64>,
    /// Values of its environment are on no record: execs ask for them.
    #[serde(default)]
    pub resolved_env: bool,
    /// It has CAP_SYS_PTRACE, but is not to have all that the host's root may do.
    #[serde(default)]
    pub may_trace: bool,
    /// For a container that is removed with its end.
    #[serde(default)]
    pub removal: Option<RemovalPlan>,
}

/// What a supervisor must know to remove its container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct RemovalPlan {
    /// The container's lock.
    pub lock: PathBuf,
    /// `<run>/containers/<id>`.
    pub run_dir: PathBuf,
    /// `<root>/trash`.
    pub trash: PathBuf,
    /// What it has of the networks.
    pub network: Option<Departure>,
}

impl ResidentConfig {
    /// Whether an attempt may be followed by another, now or by a policy that is set later: [`STAGE_FD`] is there.
    pub fn may_restart(&self) -> bool {
        self.removal.is_none()
    }

    /// Whether [`PLAN_FD`] is there.
    pub fn keeps_plan(&self) -> bool {
        self.may_restart() || self.resolved_env
    }

    /// Whether [`HOST_NETWORK_FD`] is needed.
    pub fn needs_host_network(&self) -> bool {
        self.removal.as_ref().and_then(|plan| plan.network.as_ref()).is_some_and(Departure::is_on_bridge)
    }
}

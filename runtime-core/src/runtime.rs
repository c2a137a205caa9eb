//! The [`Runtime`] trait.

use std::net::IpAddr;
use std::time::Duration;

use async_trait::async_trait;

use crate::container::{ContainerId, ContainerInspectDetails, ContainerState, ContainerSummary, TopEntry, WaitOutcome};
use crate::error::{AgentError, Result};
use crate::event::{EventStream, EventsOptions};
use crate::exec::{ExecEvent, ExecEventStream, ExecInput, ExecOptions};
use crate::image::{ImageInfo, PruneResult, PullPolicy, RegistryAuth};
use crate::logs::{LogEntry, LogRecordStream, LogsOptions};
use crate::spec::{ResourcesSpec, ServiceSpec};
use crate::stats::{ContainerStats, DetailedStats};
use crate::volume::VolumeStatus;

fn unsupported<T>(method: &str) -> Result<T> {
    Err(AgentError::Unsupported(format!("this backend has no {method}")))
}

/// A container runtime.
///
/// Every method that takes an id answers [`AgentError::NotFound`] for an unknown one; `None` is only for a known
/// container. Dropping the future of any method leaves the work undone, or completed by its owner, never half: calling
/// again joins or redoes it.
#[async_trait]
pub trait Runtime: Send + Sync {
    /// Pulls `image` if it is not here: [`Runtime::pull_image_with_policy`] with `IfNotPresent` and no credentials.
    async fn pull_image(&self, image: &str) -> Result<()>;

    /// Makes `image` available. Credentials: `auth` first, else the credential store by registry host, else none.
    /// With [`PullPolicy::Never`] no network call is made.
    async fn pull_image_with_policy(&self, image: &str, policy: PullPolicy, auth: Option<&RegistryAuth>) -> Result<()>;

    /// Creates a container up to the point where its process waits to be started: root filesystem, volumes (restored
    /// if needed), network, cgroup. An id that exists is [`AgentError::CreateFailed`]; that container is untouched.
    async fn create_container(&self, id: &ContainerId, spec: &ServiceSpec) -> Result<()>;

    /// Starts a created container. Returns once the user's program was executed, or with the reason why not. Ok at
    /// once on a running one; on an exited or failed one, a new attempt with the same root, address and logs.
    async fn start_container(&self, id: &ContainerId) -> Result<()>;

    /// Sends the stop signal, waits `timeout`, kills what is left. Ok when every process is gone, the exit is on
    /// record, and a sync of the container's named volumes was tried. Idempotent.
    async fn stop_container(&self, id: &ContainerId, timeout: Duration) -> Result<()>;

    /// Kills it if it runs and frees everything; goes on after an error and reports it at the end. Unsynced data of
    /// named volumes is never deleted. A second call: NotFound.
    async fn remove_container(&self, id: &ContainerId) -> Result<()>;

    /// What it is doing. True after a restart of the agent and of the host.
    async fn container_state(&self, id: &ContainerId) -> Result<ContainerState>;

    /// The last `tail` entries in time order over both streams; 0 for all.
    async fn container_logs(&self, id: &ContainerId, tail: usize) -> Result<Vec<LogEntry>>;

    /// All entries.
    async fn get_logs(&self, id: &ContainerId) -> Result<Vec<LogEntry>>;

    /// Runs a further process in the container: exit code, stdout, stderr (lossy UTF-8, bounded, truncation marked).
    /// 127 when the program does not exist, 126 when it cannot be executed. An empty command is InvalidSpec.
    async fn exec(&self, id: &ContainerId, command: &[String]) -> Result<(i32, String, String)>;

    /// The same with events as they are produced, exactly one `Exit`, last. The default runs [`Runtime::exec`] first.
    async fn exec_stream(&self, id: &ContainerId, command: &[String]) -> Result<ExecEventStream> {
        let (code, stdout, stderr) = self.exec(id, command).await?;
        let output = [(stdout, ExecEvent::Stdout as fn(String) -> ExecEvent), (stderr, ExecEvent::Stderr)];
        let events = output.into_iter().filter(|(text, _)| !text.is_empty()).map(|(text, event)| event(text));
        let events: Vec<ExecEvent> = events.chain([ExecEvent::Exit(code)]).collect();
        Ok(Box::pin(futures_util::stream::iter(events)))
    }

    /// What it uses; for an exited container its last stats.
    async fn get_container_stats(&self, id: &ContainerId) -> Result<ContainerStats>;

    /// Waits for the end of the current attempt (before the first start: of the first) and returns the exit code,
    /// 128+N for signal N. At once if it is over. Any number of waiters, no time limit.
    async fn wait_container(&self, id: &ContainerId) -> Result<i32>;

    /// The same with the reason. The default knows none and says Exited.
    async fn wait_outcome(&self, id: &ContainerId) -> Result<WaitOutcome> {
        self.wait_container(id).await.map(WaitOutcome::exited)
    }

    /// Process id of its init in the agent's PID namespace; `None` when it does not run.
    async fn get_container_pid(&self, id: &ContainerId) -> Result<Option<u32>>;

    /// Its first address; `None` in host mode and without a network.
    async fn get_container_ip(&self, id: &ContainerId) -> Result<Option<IpAddr>>;

    /// For a replica in the host's network: the unique free port it was given as `PORT`.
    async fn get_container_port_override(&self, _id: &ContainerId) -> Result<Option<u16>> {
        Ok(None)
    }

    /// Syncs its named volumes; Ok only when they are durable. Without named volumes, or with nowhere to sync to: Ok.
    async fn sync_container_volumes(&self, _id: &ContainerId) -> Result<()> {
        Ok(())
    }

    /// The local images.
    async fn list_images(&self) -> Result<Vec<ImageInfo>> {
        unsupported("list_images")
    }

    /// Removes an image by reference or digest. One that a container uses is refused unless `force`; layers that
    /// others share, or a container still uses, stay.
    async fn remove_image(&self, _image: &str, _force: bool) -> Result<()> {
        unsupported("remove_image")
    }

    /// Removes unused images and what no image refers to. Safe beside a pull or create in flight.
    async fn prune_images(&self) -> Result<PruneResult> {
        unsupported("prune_images")
    }

    /// Sends a signal to its init: KILL if `None`, else KILL, TERM, INT, HUP, USR1 or USR2, with or without SIG, in
    /// any case. Others are InvalidSpec.
    async fn kill_container(&self, _id: &ContainerId, _signal: Option<&str>) -> Result<()> {
        unsupported("kill_container")
    }

    /// Gives the image `source` the further name `target`, which must have a repository and a tag.
    async fn tag_image(&self, _source: &str, _target: &str) -> Result<()> {
        unsupported("tag_image")
    }

    /// Ports, networks, health, exit code. The default knows nothing.
    async fn inspect_detailed(&self, _id: &ContainerId) -> Result<ContainerInspectDetails> {
        Ok(ContainerInspectDetails::default())
    }

    // What follows goes beyond the contract's 24 methods; a backend that has none of it is complete.

    /// All containers of this root, by id.
    async fn list_containers(&self) -> Result<Vec<ContainerSummary>> {
        unsupported("list_containers")
    }

    /// The log as it is kept, in part or followed.
    async fn logs_stream(&self, _id: &ContainerId, _options: &LogsOptions) -> Result<LogRecordStream> {
        unsupported("logs_stream")
    }

    /// All that the kernel tells of it; for an exited container its last stats.
    async fn stats_detailed(&self, _id: &ContainerId) -> Result<DetailedStats> {
        unsupported("stats_detailed")
    }

    /// [`Runtime::exec_stream`] with an environment, user, directory, time limit and input of its own.
    async fn exec_with(
        &self,
        _id: &ContainerId,
        _command: &[String],
        _options: &ExecOptions,
        _input: Option<ExecInput>,
    ) -> Result<ExecEventStream> {
        unsupported("exec_with")
    }

    /// Freezes all processes of a running container. Ok at once on a paused one.
    async fn pause(&self, _id: &ContainerId) -> Result<()> {
        unsupported("pause")
    }

    /// Lets a paused container go on. Ok at once on one that is not paused.
    async fn unpause(&self, _id: &ContainerId) -> Result<()> {
        unsupported("unpause")
    }

    /// Sets what `changes` names of its limits, and leaves the rest. A running one has it when this returns; any keeps it
    /// for its next start. What cannot be set changes nothing.
    async fn update_resources(&self, _id: &ContainerId, _changes: &ResourcesSpec) -> Result<()> {
        unsupported("update_resources")
    }

    /// Its processes.
    async fn top(&self, _id: &ContainerId) -> Result<Vec<TopEntry>> {
        unsupported("top")
    }

    /// What happened to containers, images and volumes, by whichever process; a bounded history, then what happens.
    async fn events(&self, _options: &EventsOptions) -> Result<EventStream> {
        unsupported("events")
    }

    /// The named volumes of this host.
    async fn list_volumes(&self) -> Result<Vec<VolumeStatus>> {
        unsupported("list_volumes")
    }

    /// One of them.
    async fn volume_status(&self, _name: &str) -> Result<VolumeStatus> {
        unsupported("volume_status")
    }
}

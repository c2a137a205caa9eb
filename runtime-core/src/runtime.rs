//! The [`Runtime`] trait.

use std::io::{Read, Write};
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;

use crate::attach::AttachStream;
use crate::container::{ContainerId, ContainerInspectDetails, ContainerState, ContainerSummary, TopEntry, WaitOutcome};
use crate::copy::CopyInOptions;
use crate::error::{AgentError, Result};
use crate::event::{EventStream, EventsOptions};
use crate::exec::{ExecEvent, ExecEventStream, ExecInput, ExecOptions};
use crate::image::{HistoryStep, ImageDetails, ImageInfo, PruneResult, PullEventStream, PullPolicy, RegistryAuth};
use crate::logs::{LogEntry, LogRecordStream, LogsOptions};
use crate::spec::{ResourcesSpec, ServiceSpec};
use crate::stats::{ContainerStats, DetailedStats, StatsSnapshot, StatsStream};
use crate::volume::{
    DiffEntry, HistoryEntry, HistoryPruned, Progress, RestoreOptions, RestoreReport, VerifyReport, VolumeStatus,
};

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

    // What follows goes beyond the contract's 24 methods; a backend that has none of it is complete. What is not built is
    // Unsupported, and an image or a volume that is not there NotFound, as a container is, where nothing else is said.

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

    /// What each running container uses, paused ones among them, by id. One that is removed meanwhile is left out, one that
    /// ends meanwhile may have its last stats, and one that cannot be read is left out, too, which the log says.
    ///
    /// Errors: Internal where the containers cannot be listed. Nothing is changed: dropping the future is harmless.
    async fn stats_all(&self) -> Result<Vec<StatsSnapshot>> {
        unsupported("stats_all")
    }

    /// What one container uses: a snapshot at once, and then another whenever `interval` has passed since the one before.
    /// The stream ends when the container does, an attempt that the restart policy follows with another not being its end.
    /// Of a container that has ended it gives the last stats, and ends. Dropping it stops the readings.
    ///
    /// Errors: NotFound; InvalidSpec for an interval of zero; Internal where there are no stats, as of a container that
    /// ended without. They come before the stream; one in the middle is its last item.
    async fn stats_stream(&self, _id: &ContainerId, _interval: Duration) -> Result<StatsStream> {
        unsupported("stats_stream")
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

    /// The output of a running container from now on, whoever else reads it. A reader that is slow holds the container back,
    /// or, where its log is non-blocking, misses lines and is told so on standard error.
    ///
    /// `input` goes to its standard input, where the spec keeps that open and nobody had it yet, or to its terminal, which
    /// everybody may have; else it is dropped unread. Who is the first with an `input` has the standard input: it ends when
    /// `input` does, and when the stream or the future is dropped. A terminal's does not. What a reader has not taken five
    /// seconds after the end of an attempt is lost to it, and is in the log.
    ///
    /// Errors: NotFound; Internal for a container that does not run. Dropping the future or the stream leaves the container
    /// running.
    async fn attach(&self, _id: &ContainerId, _input: Option<ExecInput>) -> Result<AttachStream> {
        unsupported("attach")
    }

    /// Writes what is at `path` in a container, running or ended, as a tar under its own name; a link at the end of `path`
    /// is followed if `follow`. No link leads out of the container's root.
    ///
    /// Errors: NotFound, also for the path; Internal for a failed read, or write to `out`: what was written is of no use
    /// then; and for a container that waits to be restarted. `out` is written to where it may block. Dropping the future
    /// does not end that: an `out` that fails does. Until then an ended container can be neither started nor removed.
    async fn copy_out(
        &self,
        _id: &ContainerId,
        _path: &Path,
        _follow: bool,
        _out: Box<dyn Write + Send>,
    ) -> Result<()> {
        unsupported("copy_out")
    }

    /// Puts what is in `tar` into the directory `dir` of a container, running or ended. Files in the way are replaced.
    ///
    /// Errors: NotFound, also for the directory; Internal for what is no tar, or leads out of the directory: what came
    /// before stays; and for a container that waits to be restarted. `tar` is read where that may block. Dropping the future
    /// does not end that: the end of `tar` does. Until then an ended container can be neither started nor removed.
    async fn copy_in(
        &self,
        _id: &ContainerId,
        _dir: &Path,
        _tar: Box<dyn Read + Send>,
        _options: &CopyInOptions,
    ) -> Result<()> {
        unsupported("copy_in")
    }

    /// Writes the root filesystem of a container, running or ended, as a tar with every attribute, without what is mounted
    /// in it.
    ///
    /// Errors, blocking and cancellation: those of [`Runtime::copy_out`].
    async fn export(&self, _id: &ContainerId, _out: Box<dyn Write + Send>) -> Result<()> {
        unsupported("export")
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

    /// [`Runtime::pull_image_with_policy`] as it goes: what is known of the image, then of each layer, and Done. Of an image
    /// for which no registry is asked only Done. Where a mirror is given up it begins anew.
    ///
    /// Errors: those of the pull, as the last item. Dropping the stream stops the pull; layers that arrived whole stay. Who
    /// reads slowly does not hold it back.
    async fn pull_image_stream(
        &self,
        _image: &str,
        _policy: PullPolicy,
        _auth: Option<&RegistryAuth>,
    ) -> Result<PullEventStream> {
        unsupported("pull_image_stream")
    }

    /// Brings a local image to its registry under `reference`, which it must have here, with a tag: the blobs that are not
    /// there, then the manifest, whose digest it returns. Credentials as for a pull.
    ///
    /// Errors: NotFound; Internal when the registry refuses or is away. Dropping the future stops it; what arrived is not
    /// sent again.
    async fn push_image(&self, _reference: &str, _auth: Option<&RegistryAuth>) -> Result<String> {
        unsupported("push_image")
    }

    /// Writes local images as one archive: an OCI image layout that `docker load` reads, too. Each has the names that it is
    /// given by; one named by a digest has none.
    ///
    /// Errors: NotFound; Internal for a failed read, or write to `out`: what was written is of no use then. `out` is written
    /// to where it may block. Dropping the future does not end that: an `out` that fails does.
    async fn save_images(&self, _images: &[String], _out: Box<dyn Write + Send>) -> Result<()> {
        unsupported("save_images")
    }

    /// Loads all images of an OCI image layout at `path` on this host, a directory or an archive, or of an archive as
    /// `docker save` writes it. Each has the names that it has there. Nothing is taken over that does not match its digest.
    ///
    /// Errors: Internal for what is no such archive, or cannot be read: no image is new then. Dropping the future leaves
    /// none, or all.
    async fn load_images(&self, _path: &Path) -> Result<Vec<ImageInfo>> {
        unsupported("load_images")
    }

    /// The steps in which a local image was built, the newest first.
    ///
    /// Errors: NotFound.
    async fn image_history(&self, _image: &str) -> Result<Vec<HistoryStep>> {
        unsupported("image_history")
    }

    /// All that is known of a local image, by reference, digest or id.
    ///
    /// Errors: NotFound.
    async fn inspect_image(&self, _image: &str) -> Result<ImageDetails> {
        unsupported("inspect_image")
    }

    /// The named volumes of this host.
    async fn list_volumes(&self) -> Result<Vec<VolumeStatus>> {
        unsupported("list_volumes")
    }

    /// One of them.
    async fn volume_status(&self, _name: &str) -> Result<VolumeStatus> {
        unsupported("volume_status")
    }

    /// What the history of a volume tells: the records that hold a tree, oldest first; with `all` also claims, releases and
    /// prunes.
    ///
    /// Errors: NotFound when neither the bucket nor this host has it; Internal without a bucket, or while it is away.
    async fn volume_history(&self, _name: &str, _all: bool) -> Result<Vec<HistoryEntry>> {
        unsupported("volume_history")
    }

    /// Restores a generation of a volume, in place or beside. In place, an older one is a change made here, which the next
    /// sync publishes as the newest. What is nowhere else is never lost without `discard_local`.
    ///
    /// Errors: NotFound; Internal for a generation that is not there, a volume in use, changes that are nowhere else, a
    /// directory that is not empty. What was there before is there still. Dropping the future does not end it: it is done,
    /// or undone, by its owner.
    async fn restore_volume(&self, _name: &str, _options: &RestoreOptions) -> Result<RestoreReport> {
        unsupported("restore_volume")
    }

    /// What changed in a volume from generation `old` to generation `new`, in the order of the tree. No file is read.
    ///
    /// Errors: Internal for a generation that is not there, and while the bucket is away. Dropping the future is harmless.
    async fn diff_volume(&self, _name: &str, _old: u64, _new: u64) -> Result<Vec<DiffEntry>> {
        unsupported("diff_volume")
    }

    /// Reads a generation of a volume, or all that its history has, again and compares every digest. Damage is no error: the
    /// report tells of it.
    ///
    /// Errors: NotFound; Internal for a generation that is not there, and while the bucket is away. Dropping the future
    /// stops it.
    async fn verify_volume(&self, _name: &str, _generation: Option<u64>, _progress: Progress) -> Result<VerifyReport> {
        unsupported("verify_volume")
    }

    /// Removes the local copies of volumes that no container has and the bucket holds as they are. One of which that is not
    /// sure is left alone.
    ///
    /// Errors: Internal, those of the disk. Dropping the future leaves each volume whole, or gone.
    async fn prune_volumes(&self) -> Result<PruneResult> {
        unsupported("prune_volumes")
    }

    /// Applies the retention that is configured to the history of a volume, and deletes what nothing reaches. The newest
    /// generation always stays; without a retention all do.
    ///
    /// Errors: NotFound; Internal for another host's volume, without a bucket, and while it is away. Dropping the future
    /// does not end it; one that is cut off is finished by the next.
    async fn prune_volume_history(&self, _name: &str) -> Result<HistoryPruned> {
        unsupported("prune_volume_history")
    }

    /// Makes this host the owner of a volume before a container has it: of a released one, or with `take_over` of one that
    /// another host holds, which then may no longer publish. Only who knows that the other is dead may say so. It is
    /// restored where this host lacks it, and `progress` told.
    ///
    /// Errors: NotFound; Internal for another host's volume without `take_over`, without a bucket, and while it is away.
    /// Dropping the future does not end it: it is done, or undone, by its owner.
    async fn claim_volume(&self, _name: &str, _take_over: bool, _progress: Progress) -> Result<VolumeStatus> {
        unsupported("claim_volume")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MemoryRuntime;

    /// By its own name, so that who reads the error knows which.
    #[tokio::test]
    async fn what_a_backend_does_not_have_is_unsupported_by_its_name() {
        let (runtime, id) = (MemoryRuntime::new(), ContainerId::new("web", 0));
        let runtime: &dyn Runtime = &runtime;
        let (path, copy, restore) = (Path::new("/"), CopyInOptions::default(), RestoreOptions::default());
        let sink = || Box::new(std::io::sink());
        let policy = PullPolicy::Always;
        let told = [
            ("stats_all", runtime.stats_all().await.err()),
            ("stats_stream", runtime.stats_stream(&id, Duration::MAX).await.err()),
            ("copy_out", runtime.copy_out(&id, path, false, sink()).await.err()),
            ("copy_in", runtime.copy_in(&id, path, Box::new(std::io::empty()), &copy).await.err()),
            ("export", runtime.export(&id, sink()).await.err()),
            ("pull_image_stream", runtime.pull_image_stream("a", policy, None).await.err()),
            ("push_image", runtime.push_image("a", None).await.err()),
            ("save_images", runtime.save_images(&[], sink()).await.err()),
            ("load_images", runtime.load_images(path).await.err()),
            ("image_history", runtime.image_history("a").await.err()),
            ("inspect_image", runtime.inspect_image("a").await.err()),
            ("volume_history", runtime.volume_history("v", true).await.err()),
            ("restore_volume", runtime.restore_volume("v", &restore).await.err()),
            ("diff_volume", runtime.diff_volume("v", 1, 2).await.err()),
            ("verify_volume", runtime.verify_volume("v", None, Progress::default()).await.err()),
            ("prune_volumes", runtime.prune_volumes().await.err()),
            ("prune_volume_history", runtime.prune_volume_history("v").await.err()),
            ("claim_volume", runtime.claim_volume("v", true, Progress::default()).await.err()),
        ];
        for (method, error) in told {
            assert_eq!(error, Some(AgentError::Unsupported(format!("this backend has no {method}"))));
        }
    }
}

//! [`YoukiRuntime`]: its inherent methods with rich errors, and the [`Runtime`] trait over them.

mod contract;
mod pull_events;
mod stats;
mod volume_events;
mod volumes;

use std::collections::{BTreeSet, HashSet};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use futures_core::Stream;
use registry::{ImageStore, InUse, PullOptions, Removed, Users};
#[cfg(doc)]
use runtime_core::Runtime;
use runtime_core::{
    ContainerId, ContainerStats, CopyInOptions, DetailedStats, Event, EventKind, EventsOptions, ExecOptions,
    LogsOptions, ServiceSpec, TopEntry, WaitOutcome,
};
use tokio::sync::watch;
use volumes_s3::VolumeStore;

use crate::cgroup::Hierarchy;
use crate::config::Config;
use crate::container::{Changes, CreateOptions, ExecRequest, Inspect, RunningExec, Terminal, TerminalSize, Watched};
use crate::driven;
use crate::error::{Error, Result};
use crate::files::PathKind;
use crate::journal::Journal;
use crate::layout::Layout;
use crate::logs::RecordStream;
use crate::network::{NetworkInfo, NetworkOptions, Networks};
use crate::record::{AttemptKey, ImageRecord};
use crate::supervisor::spawn::Spawner;
use crate::trash::Trash;

/// Berth's runtime on one root. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct YoukiRuntime(
    pub(crate) Arc<Inner>,
    /// Dropped with the last clone: then nobody keeps any more, whatever else still works with the rooms.
    #[expect(dead_code, reason = "its end is what it tells")]
    pub(crate) Arc<watch::Sender<()>>,
);

/// What all of the runtime's rooms share.
#[derive(Debug)]
pub(crate) struct Inner {
    pub config: Config,
    pub layout: Layout,
    pub images: ImageStore,
    pub volumes: VolumeStore,
    pub networks: Networks,
    pub hierarchy: Hierarchy,
    pub spawner: Spawner,
    pub boot_id: String,
    /// Attempts whose end this process waits for to sync their volumes.
    pub followed: Mutex<HashSet<AttemptKey>>,
    pub trash: Arc<Trash>,
    pub weak: Weak<Inner>,
}

impl YoukiRuntime {
    /// Opens the root of `config`, which is made if it is not there, and brings what is on record in line with what
    /// runs: when this returns, every state is true. Must be called within a multi-threaded tokio runtime.
    ///
    /// # Errors
    /// [`Error::Configuration`], [`Error::IncompatibleRoot`], [`Error::HelperMissing`], [`Error::Io`].
    pub async fn open(config: Config) -> Result<Self> {
        crate::recovery::open(config, None).await
    }

    /// The same for work with one container alone: only its state is true when this returns, the others' are as they
    /// were last seen. For commands that come and go beside a runtime that is open.
    ///
    /// # Errors
    /// Those of [`open`](Self::open).
    pub async fn open_for(config: Config, id: &ContainerId) -> Result<Self> {
        crate::recovery::open(config, Some(id)).await
    }

    /// How it is configured.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.0.config
    }

    /// Its images.
    #[must_use]
    pub fn images(&self) -> &ImageStore {
        &self.0.images
    }

    /// Its named volumes.
    #[must_use]
    pub fn volumes(&self) -> &VolumeStore {
        &self.0.volumes
    }

    /// [`Runtime::create_container`].
    ///
    /// # Errors
    /// [`Error::ContainerExists`], [`Error::InvalidSpec`], [`Error::Image`], [`Error::Volume`], [`Error::CreateFailed`].
    pub async fn create(&self, id: &ContainerId, spec: &ServiceSpec, options: CreateOptions) -> Result<()> {
        self.0.create(id, spec, options).await
    }

    /// [`Runtime::start_container`].
    ///
    /// # Errors
    /// [`Error::NoSuchContainer`], [`Error::ExecFailed`] when its program cannot be executed.
    pub async fn start(&self, id: &ContainerId) -> Result<()> {
        self.0.start(id).await
    }

    /// [`Runtime::stop_container`]; the spec's or the default time-out if `None`. Tells which of its named volumes are
    /// not durable yet, and why, the first time.
    ///
    /// # Errors
    /// [`Error::NoSuchContainer`], [`Error::StopTimedOut`].
    pub async fn stop(&self, id: &ContainerId, timeout: Option<Duration>) -> Result<Vec<(String, volumes_s3::Error)>> {
        let (inner, id) = (self.0.clone(), id.clone());
        driven::while_waited_for(async move { inner.stop(&id, None, timeout).await }).await
    }

    /// The same by a signal of any name or number, in place of the container's own.
    ///
    /// # Errors
    /// [`Error::InvalidSpec`] if there is no such signal; those of [`stop`](Self::stop).
    pub async fn stop_by(
        &self,
        id: &ContainerId,
        signal: &str,
        timeout: Option<Duration>,
    ) -> Result<Vec<(String, volumes_s3::Error)>> {
        let (inner, id, signal) = (self.0.clone(), id.clone(), signal.to_owned());
        driven::while_waited_for(async move { inner.stop(&id, Some(&signal), timeout).await }).await
    }

    /// Freezes a running container; Ok at once on a paused one.
    ///
    /// # Errors
    /// [`Error::NoSuchContainer`], [`Error::NotRunning`], [`Error::Unsupported`] without a freezer.
    pub async fn pause(&self, id: &ContainerId) -> Result<()> {
        self.0.pause(id).await
    }

    /// Lets a paused container go on; Ok at once on one that is not paused.
    ///
    /// # Errors
    /// [`Error::NoSuchContainer`], [`Error::NotRunning`].
    pub async fn unpause(&self, id: &ContainerId) -> Result<()> {
        self.0.unpause(id).await
    }

    /// Sets what `changes` names of a container's limits and restart policy, and leaves the rest. A running one has it when
    /// this returns; any keeps it for its next start.
    ///
    /// # Errors
    /// [`Error::NoSuchContainer`]; [`Error::InvalidSpec`] for what cannot be, or the kernel refuses: nothing is changed.
    pub async fn update(&self, id: &ContainerId, changes: Changes) -> Result<()> {
        self.0.update(id, changes).await
    }

    /// [`Runtime::kill_container`].
    ///
    /// # Errors
    /// [`Error::NoSuchContainer`], [`Error::NotRunning`], [`Error::InvalidSpec`].
    pub async fn kill(&self, id: &ContainerId, signal: Option<&str>) -> Result<()> {
        self.0.kill(id, signal).await
    }

    /// Sends any signal by number; for a foreground run, which passes on what it gets.
    ///
    /// # Errors
    /// [`Error::NoSuchContainer`], [`Error::NotRunning`].
    pub async fn forward_signal(&self, id: &ContainerId, number: i32) -> Result<()> {
        let container = self.0.container(id)?;
        self.0.send_signal(&container, number).await
    }

    /// [`Runtime::remove_container`]; without `force`, one that runs is refused. Tells which of its named volumes are
    /// not durable yet, and why, unless that was told before.
    ///
    /// # Errors
    /// [`Error::NoSuchContainer`], [`Error::StillRunning`], and what failed while all the rest was freed.
    pub async fn remove(&self, id: &ContainerId, force: bool) -> Result<Vec<(String, volumes_s3::Error)>> {
        self.0.remove(id, force).await
    }

    /// Waits until the files of containers are deleted that this process removed: a removal returns before. What a
    /// process that ends earlier leaves, the next that opens the root deletes.
    pub async fn deletions(&self) {
        self.0.trash.deleted().await;
    }

    /// [`Runtime::wait_outcome`].
    ///
    /// # Errors
    /// [`Error::NoSuchContainer`].
    pub async fn wait(&self, id: &ContainerId) -> Result<WaitOutcome> {
        let (inner, id) = (self.0.clone(), id.clone());
        driven::while_waited_for(async move { inner.wait(&id).await }).await
    }

    /// Everything known of a container.
    ///
    /// # Errors
    /// [`Error::NoSuchContainer`].
    pub async fn inspect(&self, id: &ContainerId) -> Result<Inspect> {
        self.0.inspect(id).await
    }

    /// The ids of all containers, in order, also of those whose state cannot be told. Blocks for one listing of a directory.
    ///
    /// # Errors
    /// Those of reading the root.
    pub fn container_ids(&self) -> Result<Vec<ContainerId>> {
        self.0.container_ids()
    }

    /// What [`inspect`](Self::inspect) tells of all, by id. One of which nothing can be told, since its record is damaged or its supervisor does not
    /// answer (30 s), is left out, and told of by `tracing`.
    ///
    /// # Errors
    /// Those of reading the root.
    pub async fn inspect_all(&self) -> Result<Vec<Inspect>> {
        Ok(self.inspect_readable().await?.0)
    }

    /// The same, and whether this process could read all: one that may open too few files, say, cannot.
    ///
    /// # Errors
    /// Those of reading the root.
    pub async fn inspect_readable(&self) -> Result<(Vec<Inspect>, bool)> {
        self.0.inspect_all().await
    }

    /// [`Runtime::get_container_stats`].
    ///
    /// # Errors
    /// [`Error::NoSuchContainer`].
    pub async fn stats(&self, id: &ContainerId) -> Result<ContainerStats> {
        self.0.stats(id).await
    }

    /// [`Runtime::stats_detailed`].
    ///
    /// # Errors
    /// [`Error::NoSuchContainer`].
    pub async fn detailed_stats(&self, id: &ContainerId) -> Result<DetailedStats> {
        self.0.stats_detailed(id).await
    }

    /// [`Runtime::top`].
    ///
    /// # Errors
    /// [`Error::NoSuchContainer`], [`Error::NotRunning`].
    pub async fn processes(&self, id: &ContainerId) -> Result<Vec<TopEntry>> {
        self.0.top(id).await
    }

    /// [`Runtime::logs_stream`].
    ///
    /// # Errors
    /// [`Error::NoSuchContainer`].
    pub async fn log_records(&self, id: &ContainerId, options: &LogsOptions) -> Result<RecordStream> {
        self.0.logs_stream(id, options).await
    }

    /// Starts a further process, with descriptors of the caller's as its standard streams.
    ///
    /// # Errors
    /// [`Error::NoSuchContainer`], [`Error::NotRunning`], [`Error::ExecFailed`], [`Error::ExecTimedOut`].
    pub async fn start_exec(&self, id: &ContainerId, request: ExecRequest) -> Result<RunningExec> {
        self.0.exec(id, request).await
    }

    /// Starts a further process that belongs to the container: it goes on when this process ends, until it or the container
    /// does. Its input is empty, and its output discarded. Its process id in the agent's PID namespace.
    ///
    /// # Errors
    /// [`Error::NoSuchContainer`], [`Error::NotRunning`], [`Error::ExecFailed`]; [`Error::Unsupported`] with a terminal.
    pub async fn exec_detached(&self, id: &ContainerId, command: &[String], options: ExecOptions) -> Result<u32> {
        self.0.exec_detached(id, command, options).await
    }

    /// A new terminal of a running container. Its process's end becomes the standard streams of an exec that asks for a
    /// `tty`.
    ///
    /// # Errors
    /// [`Error::NoSuchContainer`], [`Error::NotRunning`], [`Error::Io`].
    pub async fn open_terminal(&self, id: &ContainerId, size: TerminalSize) -> Result<Terminal> {
        self.0.open_terminal(id, size).await
    }

    /// Copies the container's output, from now on, to two pipes or sockets, which are made non-blocking. A reader that is slow
    /// holds the container back, or, where its log is non-blocking, misses lines and is told so on the second. Returns the write
    /// end of its standard input, if `input` is wanted, it is open, and nobody has it yet; dropping it is the input's end. Of a
    /// container with a `tty` it is the terminal's other end, which everybody gets: for what is typed, and for its size
    /// ([`TerminalSize::set`]).
    ///
    /// # Errors
    /// [`Error::NoSuchContainer`], [`Error::NotRunning`].
    pub async fn attach(
        &self,
        id: &ContainerId,
        stdout: OwnedFd,
        stderr: OwnedFd,
        input: bool,
    ) -> Result<Option<OwnedFd>> {
        self.0.attach(id, stdout, stderr, input).await
    }

    /// What is at `path` in a container; a link at its end is followed if `follow`.
    ///
    /// # Errors
    /// [`Error::NoSuchContainer`], [`Error::NoSuchPath`].
    pub async fn look(&self, id: &ContainerId, path: &Path, follow: bool) -> Result<PathKind> {
        self.0.look(id, path, follow).await
    }

    /// Where symbolic links at the end of `path` in a container lead, as a path in it, whether something is there or not:
    /// what a copy goes to by docker's rules.
    ///
    /// # Errors
    /// [`Error::NoSuchContainer`], [`Error::NoSuchPath`] where it is beneath what is no directory.
    pub async fn copy_target(&self, id: &ContainerId, path: &Path) -> Result<PathBuf> {
        self.0.copy_target(id, path).await
    }

    /// Writes what is at `path` in a container as a tar, under its own name. Works on ended ones, too; nothing leads out
    /// of the container's root.
    ///
    /// # Errors
    /// [`Error::NoSuchContainer`], [`Error::NoSuchPath`], [`Error::Io`].
    pub async fn copy_out(
        &self,
        id: &ContainerId,
        path: &Path,
        follow: bool,
        out: impl Write + Send + 'static,
    ) -> Result<()> {
        self.0.copy_out(id, path, follow, out).await
    }

    /// Puts what is in `tar` into the directory `dir` of a container. Files in the way are replaced.
    ///
    /// # Errors
    /// [`Error::NoSuchContainer`], [`Error::NoSuchPath`], [`Error::Io`].
    pub async fn copy_in(
        &self,
        id: &ContainerId,
        dir: &Path,
        tar: impl Read + Send + 'static,
        options: CopyInOptions,
    ) -> Result<()> {
        self.0.copy_in(id, dir, tar, options).await
    }

    /// Writes a container's root filesystem as a tar, every attribute kept, without what is mounted in it.
    ///
    /// # Errors
    /// [`Error::NoSuchContainer`], [`Error::Io`].
    pub async fn export(&self, id: &ContainerId, out: impl Write + Send + 'static) -> Result<()> {
        self.0.export(id, out).await
    }

    /// The current attempt of a container, for whoever must know its end also if the container goes with it.
    ///
    /// # Errors
    /// [`Error::NoSuchContainer`].
    pub async fn watch(&self, id: &ContainerId) -> Result<Watched> {
        self.0.watch(id).await
    }

    /// [`Runtime::sync_container_volumes`].
    ///
    /// # Errors
    /// [`Error::NoSuchContainer`], [`Error::Volume`].
    pub async fn sync_volumes(&self, id: &ContainerId) -> Result<()> {
        let (inner, id) = (self.0.clone(), id.clone());
        driven::while_waited_for(async move { inner.sync_volumes(&id).await }).await
    }

    /// [`ImageStore::pull`], which is an event when it succeeds.
    ///
    /// # Errors
    /// [`Error::Image`].
    pub async fn pull(&self, image: &str, options: PullOptions) -> Result<registry::Image> {
        let pulled = self.0.images.pull(image, options).await;
        self.0.sweep_owed_images().await;
        let pulled = pulled?;
        self.0.tell_of_pull(&pulled);
        Ok(pulled)
    }

    /// [`ImageStore::load`]; of one that fails nothing is left in the store.
    ///
    /// # Errors
    /// [`Error::Image`].
    pub async fn load(&self, path: &Path) -> Result<Vec<registry::Image>> {
        let loaded = self.0.images.load(path).await;
        self.0.sweep_owed_images().await;
        Ok(loaded?)
    }

    /// What happened in this root, by whichever process: a bounded history since the host was booted, and with `follow`
    /// what happens from now on.
    pub fn events(&self, options: &EventsOptions) -> impl Stream<Item = Result<Event>> + Send + use<> {
        Journal::new(self.0.layout.events()).stream(options)
    }

    /// Defines a network for containers to be in: a bridge of its own, made when the first of them is created.
    ///
    /// # Errors
    /// [`Error::NetworkExists`], [`Error::SubnetOverlap`], [`Error::InvalidSpec`].
    pub async fn create_network(&self, name: &str, options: &NetworkOptions) -> Result<NetworkInfo> {
        self.0.networks.create(name, options).await
    }

    /// Removes a network that no container is in.
    ///
    /// # Errors
    /// [`Error::NoSuchNetwork`], [`Error::NetworkInUse`], [`Error::Network`].
    pub async fn remove_network(&self, name: &str) -> Result<()> {
        self.0.remove_network(name).await
    }

    /// The networks of this root, the default one first.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn networks(&self) -> Result<Vec<NetworkInfo>> {
        self.0.networks.list()
    }

    /// A network and who is in it.
    ///
    /// # Errors
    /// [`Error::NoSuchNetwork`].
    pub fn network(&self, name: &str) -> Result<NetworkInfo> {
        self.0.networks.inspect(name)
    }

    /// Puts back what somebody took away of the networks: the firewall table, bridges that containers are on, and their
    /// places at it.
    ///
    /// # Errors
    /// [`Error::Network`], [`Error::Configuration`].
    pub async fn reload_networks(&self) -> Result<()> {
        self.0.networks.reload().await
    }

    /// Takes away what this root has on the host outside its own directories: its bridge and firewall table, its
    /// cgroups. For a root that is given up; what a container needs is made again.
    ///
    /// # Errors
    /// [`Error::StillRunning`] while one of its containers is, [`Error::Network`], [`Error::Io`].
    pub async fn dismantle(&self) -> Result<()> {
        self.0.dismantle().await
    }

    /// [`Runtime::remove_image`], telling what went.
    ///
    /// # Errors
    /// [`Error::Image`].
    pub async fn remove_image(&self, image: &str, force: bool) -> Result<Removed> {
        Ok(self.0.images.remove(image, force, self.0.image_users()).await?)
    }

    /// [`Runtime::prune_images`].
    ///
    /// # Errors
    /// [`Error::Image`].
    pub async fn prune_images(&self) -> Result<Removed> {
        Ok(self.0.images.prune(self.0.image_users()).await?)
    }
}

impl Inner {
    /// Puts an event into the root's journal.
    pub(crate) fn tell(&self, event: Event) {
        Journal::new(self.layout.events()).put(event);
    }

    /// Tells that `image` is here.
    pub(crate) fn tell_of_pull(&self, image: &registry::Image) {
        let event = Event { image: Some(image.reference.clone()), ..Event::now(EventKind::Pull) };
        self.tell(event.saying(image.digest.clone()));
    }

    /// Removes what `remove_image` had to leave while this process, or another, held the image store, and what a load left.
    pub(crate) async fn sweep_owed_images(&self) {
        if let Err(error) = self.images.sweep_owed(self.image_users()).await {
            tracing::warn!(%error, "content that no image needs stays until the next removal");
        }
    }

    /// Tells, whenever it is asked, what the containers of then need of the image store.
    fn image_users(&self) -> Arc<Users> {
        let weak = self.weak.clone();
        Arc::new(move || {
            let inner = weak.upgrade().ok_or_else(|| io::Error::other("the runtime is closed"))?;
            inner.images_in_use().map_err(|error| io::Error::other(error.chain()))
        })
    }

    fn images_in_use(&self) -> Result<Vec<InUse>> {
        let mut used = Vec::new();
        for id in self.container_ids()? {
            match self.container(&id) {
                Ok(container) => {
                    // Who pulls one holds the store.
                    if !container.record.image.is_to_be_pulled() {
                        let ImageRecord { reference, digest, layers, .. } = container.record.image;
                        used.push(InUse { user: id.to_string(), reference, digest, layers });
                    }
                }
                Err(Error::NoSuchContainer { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(used)
    }

    async fn sync_volumes(&self, id: &ContainerId) -> Result<()> {
        let container = self.container(id)?;
        let named = |readonly| {
            let mounts = container.record.mounts.iter().filter(move |mount| mount.readonly == readonly);
            mounts.filter_map(|mount| mount.name.clone())
        };
        let mut names: BTreeSet<String> = named(false).collect();
        // What it only reads another container of this host may write, or have written.
        let only_read: Vec<String> = named(true).collect();
        if !only_read.is_empty() {
            let written = self.volumes.written().await?;
            names.extend(only_read.iter().filter(|name| written.contains(name)).cloned());
            names.extend(self.volumes.owing_of(only_read).await?);
        }
        let syncs = names.iter().map(|name| async move {
            self.sync_volume(name).await.map(drop).map_err(|source| Error::of_volume(name, source))
        });
        // Each is tried, whatever becomes of the others.
        futures_util::future::join_all(syncs).await.into_iter().collect()
    }
}

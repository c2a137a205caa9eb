//! Creating: from a spec to an init that waits to be started. Every step has its undo; what fails leaves nothing.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use chrono::Utc;
use registry::PullOptions;
use runtime_core::spec::{LogMode, NetworkMode, RestartKind, StorageSpec};
use runtime_core::{ContainerId, Event, EventKind, PullEvent, RegistryAuth, ServiceSpec};
use tokio::sync::mpsc::UnboundedSender;
use tokio_util::sync::CancellationToken;
use volumes_s3::AcquireOptions;

use super::Container;
use super::attempt::{Launch, MIN_LOG_BYTES};
use super::remove::remove_dir;
use crate::bundle;
use crate::driven::{self, Caller};
use crate::error::{Error, Result};
use crate::health;
use crate::layout::ContainerPaths;
use crate::lock::ContainerLock;
use crate::network;
use crate::record::{self, ContainerRecord, ImageRecord, MountKind, MountRecord, NetworkRecord};
use crate::recovery::OPEN_PATIENCE;
use crate::runtime::Inner;
use crate::supervisor::FillPlan;

/// Mode of a new anonymous volume, whatever the agent's umask; what the image has at its place is taken on after that.
const ANONYMOUS_MODE: u32 = 0o755;

/// What a create may be given beside the spec.
#[derive(Debug, Clone, Default)]
pub struct CreateOptions {
    /// Credentials for the pull.
    pub auth: Option<RegistryAuth>,
    /// Is told how the pull goes.
    pub progress: Option<UnboundedSender<PullEvent>>,
    /// Calls the create off while it pulls its image, or waits for a volume, for which another host's claim may let it wait
    /// for long: it is undone, and fails with `container.called_off`. Otherwise it goes on to its end.
    pub called_off: CancellationToken,
}

impl Inner {
    /// Creates `id`. Once it has its turn it goes on to its end, or to its undoing, when the future is dropped.
    pub(crate) async fn create(
        self: &Arc<Self>,
        id: &ContainerId,
        spec: &ServiceSpec,
        options: CreateOptions,
    ) -> Result<()> {
        let (inner, id, spec) = (self.clone(), id.clone(), spec.clone());
        let create = |caller: Caller| async move {
            let created = inner.create_to_the_end(&id, &spec, options, &caller).await;
            inner.sweep_owed_images().await;
            created
        };
        driven::to_the_end(create).await
    }

    async fn create_to_the_end(
        self: &Arc<Self>,
        id: &ContainerId,
        spec: &ServiceSpec,
        options: CreateOptions,
        caller: &Caller,
    ) -> Result<()> {
        id.validate()?;
        check(spec, self.config.logs.mode)?;
        if spec.init && !self.spawner.resident_is_static() {
            return Err(Error::Unsupported { what: "init without berth-supervisor beside the agent".to_owned() });
        }
        let paths = self.layout.container(id);
        let lock = loop {
            let acquiring = ContainerLock::acquire(paths.lock.clone());
            let lock = unless_called_off(id, &options.called_off, acquiring).await??;
            if !paths.record().exists() {
                if caller.is_gone() {
                    lock.remove();
                    return Err(Error::CalledOff { id: id.to_string() });
                }
                break lock;
            }
            match self.read_locked(id, lock).await {
                // What a create that was killed had left is undone.
                Err(Error::NoSuchContainer { .. }) => {}
                Ok(_) | Err(Error::Corrupt { .. }) => return Err(Error::ContainerExists { id: id.to_string() }),
                Err(error) => return Err(error),
            }
        };
        self.clear_unrecorded(id, &paths).await?;
        let mut container = Container { record: self.new_record(id, spec), paths };
        if let Err(error) = self.make(&mut container, options).await {
            let undone = self.discard(&container, self.config.volumes.sync_on_stop).await;
            lock.remove();
            return Err(match undone {
                Ok(()) if error.is_called_off() => Error::CalledOff { id: id.to_string() },
                Err(also) if error.is_called_off() => also,
                Err(also) => {
                    tracing::warn!(container = %id, error = also.chain(), "undoing a failed create");
                    error
                }
                Ok(()) => error,
            });
        }
        let event = Event { image: Some(container.record.image.reference.clone()), ..Event::now(EventKind::Create) };
        self.tell(event.of(id));
        self.keep_watch(&container);
        Ok(())
    }

    /// Clears what a create that was cut off before its record, or a removal after it, left of `id`. The lock is held.
    pub(crate) async fn clear_unrecorded(&self, id: &ContainerId, paths: &ContainerPaths) -> Result<()> {
        let given_back = match paths.dir.exists() {
            true => self.end_volumes_of(id, true, OPEN_PATIENCE).await.map(drop),
            false => Ok(()),
        };
        let removed = remove_dir(&paths.dir).and_then(|()| remove_dir(&paths.run));
        given_back.and(removed)
    }

    fn new_record(&self, id: &ContainerId, spec: &ServiceSpec) -> ContainerRecord {
        ContainerRecord {
            id: id.clone(),
            spec: spec.clone(),
            image: ImageRecord::to_be_pulled(&spec.image.name),
            created_at: Utc::now(),
            attempt: 1,
            boot_id: self.boot_id.clone(),
            cgroup_path: self.cgroup_path_of(id),
            args: Vec::new(),
            mounts: Vec::new(),
            stop_signal: libc::SIGTERM,
            network: NetworkRecord::None,
            ports: Vec::new(),
            port_override: None,
            process: None,
        }
    }

    /// Everything that must be undone if a later step fails.
    async fn make(self: &Arc<Self>, container: &mut Container, options: CreateOptions) -> Result<()> {
        let paths = container.paths.clone();
        for dir in [paths.dir.join("etc"), paths.logs()] {
            fs::create_dir_all(&dir).map_err(Error::io("creating", &dir))?;
        }
        // The record makes the container: from here on it is pending to everybody, and found again, whatever dies.
        record::write(&paths.record(), &container.record)?;
        // Until the record names them, prune must not take the layers away.
        let (id, called_off) = (container.record.id.clone(), options.called_off);
        let hold = unless_called_off(&id, &called_off, self.images.hold()).await??;
        let spec = &container.record.spec;
        let pull = PullOptions {
            policy: spec.image.pull_policy,
            auth: options.auth,
            platform: spec.platform.clone(),
            progress: options.progress,
        };
        let image = unless_called_off(&id, &called_off, self.images.pull(&spec.image.name, pull)).await??;
        if image.from_registry {
            self.tell_of_pull(&image);
        }
        container.record.image = ImageRecord::from(image);
        fs::create_dir_all(&paths.run).map_err(Error::io("creating", &paths.run))?;
        let supervisor = self.start_supervisor(&paths)?;
        container.record.network = self.lease_network(container).await?;
        let held = self.reserve_ports(&mut container.record).await?;
        let env = self.resolve_env(&container.record).await?;
        if !container.record.named_volumes().is_empty() {
            // A claim fences the owner there was, for good: what else is wrong is told before.
            for (index, storage) in container.record.spec.storage.iter().enumerate() {
                if let StorageSpec::Bind { source, .. } = storage {
                    existing(source, index)?;
                }
            }
            self.plan(container, &env, Vec::new())?;
        }
        let fill = self.resolve_mounts(container, &called_off).await?;
        record::write(&paths.record(), &container.record)?;
        drop(hold);
        self.launch(container, Launch { env, fill, held, supervisor }).await.map(drop)
    }

    async fn lease_network(&self, container: &Container) -> Result<NetworkRecord> {
        let mode = container.record.spec.network_mode();
        if let Some(name) = mode.container() {
            return Ok(NetworkRecord::Container(self.join_network(&container.record.id, name).await?));
        }
        Ok(match self.networks.of(mode) {
            Some(network) => {
                let (network, id) = (network.to_owned(), container.record.id.to_string());
                NetworkRecord::Bridge(self.on_networks(move |networks| networks.lease(&network, &id)).await?)
            }
            None if *mode == NetworkMode::Host => NetworkRecord::Host,
            None => NetworkRecord::None,
        })
    }

    /// Finds or makes the source of each mount. Tells which of them are to be filled from the image.
    async fn resolve_mounts(&self, container: &mut Container, called_off: &CancellationToken) -> Result<Vec<FillPlan>> {
        let record = &container.record;
        let mut mounts = Vec::new();
        let mut fill = Vec::new();
        let mut anonymous = 0;
        let mut volumes = BTreeMap::new();
        // In the order of their names: two creates that fill what the other one waits for would wait for ever.
        for name in record.named_volumes() {
            let asked = AcquireOptions { fill: true, called_off: called_off.clone(), ..AcquireOptions::default() };
            volumes.insert(name.to_owned(), self.acquire_volume(record, name, asked).await?);
        }
        let image_volumes = bundle::image_volumes(&record.image.config, &record.spec);
        let implied = image_volumes.into_iter().map(|target| StorageSpec::Anonymous { target });
        for (index, storage) in record.spec.storage.iter().cloned().chain(implied).enumerate() {
            let (kind, source, target, readonly, name) = match storage {
                StorageSpec::Bind { source, target, readonly } => {
                    (MountKind::Bind, existing(&source, index)?, target, readonly, None)
                }
                StorageSpec::Named { name, target, readonly, .. } => {
                    let Some(acquired) = volumes.get_mut(&name) else { continue };
                    // Mounted twice, it takes on what is at its first target.
                    if std::mem::take(&mut acquired.is_new) {
                        fill.push(FillPlan { source: acquired.path.clone(), target: target.clone() });
                    }
                    (MountKind::Named, acquired.path.clone(), target, readonly, Some(name))
                }
                StorageSpec::Anonymous { target } => {
                    let source = container.paths.anonymous_volume(anonymous);
                    anonymous += 1;
                    let mode = fs::Permissions::from_mode(ANONYMOUS_MODE);
                    fs::create_dir_all(&source)
                        .and_then(|()| fs::set_permissions(&source, mode))
                        .map_err(Error::io("creating", &source))?;
                    fill.push(FillPlan { source: source.clone(), target: target.clone() });
                    (MountKind::Anonymous, source, target, false, None)
                }
                StorageSpec::Tmpfs { .. } | StorageSpec::S3 { .. } => continue,
            };
            mounts.push(MountRecord { kind, source, target, readonly, name });
        }
        container.record.mounts = mounts;
        Ok(fill)
    }

    /// Makes the volume `name` this container's, as its spec and the caller ask. Only a create fills a new one, and takes over
    /// by name: who said so knew of the owner of then, and a start years later does not.
    pub(super) async fn acquire_volume(
        &self,
        record: &ContainerRecord,
        name: &str,
        asked: AcquireOptions,
    ) -> Result<volumes_s3::Acquired> {
        // Mounted more than once, it is claimed if any of its mounts is writable.
        let mut all = AcquireOptions { readonly: true, ..asked };
        for storage in &record.spec.storage {
            if let StorageSpec::Named { name: other, readonly, tier, size, take_over, .. } = storage
                && other == name
            {
                all.readonly &= readonly;
                all.take_over |= *take_over && all.fill;
                all.size = all.size.or(size.map(|size| size.as_u64()));
                all.tier = all.tier.take().or(tier.clone());
            }
        }
        loop {
            match self.volumes.acquire(name, &record.id.to_string(), all.clone()).await {
                Err(volumes_s3::Error::BeingFilled { users, .. }) => {
                    let filled = self.wait_until_filled(name, users);
                    unless_called_off(&record.id, &all.called_off, filled).await??;
                }
                acquired => return acquired.map_err(|source| Error::of_volume(name, source)),
            }
        }
    }

    /// Returns when none of `users` fills the volume any more: its create is done, undone, or dead.
    async fn wait_until_filled(&self, name: &str, users: Vec<String>) -> Result<()> {
        for user in users {
            let lock = match user.parse::<ContainerId>() {
                Ok(id) => Some((ContainerLock::acquire(self.layout.container(&id).lock).await?, id)),
                Err(_) => None,
            };
            let given_up = self.volumes.give_up_filling(name, &user).await;
            if let Some((lock, id)) = lock
                && !self.layout.container(&id).record().exists()
            {
                lock.remove();
            }
            given_up.map_err(|source| Error::of_volume(name, source))?;
        }
        Ok(())
    }
}

/// Waits for `step` of the create of `id`, unless that is called off before.
async fn unless_called_off<T>(
    id: &ContainerId,
    called_off: &CancellationToken,
    step: impl Future<Output = T>,
) -> Result<T> {
    called_off.run_until_cancelled(step).await.ok_or_else(|| Error::CalledOff { id: id.to_string() })
}

/// Refuses what is not built, or cannot be, before anything is made.
fn check(spec: &ServiceSpec, default_log_mode: LogMode) -> Result<()> {
    network::check(spec)?;
    bundle::check_storage(spec)?;
    bundle::resources::check_cpus(&spec.resources)?;
    check_restart(spec)?;
    health::check(spec)?;
    super::log_mode::check(&spec.logs, default_log_mode)?;
    if spec.logs.max_size_bytes.is_some_and(|bytes| bytes < MIN_LOG_BYTES) {
        return Err(Error::invalid("logs.max_size_bytes", format!("it must be at least {MIN_LOG_BYTES}")));
    }
    if spec.labels.keys().any(String::is_empty) {
        return Err(Error::invalid("labels", "one has no name"));
    }
    if spec.image.name.trim().is_empty() {
        return Err(Error::invalid("image.name", "it is empty"));
    }
    Ok(())
}

pub(super) fn check_restart(spec: &ServiceSpec) -> Result<()> {
    if spec.restart_policy.max_attempts == Some(0) {
        return Err(Error::invalid(
            "restart_policy.max_attempts",
            "0 restarts: leave it out for no limit, or use kind no",
        ));
    }
    if spec.restart_policy.kind != RestartKind::No && spec.remove_on_exit {
        return Err(Error::invalid("restart_policy", "it is to be removed on exit, which would never come"));
    }
    Ok(())
}

fn existing(source: &str, index: usize) -> Result<PathBuf> {
    let field = format!("storage[{index}].source");
    if !Path::new(source).is_absolute() {
        return Err(Error::invalid(field, format!("{source:?} is not absolute")));
    }
    fs::canonicalize(source).map_err(|error| Error::invalid(field, format!("{source}: {error}")))
}

//! Creating: from a spec to an init that waits to be started. Every step has its undo; what fails leaves nothing.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use chrono::Utc;
use registry::{Image, PullEvent, PullOptions};
use runtime_core::spec::{LogMode, NetworkMode, RestartKind, StorageSpec};
use runtime_core::{ContainerId, Event, EventKind, RegistryAuth, ServiceSpec};
use tokio::sync::mpsc::UnboundedSender;
use tokio_util::sync::CancellationToken;
use volumes_s3::AcquireOptions;

use super::Container;
use super::attempt::{Launch, MIN_LOG_BYTES};
use crate::bundle;
use crate::error::{Error, Result};
use crate::health;
use crate::lock::ContainerLock;
use crate::network;
use crate::record::{self, ContainerRecord, ImageRecord, MountKind, MountRecord, NetworkRecord};
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
    /// Calls the create off while it waits for a volume, for which another host's claim may let it wait for long: it is
    /// undone, and fails with `volume.called_off`. Otherwise it goes on to its end.
    pub called_off: CancellationToken,
}

impl Inner {
    /// Creates `id`. Goes on to its end, or to its undoing, when the future is dropped.
    pub(crate) async fn create(
        self: &Arc<Self>,
        id: &ContainerId,
        spec: &ServiceSpec,
        options: CreateOptions,
    ) -> Result<()> {
        let (inner, id, spec) = (self.clone(), id.clone(), spec.clone());
        let create = async move {
            let created = inner.create_to_the_end(&id, &spec, options).await;
            inner.sweep_owed_images().await;
            created
        };
        tokio::spawn(create).await.map_err(Error::ThreadLost)?
    }

    async fn create_to_the_end(
        self: &Arc<Self>,
        id: &ContainerId,
        spec: &ServiceSpec,
        options: CreateOptions,
    ) -> Result<()> {
        id.validate()?;
        check(spec, self.config.logs.mode)?;
        if spec.init && !self.spawner.resident_is_static() {
            return Err(Error::Unsupported { what: "init without berth-supervisor beside the agent".to_owned() });
        }
        let paths = self.layout.container(id);
        let lock = ContainerLock::acquire(paths.lock.clone()).await?;
        if paths.record().exists() {
            return Err(Error::ContainerExists { id: id.to_string() });
        }
        // Until the record names them, prune must not take the layers away.
        let hold = self.images.hold().await?;
        let pull = PullOptions {
            policy: spec.image.pull_policy,
            auth: options.auth,
            platform: spec.platform.clone(),
            progress: options.progress,
        };
        let image = match self.images.pull(&spec.image.name, pull).await {
            Ok(image) => image,
            Err(error) => {
                lock.remove();
                return Err(error.into());
            }
        };
        let record = self.new_record(id, spec, image);
        let mut container = Container { paths, record };
        let created = self.make(&mut container, hold, &options.called_off).await;
        if let Err(error) = created {
            if let Err(also) = self.discard(&container, self.config.volumes.sync_on_stop).await {
                tracing::warn!(container = %id, error = also.chain(), "undoing a failed create");
            }
            lock.remove();
            return Err(error);
        }
        let event = Event { image: Some(container.record.image.reference.clone()), ..Event::now(EventKind::Create) };
        self.tell(event.of(id));
        self.keep_watch(&container);
        Ok(())
    }

    fn new_record(&self, id: &ContainerId, spec: &ServiceSpec, image: Image) -> ContainerRecord {
        ContainerRecord {
            id: id.clone(),
            spec: spec.clone(),
            image: ImageRecord {
                reference: image.reference,
                digest: image.digest,
                layers: image.layers,
                config: image.config,
                healthcheck: image.healthcheck,
            },
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
    async fn make(
        self: &Arc<Self>,
        container: &mut Container,
        hold: registry::StoreHold,
        called_off: &CancellationToken,
    ) -> Result<()> {
        let paths = container.paths.clone();
        for dir in [paths.dir.join("etc"), paths.logs(), paths.run.clone()] {
            fs::create_dir_all(&dir).map_err(Error::io("creating", &dir))?;
        }
        let supervisor = self.start_supervisor(&paths)?;
        container.record.network = self.lease_network(container).await?;
        let held = self.reserve_ports(&mut container.record).await?;
        let fill = self.resolve_mounts(container, called_off).await?;
        // The record makes the container: from here on it is found again, whatever dies.
        record::write(&paths.record(), &container.record)?;
        drop(hold);
        self.launch(container, Launch { fill, held, supervisor }).await.map(drop)
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

    /// Makes the volume `name` this container's, as its spec and the caller ask. Only a create fills a new one.
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
                all.take_over |= take_over;
                all.size = all.size.or(size.map(|size| size.as_u64()));
                all.tier = all.tier.take().or(tier.clone());
            }
        }
        loop {
            match self.volumes.acquire(name, &record.id.to_string(), all.clone()).await {
                Err(volumes_s3::Error::BeingFilled { users, .. }) => {
                    let waiting = all.called_off.run_until_cancelled(self.wait_until_filled(name, users));
                    let called_off = || volumes_s3::Error::CalledOff { name: name.to_owned() };
                    waiting.await.unwrap_or_else(|| Err(Error::of_volume(name, called_off())))?;
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

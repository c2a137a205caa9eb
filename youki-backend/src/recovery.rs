//! Opening a root: what is on record is brought in line with what runs.
//!
//! Nothing of a container lives in the agent, so that is all there is to an agent's restart: containers whose
//! supervisor is gone are killed and put on record as lost, what a killed create left is removed, leases of containers
//! that are no more are freed.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use registry::{ImageStore, StoreConfig};
use runtime_core::ContainerId;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use volumes_s3::VolumeStore;

use crate::config::{self, Config};
use crate::container::{CONCURRENT_LOOKS, Observed, mounted_by, remove_dir};
use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::lock::ContainerLock;
use crate::network::{Definition, Networks, Place, Subnet, TABLE_PREFIX};
use crate::process::ProcessName;
use crate::record::{self, NetworkRecord};
use crate::refusal;
use crate::runtime::{Inner, YoukiRuntime};
use crate::supervisor::spawn::Spawner;
use crate::supervisor::wire::Phase;
use crate::trash::{SUPERVISOR_PATIENCE, Trash};

/// Tells a root, and what wrote it.
pub(crate) const VERSION_FILE: &str = "berth-root.json";
/// The layout that this code writes.
pub(crate) const ROOT_FORMAT: u32 = 1;
/// Time that an open gives to a supervisor to say what it does.
const LOOK_PATIENCE: Duration = Duration::from_millis(500);
/// Time that an open gives to volumes of a create that was cut off.
pub(crate) const OPEN_PATIENCE: Duration = Duration::from_secs(2);

/// `berth-root.json`.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct RootVersion {
    format: u32,
    /// What an older Berth may ignore.
    compatible: Vec<String>,
    /// What it may not.
    incompatible: Vec<String>,
}

/// What any format of that file has.
#[derive(Debug, Deserialize)]
struct RootFormat {
    format: u32,
}

/// Brings all containers in line, or only the one that is asked for.
pub(crate) async fn open(mut config: Config, only: Option<&ContainerId>) -> Result<YoukiRuntime> {
    let hierarchy = refusal::refuse(&config)?;
    let subnet: Subnet = config.network.subnet.parse()?;
    let spawner = Spawner::locate(config.helper_dir.as_deref())?;
    make_private(&config.root)?;
    config.root = fs::canonicalize(&config.root).map_err(Error::io("resolving", &config.root))?;
    check_version(&config.root)?;
    let layout = Layout { root: config.root.clone(), run: config.run_dir.clone() };
    make_private(&layout.run)?;
    refusal::claim_run_dir(&layout)?;
    for dir in [layout.containers(), layout.trash(), layout.sockets(), layout.run.join("locks")] {
        make_private(&dir)?;
    }
    refusal::claim_cgroup_parent(&config, &hierarchy)?;
    hierarchy.container_dirs(&format!("/{}/supervisors", config.cgroup_parent)).create()?;

    let tag = config::root_tag(&config.root);
    let networks = Networks::new(Place {
        table: format!("{TABLE_PREFIX}{tag}"),
        default: Definition::default_network(&config.network.bridge, subnet),
        definitions: layout.networks(),
        run: layout.run.clone(),
        containers: layout.containers(),
    })?;
    let images = ImageStore::open(StoreConfig {
        registries: config.registries.clone(),
        limits: config.limits.clone(),
        drop_blobs: config.images.drop_blobs,
        ..StoreConfig::new(config.root.clone())
    })?;
    let volumes = VolumeStore::open(volumes_s3::VolumesConfig {
        root: config.root.join("volumes"),
        host: host_name(&tag),
        s3: config.s3.clone(),
        keep: config.volumes.keep,
        take_over_after: config.volumes.take_over_after,
        prune_grace: config.volumes.prune_grace,
        mounted_by: Some(mounted_by(&layout)),
    })
    .await?;
    spawner.start_reaping()?;
    let boot_id = boot_id()?;
    let trash = layout.trash();

    let inner = Arc::new_cyclic(|weak| Inner {
        config,
        layout,
        images,
        volumes,
        networks,
        hierarchy,
        spawner,
        boot_id,
        followed: Mutex::default(),
        trash: Arc::new(Trash::new(trash)),
        weak: weak.clone(),
    });
    match only {
        Some(id) => {
            id.validate()?;
            inner.reconcile_one(id).await?;
        }
        None => inner.reconcile().await?,
    }
    let (open, closed) = tokio::sync::watch::channel(());
    if inner.config.keeper {
        crate::keeper::start(&inner, closed);
    }
    Ok(YoukiRuntime(inner, Arc::new(open)))
}

impl Inner {
    /// Takes away what this root has on the host outside its own directories and outside containers: the bridge and its
    /// firewall table, the cgroups. All of it is made again when it is needed.
    pub(crate) async fn dismantle(&self) -> Result<()> {
        for id in self.container_ids()? {
            let container = match self.container(&id) {
                Err(Error::NoSuchContainer { .. }) => continue,
                other => other?,
            };
            let observed = self.observe(&container).await?;
            let Observed::Ended(record) = observed else {
                return Err(Error::StillRunning { id: id.to_string(), state: observed.state().word() });
            };
            // Its link goes with its network namespace, a moment after its supervisor.
            self.wait_for_supervisor(&container, &record).await?;
            if let NetworkRecord::Bridge(lease) = &container.record.network {
                self.networks.detach(lease).await?;
            }
        }
        self.trash.deleted().await;
        self.networks.dismantle().await?;
        let parent = format!("/{}", self.config.cgroup_parent);
        let cgroup = self.hierarchy.container_dirs(&parent);
        let supervisors = self.hierarchy.container_dirs(&format!("{parent}/supervisors"));
        let removed = tokio::task::spawn_blocking(move || {
            // Those that unmount, or delete what their containers left.
            for pid in supervisors.pids()? {
                let ending = ProcessName::of(pid.cast_signed()).map_err(Error::io("looking at", "a supervisor"))?;
                if let Some(supervisor) = ending {
                    supervisor.wait_for_end(SUPERVISOR_PATIENCE);
                }
            }
            cgroup.remove()
        });
        removed.await.map_err(Error::ThreadLost)??;
        refusal::release_run_dir(&self.layout)
    }

    /// Whether a container's cgroup may be touched: a copy of a root names those of the original, which may run.
    pub(crate) fn is_own_cgroup(&self, cgroup_path: &str) -> Result<bool> {
        let parent = Path::new(cgroup_path).parent().unwrap_or(Path::new("/"));
        let parent = self.hierarchy.container_dirs(&parent.to_string_lossy());
        let Some(dir) = parent.distinct().into_iter().next() else { return Ok(true) };
        Ok(refusal::cgroup_owner(dir)?.is_none_or(|owner| owner == self.config.root || !refusal::is_root(&owner)))
    }

    /// Looks at every container once; what is lost or abandoned is dealt with on the way.
    async fn reconcile(self: &Arc<Self>) -> Result<()> {
        self.trash.delete_orphans()?;
        let mut names = Vec::new();
        let dir = self.layout.containers();
        for entry in fs::read_dir(&dir).map_err(Error::io("listing", &dir))? {
            let name = entry.map_err(Error::io("listing", &dir))?.file_name();
            names.extend(name.to_str().and_then(|name| name.parse::<ContainerId>().ok()));
        }
        let mut looks = JoinSet::new();
        for id in names {
            if looks.len() >= CONCURRENT_LOOKS {
                looks.join_next().await;
            }
            let inner = self.clone();
            looks.spawn(async move {
                match inner.reconcile_one(&id).await {
                    // Removed meanwhile.
                    Ok(()) | Err(Error::NoSuchContainer { .. }) => {}
                    Err(error) => tracing::error!(container = %id, error = error.chain(), "its state is not known"),
                }
            });
        }
        while looks.join_next().await.is_some() {}
        let (layout, networks) = (self.layout.clone(), self.networks.clone());
        tokio::task::spawn_blocking(move || {
            remove_orphans(&layout)?;
            // What is left of one container's network holds up no other; the next open tries again.
            if let Err(error) = networks.reconcile(&|id| layout.may_be_container(id)) {
                tracing::error!(
                    error = error.chain(),
                    "what containers that are gone have of the network is not freed"
                );
            }
            Ok(())
        })
        .await
        .map_err(Error::ThreadLost)?
    }

    async fn reconcile_one(self: &Arc<Self>, id: &ContainerId) -> Result<()> {
        let paths = self.layout.container(id);
        // Whoever creates, starts or removes it holds the lock, and will see to it.
        let Some(lock) = ContainerLock::try_acquire(&paths.lock)? else { return Ok(()) };
        match self.container(id) {
            Ok(container) if paths.created().exists() => {
                drop(lock);
                // A supervisor sees to all that follows. One that does not answer would hold up all other containers.
                if self.exit_record(&container)?.is_none() {
                    let asked = tokio::time::timeout(LOOK_PATIENCE, self.ask_supervisor(&container)).await;
                    if !matches!(asked, Ok(Ok(None | Some(Observed::Ended(_))) | Err(_))) {
                        self.keep_watch(&container);
                        return match asked {
                            Ok(Ok(Some(Observed::Supervised(status)))) if status.phase == Phase::Running => {
                                self.hold_network_again(&container).await
                            }
                            _ => Ok(()),
                        };
                    }
                }
                match self.observe(&container).await? {
                    Observed::Ended(record) if self.is_left_over(&container, &record) => {
                        self.remove_left_over(&container).await;
                        Ok(())
                    }
                    // By itself, with nobody there to see it.
                    Observed::Ended(_) => {
                        self.keep_watch(&container);
                        self.leave_network_if_idle(&container).await
                    }
                    _ => {
                        self.keep_watch(&container);
                        Ok(())
                    }
                }
            }
            Ok(container) => {
                let undone = self.undo_cut_off(&container).await;
                lock.remove();
                undone
            }
            Err(Error::NoSuchContainer { .. }) => {
                let cleared = self.clear_unrecorded(id, &paths).await;
                lock.remove();
                cleared
            }
            Err(error) => Err(error),
        }
    }
}

/// Removes locks and run directories of containers that were never made, or are no more: whoever made them was killed, or
/// its stage came later than whoever cleaned up. What is locked is somebody's who is about to make one, and who waits for
/// a lock that is removed notices and takes a new one.
fn remove_orphans(layout: &Layout) -> Result<()> {
    for dir in [layout.run.join("locks"), layout.run.join("containers")] {
        let entries = match fs::read_dir(&dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            other => other.map_err(Error::io("listing", &dir))?,
        };
        for entry in entries {
            let name = entry.map_err(Error::io("listing", &dir))?.file_name();
            let Some(id) = name.to_str().and_then(|name| name.parse::<ContainerId>().ok()) else { continue };
            let paths = layout.container(&id);
            if paths.dir.exists() || !(paths.lock.exists() || paths.run.exists()) {
                continue;
            }
            if let Some(lock) = ContainerLock::try_acquire(&paths.lock)?
                && !paths.dir.exists()
            {
                remove_dir(&paths.run)?;
                lock.remove();
            }
        }
    }
    Ok(())
}

fn make_private(dir: &Path) -> Result<()> {
    if !dir.exists() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(Error::io("creating", dir))?;
    }
    let metadata = fs::metadata(dir).map_err(Error::io("reading", dir))?;
    if metadata.permissions().mode() & 0o077 != 0 {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).map_err(Error::io("closing to others", dir))?;
    }
    Ok(())
}

fn check_version(root: &Path) -> Result<()> {
    let path = root.join(VERSION_FILE);
    let incompatible = |flag: String| Err(Error::IncompatibleRoot { root: root.to_owned(), flag });
    match record::read::<RootFormat>(&path)? {
        // Without it the root never opens again.
        None => return record::write_synced(&path, &RootVersion { format: ROOT_FORMAT, ..RootVersion::default() }),
        Some(RootFormat { format: ROOT_FORMAT }) => {}
        Some(RootFormat { format }) => return incompatible(format!("format {format}")),
    }
    let flags = record::read::<RootVersion>(&path)?.map(|version| version.incompatible).unwrap_or_default();
    flags.into_iter().next().map_or(Ok(()), incompatible)
}

/// What this host, with this root, is called in the claims of volumes: the same over reboots, and nobody else's.
fn host_name(root_tag: &str) -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let machine = fs::read_to_string("/etc/machine-id").unwrap_or_default();
    let machine: String = machine.trim().chars().take(8).collect();
    [name.as_str(), machine.as_str(), root_tag]
        .into_iter()
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>()
        .join("-")
}

/// This boot's identity.
pub(crate) fn boot_id() -> Result<String> {
    read_line("/proc/sys/kernel/random/boot_id")
}

fn read_line(path: &str) -> Result<String> {
    Ok(fs::read_to_string(path).map_err(Error::io("reading", path))?.trim_end().to_owned())
}

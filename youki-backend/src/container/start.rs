//! Starting: the first attempt, or one more.

use std::fs;
use std::io;
use std::sync::Arc;

use runtime_core::ContainerId;
use volumes_s3::AcquireOptions;

use super::attempt::Launch;
use super::exit::Settling;
use super::remove::remove_dir;
use super::{Container, Observed};
use crate::attempts::Attempts;
use crate::driven::{self, Caller};
use crate::error::{Error, Result};
use crate::layout::ContainerPaths;
use crate::lock::ContainerLock;
use crate::record::{self, ExitRecord, MountKind, NetworkRecord};
use crate::runtime::Inner;
use crate::supervisor::client::Connection;
use crate::supervisor::wire::{Phase, Reply, Request};

impl Inner {
    /// Starts `id`; Ok at once if it runs. Once it has its turn it goes on to its end when the future is dropped.
    pub(crate) async fn start(self: &Arc<Self>, id: &ContainerId) -> Result<()> {
        let (inner, id) = (self.clone(), id.clone());
        driven::to_the_end(|caller| async move { inner.start_to_the_end(&id, &caller).await }).await
    }

    async fn start_to_the_end(self: &Arc<Self>, id: &ContainerId, caller: &Caller) -> Result<()> {
        let (lock, mut container) = self.lock_for(caller, id).await?;
        let ended = match self.exit_record(&container)? {
            Some(record) => record,
            None => match self.supervisor(&container).await? {
                Some(mut connection) => match connection.ask(&Request::Status).await.map_err(Error::supervisor(id))? {
                    Some(Reply::Status(status)) if status.phase == Phase::Running => return Ok(()),
                    // One that waits to be restarted need not wait any longer.
                    Some(Reply::Status(status)) if matches!(status.phase, Phase::Created | Phase::Restarting) => {
                        self.connect_if_cut_off(&container, status.supervisor_pid).await?;
                        return self.tell_to_start(&container, &lock, connection).await;
                    }
                    // It is stopping: the next attempt begins after this one's end.
                    _ => {
                        drop(connection);
                        self.wait_for_last_end(&container, Some(&lock)).await?
                    }
                },
                None => self.declare_lost(&container, &lock).await?,
            },
        };
        if container.record.spec.remove_on_exit {
            drop(lock);
            // As good as gone: whoever looks at it removes it, if its supervisor does not.
            self.observe(&container).await?;
            return Err(Error::NoSuchContainer { id: id.to_string() });
        }
        if self.exit_record(&container)?.is_none() {
            // Its supervisor lives on to write that. Where there is no room for it, there is none for an attempt.
            record::write(&container.paths.record(), &container.record)?;
        }
        self.wait_for_supervisor(&container, &ended).await?;
        let connection = match self.begin_attempt(&mut container, &ended).await {
            Ok(connection) => connection,
            Err(error) => {
                self.undo_attempt(&container, &lock, &ended, &error).await;
                return Err(error);
            }
        };
        self.keep_watch(&container);
        self.tell_to_start(&container, &lock, connection).await
    }

    /// Builds the container anew for one more attempt: same root, address and logs.
    async fn begin_attempt(self: &Arc<Self>, container: &mut Container, ended: &ExitRecord) -> Result<Connection> {
        let supervisor = self.start_supervisor(&container.paths)?;
        let env = self.resolve_env(&container.record).await?;
        if !container.record.named_volumes().is_empty() {
            ring_keeper(&container.paths)?;
        }
        let image = &mut container.record.image;
        image.layers = self.images.layers_of(&image.digest, &image.layers).await?;
        for index in 0..container.record.mounts.len() {
            let mount = &container.record.mounts[index];
            if let (MountKind::Named, Some(name)) = (mount.kind, mount.name.clone()) {
                let acquired = self.acquire_volume(&container.record, &name, AcquireOptions::default()).await?;
                container.record.mounts[index].source = acquired.path;
            }
        }
        // Nobody else may write its hosts file while it is made anew.
        self.leave_network(container).await?;
        if let NetworkRecord::Bridge(earlier) = &container.record.network {
            let (id, earlier) = (container.record.id.to_string(), earlier.clone());
            let lease = self.on_networks(move |networks| networks.lease_again(&id, &earlier)).await?;
            container.record.network = NetworkRecord::Bridge(lease);
        }
        if let Some(name) = container.record.spec.network_mode().container() {
            container.record.network = NetworkRecord::Container(self.join_network(&container.record.id, name).await?);
        }
        let held = self.reserve_ports(&mut container.record).await?;
        // From here on the earlier exit record is out of date.
        Attempts::begin(&container.paths.attempts(), container.record.attempt + 1, 0, ended)?;
        container.record.attempt += 1;
        container.record.boot_id.clone_from(&self.boot_id);
        record::write(&container.paths.record(), &container.record)?;
        remove_dir(&container.paths.run)?;
        self.launch(container, Launch { env, fill: Vec::new(), held, supervisor }).await
    }

    /// Gives back what an attempt was to have that could not be begun, and puts that on record if it counts already.
    async fn undo_attempt(&self, container: &Container, lock: &ContainerLock, ended: &ExitRecord, why: &Error) {
        let undone = match container.record.attempt == ended.attempt {
            true => {
                let _ = fs::remove_file(&container.paths.socket);
                match self.leave_network(container).await {
                    // Whoever has the address next must not be reached by what leads to it still.
                    Ok(()) => self.free_new_lease(container).await,
                    error => error,
                }
            }
            false => self.put_lost_on_record(container, lock, why.chain()).await.map(drop),
        };
        if let Err(error) = undone {
            tracing::warn!(container = %container.record.id, error = error.chain(), "an attempt is not undone");
        }
        self.settle_volumes(container, Settling::Left).await;
    }

    /// Frees the address that an attempt has leased which is on record nowhere.
    async fn free_new_lease(&self, container: &Container) -> Result<()> {
        let NetworkRecord::Bridge(lease) = &container.record.network else { return Ok(()) };
        let id = &container.record.id;
        if let NetworkRecord::Bridge(known) = &self.container(id)?.record.network
            && (&known.network, known.ip) == (&lease.network, lease.ip)
        {
            return Ok(());
        }
        let (lease, id) = (lease.clone(), id.to_string());
        self.on_networks(move |networks| networks.free(&lease, &id)).await
    }

    async fn tell_to_start(
        &self,
        container: &Container,
        lock: &ContainerLock,
        mut connection: Connection,
    ) -> Result<()> {
        let id = container.record.id.to_string();
        match connection.ask(&Request::Start).await.map_err(Error::supervisor(&id))? {
            Some(Reply::Ok) => Ok(()),
            Some(Reply::ExecFailed { errno, .. }) => {
                // Its end is on record before anybody is told why.
                self.wait_for_last_end(container, Some(lock)).await?;
                self.settle_volumes(container, Settling::Left).await;
                Err(Error::ExecFailed {
                    program: container.record.args.first().cloned().unwrap_or_default(),
                    source: io::Error::from_raw_os_error(errno),
                })
            }
            Some(Reply::Error(what)) => Err(Error::Supervisor { id, what, source: None }),
            Some(Reply::Failed(failure)) => Err(failure.into_error(id)),
            // It ended in the same breath: that it was started is true.
            _ => match self.observe(container).await? {
                Observed::Ended(record) if record.started_at.is_some() => Ok(()),
                _ => Err(Error::supervisor_ended(&id, "before the program was executed")),
            },
        }
    }
}

/// A file where the supervisor's socket will be: the keeper looks at who gets one, and waits for its lock. If this process
/// is killed, it gives back what the container was to have.
pub(super) fn ring_keeper(paths: &ContainerPaths) -> Result<()> {
    // What an earlier supervisor has left cannot be written to.
    let _ = fs::remove_file(&paths.socket);
    fs::write(&paths.socket, b"").map_err(Error::io("writing", &paths.socket))
}

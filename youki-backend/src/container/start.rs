//! Starting: the first attempt, or one more.

use std::io;
use std::sync::Arc;

use runtime_core::ContainerId;

use super::attempt::Launch;
use super::exit::Settling;
use super::remove::remove_dir;
use super::{Container, Observed};
use crate::attempts::Attempts;
use crate::error::{Error, Result};
use crate::lock::ContainerLock;
use crate::record::{self, ExitRecord, MountKind, NetworkRecord};
use crate::runtime::Inner;
use crate::supervisor::client::Connection;
use crate::supervisor::wire::{Phase, Reply, Request};

impl Inner {
    /// Starts `id`; Ok at once if it runs. Goes on to its end when the future is dropped.
    pub(crate) async fn start(self: &Arc<Self>, id: &ContainerId) -> Result<()> {
        let (inner, id) = (self.clone(), id.clone());
        tokio::spawn(async move { inner.start_to_the_end(&id).await }).await.map_err(Error::ThreadLost)?
    }

    async fn start_to_the_end(&self, id: &ContainerId) -> Result<()> {
        let (lock, mut container) = self.lock(&self.container(id)?).await?;
        let ended = match self.exit_record(&container)? {
            Some(record) => Some(record),
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
                        Some(self.wait_for_last_end(&container, Some(&lock)).await?)
                    }
                },
                None => Some(self.declare_lost(&container, &lock).await?),
            },
        };
        if ended.is_some() && container.record.spec.remove_on_exit {
            drop(lock);
            // As good as gone: whoever looks at it removes it, if its supervisor does not.
            self.observe(&container).await?;
            return Err(Error::NoSuchContainer { id: id.to_string() });
        }
        if let Some(ended) = &ended {
            if self.exit_record(&container)?.is_none() {
                // Its supervisor lives on to write that. Where there is no room for it, there is none for an attempt.
                record::write(&container.paths.record(), &container.record)?;
            }
            self.wait_for_supervisor(&container, ended).await?;
        }
        let connection = self.begin_attempt(&mut container, ended.as_ref()).await?;
        self.keep_watch(&container);
        self.tell_to_start(&container, &lock, connection).await
    }

    /// Builds the container anew for one more attempt: same root, address and logs.
    async fn begin_attempt(&self, container: &mut Container, ended: Option<&ExitRecord>) -> Result<Connection> {
        let supervisor = self.start_supervisor(&container.paths)?;
        for index in 0..container.record.mounts.len() {
            let mount = &container.record.mounts[index];
            if let (MountKind::Named, Some(name)) = (mount.kind, mount.name.clone()) {
                let acquired = self.acquire_volume(&container.record, &name, false).await?;
                container.record.mounts[index].source = acquired.path;
            }
        }
        if let NetworkRecord::Bridge(earlier) = &container.record.network {
            let lease = self.networks.lease_again(&container.record.id.to_string(), earlier)?;
            container.record.network = NetworkRecord::Bridge(lease);
        }
        if let Some(name) = container.record.spec.network_mode().container() {
            container.record.network = NetworkRecord::Container(self.join_network(&container.record.id, name).await?);
        }
        let held = self.reserve_ports(&mut container.record)?;
        container.record.attempt += 1;
        container.record.boot_id.clone_from(&self.boot_id);
        // From here on the earlier exit record is out of date.
        record::write(&container.paths.record(), &container.record)?;
        if let Some(ended) = ended {
            Attempts::begin(&container.paths.attempts(), container.record.attempt, 0, ended)?;
        }
        remove_dir(&container.paths.run)?;
        self.launch(container, Launch { fill: Vec::new(), held, supervisor }).await
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

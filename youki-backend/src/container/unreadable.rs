//! A container whose record cannot be read: what is named after its id can be found all the same, and freed.

use runtime_core::{ContainerId, Event, EventKind};

use super::remove::take_files;
use crate::driven::Caller;
use crate::error::{Error, Result};
use crate::lock::ContainerLock;
use crate::runtime::Inner;
use crate::supervisor::client::Connection;
use crate::supervisor::wire::Request;

impl Inner {
    /// Kills it, and frees its cgroup, addresses, ports, names and files; gives its named volumes back, and tells which
    /// of them are not durable yet.
    pub(super) async fn remove_unreadable(
        &self,
        id: &ContainerId,
        caller: &Caller,
    ) -> Result<Vec<(String, volumes_s3::Error)>> {
        let paths = self.layout.container(id);
        let lock = ContainerLock::acquire(paths.lock.clone()).await?;
        match self.container(id) {
            Err(Error::Corrupt { .. }) => {}
            // Whoever had the lock has removed it, or put it right.
            Err(error @ Error::NoSuchContainer { .. }) => {
                lock.remove();
                return Err(error);
            }
            Err(error) => return Err(error),
            Ok(container) => {
                drop(lock);
                return self.remove_to_the_end(container, true, caller).await;
            }
        }
        if let Ok(mut connection) = Connection::open(&paths.socket).await {
            // It ends when it has said so, and its mounts with it.
            if connection.ask(&Request::Stop { signal: libc::SIGKILL, timeout_ms: 0 }).await.is_err() {
                connection.kill_peer().await.map_err(Error::supervisor(id))?;
            }
        }
        self.clear_cgroup_at(&self.cgroup_path_of(id), &paths).await?;
        let owed = self.end_volumes_of(id, false, self.config.volumes.sync_on_stop).await?;
        let (layout, networks, trash, gone) =
            (self.layout.clone(), self.networks.clone(), self.trash.clone(), id.clone());
        let taken = tokio::task::spawn_blocking(move || {
            let (run, taken) = take_files(&paths, &trash);
            run?;
            let taken = taken?;
            networks.reconcile(&|name| name != gone.to_string() && layout.may_be_container(name))?;
            Ok::<_, Error>(taken)
        });
        if let Some(discarded) = taken.await.map_err(Error::ThreadLost)?? {
            self.trash.delete(discarded, None);
        }
        self.tell(Event::now(EventKind::Remove).of(id));
        lock.remove();
        Ok(owed)
    }
}

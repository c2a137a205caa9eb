//! Waiting for the end of an attempt: told by the supervisor, nothing polls.

use runtime_core::{ContainerId, WaitOutcome};

use super::{Container, Observed};
use crate::error::{Error, Result};
use crate::record::ExitRecord;
use crate::runtime::Inner;
use crate::supervisor::wire::{Reply, Request};

impl Inner {
    /// How the attempt of `id` that is current now ends, or ended. Cancel-safe.
    pub(crate) async fn wait(&self, id: &ContainerId) -> Result<WaitOutcome> {
        let container = self.container(id)?;
        self.wait_for_end(&container).await.map(|record| record.outcome)
    }

    /// The exit record of `container`'s attempt, once there is one.
    pub(crate) async fn wait_for_end(&self, container: &Container) -> Result<ExitRecord> {
        loop {
            if let Some(record) = self.exit_record(container)? {
                return Ok(record);
            }
            if let Some(mut connection) = self.supervisor(container).await? {
                // An answer or the end of the connection, whichever comes: the record tells.
                let record = match connection.ask(&Request::Wait).await? {
                    Some(Reply::Exited(exit)) => self.record_of(container, &exit)?,
                    _ => self.exit_record(container)?,
                };
                if let Some(record) = record {
                    return Ok(record);
                }
            }
            match self.observe(container).await? {
                Observed::Ended(record) if record.attempt == container.record.attempt => return Ok(*record),
                // Whoever creates it holds its lock until its supervisor can be asked.
                Observed::Pending => drop(crate::lock::ContainerLock::acquire(container.paths.lock.clone()).await?),
                Observed::Ended(_) => {
                    return Err(Error::NoSuchContainer { id: container.record.id.to_string() });
                }
                Observed::Supervised(_) => {}
            }
        }
    }
}

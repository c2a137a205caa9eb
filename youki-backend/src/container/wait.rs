//! Waiting for the end of an attempt: told by the supervisor, nothing polls.

use runtime_core::{ContainerId, WaitOutcome};

use super::{Container, Observed};
use crate::attempts::Attempts;
use crate::error::{Error, Result};
use crate::lock::ContainerLock;
use crate::record::ExitRecord;
use crate::runtime::Inner;
use crate::supervisor::wire::{LAST_ATTEMPT, Reply, Request};

impl Inner {
    /// How the attempt of `id` that is current now ends, or ended. Cancel-safe.
    pub(crate) async fn wait(&self, id: &ContainerId) -> Result<WaitOutcome> {
        let container = self.container(id)?;
        self.wait_for_end(&container).await.map(|record| record.outcome)
    }

    /// The exit record of `container`'s attempt, once there is one. Others may have followed it.
    pub(crate) async fn wait_for_end(&self, container: &Container) -> Result<ExitRecord> {
        let attempt = container.record.attempt;
        loop {
            if let Some(record) = self.end_of_attempt(container)? {
                return Ok(record);
            }
            if let Some(mut connection) = self.supervisor(container).await? {
                // An answer or the end of the connection, whichever comes: the record tells.
                let told = match connection
                    .ask(&Request::Wait { attempt })
                    .await
                    .map_err(Error::supervisor(&container.record.id))?
                {
                    Some(Reply::Exited(exit)) => self.record_of(container, &exit)?,
                    _ => None,
                };
                if let Some(record) = told.or(self.end_of_attempt(container)?) {
                    return Ok(record);
                }
            }
            match self.observe(container).await? {
                Observed::Ended(record) if record.attempt == attempt => return Ok(*record),
                // Whoever creates it holds its lock until its supervisor can be asked.
                Observed::Pending | Observed::Unsupervised => {
                    ContainerLock::passed(container.paths.lock.clone()).await?
                }
                Observed::Ended(record) if record.attempt < attempt => {
                    return Err(Error::NoSuchContainer { id: container.record.id.to_string() });
                }
                Observed::Ended(_) | Observed::Supervised(_) => {
                    let now = self.container(&container.record.id)?;
                    if now.record.attempt > attempt && self.end_of_attempt(container)?.is_none() {
                        return Err(Error::Supervisor {
                            id: container.record.id.to_string(),
                            what: format!("has forgotten how attempt {attempt} ended: it is at {}", now.record.attempt),
                            source: None,
                        });
                    }
                }
            }
        }
    }

    /// The exit record of the last attempt, the one that no other follows, once there is one. `lock`: the container's, if
    /// the caller has it.
    pub(crate) async fn wait_for_last_end(
        &self,
        container: &Container,
        lock: Option<&ContainerLock>,
    ) -> Result<ExitRecord> {
        loop {
            match (self.observe(container).await?, lock) {
                (Observed::Ended(record), _) => return Ok(*record),
                // Nobody else creates or starts it.
                (Observed::Pending | Observed::Unsupervised, Some(lock)) => {
                    return self.declare_lost(container, lock).await;
                }
                (Observed::Pending | Observed::Unsupervised, None) => {
                    ContainerLock::passed(container.paths.lock.clone()).await?
                }
                (Observed::Supervised(_), _) => {
                    if let Some(mut connection) = self.supervisor(container).await? {
                        // The next look tells.
                        connection
                            .ask(&Request::Wait { attempt: LAST_ATTEMPT })
                            .await
                            .map_err(Error::supervisor(&container.record.id))?;
                    }
                }
            }
        }
    }

    /// How `container`'s attempt ended, if that is on record: others may have followed it.
    fn end_of_attempt(&self, container: &Container) -> Result<Option<ExitRecord>> {
        match self.last_exit(container)? {
            Some(record) => Ok(Some(record)),
            None => Ok(Attempts::read(&container.paths.attempts())?.end_of(container.record.attempt)),
        }
    }
}

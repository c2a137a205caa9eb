//! [`Watched`]: one attempt of a container, for whoever must know its end though the container may go with it.

use std::sync::Arc;
use std::time::Duration;

use runtime_core::{ContainerId, WaitOutcome};

use super::Container;
use super::exit::Settling;
use crate::driven;
use crate::error::{Error, Result};
use crate::record::ExitRecord;
use crate::runtime::Inner;
use crate::supervisor::client::Connection;
use crate::supervisor::wire::{Reply, Request};

/// The attempt of a container that was current when this was made. Its end is told also if the container is gone by
/// then, as one with `remove_on_exit` is; and it is never taken for a later container of its name.
#[derive(Debug)]
pub struct Watched {
    inner: Arc<Inner>,
    container: Container,
    /// To its supervisor, which was asked already.
    asked: Option<Connection>,
    ended: Option<ExitRecord>,
    /// Whether its volumes were tried after its end. A try that takes too long goes on, and is not waited for again.
    settled: bool,
}

impl Inner {
    /// The current attempt of `id`.
    pub(crate) async fn watch(self: &Arc<Self>, id: &ContainerId) -> Result<Watched> {
        let container = self.container(id)?;
        let mut asked = self.supervisor(&container).await?;
        if let Some(connection) = &mut asked
            && connection.send(&Request::Wait { attempt: container.record.attempt }).await.is_err()
        {
            asked = None;
        }
        Ok(Watched { inner: self.clone(), container, asked, ended: None, settled: false })
    }
}

impl Watched {
    /// How the attempt ends, or ended. Cancel-safe.
    ///
    /// # Errors
    /// [`Error::NoSuchContainer`] if it had ended before this was made, and was removed since.
    pub async fn wait(&mut self) -> Result<WaitOutcome> {
        self.record().await.map(|record| record.outcome)
    }

    async fn record(&mut self) -> Result<ExitRecord> {
        if let Some(record) = &self.ended {
            return Ok(record.clone());
        }
        let told = match &mut self.asked {
            Some(connection) => {
                match connection.receive().await.map_err(Error::supervisor(&self.container.record.id))? {
                    Some(Reply::Exited(exit)) => self.inner.record_of(&self.container, &exit)?,
                    _ => None,
                }
            }
            None => None,
        };
        let record = match told {
            Some(record) => record,
            None => self.inner.wait_for_end(&self.container).await?,
        };
        self.asked = None;
        Ok(self.ended.insert(record).clone())
    }

    /// Gives back what the container has of its network, and syncs and gives back its named volumes, as a stop does, once
    /// it has ended and is not started again. Tells which of them are not durable yet, and why.
    ///
    /// # Errors
    /// [`Error::Network`]; the volumes are settled all the same.
    pub async fn settle(&mut self) -> Result<Vec<(String, volumes_s3::Error)>> {
        self.settled = true;
        let (inner, container) = (self.inner.clone(), self.container.clone());
        let settle = async move {
            let left = inner.leave_network_if_ended(&container).await;
            let settled = inner.settle_ended(&container, Settling::Joined).await;
            left.map(|()| settled)
        };
        driven::while_waited_for(settle).await
    }

    /// Returns when nothing is left of the container: its supervisor's removal is waited for, and what that left, or
    /// could not begin, is removed here. A container that still runs is killed. Tells which of its named volumes are not
    /// durable yet, unless that was told before.
    ///
    /// # Errors
    /// What failed while all the rest was freed.
    pub async fn removed(self) -> Result<Vec<(String, volumes_s3::Error)>> {
        driven::while_waited_for(self.removed_by_now()).await
    }

    async fn removed_by_now(mut self) -> Result<Vec<(String, volumes_s3::Error)>> {
        let has_ended = match self.is_there() && self.inner.exit_record(&self.container)?.is_none() {
            true => self.inner.end(&self.container, libc::SIGKILL, Duration::ZERO, None).await,
            false => Ok(()),
        };
        if has_ended.is_ok()
            && let Ok(record) = self.record().await
        {
            self.inner.wait_for_supervisor(&self.container, &record).await?;
        }
        let mut owed = match self.is_there() {
            true => self.inner.remove_this(self.container.clone(), true).await.or_else(|error| match error {
                Error::NoSuchContainer { .. } => Ok(Vec::new()),
                other => Err(other),
            })?,
            false => Vec::new(),
        };
        if !self.settled {
            owed.extend(self.inner.settle_ended(&self.container, Settling::Left).await);
        }
        self.inner.trash.deleted().await;
        Ok(owed)
    }

    fn is_there(&self) -> bool {
        let container = self.inner.container(&self.container.record.id);
        container.is_ok_and(|now| now.record.is_same_container(&self.container.record))
    }
}

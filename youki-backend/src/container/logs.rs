//! Reading a container's log.

use futures_util::FutureExt;
use runtime_core::{ContainerId, LogEntry, LogsOptions};

use super::Observed;
use crate::error::{Error, Result};
use crate::logs::{self, RecordStream};
use crate::runtime::Inner;

impl Inner {
    /// The last `tail` entries of `id`, 0 for all.
    pub(crate) async fn logs(&self, id: &ContainerId, tail: usize) -> Result<Vec<LogEntry>> {
        let container = self.container(id)?;
        let (dir, id) = (container.paths.logs(), id.clone());
        tokio::task::spawn_blocking(move || logs::read(&dir, &id.service, &id.to_string(), tail))
            .await
            .map_err(Error::ThreadLost)?
    }

    /// Records of the log of `id`, with `follow` until it has ended for good.
    pub(crate) async fn logs_stream(
        self: &std::sync::Arc<Self>,
        id: &ContainerId,
        options: &LogsOptions,
    ) -> Result<RecordStream> {
        let container = self.container(id)?;
        // Whoever does not follow need not know whether it runs: its supervisor might not answer.
        let over = match options.follow {
            false => std::future::ready(Ok(())).left_future(),
            true if matches!(self.observe(&container).await?, Observed::Ended(_)) => {
                std::future::ready(Ok(())).left_future()
            }
            true => {
                let (inner, container) = (self.clone(), container.clone());
                let over = async move {
                    match inner.wait_for_last_end(&container, None).await {
                        Ok(_) | Err(Error::NoSuchContainer { .. }) => Ok(()),
                        // It may go on to write.
                        Err(error) => Err(error),
                    }
                };
                over.boxed().right_future()
            }
        };
        Ok(logs::stream(&container.paths.logs(), options, over))
    }
}

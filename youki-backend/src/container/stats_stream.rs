//! What a container uses, again and again until it ends.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, Stream, StreamExt as _};
use runtime_core::{ContainerId, StatsSnapshot};

use super::Container;
use crate::error::{Error, Result};
use crate::runtime::Inner;

/// What is read again, and whose end is waited for meanwhile.
struct Readings {
    inner: Arc<Inner>,
    container: Container,
    interval: Duration,
}

impl Inner {
    /// A reading at once, and one whenever `interval` has passed since the one before was taken, until no attempt of the
    /// container is left.
    pub(crate) async fn stats_stream(
        self: &Arc<Self>,
        id: &ContainerId,
        interval: Duration,
    ) -> Result<impl Stream<Item = Result<StatsSnapshot>> + Send + use<>> {
        if interval.is_zero() {
            return Err(Error::invalid("interval", "it is zero"));
        }
        let container = self.container(id)?;
        let first = self.stats_snapshot(id).await?;
        let readings = Readings { inner: self.clone(), container, interval };
        let rest = stream::unfold(Some(readings), async |readings| {
            let readings = readings?;
            match readings.next().await {
                Ok(snapshot) => snapshot.map(|snapshot| (Ok(snapshot), Some(readings))),
                Err(error) => Some((Err(error), None)),
            }
        });
        Ok(stream::iter([Ok(first)]).chain(rest))
    }
}

impl Readings {
    /// The next one; `None` when the container has ended.
    async fn next(&self) -> Result<Option<StatsSnapshot>> {
        let Self { inner, container, interval } = self;
        let mut ended = std::pin::pin!(inner.wait_for_last_end(container, None));
        loop {
            tokio::select! {
                biased;
                ended = &mut ended => return ended.map(|_| None).or_else(none_if_gone),
                () = tokio::time::sleep(*interval) => {}
            }
            match inner.container(&container.record.id) {
                Ok(now) if now.record.is_same_container(&container.record) => {}
                // A later one of its name.
                Ok(_) => return Ok(None),
                Err(error) => return none_if_gone(error),
            }
            match inner.stats_snapshot(&container.record.id).await {
                // Between two attempts, when the next one has no cgroup yet; or it ends: that is waited for.
                Err(Error::NotRunning { .. }) => {}
                read => return read.map(Some).or_else(none_if_gone),
            }
        }
    }
}

fn none_if_gone(error: Error) -> Result<Option<StatsSnapshot>> {
    match error {
        Error::NoSuchContainer { .. } => Ok(None),
        error => Err(error),
    }
}

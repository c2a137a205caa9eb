//! What containers use: of one, of all, and again and again.

use std::time::Duration;

use futures_core::Stream;
#[cfg(doc)]
use runtime_core::Runtime;
use runtime_core::{ContainerId, StatsSnapshot};

use super::YoukiRuntime;
#[cfg(doc)]
use crate::error::Error;
use crate::error::Result;

impl YoukiRuntime {
    /// [`stats`](Self::stats) and [`detailed_stats`](Self::detailed_stats) at once.
    ///
    /// # Errors
    /// [`Error::NoSuchContainer`], [`Error::NotRunning`].
    pub async fn stats_snapshot(&self, id: &ContainerId) -> Result<StatsSnapshot> {
        self.0.stats_snapshot(id).await
    }

    /// [`Runtime::stats_all`].
    ///
    /// # Errors
    /// Those of reading the root.
    pub async fn stats_all(&self) -> Result<Vec<StatsSnapshot>> {
        self.0.stats_all().await
    }

    /// [`Runtime::stats_stream`].
    ///
    /// # Errors
    /// [`Error::NoSuchContainer`], [`Error::NotRunning`] for one without stats, [`Error::InvalidSpec`] for no interval.
    pub async fn stats_stream(
        &self,
        id: &ContainerId,
        interval: Duration,
    ) -> Result<impl Stream<Item = Result<StatsSnapshot>> + Send + use<>> {
        self.0.stats_stream(id, interval).await
    }
}

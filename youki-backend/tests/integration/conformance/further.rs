//! What [`Broken`] does to what is beyond the contract's 24 methods.

use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use runtime_core::{
    AgentError, AttachStream, ContainerId, ContainerState, CopyInOptions, DetailedStats, ExecInput, PullEventStream,
    Result, StatsSnapshot, StatsStream, VolumeStatus,
};
use tokio::sync::mpsc;

use super::broken::{Broken, spoiled};
use super::spoils::Act;

/// What is written to it can be read by who made it.
#[derive(Clone, Default)]
pub struct Sink(Arc<Mutex<Vec<u8>>>);

impl Sink {
    pub fn taken(&self) -> Vec<u8> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Puts a file into the directories that checks of links have made, of runs with a fault.
pub fn write_to_the_host() {
    let all = std::fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten();
    for directory in all.filter(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        name.starts_with("fault-") && name.contains("layers.links")
    }) {
        let _ = std::fs::write(directory.path().join("put"), "");
    }
}

impl Broken {
    pub(super) async fn stats_of_all(&self) -> Result<Vec<StatsSnapshot>> {
        if self.acts(Act::StatsOfNone) {
            return Ok(Vec::new());
        }
        if !self.acts(Act::StatsOneByOne) {
            return self.runtime.stats_all().await;
        }
        let all = self.runtime.list_containers().await?;
        tokio::time::sleep(Duration::from_millis(200)).await;
        let mut told = Vec::new();
        for one in all.into_iter().filter(|one| one.state == ContainerState::Running) {
            let (basic, detailed) = (self.runtime.get_container_stats(&one.id).await?, DetailedStats::default());
            told.push(StatsSnapshot { id: one.id, basic, detailed });
        }
        Ok(told)
    }

    pub(super) async fn stats_as_they_come(&self, id: &ContainerId, interval: Duration) -> Result<StatsStream> {
        let interval = if self.acts(Act::StatsWithoutPause) { Duration::from_millis(1) } else { interval };
        let (stats, spoil) = (self.runtime.stats_stream(id, interval).await?, self.spoils.snapshot);
        let stats = stats.map(move |one| one.map(|one| spoiled(one, spoil)));
        Ok(match self.spoils.act {
            Some(Act::StatsOnce) => stats.take(1).boxed(),
            Some(Act::StatsForEver) => stats.chain(stream::pending()).boxed(),
            _ => stats.boxed(),
        })
    }

    pub(super) async fn attached(&self, id: &ContainerId, input: Option<ExecInput>) -> Result<AttachStream> {
        let input = input.filter(|_| !self.acts(Act::AttachesWithoutInput));
        let events = match self.runtime.attach(id, input).await {
            Err(AgentError::Internal(_)) if self.acts(Act::AttachesToWhatEnded) => stream::empty().boxed(),
            events => events?,
        };
        let spoil = self.spoils.attached.unwrap_or(Some);
        Ok(events.filter_map(move |event| std::future::ready(event.map(spoil).transpose())).boxed())
    }

    /// From now on its volumes are told as they are now.
    pub(super) async fn holds_volumes(&self) -> Result<()> {
        *self.held.lock().unwrap() = self.runtime.list_volumes().await?;
        Ok(())
    }

    pub(super) fn held(&self, name: &str) -> Option<VolumeStatus> {
        self.held.lock().unwrap().iter().find(|status| status.name == name).cloned()
    }

    pub(super) async fn syncs_all(&self, id: &ContainerId) -> Result<()> {
        let all = self.runtime.list_containers().await?.into_iter().map(|one| one.id);
        for one in all.filter(|one| one.service == id.service) {
            self.runtime.sync_container_volumes(&one).await?;
        }
        Ok(())
    }

    /// Whether this was not called before.
    pub(super) fn calls(&self, what: &str) -> Result<()> {
        match self.acts(Act::CallsOnce) && !self.is_new(what) {
            true => Err(AgentError::Internal("it is under way".to_owned())),
            false => Ok(()),
        }
    }

    /// Whether files may be copied.
    pub(super) async fn copies(&self, id: &ContainerId) -> Result<()> {
        let runs = self.runtime.container_state(id).await? == ContainerState::Running;
        match self.acts(Act::CopiesWhatRuns) && !runs {
            true => Err(AgentError::Internal("it does not run".to_owned())),
            false => Ok(()),
        }
    }

    /// The first one waits until it is dropped, and comes after the second.
    pub(super) async fn copies_afterwards(
        &self,
        id: &ContainerId,
        dir: &Path,
        tar: Box<dyn Read + Send>,
        options: &CopyInOptions,
    ) -> Result<()> {
        let first = self.late.lock().unwrap().take();
        let Some(first) = first else {
            *self.late.lock().unwrap() = Some(tar);
            return std::future::pending().await;
        };
        self.runtime.copy_in(id, dir, tar, options).await?;
        self.runtime.copy_in(id, dir, first, options).await
    }

    pub(super) fn pull_events(&self, events: PullEventStream) -> PullEventStream {
        if self.acts(Act::PullsOn) {
            let (sender, receiver) = mpsc::unbounded_channel();
            tokio::spawn(events.for_each(move |event| {
                let _ = sender.send(event);
                std::future::ready(())
            }));
            let next = |mut receiver: mpsc::UnboundedReceiver<_>| async {
                receiver.recv().await.map(|event| (event, receiver))
            };
            return stream::unfold(receiver, next).boxed();
        }
        let spoil = self.spoils.pull_event.unwrap_or(Some);
        events.filter_map(move |event| std::future::ready(spoil(event))).boxed()
    }
}

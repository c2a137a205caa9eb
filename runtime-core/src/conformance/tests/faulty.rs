//! A backend that breaks one promise.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use chrono::Utc;
use futures_util::{StreamExt, stream};

use crate::memory::MemoryRuntime;
use crate::{
    AgentError, AttachStream, ContainerId, ContainerInspectDetails, ContainerState, ContainerStats, ContainerSummary,
    ExecEvent, ExecEventStream, ExecInput, HealthDetail, ImageInfo, LogEntry, LogStream, PruneResult, PullPolicy,
    RegistryAuth, Result, Runtime, ServiceSpec, WaitOutcome,
};

/// The weak points of earlier runtimes, one at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    InventsExitCodeZero,
    WaitReturnsEarly,
    NamesNoSignal,
    ReadsLogTimesAtRead,
    SwapsLogStreams,
    CountsTailFromTheStart,
    ReplacesOnCreate,
    StopsUnknownContainers,
    KillsWithoutPatience,
    InventsStats,
    LeavesContainers,
    ExecAlwaysSucceeds,
    TakesAnySignal,
    RemovesUsedImages,
    ForgetsFailedStarts,
    SaysExitTwice,
    PanicsInExec,
    HangsInLogs,
    CreatesByHalf,
    RemovesByHalf,
    StartsWhatRuns,
    StartsBetterTheSecondTime,
    ForgetsLabels,
    ActsOnSchedules,
    HasNothingToSync,
    InventsHealth,
    NamesNothing,
    SaysNothing,
    HasSomeCodes,
    PrunesNothing,
    PrunesWhatIsUsed,
    CreatesWithoutImages,
    StartsWhenCreated,
    TakesAnyName,
    RunsNothingInExec,
    PullsInName,
    NeverPulls,
    RemovesNoImages,
    TagsNothing,
    TagsAnything,
    KillsWithKill,
    KillsNothing,
    ListsNothing,
    StopsNothing,
    AttachesLate,
    AttachesToWhatEnded,
    FollowsPaths,
    InventsContainers,
}

pub(super) struct Faulty {
    runtime: MemoryRuntime,
    fault: Fault,
    /// What this fault has been at already.
    begun: Mutex<BTreeSet<ContainerId>>,
}

impl Faulty {
    pub(super) fn new(runtime: MemoryRuntime, fault: Fault) -> Self {
        Self { runtime, fault, begun: Mutex::default() }
    }

    /// Whether it is the first time for `id`.
    fn begins(&self, id: &ContainerId) -> bool {
        self.begun.lock().unwrap().insert(id.clone())
    }

    fn spoil<T>(&self, result: Result<T>) -> Result<T> {
        result.map_err(|error| match (self.fault, error) {
            (Fault::NamesNothing, AgentError::NotFound { reason, .. }) => {
                AgentError::NotFound { container: "it".to_owned(), reason }
            }
            (Fault::SaysNothing, AgentError::NotFound { container, .. }) => {
                AgentError::NotFound { container, reason: "a\nb".to_owned() }
            }
            (Fault::HasSomeCodes, AgentError::NotFound { container, reason }) => {
                AgentError::NotFound { container, reason: reason + " [container.not_found]" }
            }
            (_, error) => error,
        })
    }
}

#[async_trait]
impl Runtime for Faulty {
    async fn pull_image(&self, image: &str) -> Result<()> {
        self.runtime.pull_image(image).await
    }

    async fn pull_image_with_policy(&self, image: &str, policy: PullPolicy, auth: Option<&RegistryAuth>) -> Result<()> {
        match self.fault {
            Fault::PullsInName => return Ok(()),
            Fault::NeverPulls => {
                let reason = "it is not asked for".to_owned();
                return Err(AgentError::PullFailed { image: image.to_owned(), reason });
            }
            _ => {}
        }
        self.runtime.pull_image_with_policy(image, policy, auth).await
    }

    async fn create_container(&self, id: &ContainerId, spec: &ServiceSpec) -> Result<()> {
        match self.fault {
            Fault::ReplacesOnCreate => {
                let _ = self.runtime.remove_container(id).await;
            }
            Fault::CreatesByHalf if !self.begins(id) => {
                let reason = "it is being created".to_owned();
                return Err(AgentError::CreateFailed { id: id.to_string(), reason });
            }
            Fault::CreatesByHalf => tokio::time::sleep(Duration::from_millis(20)).await,
            Fault::ActsOnSchedules if spec.schedule.is_some() => {
                return Err(AgentError::InvalidSpec("it is not yet time".to_owned()));
            }
            _ => {}
        }
        let mut spec = spec.clone();
        let mut id = id.clone();
        match self.fault {
            Fault::CreatesWithoutImages if spec.image.name.contains("no/such") => {
                super::IMAGE.clone_into(&mut spec.image.name)
            }
            Fault::TakesAnyName => id.service = "any".to_owned(),
            _ => {}
        }
        self.runtime.create_container(&id, &spec).await?;
        match self.fault {
            Fault::StartsWhenCreated => self.runtime.start_container(&id).await,
            _ => Ok(()),
        }
    }

    async fn start_container(&self, id: &ContainerId) -> Result<()> {
        if self.fault == Fault::StartsWhatRuns {
            let _ = self.runtime.kill_container(id, None).await;
        }
        match self.runtime.start_container(id).await {
            Err(AgentError::StartFailed { .. })
                if self.fault == Fault::StartsBetterTheSecondTime && !self.begins(id) =>
            {
                Ok(())
            }
            Err(AgentError::StartFailed { .. }) if self.fault == Fault::ForgetsFailedStarts => Ok(()),
            answer => answer,
        }
    }

    async fn stop_container(&self, id: &ContainerId, timeout: Duration) -> Result<()> {
        if self.fault == Fault::StopsNothing {
            return Ok(());
        }
        if self.fault == Fault::KillsWithoutPatience {
            return match self.runtime.kill_container(id, None).await {
                Err(AgentError::Internal(_)) => Ok(()), // it has ended
                answer => answer,
            };
        }
        match self.runtime.stop_container(id, timeout).await {
            Err(AgentError::NotFound { .. }) if self.fault == Fault::StopsUnknownContainers => Ok(()),
            answer => answer,
        }
    }

    async fn remove_container(&self, id: &ContainerId) -> Result<()> {
        // As a path it is the one that is there.
        let id = match id.service.strip_prefix("./").filter(|_| self.fault == Fault::FollowsPaths) {
            Some(service) => &ContainerId::new(service, id.replica),
            None => id,
        };
        if self.fault == Fault::LeavesContainers && self.runtime.container_state(id).await? == ContainerState::Running {
            return Ok(());
        }
        if self.fault == Fault::RemovesByHalf {
            if !self.begins(id) {
                let reason = "it has been removed".to_owned();
                return Err(AgentError::NotFound { container: id.to_string(), reason });
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.runtime.remove_container(id).await
    }

    async fn container_state(&self, id: &ContainerId) -> Result<ContainerState> {
        let is_half_gone = self.fault == Fault::RemovesByHalf && self.begun.lock().unwrap().contains(id);
        if is_half_gone {
            return Err(AgentError::NotFound { container: id.to_string(), reason: "it has been removed".to_owned() });
        }
        match (self.fault, self.runtime.container_state(id).await) {
            (Fault::InventsContainers, Err(_)) => Ok(ContainerState::Running),
            (_, state) => self.spoil(state),
        }
    }

    async fn container_logs(&self, id: &ContainerId, tail: usize) -> Result<Vec<LogEntry>> {
        let mut logs = self.get_logs(id).await?;
        if self.fault == Fault::CountsTailFromTheStart {
            logs.truncate(if tail == 0 { usize::MAX } else { tail });
            return Ok(logs);
        }
        let skip = if tail == 0 { 0 } else { logs.len().saturating_sub(tail) };
        Ok(logs.split_off(skip))
    }

    async fn get_logs(&self, id: &ContainerId) -> Result<Vec<LogEntry>> {
        if self.fault == Fault::HangsInLogs {
            return std::future::pending().await;
        }
        let mut logs = self.runtime.get_logs(id).await?;
        for entry in &mut logs {
            match (self.fault, entry.stream) {
                (Fault::ReadsLogTimesAtRead, _) => entry.timestamp = Utc::now(),
                (Fault::SwapsLogStreams, LogStream::Stdout) => entry.stream = LogStream::Stderr,
                (Fault::SwapsLogStreams, LogStream::Stderr) => entry.stream = LogStream::Stdout,
                _ => {}
            }
        }
        Ok(logs)
    }

    async fn exec(&self, id: &ContainerId, command: &[String]) -> Result<(i32, String, String)> {
        assert!(self.fault != Fault::PanicsInExec, "exec is broken");
        if self.fault == Fault::RunsNothingInExec && command.is_empty() {
            return Ok((0, String::new(), String::new()));
        }
        match self.runtime.exec(id, command).await {
            Ok((_, stdout, stderr)) if self.fault == Fault::ExecAlwaysSucceeds => Ok((0, stdout, stderr)),
            Err(AgentError::Internal(_)) if self.fault == Fault::ExecAlwaysSucceeds => {
                Ok((0, String::new(), String::new()))
            }
            answer => answer,
        }
    }

    async fn exec_stream(&self, id: &ContainerId, command: &[String]) -> Result<ExecEventStream> {
        assert!(self.fault != Fault::PanicsInExec, "exec is broken");
        let events = self.runtime.exec_stream(id, command).await?;
        if self.fault == Fault::SaysExitTwice {
            return Ok(events.chain(stream::iter([ExecEvent::Exit(0)])).boxed());
        }
        Ok(events)
    }

    async fn get_container_stats(&self, id: &ContainerId) -> Result<ContainerStats> {
        if self.fault == Fault::InventsStats {
            return Ok(ContainerStats {
                cpu_usage_usec: 0,
                memory_bytes: 0,
                memory_limit: u64::MAX,
                timestamp: Utc::now(),
            });
        }
        self.runtime.get_container_stats(id).await
    }

    async fn wait_container(&self, id: &ContainerId) -> Result<i32> {
        self.wait_outcome(id).await.map(|outcome| outcome.exit_code)
    }

    async fn wait_outcome(&self, id: &ContainerId) -> Result<WaitOutcome> {
        if self.fault == Fault::WaitReturnsEarly {
            self.runtime.container_state(id).await?;
            return Ok(WaitOutcome::exited(0));
        }
        let mut outcome = self.runtime.wait_outcome(id).await?;
        match self.fault {
            Fault::InventsExitCodeZero => outcome.exit_code = 0,
            Fault::NamesNoSignal => outcome.signal = None,
            _ => {}
        }
        Ok(outcome)
    }

    async fn get_container_pid(&self, id: &ContainerId) -> Result<Option<u32>> {
        self.runtime.get_container_pid(id).await
    }

    async fn get_container_ip(&self, id: &ContainerId) -> Result<Option<IpAddr>> {
        self.runtime.get_container_ip(id).await
    }

    async fn sync_container_volumes(&self, id: &ContainerId) -> Result<()> {
        match self.fault {
            Fault::HasNothingToSync => Err(AgentError::Internal(format!("{id} has no volume"))),
            _ => self.runtime.sync_container_volumes(id).await,
        }
    }

    async fn prune_images(&self) -> Result<PruneResult> {
        match self.fault {
            Fault::PrunesNothing => Ok(PruneResult::default()),
            Fault::PrunesWhatIsUsed => {
                let deleted = self.runtime.list_images().await?.into_iter().map(|image| image.reference);
                let deleted: Vec<String> = deleted.collect();
                for reference in &deleted {
                    self.runtime.remove_image(reference, true).await?;
                }
                Ok(PruneResult { deleted, space_reclaimed: 0 })
            }
            _ => self.runtime.prune_images().await,
        }
    }

    async fn list_images(&self) -> Result<Vec<ImageInfo>> {
        self.runtime.list_images().await
    }

    async fn remove_image(&self, image: &str, force: bool) -> Result<()> {
        if self.fault == Fault::RemovesNoImages {
            return Ok(());
        }
        self.runtime.remove_image(image, force || self.fault == Fault::RemovesUsedImages).await
    }

    async fn kill_container(&self, id: &ContainerId, signal: Option<&str>) -> Result<()> {
        let signal = match self.fault {
            Fault::KillsNothing => return Ok(()),
            Fault::KillsWithKill => None,
            _ => signal,
        };
        match self.runtime.kill_container(id, signal).await {
            Err(AgentError::InvalidSpec(_)) if self.fault == Fault::TakesAnySignal => Ok(()),
            answer => answer,
        }
    }

    async fn tag_image(&self, source: &str, target: &str) -> Result<()> {
        match (self.fault, self.runtime.tag_image(source, target).await) {
            (Fault::TagsAnything, Err(AgentError::InvalidSpec(_))) => Ok(()),
            (Fault::TagsNothing, Ok(())) => self.runtime.remove_image(target, true).await,
            (_, answer) => answer,
        }
    }

    async fn inspect_detailed(&self, id: &ContainerId) -> Result<ContainerInspectDetails> {
        let mut details = self.runtime.inspect_detailed(id).await?;
        if self.fault == Fault::InventsHealth {
            details.health = Some(HealthDetail { status: "healthy".to_owned(), ..HealthDetail::default() });
        }
        Ok(details)
    }

    async fn attach(&self, id: &ContainerId, input: Option<ExecInput>) -> Result<AttachStream> {
        match (self.fault, self.runtime.attach(id, input).await) {
            (Fault::AttachesLate, Ok(events)) => Ok(events.skip(1).boxed()),
            (Fault::AttachesToWhatEnded, Err(AgentError::Internal(_))) => Ok(stream::empty().boxed()),
            (_, answer) => answer,
        }
    }

    async fn list_containers(&self) -> Result<Vec<ContainerSummary>> {
        if self.fault == Fault::ListsNothing {
            return Ok(Vec::new());
        }
        let mut all = self.runtime.list_containers().await?;
        if self.fault == Fault::ForgetsLabels {
            all.iter_mut().for_each(|container| container.labels.clear());
        }
        Ok(all)
    }
}

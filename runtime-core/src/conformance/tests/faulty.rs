//! A backend that breaks one promise.

use std::net::IpAddr;
use std::time::Duration;

use async_trait::async_trait;
use chrono::Utc;
use futures_util::{StreamExt, stream};

use crate::memory::MemoryRuntime;
use crate::{
    AgentError, ContainerId, ContainerInspectDetails, ContainerState, ContainerStats, ContainerSummary, ExecEvent,
    ExecEventStream, ImageInfo, LogEntry, LogStream, PullPolicy, RegistryAuth, Result, Runtime, ServiceSpec,
    WaitOutcome,
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
}

pub(super) struct Faulty {
    pub(super) runtime: MemoryRuntime,
    pub(super) fault: Fault,
}

#[async_trait]
impl Runtime for Faulty {
    async fn pull_image(&self, image: &str) -> Result<()> {
        self.runtime.pull_image(image).await
    }

    async fn pull_image_with_policy(&self, image: &str, policy: PullPolicy, auth: Option<&RegistryAuth>) -> Result<()> {
        self.runtime.pull_image_with_policy(image, policy, auth).await
    }

    async fn create_container(&self, id: &ContainerId, spec: &ServiceSpec) -> Result<()> {
        if self.fault == Fault::ReplacesOnCreate {
            let _ = self.runtime.remove_container(id).await;
        }
        self.runtime.create_container(id, spec).await
    }

    async fn start_container(&self, id: &ContainerId) -> Result<()> {
        match self.runtime.start_container(id).await {
            Err(AgentError::StartFailed { .. }) if self.fault == Fault::ForgetsFailedStarts => Ok(()),
            answer => answer,
        }
    }

    async fn stop_container(&self, id: &ContainerId, timeout: Duration) -> Result<()> {
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
        if self.fault == Fault::LeavesContainers && self.runtime.container_state(id).await? == ContainerState::Running {
            return Ok(());
        }
        self.runtime.remove_container(id).await
    }

    async fn container_state(&self, id: &ContainerId) -> Result<ContainerState> {
        self.runtime.container_state(id).await
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

    async fn list_images(&self) -> Result<Vec<ImageInfo>> {
        self.runtime.list_images().await
    }

    async fn remove_image(&self, image: &str, force: bool) -> Result<()> {
        self.runtime.remove_image(image, force || self.fault == Fault::RemovesUsedImages).await
    }

    async fn kill_container(&self, id: &ContainerId, signal: Option<&str>) -> Result<()> {
        match self.runtime.kill_container(id, signal).await {
            Err(AgentError::InvalidSpec(_)) if self.fault == Fault::TakesAnySignal => Ok(()),
            answer => answer,
        }
    }

    async fn tag_image(&self, source: &str, target: &str) -> Result<()> {
        self.runtime.tag_image(source, target).await
    }

    async fn inspect_detailed(&self, id: &ContainerId) -> Result<ContainerInspectDetails> {
        self.runtime.inspect_detailed(id).await
    }

    async fn list_containers(&self) -> Result<Vec<ContainerSummary>> {
        self.runtime.list_containers().await
    }
}

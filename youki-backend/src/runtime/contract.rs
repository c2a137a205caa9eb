//! The [`Runtime`] trait over the inherent methods of [`YoukiRuntime`].

use std::net::IpAddr;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use registry::PullOptions;
use runtime_core::spec::ResourcesSpec;
use runtime_core::{
    AgentError, ContainerId, ContainerInspectDetails, ContainerState, ContainerStats, ContainerSummary, DetailedStats,
    EventStream, EventsOptions, ExecEventStream, ExecInput, ExecOptions, ImageInfo, LogEntry, LogRecordStream,
    LogsOptions, PruneResult, PullPolicy, RegistryAuth, Runtime, ServiceSpec, TopEntry, VolumeStatus, WaitOutcome,
};

use super::YoukiRuntime;
use crate::container::CreateOptions;
use crate::error::Error;
use crate::record::NetworkRecord;

#[async_trait]
impl Runtime for YoukiRuntime {
    async fn pull_image(&self, image: &str) -> runtime_core::Result<()> {
        self.pull_image_with_policy(image, PullPolicy::IfNotPresent, None).await
    }

    async fn pull_image_with_policy(
        &self,
        image: &str,
        policy: PullPolicy,
        auth: Option<&RegistryAuth>,
    ) -> runtime_core::Result<()> {
        let options = PullOptions { policy, auth: auth.cloned(), ..PullOptions::default() };
        let pulled = self.pull(image, options).await;
        pulled.map(drop).map_err(|error| error.into_pull(image))
    }

    async fn create_container(&self, id: &ContainerId, spec: &ServiceSpec) -> runtime_core::Result<()> {
        let created = self.create(id, spec, CreateOptions::default()).await;
        created.map_err(|error| error.into_create(&id.to_string(), &spec.image.name))
    }

    async fn start_container(&self, id: &ContainerId) -> runtime_core::Result<()> {
        self.start(id).await.map_err(|error| error.into_start(&id.to_string()))
    }

    async fn stop_container(&self, id: &ContainerId, timeout: Duration) -> runtime_core::Result<()> {
        Ok(self.stop(id, Some(timeout)).await.map(drop)?)
    }

    async fn remove_container(&self, id: &ContainerId) -> runtime_core::Result<()> {
        Ok(self.remove(id, true).await.map(drop)?)
    }

    async fn container_state(&self, id: &ContainerId) -> runtime_core::Result<ContainerState> {
        Ok(self.0.container_state(id).await?)
    }

    async fn container_logs(&self, id: &ContainerId, tail: usize) -> runtime_core::Result<Vec<LogEntry>> {
        Ok(self.0.logs(id, tail).await?)
    }

    async fn get_logs(&self, id: &ContainerId) -> runtime_core::Result<Vec<LogEntry>> {
        Ok(self.0.logs(id, 0).await?)
    }

    async fn exec(&self, id: &ContainerId, command: &[String]) -> runtime_core::Result<(i32, String, String)> {
        Ok(self.0.exec_buffered(id, command).await?)
    }

    async fn exec_stream(&self, id: &ContainerId, command: &[String]) -> runtime_core::Result<ExecEventStream> {
        self.exec_with(id, command, &ExecOptions::default(), None).await
    }

    async fn get_container_stats(&self, id: &ContainerId) -> runtime_core::Result<ContainerStats> {
        Ok(self.stats(id).await?)
    }

    async fn wait_container(&self, id: &ContainerId) -> runtime_core::Result<i32> {
        Ok(self.wait(id).await?.exit_code)
    }

    async fn wait_outcome(&self, id: &ContainerId) -> runtime_core::Result<WaitOutcome> {
        Ok(self.wait(id).await?)
    }

    async fn get_container_pid(&self, id: &ContainerId) -> runtime_core::Result<Option<u32>> {
        let container = self.0.container(id)?;
        Ok(self.0.observe(&container).await?.pid())
    }

    async fn get_container_ip(&self, id: &ContainerId) -> runtime_core::Result<Option<IpAddr>> {
        Ok(match self.0.container(id)?.record.network {
            NetworkRecord::Bridge(lease) => Some(lease.ip.into()),
            NetworkRecord::Host | NetworkRecord::None | NetworkRecord::Container(_) => None,
        })
    }

    async fn get_container_port_override(&self, id: &ContainerId) -> runtime_core::Result<Option<u16>> {
        Ok(self.0.container(id)?.record.port_override)
    }

    async fn sync_container_volumes(&self, id: &ContainerId) -> runtime_core::Result<()> {
        Ok(self.sync_volumes(id).await?)
    }

    async fn list_images(&self) -> runtime_core::Result<Vec<ImageInfo>> {
        let images = self.0.images.list().await.map_err(Error::from)?;
        let info = |image: registry::StoredImage| ImageInfo {
            reference: image.reference,
            digest: Some(image.digest),
            size_bytes: Some(image.size_bytes),
        };
        Ok(images.into_iter().map(info).collect())
    }

    async fn remove_image(&self, image: &str, force: bool) -> runtime_core::Result<()> {
        YoukiRuntime::remove_image(self, image, force).await?;
        Ok(())
    }

    async fn prune_images(&self) -> runtime_core::Result<PruneResult> {
        let removed = YoukiRuntime::prune_images(self).await?;
        Ok(PruneResult { deleted: removed.deleted, space_reclaimed: removed.space_reclaimed })
    }

    async fn kill_container(&self, id: &ContainerId, signal: Option<&str>) -> runtime_core::Result<()> {
        Ok(self.kill(id, signal).await?)
    }

    async fn tag_image(&self, source: &str, target: &str) -> runtime_core::Result<()> {
        Ok(self.0.images.tag(source, target).await.map_err(Error::from)?)
    }

    async fn inspect_detailed(&self, id: &ContainerId) -> runtime_core::Result<ContainerInspectDetails> {
        Ok(self.0.details(id).await?)
    }

    async fn list_containers(&self) -> runtime_core::Result<Vec<ContainerSummary>> {
        Ok(self.0.summaries().await?)
    }

    async fn logs_stream(&self, id: &ContainerId, options: &LogsOptions) -> runtime_core::Result<LogRecordStream> {
        let records = self.log_records(id, options).await?;
        Ok(Box::pin(records.map(|record| record.map_err(AgentError::from))))
    }

    async fn stats_detailed(&self, id: &ContainerId) -> runtime_core::Result<DetailedStats> {
        Ok(self.detailed_stats(id).await?)
    }

    async fn exec_with(
        &self,
        id: &ContainerId,
        command: &[String],
        options: &ExecOptions,
        input: Option<ExecInput>,
    ) -> runtime_core::Result<ExecEventStream> {
        Ok(self.0.exec_events(id, command, options, input).await?)
    }

    async fn pause(&self, id: &ContainerId) -> runtime_core::Result<()> {
        Ok(YoukiRuntime::pause(self, id).await?)
    }

    async fn unpause(&self, id: &ContainerId) -> runtime_core::Result<()> {
        Ok(YoukiRuntime::unpause(self, id).await?)
    }

    async fn update_resources(&self, id: &ContainerId, changes: &ResourcesSpec) -> runtime_core::Result<()> {
        Ok(self.update(id, changes.clone().into()).await?)
    }

    async fn top(&self, id: &ContainerId) -> runtime_core::Result<Vec<TopEntry>> {
        Ok(self.processes(id).await?)
    }

    async fn events(&self, options: &EventsOptions) -> runtime_core::Result<EventStream> {
        Ok(Box::pin(YoukiRuntime::events(self, options).map(|event| event.map_err(AgentError::from))))
    }

    async fn list_volumes(&self) -> runtime_core::Result<Vec<VolumeStatus>> {
        Ok(self.0.volumes.list().await.map_err(Error::from)?)
    }

    async fn volume_status(&self, name: &str) -> runtime_core::Result<VolumeStatus> {
        Ok(self.0.volumes.status(name).await.map_err(Error::from)?)
    }
}

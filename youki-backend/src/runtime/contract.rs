//! The [`Runtime`] trait over the inherent methods of [`YoukiRuntime`].

use std::io::{Read, Write};
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use registry::{PullOptions, PushOptions};
use runtime_core::spec::ResourcesSpec;
use runtime_core::{
    AgentError, AttachStream, ContainerId, ContainerInspectDetails, ContainerState, ContainerStats, ContainerSummary,
    CopyInOptions, DetailedStats, DiffEntry, EventStream, EventsOptions, ExecEventStream, ExecInput, ExecOptions,
    HistoryEntry, HistoryPruned, HistoryStep, ImageDetails, ImageInfo, LogEntry, LogRecordStream, LogsOptions,
    Progress, PruneResult, PullEventStream, PullPolicy, RegistryAuth, RestoreOptions, RestoreReport, Runtime,
    ServiceSpec, StatsSnapshot, StatsStream, TopEntry, VerifyReport, VolumeStatus, WaitOutcome,
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
        Ok(images.into_iter().map(|image| image_info(image.reference, image.digest, image.size_bytes)).collect())
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

    async fn stats_all(&self) -> runtime_core::Result<Vec<StatsSnapshot>> {
        Ok(YoukiRuntime::stats_all(self).await?)
    }

    async fn stats_stream(&self, id: &ContainerId, interval: Duration) -> runtime_core::Result<StatsStream> {
        let snapshots = YoukiRuntime::stats_stream(self, id, interval).await?;
        Ok(Box::pin(snapshots.map(|snapshot| snapshot.map_err(AgentError::from))))
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

    async fn attach(&self, id: &ContainerId, input: Option<ExecInput>) -> runtime_core::Result<AttachStream> {
        Ok(self.0.attach_stream(id, input).await?)
    }

    async fn copy_out(
        &self,
        id: &ContainerId,
        path: &Path,
        follow: bool,
        out: Box<dyn Write + Send>,
    ) -> runtime_core::Result<()> {
        Ok(YoukiRuntime::copy_out(self, id, path, follow, out).await?)
    }

    async fn copy_in(
        &self,
        id: &ContainerId,
        dir: &Path,
        tar: Box<dyn Read + Send>,
        options: &CopyInOptions,
    ) -> runtime_core::Result<()> {
        Ok(YoukiRuntime::copy_in(self, id, dir, tar, options.clone()).await?)
    }

    async fn export(&self, id: &ContainerId, out: Box<dyn Write + Send>) -> runtime_core::Result<()> {
        Ok(YoukiRuntime::export(self, id, out).await?)
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

    async fn pull_image_stream(
        &self,
        image: &str,
        policy: PullPolicy,
        auth: Option<&RegistryAuth>,
    ) -> runtime_core::Result<PullEventStream> {
        let options = PullOptions { policy, auth: auth.cloned(), ..PullOptions::default() };
        let (events, image) = (self.pull_events(image, options), image.to_owned());
        Ok(Box::pin(events.map(move |event| event.map_err(|error| error.into_pull(&image)))))
    }

    async fn push_image(&self, reference: &str, auth: Option<&RegistryAuth>) -> runtime_core::Result<String> {
        let options = PushOptions { auth: auth.cloned(), progress: None };
        Ok(self.0.images.push(reference, options).await.map_err(Error::from)?)
    }

    async fn save_images(&self, images: &[String], out: Box<dyn Write + Send>) -> runtime_core::Result<()> {
        Ok(self.0.images.save(images, out).await.map_err(Error::from)?)
    }

    async fn load_images(&self, path: &Path) -> runtime_core::Result<Vec<ImageInfo>> {
        let images = self.load(path).await?;
        Ok(images.into_iter().map(|image| image_info(image.reference, image.digest, image.size_bytes)).collect())
    }

    async fn image_history(&self, image: &str) -> runtime_core::Result<Vec<HistoryStep>> {
        Ok(self.0.images.history(image).await.map_err(Error::from)?)
    }

    async fn inspect_image(&self, image: &str) -> runtime_core::Result<ImageDetails> {
        let found = self.0.images.find(image).await.map_err(Error::from)?;
        let found = found.ok_or_else(|| Error::from(registry::Error::NotPresent(image.to_owned())))?;
        Ok(found.into())
    }

    async fn list_volumes(&self) -> runtime_core::Result<Vec<VolumeStatus>> {
        Ok(self.0.volumes.list().await.map_err(Error::from)?)
    }

    async fn volume_status(&self, name: &str) -> runtime_core::Result<VolumeStatus> {
        Ok(self.0.volumes.status(name).await.map_err(Error::from)?)
    }

    async fn volume_history(&self, name: &str, all: bool) -> runtime_core::Result<Vec<HistoryEntry>> {
        Ok(self.0.volumes.history(name, all).await.map_err(Error::from)?)
    }

    async fn restore_volume(&self, name: &str, options: &RestoreOptions) -> runtime_core::Result<RestoreReport> {
        Ok(self.0.volumes.restore(name, options.clone()).await.map_err(Error::from)?)
    }

    async fn diff_volume(&self, name: &str, old: u64, new: u64) -> runtime_core::Result<Vec<DiffEntry>> {
        Ok(self.0.volumes.diff(name, old, new).await.map_err(Error::from)?)
    }

    async fn verify_volume(
        &self,
        name: &str,
        generation: Option<u64>,
        progress: Progress,
    ) -> runtime_core::Result<VerifyReport> {
        Ok(self.0.volumes.verify(name, generation, progress).await.map_err(Error::from)?)
    }

    async fn prune_volumes(&self) -> runtime_core::Result<PruneResult> {
        Ok(YoukiRuntime::prune_volumes(self).await?)
    }

    async fn prune_volume_history(&self, name: &str) -> runtime_core::Result<HistoryPruned> {
        Ok(self.0.volumes.prune(name).await.map_err(Error::from)?)
    }

    async fn claim_volume(
        &self,
        name: &str,
        take_over: bool,
        progress: Progress,
    ) -> runtime_core::Result<VolumeStatus> {
        Ok(self.0.volumes.claim(name, take_over, progress).await.map_err(Error::from)?)
    }
}

fn image_info(reference: String, digest: String, size_bytes: u64) -> ImageInfo {
    ImageInfo { reference, digest: Some(digest), size_bytes: Some(size_bytes) }
}

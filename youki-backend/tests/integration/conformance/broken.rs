//! A backend that breaks one promise: Berth, with something between it and the suite.

use std::io::{Read, Write};
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use runtime_core::spec::ResourcesSpec;
use runtime_core::{
    AgentError, AttachStream, ContainerId, ContainerInspectDetails, ContainerState, ContainerStats, ContainerSummary,
    CopyInOptions, DetailedStats, DiffEntry, EventStream, EventsOptions, ExecEvent, ExecEventStream, ExecInput,
    ExecOptions, HistoryEntry, HistoryPruned, HistoryStep, ImageDetails, ImageInfo, LogEntry, LogRecordStream,
    LogsOptions, Progress, PruneResult, PullEventStream, PullPolicy, RegistryAuth, RestoreOptions, RestoreReport,
    Result, Runtime, ServiceSpec, StatsSnapshot, StatsStream, TopEntry, VerifyReport, VolumeStatus, WaitOutcome,
};
use tokio::sync::Notify;

use super::further::{self, Sink};
use super::spoils::{Act, Spoils};

pub struct Broken {
    pub(super) runtime: Arc<dyn Runtime>,
    image: String,
    pub(super) spoils: Spoils,
    /// What an [`Act`] has to remember.
    seen: Mutex<Vec<String>>,
    /// How volumes were.
    pub(super) held: Mutex<Vec<VolumeStatus>>,
    /// What is copied later.
    pub(super) late: Mutex<Option<Box<dyn Read + Send>>>,
    aborted: Notify,
}

impl Broken {
    pub fn new(runtime: Arc<dyn Runtime>, image: &str, spoils: Spoils) -> Self {
        Self {
            runtime,
            image: image.to_owned(),
            spoils,
            seen: Mutex::default(),
            held: Mutex::default(),
            late: Mutex::default(),
            aborted: Notify::new(),
        }
    }

    pub(super) fn acts(&self, act: Act) -> bool {
        self.spoils.act == Some(act)
    }

    /// Whether `name` was not seen before.
    pub(super) fn is_new(&self, name: &str) -> bool {
        let mut seen = self.seen.lock().unwrap();
        let is_new = !seen.iter().any(|one| one == name);
        seen.push(name.to_owned());
        is_new
    }

    fn or_spoiled<T>(&self, result: Result<T>) -> Result<T> {
        result.map_err(|error| self.spoils.error.map_or(error.clone(), |spoil| spoil(error)))
    }
}

pub(super) fn spoiled<T>(mut value: T, spoil: Option<fn(&mut T)>) -> T {
    if let Some(spoil) = spoil {
        spoil(&mut value);
    }
    value
}

#[async_trait]
impl Runtime for Broken {
    async fn pull_image(&self, image: &str) -> Result<()> {
        let policy = if self.acts(Act::AsksAgain) { PullPolicy::Always } else { PullPolicy::IfNotPresent };
        self.pull_image_with_policy(image, policy, None).await
    }

    async fn pull_image_with_policy(&self, image: &str, policy: PullPolicy, auth: Option<&RegistryAuth>) -> Result<()> {
        if self.acts(Act::WritesThroughLinks) {
            further::write_to_the_host();
        }
        let is_new = self.is_new(image);
        if self.acts(Act::BelievesInBegunPulls) && !is_new {
            return Ok(());
        }
        if self.acts(Act::PullsOneAtATime) && !is_new {
            return Err(AgentError::PullFailed { image: image.to_owned(), reason: "it is being pulled".to_owned() });
        }
        if self.acts(Act::IgnoresDigests)
            && let Some((name, _)) = image.split_once('@')
        {
            return self.runtime.pull_image(name).await;
        }
        let auth = spoiled(auth.cloned(), self.spoils.auth);
        let policy = self.spoils.policy.unwrap_or(policy);
        let pull = self.runtime.pull_image_with_policy(image, policy, auth.as_ref());
        let pulled = tokio::select! {
            pulled = pull => pulled,
            () = self.aborted.notified() => {
                Err(AgentError::PullFailed { image: image.to_owned(), reason: "a prune came first".to_owned() })
            }
        };
        self.or_spoiled(pulled)
    }

    async fn create_container(&self, id: &ContainerId, spec: &ServiceSpec) -> Result<()> {
        if self.spoils.refuses.is_some_and(|refuses| refuses(spec)) {
            return Err(AgentError::InvalidSpec("no backend has this".to_owned()));
        }
        let mut spec = spoiled(spec.clone(), self.spoils.spec);
        spec.image.pull_policy = self.spoils.policy.unwrap_or(spec.image.pull_policy);
        let created = tokio::select! {
            created = self.runtime.create_container(id, &spec) => created,
            () = self.aborted.notified() => {
                Err(AgentError::CreateFailed { id: id.to_string(), reason: "a prune came first".to_owned() })
            }
        };
        self.or_spoiled(created)
    }

    async fn start_container(&self, id: &ContainerId) -> Result<()> {
        if self.acts(Act::ExitsUnsynced) {
            self.holds_volumes().await?;
        }
        if self.acts(Act::StartsLater) {
            let (runtime, id) = (self.runtime.clone(), id.clone());
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(300)).await;
                runtime.start_container(&id).await
            });
            return Ok(());
        }
        if self.acts(Act::StartsAfresh) && !self.is_new(&id.to_string()) {
            // Its log goes too; the check looks at what the next attempt finds.
            self.runtime.remove_container(id).await?;
            let words = ["sh", "-c", "echo x >> /conformance; wc -l < /conformance | tr -d ' '"];
            let mut spec = ServiceSpec::new(self.image.clone());
            spec.command.entrypoint = Some(words.map(str::to_owned).to_vec());
            self.runtime.create_container(id, &spec).await?;
        }
        self.or_spoiled(self.runtime.start_container(id).await)
    }

    async fn stop_container(&self, id: &ContainerId, timeout: Duration) -> Result<()> {
        if self.acts(Act::StopsWithASignal) {
            return self.runtime.kill_container(id, Some("USR1")).await;
        }
        if self.acts(Act::StopsUnsynced) {
            self.holds_volumes().await?;
        }
        let stopped = self.or_spoiled(self.runtime.stop_container(id, timeout).await);
        if self.acts(Act::RestartsWhatWasStopped) {
            return self.runtime.start_container(id).await;
        }
        stopped
    }

    async fn remove_container(&self, id: &ContainerId) -> Result<()> {
        self.runtime.remove_container(id).await
    }

    async fn container_state(&self, id: &ContainerId) -> Result<ContainerState> {
        let state = self.or_spoiled(self.runtime.container_state(id).await)?;
        Ok(spoiled(state, self.spoils.state))
    }

    async fn container_logs(&self, id: &ContainerId, tail: usize) -> Result<Vec<LogEntry>> {
        self.runtime.container_logs(id, tail).await
    }

    async fn get_logs(&self, id: &ContainerId) -> Result<Vec<LogEntry>> {
        let logs = self.runtime.get_logs(id).await?;
        Ok(self.spoils.logs.map_or(logs.clone(), |spoil| spoil(logs)))
    }

    async fn exec(&self, id: &ContainerId, command: &[String]) -> Result<(i32, String, String)> {
        if self.acts(Act::LeavesExecs) {
            let (runtime, id, command) = (self.runtime.clone(), id.clone(), command.to_vec());
            let exec = tokio::spawn(async move { runtime.exec(&id, &command).await });
            return exec.await.map_err(|error| AgentError::Internal(error.to_string()))?;
        }
        if self.acts(Act::UnpausesForExecs) {
            self.runtime.unpause(id).await?;
        }
        if self.acts(Act::ExecsAsRoot) {
            let options = ExecOptions { user: Some("0".to_owned()), ..ExecOptions::default() };
            let events: Vec<_> = self.runtime.exec_with(id, command, &options, None).await?.collect().await;
            let text =
                |event: &ExecEvent| if let ExecEvent::Stdout(text) = event { text.clone() } else { String::new() };
            return Ok((0, events.iter().map(text).collect(), String::new()));
        }
        let (code, stdout, stderr) = self.runtime.exec(id, command).await?;
        let code = if self.acts(Act::ExecsWithoutSignals) { code % 128 } else { code };
        Ok((code, spoiled(stdout, self.spoils.output), stderr))
    }

    async fn exec_stream(&self, id: &ContainerId, command: &[String]) -> Result<ExecEventStream> {
        let events = self.runtime.exec_stream(id, command).await?;
        if self.acts(Act::BuffersExecs) {
            let all: Vec<ExecEvent> = events.collect().await;
            return Ok(futures_util::stream::iter(all).boxed());
        }
        if self.acts(Act::LeavesExecs) {
            let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
            tokio::spawn(events.for_each(move |event| {
                let _ = sender.send(event);
                std::future::ready(())
            }));
            let next = |mut receiver: tokio::sync::mpsc::UnboundedReceiver<ExecEvent>| async {
                receiver.recv().await.map(|event| (event, receiver))
            };
            return Ok(futures_util::stream::unfold(receiver, next).boxed());
        }
        let spoil = self.spoils.exec_event.unwrap_or(|event| event);
        Ok(events.map(spoil).boxed())
    }

    async fn get_container_stats(&self, id: &ContainerId) -> Result<ContainerStats> {
        Ok(spoiled(self.runtime.get_container_stats(id).await?, self.spoils.stats))
    }

    async fn wait_container(&self, id: &ContainerId) -> Result<i32> {
        Ok(self.wait_outcome(id).await?.exit_code)
    }

    async fn wait_outcome(&self, id: &ContainerId) -> Result<WaitOutcome> {
        Ok(spoiled(self.runtime.wait_outcome(id).await?, self.spoils.outcome))
    }

    async fn get_container_pid(&self, id: &ContainerId) -> Result<Option<u32>> {
        let pid = self.runtime.get_container_pid(id).await?;
        Ok(if self.acts(Act::TellsItsOwnPid) { Some(std::process::id()) } else { pid })
    }

    async fn get_container_ip(&self, id: &ContainerId) -> Result<Option<IpAddr>> {
        if self.acts(Act::ForgetsAddresses) {
            let count = self.seen.lock().unwrap().len();
            self.is_new("an address");
            return Ok(format!("192.0.2.{}", count + 1).parse().ok());
        }
        if self.acts(Act::SharesAddresses) {
            return Ok("192.0.2.1".parse().ok());
        }
        self.runtime.get_container_ip(id).await
    }

    async fn get_container_port_override(&self, id: &ContainerId) -> Result<Option<u16>> {
        let port = self.runtime.get_container_port_override(id).await?;
        Ok(if self.acts(Act::GivesOnePort) { port.map(|_| 1) } else { port })
    }

    async fn sync_container_volumes(&self, id: &ContainerId) -> Result<()> {
        if self.acts(Act::SyncsNothing) {
            return Ok(());
        }
        if self.acts(Act::SyncsAll) {
            return self.syncs_all(id).await;
        }
        self.runtime.sync_container_volumes(id).await
    }

    async fn list_images(&self) -> Result<Vec<ImageInfo>> {
        let images = self.runtime.list_images().await?;
        Ok(images.into_iter().map(|image| spoiled(image, self.spoils.image)).collect())
    }

    async fn remove_image(&self, image: &str, force: bool) -> Result<()> {
        let all = self.runtime.list_images().await?;
        if self.acts(Act::RemovesOneName)
            && let Some(one) = all.iter().find(|one| one.digest.as_deref() == Some(image))
        {
            return self.runtime.remove_image(&one.reference, force).await;
        }
        if self.acts(Act::RemovesTheRepository)
            && let Some((repository, _)) = image.rsplit_once(':')
        {
            for one in all.iter().filter(|one| one.reference.starts_with(repository)) {
                self.runtime.remove_image(&one.reference, force).await?;
            }
            return Ok(());
        }
        if self.acts(Act::RemovesUsers) {
            for user in self.runtime.list_containers().await?.into_iter().filter(|one| one.image == image) {
                self.runtime.remove_container(&user.id).await?;
            }
        }
        self.runtime.remove_image(image, force).await
    }

    async fn prune_images(&self) -> Result<PruneResult> {
        if self.acts(Act::AbortsPulls) {
            self.aborted.notify_waiters();
        }
        if self.acts(Act::PrunesNothing) {
            return Ok(PruneResult::default());
        }
        Ok(spoiled(self.runtime.prune_images().await?, self.spoils.pruned))
    }

    async fn kill_container(&self, id: &ContainerId, signal: Option<&str>) -> Result<()> {
        self.runtime.kill_container(id, signal).await
    }

    async fn tag_image(&self, source: &str, target: &str) -> Result<()> {
        self.runtime.tag_image(source, target).await
    }

    async fn inspect_detailed(&self, id: &ContainerId) -> Result<ContainerInspectDetails> {
        Ok(spoiled(self.runtime.inspect_detailed(id).await?, self.spoils.details))
    }

    async fn list_containers(&self) -> Result<Vec<ContainerSummary>> {
        self.runtime.list_containers().await
    }

    async fn logs_stream(&self, id: &ContainerId, options: &LogsOptions) -> Result<LogRecordStream> {
        let options = spoiled(options.clone(), self.spoils.logs_options);
        let (records, spoil) = (self.runtime.logs_stream(id, &options).await?, self.spoils.record);
        Ok(records.map(move |record| record.map(|record| spoiled(record, spoil))).boxed())
    }

    async fn stats_detailed(&self, id: &ContainerId) -> Result<DetailedStats> {
        Ok(spoiled(self.runtime.stats_detailed(id).await?, self.spoils.detailed))
    }

    async fn exec_with(
        &self,
        id: &ContainerId,
        command: &[String],
        options: &ExecOptions,
        input: Option<ExecInput>,
    ) -> Result<ExecEventStream> {
        let options = spoiled(options.clone(), self.spoils.exec);
        // An input that never ends, where none is given.
        let input = input.or_else(|| self.spoils.exec.map(|_| futures_util::stream::pending().boxed()));
        self.runtime.exec_with(id, command, &options, input).await
    }

    async fn pause(&self, id: &ContainerId) -> Result<()> {
        if self.acts(Act::PausesNothing) {
            return Ok(());
        }
        if self.acts(Act::PausesOnce) && !self.is_new(&id.to_string()) {
            return Err(AgentError::Internal("it is paused".to_owned()));
        }
        self.runtime.pause(id).await
    }

    async fn unpause(&self, id: &ContainerId) -> Result<()> {
        if self.acts(Act::UnpausesNothing) {
            return Ok(());
        }
        self.runtime.unpause(id).await
    }

    async fn update_resources(&self, id: &ContainerId, changes: &ResourcesSpec) -> Result<()> {
        self.runtime.update_resources(id, &spoiled(changes.clone(), self.spoils.changes)).await
    }

    async fn top(&self, id: &ContainerId) -> Result<Vec<TopEntry>> {
        let entries = self.runtime.top(id).await?;
        Ok(entries.into_iter().map(|entry| spoiled(entry, self.spoils.top)).collect())
    }

    async fn events(&self, options: &EventsOptions) -> Result<EventStream> {
        let events = self.runtime.events(&spoiled(options.clone(), self.spoils.events_options)).await?;
        let spoil = self.spoils.event.unwrap_or(Some);
        Ok(events.filter_map(move |event| std::future::ready(event.map(spoil).transpose())).boxed())
    }

    async fn list_volumes(&self) -> Result<Vec<VolumeStatus>> {
        self.runtime.list_volumes().await
    }

    async fn volume_status(&self, name: &str) -> Result<VolumeStatus> {
        let status = match self.held(name) {
            Some(held) => held,
            None => self.runtime.volume_status(name).await?,
        };
        Ok(spoiled(status, self.spoils.volume))
    }

    async fn stats_all(&self) -> Result<Vec<StatsSnapshot>> {
        self.stats_of_all().await
    }

    async fn stats_stream(&self, id: &ContainerId, interval: Duration) -> Result<StatsStream> {
        self.stats_as_they_come(id, interval).await
    }

    async fn attach(&self, id: &ContainerId, input: Option<ExecInput>) -> Result<AttachStream> {
        self.attached(id, input).await
    }

    async fn copy_out(&self, id: &ContainerId, path: &Path, follow: bool, out: Box<dyn Write + Send>) -> Result<()> {
        self.copies(id).await?;
        self.runtime.copy_out(id, path, follow != self.acts(Act::FollowsLinksOtherwise), out).await
    }

    async fn copy_in(
        &self,
        id: &ContainerId,
        dir: &Path,
        tar: Box<dyn Read + Send>,
        options: &CopyInOptions,
    ) -> Result<()> {
        if self.acts(Act::CopiesAfterwards) {
            return self.copies_afterwards(id, dir, tar, options).await;
        }
        self.calls(&id.to_string())?;
        self.copies(id).await?;
        match self.acts(Act::CopiesNothing) {
            true => Ok(()),
            false => self.runtime.copy_in(id, dir, tar, &spoiled(options.clone(), self.spoils.copied)).await,
        }
    }

    async fn export(&self, id: &ContainerId, mut out: Box<dyn Write + Send>) -> Result<()> {
        let Some(spoil) = self.spoils.tar else { return self.runtime.export(id, out).await };
        let sink = Sink::default();
        self.runtime.export(id, Box::new(sink.clone())).await?;
        out.write_all(&spoil(sink.taken())).map_err(|error| AgentError::Internal(error.to_string()))
    }

    async fn pull_image_stream(
        &self,
        image: &str,
        policy: PullPolicy,
        auth: Option<&RegistryAuth>,
    ) -> Result<PullEventStream> {
        let events = self.runtime.pull_image_stream(image, self.spoils.policy.unwrap_or(policy), auth).await?;
        Ok(self.pull_events(events))
    }

    async fn push_image(&self, reference: &str, auth: Option<&RegistryAuth>) -> Result<String> {
        match self.acts(Act::PushesInName) {
            true => Ok("sha256:?".to_owned()),
            false => self.runtime.push_image(reference, auth).await,
        }
    }

    async fn save_images(&self, images: &[String], out: Box<dyn Write + Send>) -> Result<()> {
        self.runtime.save_images(images, out).await
    }

    async fn load_images(&self, path: &Path) -> Result<Vec<ImageInfo>> {
        self.calls(&path.to_string_lossy())?;
        let loaded = match self.runtime.load_images(path).await {
            Err(_) if self.acts(Act::LoadsAnything) => Vec::new(),
            loaded => loaded?,
        };
        Ok(loaded.into_iter().map(|image| spoiled(image, self.spoils.image)).collect())
    }

    async fn image_history(&self, image: &str) -> Result<Vec<HistoryStep>> {
        Ok(spoiled(self.runtime.image_history(image).await?, self.spoils.steps))
    }

    async fn inspect_image(&self, image: &str) -> Result<ImageDetails> {
        Ok(spoiled(self.runtime.inspect_image(image).await?, self.spoils.inspected))
    }

    async fn volume_history(&self, name: &str, all: bool) -> Result<Vec<HistoryEntry>> {
        Ok(spoiled(self.runtime.volume_history(name, all).await?, self.spoils.history))
    }

    async fn restore_volume(&self, name: &str, options: &RestoreOptions) -> Result<RestoreReport> {
        self.calls(name)?;
        self.runtime.restore_volume(name, &spoiled(options.clone(), self.spoils.restore)).await
    }

    async fn diff_volume(&self, name: &str, old: u64, new: u64) -> Result<Vec<DiffEntry>> {
        Ok(spoiled(self.runtime.diff_volume(name, old, new).await?, self.spoils.changed))
    }

    async fn verify_volume(&self, name: &str, generation: Option<u64>, progress: Progress) -> Result<VerifyReport> {
        match self.acts(Act::VerifiesNothing) {
            true => Ok(VerifyReport::default()),
            false => Ok(spoiled(self.runtime.verify_volume(name, generation, progress).await?, self.spoils.verified)),
        }
    }

    async fn prune_volumes(&self) -> Result<PruneResult> {
        Ok(spoiled(self.runtime.prune_volumes().await?, self.spoils.pruned))
    }

    async fn prune_volume_history(&self, name: &str) -> Result<HistoryPruned> {
        Ok(spoiled(self.runtime.prune_volume_history(name).await?, self.spoils.history_pruned))
    }

    async fn claim_volume(&self, name: &str, take_over: bool, progress: Progress) -> Result<VolumeStatus> {
        self.calls(name)?;
        Ok(spoiled(self.runtime.claim_volume(name, take_over, progress).await?, self.spoils.volume))
    }
}

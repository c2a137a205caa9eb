//! The [`Runtime`] of the in-memory backend.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::{FutureExt, StreamExt, stream};
use tokio::sync::{mpsc, watch};

use super::container::Container;
use super::program::{self, Behaviour, Invocation, Launch, signal};
use super::{Host, MemoryRuntime, no_container};
use crate::spec::RestartKind;
use crate::{
    AgentError, AttachStream, ContainerId, ContainerInspectDetails, ContainerState, ContainerStats, ContainerSummary,
    ExecEvent, ExecEventStream, ExecInput, ImageInfo, LogEntry, LogStream, PruneResult, PullPolicy, RegistryAuth,
    Result, Runtime, ServiceSpec, WaitOutcome,
};

#[async_trait]
impl Runtime for MemoryRuntime {
    async fn pull_image(&self, image: &str) -> Result<()> {
        self.pull_image_with_policy(image, PullPolicy::IfNotPresent, None).await
    }

    async fn pull_image_with_policy(&self, image: &str, _: PullPolicy, _: Option<&RegistryAuth>) -> Result<()> {
        if self.host().images.contains_key(image) {
            return Ok(());
        }
        let reason = "the in-memory backend has no registry: add_image first".to_owned();
        Err(AgentError::PullFailed { image: image.to_owned(), reason })
    }

    async fn create_container(&self, id: &ContainerId, spec: &ServiceSpec) -> Result<()> {
        id.validate().map_err(|invalid| AgentError::InvalidSpec(invalid.to_string()))?;
        self.check_spec(spec)?;
        stop_signal(spec)?;
        let failed = |reason: String| AgentError::CreateFailed { id: id.to_string(), reason };
        let mut host = self.host();
        if host.containers.contains_key(id) {
            return Err(failed("a container with this id exists".to_owned()));
        }
        let image = host.images.get(&spec.image.name).cloned();
        let image = image.ok_or_else(|| failed(format!("there is no image {}", spec.image.name)))?;
        let command = image.resolve(&spec.command)?;
        if spec.restart_policy.kind != RestartKind::No {
            return Err(no_process("restart policies"));
        }
        if spec.health.is_some() {
            return Err(no_process("health checks"));
        }
        host.containers.insert(id.clone(), Container::new(id.clone(), spec.clone(), image, command));
        Ok(())
    }

    async fn start_container(&self, id: &ContainerId) -> Result<()> {
        let failed = |reason: &str| AgentError::StartFailed { id: id.to_string(), reason: reason.to_owned() };
        let (image, invocation) = self.with(id, |container| {
            let env = container.spec.env.clone();
            (container.image.clone(), Invocation { command: container.command.clone(), env })
        })?;
        let launch = image.launch(&invocation); // the embedder's code, called without the lock
        let timer = self.with(id, |container| {
            match container.state {
                ContainerState::Running => return Ok(None),
                ContainerState::Stopping => return Err(failed("it is being stopped")),
                _ => container.begin_attempt(),
            }
            let program = &invocation.command[0];
            let (reason, code) = match launch {
                Launch::Runs(behaviour) => {
                    let end = behaviour.end;
                    container.run(behaviour);
                    return Ok(end.map(|(time, code)| (time, code, container.attempt)));
                }
                Launch::NotFound => (format!("{program}: no such program"), 127),
                Launch::NotExecutable => (format!("{program}: cannot be executed"), 126),
            };
            container.fail(&reason, code);
            Err(failed(&reason))
        })??;
        if let Some((time, code, attempt)) = timer {
            self.end_after(id, time, code, attempt);
        }
        Ok(())
    }

    async fn stop_container(&self, id: &ContainerId, timeout: Duration) -> Result<()> {
        let end = self.with(id, |container| {
            if !container.is_running() {
                return Ok(None);
            }
            container.state = ContainerState::Stopping;
            container.deliver(stop_signal(&container.spec)?);
            Ok::<_, AgentError>(Some((container.end.subscribe(), container.attempt)))
        })??;
        let Some((end, attempt)) = end else { return Ok(()) };
        if tokio::time::timeout(timeout, ended(end)).await.is_err() {
            let kill = signal("KILL")?;
            let killed = self.with(id, |container| {
                if container.is_running() && container.attempt == attempt {
                    container.deliver(kill);
                }
            });
            return killed.or(Ok(())); // removed meanwhile: it is gone, as it should be
        }
        Ok(())
    }

    async fn remove_container(&self, id: &ContainerId) -> Result<()> {
        let mut container = self.host().containers.remove(id).ok_or_else(|| no_container(id))?;
        if !container.state.is_final() {
            container.deliver(signal("KILL")?); // those who wait for it are told
        }
        Ok(())
    }

    async fn container_state(&self, id: &ContainerId) -> Result<ContainerState> {
        self.with(id, |container| container.state.clone())
    }

    async fn container_logs(&self, id: &ContainerId, tail: usize) -> Result<Vec<LogEntry>> {
        self.with(id, |container| {
            let skip = if tail == 0 { 0 } else { container.logs.len().saturating_sub(tail) };
            container.logs[skip..].to_vec()
        })
    }

    async fn get_logs(&self, id: &ContainerId) -> Result<Vec<LogEntry>> {
        self.container_logs(id, 0).await
    }

    async fn exec(&self, id: &ContainerId, command: &[String]) -> Result<(i32, String, String)> {
        let (mut events, mut stdout, mut stderr) = (self.exec_stream(id, command).await?, String::new(), String::new());
        while let Some(event) = events.next().await {
            match event {
                ExecEvent::Stdout(text) => stdout.push_str(&text),
                ExecEvent::Stderr(text) => stderr.push_str(&text),
                ExecEvent::Exit(code) => return Ok((code, stdout, stderr)),
            }
        }
        Err(AgentError::Internal(format!("exec in {id} ended without an exit code")))
    }

    async fn exec_stream(&self, id: &ContainerId, command: &[String]) -> Result<ExecEventStream> {
        if command.is_empty() {
            return Err(AgentError::InvalidSpec("the command to exec is empty".to_owned()));
        }
        let (image, env, end) = self.with(id, |container| {
            if !container.is_running() {
                return Err(AgentError::Internal(format!("{id} does not run, so nothing can be executed in it")));
            }
            Ok((container.image.clone(), container.spec.env.clone(), container.end.subscribe()))
        })??;
        let behaviour = match image.launch(&Invocation { command: command.to_vec(), env }) {
            Launch::Runs(behaviour) => behaviour,
            Launch::NotFound => Behaviour::exits(127),
            Launch::NotExecutable => Behaviour::exits(126),
        };
        let output = stream::iter(texts(behaviour.output));
        let exit = async move {
            let own = async {
                match behaviour.end {
                    Some((time, code)) => {
                        tokio::time::sleep(time).await;
                        code
                    }
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                code = own => ExecEvent::Exit(code),
                _ = ended(end) => ExecEvent::Exit(137), // killed with its container
            }
        };
        Ok(output.chain(exit.into_stream()).boxed())
    }

    async fn get_container_stats(&self, id: &ContainerId) -> Result<ContainerStats> {
        self.with(id, |_| Err(no_process("stats")))?
    }

    async fn wait_container(&self, id: &ContainerId) -> Result<i32> {
        self.wait_outcome(id).await.map(|outcome| outcome.exit_code)
    }

    async fn wait_outcome(&self, id: &ContainerId) -> Result<WaitOutcome> {
        let end = self.with(id, |container| container.end.subscribe())?;
        ended(end).await.ok_or_else(|| no_container(id))
    }

    async fn get_container_pid(&self, id: &ContainerId) -> Result<Option<u32>> {
        self.with(id, |_| Err(no_process("pid")))?
    }

    async fn get_container_ip(&self, id: &ContainerId) -> Result<Option<IpAddr>> {
        self.with(id, |_| None)
    }

    async fn list_images(&self) -> Result<Vec<ImageInfo>> {
        let info = |reference: &String| ImageInfo { reference: reference.clone(), digest: None, size_bytes: None };
        Ok(self.host().images.keys().map(info).collect())
    }

    async fn remove_image(&self, image: &str, force: bool) -> Result<()> {
        let mut host = self.host();
        if !host.images.contains_key(image) {
            return Err(no_image(image));
        }
        if let Some(user) = host.users(image).next().filter(|_| !force) {
            return Err(AgentError::InvalidSpec(format!("{image} is used by {user}; remove that first, or force it")));
        }
        host.images.remove(image);
        Ok(())
    }

    async fn prune_images(&self) -> Result<PruneResult> {
        let mut host = self.host();
        let unused = |image: &&String| host.users(image).next().is_none();
        let deleted: Vec<String> = host.images.keys().filter(unused).cloned().collect();
        host.images.retain(|image, _| !deleted.contains(image));
        Ok(PruneResult { deleted, space_reclaimed: 0 })
    }

    async fn kill_container(&self, id: &ContainerId, name: Option<&str>) -> Result<()> {
        let signal = signal(name.unwrap_or("KILL"));
        self.with(id, |container| {
            let signal = signal?;
            if !container.is_running() {
                return Err(AgentError::Internal(format!("{id} does not run, so no signal can reach it")));
            }
            container.deliver(signal);
            Ok(())
        })?
    }

    async fn tag_image(&self, source: &str, target: &str) -> Result<()> {
        let (repository, tag) = target.rsplit_once(':').unwrap_or((target, ""));
        let is_name = |text: &str, more: &[u8]| {
            let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || more.contains(&b);
            !text.is_empty() && text.bytes().all(allowed)
        };
        if !is_name(repository, b"._-/:") || !is_name(&tag.to_ascii_lowercase(), b"._-") {
            return Err(AgentError::InvalidSpec(format!("{target:?} is no full reference: repository:tag")));
        }
        let mut host = self.host();
        let image = host.images.get(source).cloned().ok_or_else(|| no_image(source))?;
        host.images.insert(target.to_owned(), image);
        Ok(())
    }

    async fn inspect_detailed(&self, id: &ContainerId) -> Result<ContainerInspectDetails> {
        let end = self.with(id, |container| container.end.borrow().clone())?;
        Ok(ContainerInspectDetails { exit_code: end.map(|outcome| outcome.exit_code), ..Default::default() })
    }

    async fn list_containers(&self) -> Result<Vec<ContainerSummary>> {
        let summary = |container: &Container| ContainerSummary {
            id: container.id.clone(),
            state: container.state.clone(),
            image: container.spec.image.name.clone(),
            labels: container.spec.labels.clone(),
            pid: None,
            created_at: container.created_at,
        };
        Ok(self.host().containers.values().map(summary).collect())
    }

    /// A simulated process reads nothing: `input` is dropped.
    async fn attach(&self, id: &ContainerId, _input: Option<ExecInput>) -> Result<AttachStream> {
        let events = self.with(id, |container| {
            if !container.is_running() {
                return Err(AgentError::Internal(format!("{id} does not run, so nobody can attach to it")));
            }
            let (sender, events) = mpsc::unbounded_channel();
            container.listeners.push(sender);
            Ok(events)
        })??;
        let next =
            |mut events: mpsc::UnboundedReceiver<_>| async { events.recv().await.map(|event| (Ok(event), events)) };
        Ok(stream::unfold(events, next).boxed())
    }
}

impl MemoryRuntime {
    /// Ends attempt `attempt` of `id` after `time`, if it still runs then.
    fn end_after(&self, id: &ContainerId, time: Duration, code: i32, attempt: u64) {
        let exit = move |host: &mut Host, id: &ContainerId| {
            if let Some(container) = host.containers.get_mut(id)
                && container.is_running()
                && container.attempt == attempt
            {
                container.exit(code);
            }
        };
        if time.is_zero() {
            return exit(&mut self.host(), id);
        }
        let (host, id) = (Arc::downgrade(&self.host), id.clone()); // the timer keeps no runtime alive
        tokio::spawn(async move {
            tokio::time::sleep(time).await;
            if let Some(host) = host.upgrade() {
                exit(&mut host.lock().unwrap_or_else(std::sync::PoisonError::into_inner), &id);
            }
        });
    }
}

impl Host {
    /// The containers that were made from `image`.
    fn users(&self, image: &str) -> impl Iterator<Item = &ContainerId> {
        self.containers
            .values()
            .filter(move |container| container.spec.image.name == image)
            .map(|container| &container.id)
    }
}

/// The end of an attempt; `None` if its container vanished without one.
async fn ended(mut end: watch::Receiver<Option<WaitOutcome>>) -> Option<WaitOutcome> {
    let outcome = end.wait_for(Option::is_some).await.ok()?;
    outcome.clone()
}

/// The output as events. What follows on one stream is one text, so that no character is split.
fn texts(output: Vec<(LogStream, Vec<u8>)>) -> Vec<ExecEvent> {
    let event = |chunks: &[(LogStream, Vec<u8>)]| {
        let bytes: Vec<u8> = chunks.iter().flat_map(|(_, bytes)| bytes.clone()).collect();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if chunks[0].0 == LogStream::Stdout { ExecEvent::Stdout(text) } else { ExecEvent::Stderr(text) }
    };
    output.chunk_by(|one, next| one.0 == next.0).map(event).collect()
}

fn stop_signal(spec: &ServiceSpec) -> Result<(&'static str, i32)> {
    program::stop_signal(spec.stop_signal.as_deref().unwrap_or("TERM"))
}

fn no_process(what: &str) -> AgentError {
    AgentError::Unsupported(format!("the in-memory backend runs no process and has no {what}"))
}

fn no_image(image: &str) -> AgentError {
    AgentError::NotFound { container: image.to_owned(), reason: "there is no such image".to_owned() }
}

//! [`Case`]: what a check is given: the runtime, ids of its own, and the verbs that checks share.

use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::backend::{Ability, Backend, Workload};
use crate::spec::CommandSpec;
use crate::{AgentError, ContainerId, LogEntry, PullPolicy, Result, Runtime, ServiceSpec};

/// Pause between two looks at what has no event to wait for.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Why a check ends before its end.
#[derive(Debug)]
pub(super) enum Stop {
    Failed(String),
    Unsupported(String),
}

/// What a check returns.
pub(super) type Verdict<T = ()> = std::result::Result<T, Stop>;

/// One run of one check.
#[derive(Clone)]
pub(super) struct Case(Arc<Inner>);

struct Inner {
    backend: Arc<dyn Backend>,
    runtime: Arc<dyn Runtime>,
    service: String,
    /// Time in which something that happens by itself (a line reaching the log) must have happened.
    soon: Duration,
    next_replica: AtomicU32,
    used: Mutex<Used>,
}

/// What is to be cleaned up.
#[derive(Default)]
struct Used {
    containers: Vec<ContainerId>,
    images: Vec<String>,
    volumes: Vec<String>,
    directories: Vec<PathBuf>,
}

impl Case {
    /// A case whose containers belong to `service`.
    pub(super) fn new(backend: Arc<dyn Backend>, service: String, soon: Duration) -> Self {
        let runtime = backend.runtime();
        let next_replica = AtomicU32::new(0);
        Self(Arc::new(Inner { backend, runtime, service, soon, next_replica, used: Mutex::default() }))
    }

    /// Time in which a call that does not wait for anything must be done, and what happens by itself have happened.
    pub(super) fn soon(&self) -> Duration {
        self.0.soon
    }

    pub(super) fn backend(&self) -> &Arc<dyn Backend> {
        &self.0.backend
    }

    pub(super) fn runtime(&self) -> &Arc<dyn Runtime> {
        &self.0.runtime
    }

    /// Whether the backend says that it has no such ability.
    pub(super) fn lacks(&self, ability: Ability) -> bool {
        self.0.backend.lacks().contains(&ability)
    }

    /// A fresh id, removed when the check is over.
    pub(super) fn id(&self) -> ContainerId {
        let id = ContainerId::new(&self.0.service, self.0.next_replica.fetch_add(1, Ordering::Relaxed));
        self.used().containers.push(id.clone());
        id
    }

    /// A reference of this check's own, untagged when the check is over. No registry has it.
    pub(super) fn image_name(&self, tag: &str) -> String {
        let name = format!("conformance.invalid/{}:{tag}", self.0.service.to_lowercase());
        self.used().images.push(name.clone());
        name
    }

    /// Untags `reference` too when the check is over.
    pub(super) fn made_image(&self, reference: &str) {
        self.used().images.push(reference.to_owned());
    }

    /// The name of a volume of this check's own, removed when the check is over if the backend can.
    pub(super) fn volume_name(&self) -> String {
        let name = format!("{}-{}", self.0.service, self.0.next_replica.fetch_add(1, Ordering::Relaxed));
        self.used().volumes.push(name.clone());
        name
    }

    /// A directory of this check's own that the runtime sees too, removed when the check is over.
    pub(super) fn directory(&self) -> Verdict<PathBuf> {
        let shared = self.0.backend.shared_directory();
        let shared = shared.ok_or_else(|| Stop::Unsupported("the suite and the backend share no directory".into()))?;
        static NUMBER: AtomicU32 = AtomicU32::new(0); // two runs of the suite in one process share the directory
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = shared.join(format!("{}-{}-{number}", self.0.service, std::process::id()));
        std::fs::create_dir(&path).map_err(|error| Stop::Failed(format!("creating {}: {error}", path.display())))?;
        self.used().directories.push(path.clone());
        Ok(path)
    }

    /// The command for `workload`, or the end of the check if the backend has none.
    pub(super) fn command(&self, workload: &Workload) -> Verdict<Vec<String>> {
        self.0
            .backend
            .command(workload)
            .ok_or_else(|| Stop::Unsupported("the backend cannot run what this needs".into()))
    }

    /// A spec that runs `workload`.
    pub(super) fn spec(&self, workload: &Workload) -> Verdict<ServiceSpec> {
        let args = self.command(workload)?;
        let command = CommandSpec { entrypoint: Some(args), ..CommandSpec::default() };
        Ok(ServiceSpec { command, ..self.plain_spec() })
    }

    /// A spec that runs a shell script.
    pub(super) fn script(&self, script: impl Into<String>) -> Verdict<ServiceSpec> {
        self.spec(&Workload::Script(script.into()))
    }

    /// A spec of the backend's image as it is; no registry is asked.
    pub(super) fn plain_spec(&self) -> ServiceSpec {
        let mut spec = ServiceSpec::new(self.0.backend.image());
        spec.image.pull_policy = PullPolicy::IfNotPresent;
        spec
    }

    /// Creates a container that will do `workload`.
    pub(super) async fn create(&self, workload: &Workload) -> Verdict<ContainerId> {
        let (id, spec) = (self.id(), self.spec(workload)?);
        self.0.runtime.create_container(&id, &spec).await.or_fail("create_container")?;
        Ok(id)
    }

    /// Creates and starts one.
    pub(super) async fn start(&self, workload: &Workload) -> Verdict<ContainerId> {
        let id = self.create(workload).await?;
        self.0.runtime.start_container(&id).await.or_fail("start_container")?;
        Ok(id)
    }

    /// Creates and starts one from a spec that asks for something a backend may not have.
    pub(super) async fn start_spec(&self, spec: &ServiceSpec) -> Verdict<ContainerId> {
        let id = self.id();
        self.0.runtime.create_container(&id, spec).await.or_unsupported("create_container")?;
        self.0.runtime.start_container(&id).await.or_unsupported("start_container")?;
        Ok(id)
    }

    /// Creates and starts one from such a spec that writes `ready`, and waits until it has.
    pub(super) async fn start_spec_ready(&self, spec: &ServiceSpec) -> Verdict<ContainerId> {
        let id = self.start_spec(spec).await?;
        self.line(&id, "ready").await?;
        Ok(id)
    }

    /// Starts one that writes `ready`, and waits until it has.
    pub(super) async fn start_ready(&self, workload: &Workload) -> Verdict<ContainerId> {
        let id = self.start(workload).await?;
        self.line(&id, "ready").await?;
        Ok(id)
    }

    /// Waits for the container's end.
    pub(super) async fn wait(&self, id: &ContainerId) -> Verdict<i32> {
        self.0.runtime.wait_container(id).await.or_fail("wait_container")
    }

    /// Waits until `line` is in the log.
    pub(super) async fn line(&self, id: &ContainerId, line: &str) -> Verdict<LogEntry> {
        let found = |logs: &[LogEntry]| logs.iter().rfind(|entry| entry.message == line).cloned();
        let logs = self.logs_until(id, |logs| found(logs).is_some()).await?;
        found(&logs).ok_or_else(|| {
            Stop::Failed(format!("no line {line:?} in the log within {:?}: {}", self.soon(), texts(&logs)))
        })
    }

    /// The log once it has `count` entries, or as it is after some time.
    pub(super) async fn logs(&self, id: &ContainerId, count: usize) -> Verdict<Vec<LogEntry>> {
        self.logs_until(id, |logs| logs.len() >= count).await
    }

    async fn logs_until(&self, id: &ContainerId, enough: impl Fn(&[LogEntry]) -> bool) -> Verdict<Vec<LogEntry>> {
        let begun = Instant::now();
        loop {
            let logs = self.0.runtime.get_logs(id).await.or_fail("get_logs")?;
            if enough(&logs) || begun.elapsed() > self.soon() {
                return Ok(logs);
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Runs `workload` to its end and returns its exit code and what it wrote to standard output, line by line.
    pub(super) async fn output(&self, spec: &ServiceSpec, lines: usize) -> Verdict<(i32, Vec<String>)> {
        let id = self.start_spec(spec).await?;
        let code = self.wait(&id).await?;
        let logs = self.logs(&id, lines).await?;
        Ok((code, logs.into_iter().map(|entry| entry.message).collect()))
    }

    /// The one line that a container made from `spec` writes.
    pub(super) async fn answer(&self, spec: &ServiceSpec) -> Verdict<String> {
        let (_, lines) = self.output(spec, 1).await?;
        match lines.as_slice() {
            [line] => Ok(line.clone()),
            _ => Err(Stop::Failed(format!("it wrote {lines:?}, not one line"))),
        }
    }

    /// What a shell script writes to its standard output, run in the container.
    pub(super) async fn ask(&self, id: &ContainerId, script: &str) -> Verdict<String> {
        let (_, stdout, _) = self.exec(id, &Workload::Script(script.to_owned())).await?;
        Ok(stdout.trim_end().to_owned())
    }

    /// Lets a script in the container go on that waits for its `number`th word, by [`until_told`].
    pub(super) async fn tell(&self, id: &ContainerId, number: u32) -> Verdict {
        self.ask(id, &format!("echo > /conformance-{number}")).await.map(drop)
    }

    /// Looks until `what` returns something, for some time; then fails with the text `otherwise` gives.
    pub(super) async fn until<T, F: Future<Output = Verdict<Option<T>>>>(
        &self,
        otherwise: &str,
        what: impl Fn() -> F,
    ) -> Verdict<T> {
        self.until_within(self.soon(), otherwise, what).await
    }

    /// The same, for as long as `limit`.
    pub(super) async fn until_within<T, F: Future<Output = Verdict<Option<T>>>>(
        &self,
        limit: Duration,
        otherwise: &str,
        what: impl Fn() -> F,
    ) -> Verdict<T> {
        let begun = Instant::now();
        loop {
            if let Some(found) = what().await? {
                return Ok(found);
            }
            ensure(begun.elapsed() < limit, || format!("{otherwise} within {limit:?}"))?;
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Execs `workload`.
    pub(super) async fn exec(&self, id: &ContainerId, workload: &Workload) -> Verdict<(i32, String, String)> {
        self.0.runtime.exec(id, &self.command(workload)?).await.or_fail("exec")
    }

    /// Removes all that the check made, and says what could not be removed. The runtime is asked for anew: the check may
    /// have reopened it.
    pub(super) async fn clean_up(&self) -> Vec<String> {
        let runtime = self.0.backend.runtime();
        let Used { containers, images, volumes, directories } = std::mem::take(&mut *self.used());
        let mut errors = Vec::new();
        for id in containers {
            match runtime.remove_container(&id).await {
                Ok(()) | Err(AgentError::NotFound { .. }) => {}
                Err(error) => errors.push(format!("removing {id}: {error}")),
            }
        }
        for image in images {
            match runtime.remove_image(&image, true).await {
                Ok(()) | Err(AgentError::NotFound { .. } | AgentError::Unsupported(_)) => {}
                Err(error) => errors.push(format!("removing {image}: {error}")),
            }
        }
        for volume in volumes {
            if let Err(error) = self.0.backend.remove_volume(&volume).await {
                errors.push(format!("removing the volume {volume}: {error}"));
            }
        }
        for directory in directories {
            if let Err(error) = std::fs::remove_dir_all(&directory) {
                errors.push(format!("removing {}: {error}", directory.display()));
            }
        }
        errors
    }

    fn used(&self) -> std::sync::MutexGuard<'_, Used> {
        self.0.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What of a script waits for its `number`th word, by [`Case::tell`].
pub(super) fn until_told(number: u32) -> String {
    format!("until [ -e /conformance-{number} ]; do sleep 0.1 2>/dev/null || sleep 1; done")
}

/// Whether something of the suite's own on the host is as it should be.
pub(super) fn of_host<T>(path: &Path, result: std::io::Result<T>) -> Verdict<T> {
    result.map_err(|error| Stop::Failed(format!("{}: {error}", path.display())))
}

/// How an unexpected error ends a check.
pub(super) trait OrStop<T> {
    /// Any error fails the check.
    fn or_fail(self, call: &str) -> Verdict<T>;
    /// As `or_fail`, but the backend may say that it does not do this.
    fn or_unsupported(self, call: &str) -> Verdict<T>;
}

impl<T> OrStop<T> for Result<T> {
    fn or_fail(self, call: &str) -> Verdict<T> {
        self.map_err(|error| Stop::Failed(format!("{call}: {error}")))
    }

    fn or_unsupported(self, call: &str) -> Verdict<T> {
        self.map_err(|error| match error {
            AgentError::Unsupported(reason) => Stop::Unsupported(format!("{call}: {reason}")),
            error => Stop::Failed(format!("{call}: {error}")),
        })
    }
}

/// Fails with `reason` unless `holds`.
pub(super) fn ensure(holds: bool, reason: impl FnOnce() -> String) -> Verdict {
    if holds { Ok(()) } else { Err(Stop::Failed(reason())) }
}

/// Fails unless `found` is `wanted`.
pub(super) fn equal<T: PartialEq + Debug>(what: &str, found: &T, wanted: &T) -> Verdict {
    ensure(found == wanted, || format!("{what} is {found:?}, not {wanted:?}"))
}

/// Fails unless `result` is an error that `wanted` accepts.
pub(super) fn refused<T: Debug>(what: &str, result: Result<T>, wanted: impl FnOnce(&AgentError) -> bool) -> Verdict {
    match result {
        Ok(value) => Err(Stop::Failed(format!("{what} is accepted: {value:?}"))),
        Err(error) => ensure(wanted(&error), || format!("{what} has the wrong error {error:?}")),
    }
}

/// Waits for `future`, which must be done within `limit`.
pub(super) async fn within<T>(what: &str, limit: Duration, future: impl Future<Output = T>) -> Verdict<T> {
    tokio::time::timeout(limit, future).await.map_err(|_| Stop::Failed(format!("{what} took longer than {limit:?}")))
}

/// The log in short, for a failure.
pub(super) fn texts(logs: &[LogEntry]) -> String {
    let shown: Vec<String> = logs.iter().take(8).map(|entry| entry.message.chars().take(60).collect()).collect();
    format!("{} entries, {shown:?}{}", logs.len(), if logs.len() > shown.len() { "…" } else { "" })
}

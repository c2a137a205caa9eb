//! A minimal in-memory backend, for tests of agents that are written against [`Runtime`](crate::Runtime).
//!
//! No process runs: an image is a function that says what a command [does](Behaviour). States, waiting, stopping,
//! signals, logs, attaching, execs and image names follow the contract (the conformance suite runs on it); what needs a
//! real process or a real host is [`AgentError::Unsupported`], never a made-up number.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> runtime_core::Result<()> {
//! use std::time::Duration;
//! use runtime_core::memory::{Behaviour, Launch, MemoryImage, MemoryRuntime, Reaction};
//! use runtime_core::{ContainerId, Runtime, ServiceSpec};
//!
//! let runtime = MemoryRuntime::new();
//! let server = Behaviour::runs().on("TERM", Reaction::Exit(3));
//! runtime.add_image("web:1", MemoryImage::new(move |_| Launch::Runs(server.clone())).cmd(&["serve"]));
//! let id = ContainerId::new("web", 0);
//! runtime.create_container(&id, &ServiceSpec::new("web:1")).await?;
//! runtime.start_container(&id).await?;
//! runtime.stop_container(&id, Duration::from_secs(10)).await?;
//! assert_eq!(runtime.wait_container(&id).await?, 3);
//! # Ok(())
//! # }
//! ```

mod container;
mod program;
mod runtime;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use program::{Behaviour, Invocation, Launch, MemoryImage, Reaction};

use crate::spec::{CommandSpec, NetworkMode, NetworkSpec};
use crate::{AgentError, ContainerId, Result, ServiceSpec};
use container::Container;

/// The backend. Clones are the same runtime; everything is gone when the last one is dropped.
#[derive(Clone, Default)]
pub struct MemoryRuntime {
    host: Arc<Mutex<Host>>,
    accepts_any_spec: bool,
}

#[derive(Default)]
struct Host {
    images: BTreeMap<String, MemoryImage>,
    containers: BTreeMap<ContainerId, Container>,
}

impl MemoryRuntime {
    /// One with no images and no containers.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Accepts specs that ask for what a simulated process cannot show (limits, mounts, users, ports, …), and ignores
    /// that. Otherwise they are [`AgentError::Unsupported`].
    #[must_use]
    pub fn accept_any_spec(self) -> Self {
        Self { accepts_any_spec: true, ..self }
    }

    /// Makes `image` available under `reference`, in place of one that had that name.
    pub fn add_image(&self, reference: &str, image: MemoryImage) {
        self.host().images.insert(reference.to_owned(), image);
    }

    fn host(&self) -> MutexGuard<'_, Host> {
        self.host.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, id: &ContainerId, work: impl FnOnce(&mut Container) -> T) -> Result<T> {
        self.host().containers.get_mut(id).map(work).ok_or_else(|| no_container(id))
    }

    /// Refuses what a spec asks for in vain.
    fn check_spec(&self, spec: &ServiceSpec) -> Result<()> {
        if self.accepts_any_spec {
            return Ok(());
        }
        let kept = ServiceSpec {
            image: spec.image.clone(),
            command: CommandSpec { workdir: None, ..spec.command.clone() },
            env: spec.env.clone(),
            labels: spec.labels.clone(),
            stop_signal: spec.stop_signal.clone(),
            stop_timeout: spec.stop_timeout,
            network: match spec.network.mode {
                NetworkMode::None => spec.network.clone(),
                _ => NetworkSpec::default(),
            },
            // The agent's business, here as everywhere.
            schedule: spec.schedule.clone(),
            scale: spec.scale.clone(),
            depends: spec.depends.clone(),
            errors: spec.errors.clone(),
            node_mode: spec.node_mode.clone(),
            node_selector: spec.node_selector.clone(),
            ..ServiceSpec::default()
        };
        let is_resolved_elsewhere = |value: &String| value.starts_with("$E:") || value.starts_with("$S:");
        if kept != *spec || spec.env.values().any(is_resolved_elsewhere) {
            return Err(AgentError::Unsupported(
                "the in-memory backend does image, command, plain env, labels and stop signal; \
                 MemoryRuntime::accept_any_spec makes it ignore the rest"
                    .to_owned(),
            ));
        }
        Ok(())
    }
}

impl fmt::Debug for MemoryRuntime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = self.host();
        f.debug_struct("MemoryRuntime")
            .field("images", &host.images.keys())
            .field("containers", &host.containers.keys())
            .field("accepts_any_spec", &self.accepts_any_spec)
            .finish()
    }
}

fn no_container(id: &ContainerId) -> AgentError {
    AgentError::NotFound { container: id.to_string(), reason: "there is no such container".to_owned() }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::LogStream::Stdout;
    use crate::Runtime;

    fn runtime(behaviour: Behaviour) -> MemoryRuntime {
        let runtime = MemoryRuntime::new();
        runtime.add_image("app:1", MemoryImage::new(move |_| Launch::Runs(behaviour.clone())).cmd(&["app"]));
        runtime
    }

    #[tokio::test]
    async fn what_it_cannot_show_is_refused_unless_asked_to_ignore_it() {
        let mut spec = ServiceSpec::new("app:1");
        spec.read_only = true;
        let (id, strict) = (ContainerId::new("a", 0), runtime(Behaviour::exits(0)));
        assert!(matches!(strict.create_container(&id, &spec).await, Err(AgentError::Unsupported(_))));
        strict.clone().accept_any_spec().create_container(&id, &spec).await.unwrap();
        assert!(matches!(strict.get_container_pid(&id).await, Err(AgentError::Unsupported(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_ends_by_itself_when_its_time_is_over_but_not_a_later_attempt() {
        let lives = Behaviour::exits(7).after(Duration::from_secs(60)).writes(Stdout, "up\n");
        let (id, runtime) = (ContainerId::new("a", 0), runtime(lives));
        runtime.create_container(&id, &ServiceSpec::new("app:1")).await.unwrap();
        runtime.start_container(&id).await.unwrap();
        tokio::time::sleep(Duration::from_secs(30)).await;
        runtime.kill_container(&id, None).await.unwrap();
        assert_eq!(runtime.wait_container(&id).await, Ok(137));
        runtime.start_container(&id).await.unwrap();
        let begun = tokio::time::Instant::now();
        assert_eq!(runtime.wait_container(&id).await, Ok(7));
        assert_eq!(begun.elapsed().as_secs(), 60);
        assert_eq!(runtime.get_logs(&id).await.unwrap().len(), 2);
    }
}

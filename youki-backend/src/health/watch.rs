//! The keeper's tasks: one for each container that has a check and a supervisor. Each sleeps until its next check is due
//! or its container is started or ends, of which the supervisor tells.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use runtime_core::spec::HealthSpec;
use runtime_core::{Event, EventKind};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::plan::plan;
use super::state::HealthState;
use crate::container::{Container, Observed};
use crate::error::{Error, Result};
use crate::keeper::PAUSE_AFTER_ERROR;
use crate::lock::ContainerLock;
use crate::record::{self, AttemptKey};
use crate::runtime::Inner;
use crate::supervisor::wire::{Reply, Request, Status};

/// The tasks, which end with this.
#[derive(Debug, Default)]
pub(crate) struct Watches {
    watched: Arc<Watched>,
    tasks: Mutex<JoinSet<()>>,
}

/// The attempts that a task waits for or checks: each has one.
#[derive(Debug, Default)]
struct Watched(Mutex<HashSet<AttemptKey>>);

impl Watched {
    /// False if another task has it.
    fn begin(&self, attempt: AttemptKey) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(attempt)
    }

    fn end(&self, attempt: &AttemptKey) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(attempt);
    }
}

impl Watches {
    /// Checks `container` for as long as its supervisor lives. One that is checked already is so once.
    pub fn follow(&self, inner: &Arc<Inner>, container: &Container) {
        // Its network is not known yet; its supervisor's socket will be followed.
        if container.record.image.is_to_be_pulled() {
            return;
        }
        let Some(plan) = plan(&container.record) else { return };
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        if !self.watched.begin(container.record.attempt_key()) {
            return;
        }
        let (inner, watched, mut container) = (inner.clone(), self.watched.clone(), container.clone());
        tasks.spawn(async move {
            loop {
                let attempt = container.record.attempt_key();
                let next = inner.check_once_started(&mut container, &plan).await;
                watched.end(&attempt);
                match next {
                    Ok(true) => {}
                    Ok(false) | Err(Error::NoSuchContainer { .. }) => return,
                    Err(error) => {
                        let name = container.record.id.to_string();
                        tracing::warn!(container = name, error = error.chain(), "it is not checked for a minute");
                        tokio::time::sleep(PAUSE_AFTER_ERROR).await;
                        match inner.container(&container.record.id) {
                            Ok(now) if now.record.is_same_container(&container.record) => container = now,
                            Ok(_) | Err(Error::NoSuchContainer { .. } | Error::Corrupt { .. }) => return,
                            // As short of all as before.
                            Err(_) => {}
                        }
                    }
                }
                if !watched.begin(container.record.attempt_key()) {
                    return;
                }
            }
        });
    }
}

impl Inner {
    /// Checks the attempt of `container` from its start to its end. True if it is over and another one may follow, or has:
    /// `container` is at that then.
    async fn check_once_started(&self, container: &mut Container, plan: &HealthSpec) -> Result<bool> {
        let Some(started) = self.wait_for_start(container).await? else { return Ok(false) };
        if started.attempt != container.record.attempt {
            // It is watched under its own key, which no other task has then.
            container.record.attempt = started.attempt;
            return Ok(true);
        }
        tokio::select! {
            biased;
            ended = self.wait_for_end(container) => {
                let ended = ended?;
                container.record.attempt += 1;
                Ok(ended.restarting)
            }
            never = self.check_attempt(container, &started, plan) => match never {},
        }
    }

    /// Waits until this attempt of `container` runs, or a later one. `None` if none will.
    async fn wait_for_start(&self, container: &Container) -> Result<Option<Status>> {
        let wait = Request::WaitForStart { attempt: container.record.attempt };
        loop {
            if let Some(mut connection) = self.supervisor(container).await? {
                match connection.ask(&wait).await.map_err(Error::supervisor(&container.record.id))? {
                    Some(Reply::Status(status)) => return Ok(Some(status)),
                    // It has ended, or is older than health checks.
                    Some(_) => return Ok(None),
                    None => {}
                }
            }
            match self.observe(container).await? {
                Observed::Ended(_) => return Ok(None),
                // Its socket is there before anybody listens: whoever creates it holds its lock until then.
                Observed::Pending | Observed::Unsupervised => {
                    ContainerLock::passed(container.paths.lock.clone()).await?
                }
                Observed::Supervised(_) => {}
            }
        }
    }

    async fn check_attempt(
        &self,
        container: &Container,
        started: &Status,
        plan: &HealthSpec,
    ) -> std::convert::Infallible {
        let path = container.paths.health();
        let started_at = DateTime::from_timestamp_nanos(started.started_at_nanos);
        let init = u32::try_from(started.pid).unwrap_or(0);
        // Of the keeper before this one.
        let stored: Option<HealthState> = record::read(&path).ok().flatten();
        let mut state = stored
            .filter(|state| state.is_of(&container.record))
            .unwrap_or_else(|| HealthState::new(&container.record, started.attempt));
        // From here on by a clock that nobody sets.
        let ago = |time| Instant::now().checked_sub(since(time)).unwrap_or_else(Instant::now);
        let (started_at, mut last) = (ago(started_at), ago(state.checked_at.unwrap_or(started_at)));
        loop {
            tokio::time::sleep_until(last + state.pause(plan, started_at.elapsed())).await;
            // Nothing in it could answer, which says nothing of its health.
            if self.is_paused(container) {
                (state.checked_at, last) = (Some(Utc::now()), Instant::now());
                continue;
            }
            let tried = self.probe(container, init, plan).await;
            last = Instant::now();
            if !tried.passed && self.is_paused(container) {
                // It was paused in the middle.
                state.checked_at = Some(Utc::now());
                continue;
            }
            let changed = state.take(tried, plan, started_at.elapsed(), Utc::now());
            match record::write(&path, &state) {
                Ok(()) => {}
                // It is being removed, or started anew.
                Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => {
                    let container = container.record.id.to_string();
                    tracing::warn!(container, error = error.chain(), "its health is not on record");
                }
            }
            if changed {
                let event = Event { attempt: Some(started.attempt), ..Event::now(EventKind::Health) };
                self.tell(event.of(&container.record.id).saying(state.status.word()));
            }
        }
    }
}

/// How long ago `time` was; a clock that was set back is no time at all.
fn since(time: DateTime<Utc>) -> Duration {
    (Utc::now() - time).to_std().unwrap_or_default()
}

//! Sending a signal to the init.

use std::sync::Arc;

use runtime_core::{ContainerId, Event, EventKind};

use crate::bundle::signal;
use crate::error::{Error, Result};
use crate::runtime::Inner;
use crate::supervisor::wire::{Phase, Reply, Request};

use super::Observed;

/// What may be sent; a stop signal may be any.
const ALLOWED: [i32; 6] = [libc::SIGKILL, libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGUSR1, libc::SIGUSR2];

impl Inner {
    /// Sends `signal` (KILL if `None`) to the init of `id`.
    pub(crate) async fn kill(self: &Arc<Self>, id: &ContainerId, signal: Option<&str>) -> Result<()> {
        let container = self.container(id)?;
        let number = match signal {
            None => libc::SIGKILL,
            Some(text) => signal::parse(text)
                .filter(|number| ALLOWED.contains(number) && !text.bytes().all(|byte| byte.is_ascii_digit()))
                .ok_or_else(|| {
                    Error::invalid("signal", format!("{text:?} is none of KILL, TERM, INT, HUP, USR1 and USR2"))
                })?,
        };
        self.send_signal(&container, number).await?;
        // A frozen process does not end. What is meant to end it lets it go on, as with docker.
        if [libc::SIGKILL, container.record.stop_signal].contains(&number) && self.is_paused(&container) {
            match self.unpause(id).await {
                // It has ended by it.
                Err(Error::NotRunning { .. } | Error::NoSuchContainer { .. }) => {}
                other => other?,
            }
        }
        self.tell(Event::now(EventKind::Kill).of(id).saying(signal::name(number)));
        Ok(())
    }

    /// Sends any signal; for a foreground run, which passes on what it gets.
    pub(crate) async fn send_signal(&self, container: &super::Container, number: i32) -> Result<()> {
        loop {
            let observed = self.observe(container).await?;
            let takes_it = match &observed {
                // What waits to be started has a handler for none.
                Observed::Supervised(status) if status.phase == Phase::Created && status.started_at_nanos == 0 => {
                    number == libc::SIGKILL
                }
                Observed::Supervised(status) => status.phase != Phase::Creating,
                Observed::Pending | Observed::Unsupervised | Observed::Ended(_) => false,
            };
            if !takes_it {
                return Err(Error::NotRunning { id: container.record.id.to_string(), state: observed.state().word() });
            }
            let Some(mut connection) = self.supervisor(container).await? else { continue };
            match connection.ask(&Request::Signal(number)).await.map_err(Error::supervisor(&container.record.id))? {
                Some(Reply::Ok) => return Ok(()),
                Some(Reply::Error(what)) => {
                    return Err(Error::Supervisor { id: container.record.id.to_string(), what, source: None });
                }
                // It ended since it was looked at: the next look tells how.
                _ => {}
            }
        }
    }
}

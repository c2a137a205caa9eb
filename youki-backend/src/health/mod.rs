//! Health checks: what is tried ([`plan`]), how ([`probe`]), how results add up ([`state`]), and the keeper's tasks that
//! try ([`watch`]).
//!
//! Only the keeper checks; what it finds stands in the run directory, so that every process tells it and the next
//! keeper goes on from it. An unhealthy container is told of and left alone.

mod plan;
mod probe;
mod state;
mod watch;

use runtime_core::HealthDetail;

use crate::container::{Container, Observed};
use crate::error::Result;
use crate::record;
use crate::runtime::Inner;
pub(crate) use plan::check;
use plan::plan;
use state::HealthState;
pub(crate) use watch::Watches;

impl Inner {
    /// What the checks of `container` came to; `None` if it has none. Where the file is damaged, nothing is known until the
    /// next.
    pub(crate) fn health(&self, container: &Container, observed: &Observed) -> Result<Option<HealthDetail>> {
        if plan(&container.record).is_none() {
            return Ok(None);
        }
        let stored: Option<HealthState> = record::read_intact(&container.paths.health())?;
        Ok(Some(match stored.filter(|state| state.is_of(&container.record)) {
            Some(state) => HealthDetail {
                status: state.status.word().to_owned(),
                failing_streak: Some(state.failing_streak),
                last_output: state.last_output,
            },
            None => {
                let status = if observed.pid().is_some() { "starting" } else { "none" };
                HealthDetail { status: status.to_owned(), ..HealthDetail::default() }
            }
        }))
    }
}

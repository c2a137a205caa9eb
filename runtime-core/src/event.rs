//! What happened: one journal for all processes that use a root.

use std::pin::Pin;

use chrono::{DateTime, Utc};
use futures_core::Stream;
use serde::{Deserialize, Serialize};

use crate::error::Result;

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Counts all events of a root since its host was booted, from 1, in the order in which they were put down.
    pub number: u64,
    /// When.
    #[serde(with = "crate::time")]
    pub time: DateTime<Utc>,
    /// What.
    pub kind: EventKind,
    /// The container it happened to.
    pub container: Option<String>,
    /// The image it happened to, or that the container was made from.
    pub image: Option<String>,
    /// The volume it happened to.
    pub volume: Option<String>,
    /// Which attempt of the container began or ended.
    pub attempt: Option<u32>,
    /// What it ended with.
    pub exit_code: Option<i32>,
    /// More, in words: a signal, why it ended, what is not durable.
    pub detail: Option<String>,
}

impl Event {
    /// `kind` now, and nothing more.
    #[must_use]
    pub fn now(kind: EventKind) -> Self {
        Self {
            number: 0,
            time: Utc::now(),
            kind,
            container: None,
            image: None,
            volume: None,
            attempt: None,
            exit_code: None,
            detail: None,
        }
    }

    /// The same of a container.
    #[must_use]
    pub fn of(self, container: impl ToString) -> Self {
        Self { container: Some(container.to_string()), ..self }
    }

    /// The same with words.
    #[must_use]
    pub fn saying(self, detail: impl Into<String>) -> Self {
        Self { detail: Some(detail.into()), ..self }
    }
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// A container was created.
    Create,
    /// Its program was executed.
    Start,
    /// It was told to stop, and has.
    Stop,
    /// It was sent a signal.
    Kill,
    /// It was frozen.
    Pause,
    /// It goes on.
    Unpause,
    /// Its limits were changed.
    Update,
    /// The kernel killed one of its processes for want of memory.
    Oom,
    /// Its attempt is over.
    Exit,
    /// Its restart policy begins another attempt.
    Restart,
    /// It was removed.
    Remove,
    /// Its health changed.
    Health,
    /// An image was pulled. Of a pull by name, also that it was found to be here.
    Pull,
    /// A volume was synced, or could not be.
    Volume,
    /// A kind that this version does not know.
    #[serde(other)]
    Other,
}

impl EventKind {
    /// Those that this version knows.
    pub const ALL: [Self; 14] = [
        Self::Create,
        Self::Start,
        Self::Stop,
        Self::Kill,
        Self::Pause,
        Self::Unpause,
        Self::Update,
        Self::Oom,
        Self::Exit,
        Self::Restart,
        Self::Remove,
        Self::Health,
        Self::Pull,
        Self::Volume,
    ];
}

/// Which events are wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EventsOptions {
    /// Only after the event of this number: goes on exactly where an earlier stream was left.
    pub after: Option<u64>,
    /// Only from this time on.
    pub since: Option<DateTime<Utc>>,
    /// Go on with what happens from now.
    pub follow: bool,
}

/// Events in order.
pub type EventStream = Pin<Box<dyn Stream<Item = Result<Event>> + Send>>;

//! The container runtime contract.
//!
//! An agent is written against the [`Runtime`] trait and the types here; a backend implements them. Berth's own is
//! `youki-backend`. This crate knows neither Linux nor S3 nor HTTP.
//!
//! | module | holds |
//! |---|---|
//! | [`runtime`] | the trait |
//! | [`spec`] | [`ServiceSpec`]: what a container shall be |
//! | [`container`] | ids, states, outcomes, details |
//! | [`stats`], [`logs`], [`exec`], [`attach`], [`mod@copy`] | what the calls of containers take and return |
//! | [`image`], [`volume`], [`event`] | and those of the rest |
//! | [`error`] | [`AgentError`] |
//! | [`conformance`] | whether a backend keeps the contract |
//! | [`memory`] | a minimal backend for tests of agents |
#![deny(missing_docs)]

pub mod attach;
pub mod conformance;
pub mod container;
pub mod copy;
pub mod error;
pub mod event;
pub mod exec;
pub mod image;
pub mod logs;
pub mod memory;
pub mod runtime;
pub mod secrets;
pub mod spec;
pub mod stats;
pub mod time;
pub mod volume;

pub use attach::{AttachEvent, AttachStream};
pub use container::{
    ContainerId, ContainerInspectDetails, ContainerState, ContainerSummary, HealthDetail, InvalidId,
    NetworkAttachmentDetail, TopEntry, WaitOutcome, WaitReason,
};
pub use copy::{CopyInOptions, Owner};
pub use error::{AgentError, Result};
pub use event::{Event, EventKind, EventStream, EventsOptions};
pub use exec::{ExecEvent, ExecEventStream, ExecInput, ExecOptions};
pub use image::{
    HistoryStep, ImageDetails, ImageInfo, LayerPhase, PruneResult, PullEvent, PullEventStream, PullPolicy,
    RegistryAuth, RegistryAuthType,
};
pub use logs::{LogEntry, LogRecord, LogRecordStream, LogSource, LogStream, LogsOptions};
pub use runtime::Runtime;
pub use secrets::{Secret, SecretsProvider};
pub use spec::{PortMapping, ServiceSpec};
pub use stats::{ContainerStats, DetailedStats, StatsSnapshot, StatsStream};
pub use volume::{
    Change, DiffEntry, HistoryEntry, HistoryPruned, Progress, RecordKind, RestoreOptions, RestoreReport, VerifyReport,
    VolumeStatus,
};

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
//! | [`stats`], [`logs`], [`exec`], [`image`], [`volume`], [`event`] | what the calls take and return |
//! | [`error`] | [`AgentError`] |
//! | [`conformance`] | whether a backend keeps the contract |
//! | [`memory`] | a minimal backend for tests of agents |
#![deny(missing_docs)]

pub mod conformance;
pub mod container;
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

pub use container::{
    ContainerId, ContainerInspectDetails, ContainerState, ContainerSummary, HealthDetail, InvalidId,
    NetworkAttachmentDetail, TopEntry, WaitOutcome, WaitReason,
};
pub use error::{AgentError, Result};
pub use event::{Event, EventKind, EventStream, EventsOptions};
pub use exec::{ExecEvent, ExecEventStream, ExecInput, ExecOptions};
pub use image::{ImageInfo, PruneResult, PullPolicy, RegistryAuth, RegistryAuthType};
pub use logs::{LogEntry, LogRecord, LogRecordStream, LogSource, LogStream, LogsOptions};
pub use runtime::Runtime;
pub use secrets::{Secret, SecretsProvider};
pub use spec::{PortMapping, ServiceSpec};
pub use stats::{ContainerStats, DetailedStats};
pub use volume::VolumeStatus;

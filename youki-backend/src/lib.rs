//! Berth's runtime: containers in Linux namespaces, one small supervisor each.
//!
//! ```no_run
//! # async fn agent() -> Result<(), youki_backend::Error> {
//! let config = youki_backend::Config::load(None)?;
//! let runtime = youki_backend::YoukiRuntime::open(config).await?;
//! let runtime: std::sync::Arc<dyn runtime_core::Runtime> = std::sync::Arc::new(runtime);
//! # Ok(()) }
//! ```
#![deny(missing_docs)]

mod attempts;
mod bundle;
mod cgroup;
pub mod config;
mod container;
mod dir_watch;
mod driven;
mod error;
mod files;
mod health;
mod journal;
mod keeper;
mod layout;
mod lock;
mod logs;
mod memfd;
mod mount_attributes;
mod network;
mod process;
mod record;
mod recovery;
mod refusal;
mod runtime;
mod stats;
pub mod supervisor;
mod trash;

pub use attempts::EarlierAttempt;
pub use config::Config;
pub use container::{
    Changes, CreateOptions, DEFAULT_STOP_TIMEOUT, ExecRequest, Inspect, InspectMount, InspectNetwork, RunningExec,
    Terminal, TerminalSize, Watched,
};
pub use error::{Error, Result, TIMEOUT_EXIT_CODE};
pub use files::{PathKind, pack_path, unpack_into};
pub use network::{NetworkInfo, NetworkMember, NetworkOptions};
pub use runtime::YoukiRuntime;

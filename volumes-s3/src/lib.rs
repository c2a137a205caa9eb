//! Named volumes that follow the service.
//!
//! A volume is a directory on this host. With a bucket configured, each sync makes its tree a *generation*: an
//! immutable manifest and deduplicated chunks, published as the next record of a log in S3. Claims in the same log see
//! to it that one host at a time publishes; what another could not publish becomes a branch, and nothing is lost.
//! [`VolumeStore`] is the way in; `FORMAT.md` describes what is in the bucket.

mod attributes;
mod chunker;
mod claim;
mod codec;
mod config;
mod damaged;
mod diff;
mod entry;
mod error;
mod fetch;
mod foreign;
mod generation;
mod grace;
mod history;
mod keeping;
mod lifecycle;
mod lock;
mod log;
mod lost_packs;
mod manifest;
mod name;
mod object_store;
mod pack;
mod paths;
mod place;
mod prune;
mod reach;
mod record;
mod removal;
mod remove_tree;
mod renewal;
mod restoration;
mod restore;
mod retention;
mod scan;
mod scan_record;
mod server_check;
mod state;
mod status;
mod store;
mod sync;
#[cfg(test)]
mod tests;
mod tree;
mod trees;
mod uploads;
mod verification;
mod volume;
mod walk;

pub use attributes::{is_unfilled, mark_filled};
pub use config::{MountedBy, S3Config, VolumesConfig};
pub use error::{Error, Result};
pub use lifecycle::{AcquireOptions, Acquired};
pub use name::{NAME_LIMIT, check_name};
pub use prune::Retained;
pub use remove_tree::remove_tree;
pub use renewal::SHORTEST_TAKE_OVER;
pub use retention::Keep;
pub use server_check::ServerCheck;
pub use store::VolumeStore;

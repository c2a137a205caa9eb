//! OCI images: pulled, verified, unpacked once and shared by all containers as overlayfs lower directories.
//!
//! [`ImageStore`] is all of it: [`pull`](ImageStore::pull) fetches what is missing, [`find`](ImageStore::find) answers
//! from disk alone, [`remove`](ImageStore::remove) and [`prune`](ImageStore::prune) free what nothing needs. Several
//! processes may use one store at once. What lies where on disk, and who removes it, stands at the top of `store.rs`.
//!
//! ```no_run
//! use registry::{ImageStore, PullOptions, StoreConfig};
//! # async fn f() -> registry::Result<()> {
//! let store = ImageStore::open(StoreConfig::new("/var/lib/berth".into()))?;
//! let image = store.pull("docker.io/library/busybox:latest", PullOptions::default()).await?;
//! println!("{} in {} layers", image.digest, image.layers.len());
//! # Ok(())
//! # }
//! ```

mod challenge;
mod client;
mod config;
mod credentials;
mod dropped;
mod durability;
mod error;
mod gc;
mod healthcheck;
mod history;
mod image;
mod index;
mod layer;
mod layers;
mod limits;
mod load;
mod locks;
mod manifest;
mod place;
mod platform;
mod progress;
mod pull;
mod push;
mod reference;
mod reserve;
mod save;
mod session;
mod store;
mod transfer;
mod verify;

pub use config::{RegistryConfig, StoreConfig};
pub use error::{Error, Result};
pub use gc::{InUse, Removed, Users};
pub use healthcheck::Healthcheck;
pub use image::{Image, StoredImage};
pub use limits::Limits;
pub use locks::StoreHold;
pub use pull::PullOptions;
pub use push::PushOptions;
pub use reference::Reference;
pub use store::ImageStore;
pub use verify::{Damage, Verified};

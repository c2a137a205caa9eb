//! The default network: a bridge on the host, an address for each container, masquerade on the way out.
//!
//! ```text
//! host                                      container
//!   berth0 ── bv<12 hex> ═══ veth ═══ eth0  02:be:<address>, <address>/16, default route by the gateway
//!   10.97.0.1, the gateway
//!   nft table `ip berth_<12 hex of the root>`: masquerade, forwarding
//! ```
//! Everything of a root carries its tag: table and veths by their names, the bridge by its alias. A bridge of that name
//! without that alias is somebody else's and is refused. A veth vanishes with the container's network namespace, so
//! only the lease of the address has to be given back; it lies in a file and survives agent and supervisor.
//!
//! Rooms for later: a named network is another [`Bridge`] with its own subnet and lease directory; published ports are
//! chains of [`firewall`]'s table.

mod attach;
mod bridge;
mod etc;
mod firewall;
mod lease;
mod netlink;
mod subnet;

use std::path::PathBuf;
use std::sync::Arc;

use runtime_core::ServiceSpec;
use runtime_core::spec::NetworkMode;
use tokio::sync::{Semaphore, oneshot};

use crate::error::{Error, Result};

pub(crate) use etc::{hosts_file, resolv_conf};
pub(crate) use lease::{Lease, Mac};
pub(crate) use subnet::Subnet;

/// Attaches at once. The kernel makes links one at a time whatever is asked (`rtnl_lock`): more only wait in threads.
const CONCURRENT_CHANGES: usize = 4;

/// Longest name of an interface: `IFNAMSIZ` less the final 0.
const MAX_INTERFACE_NAME_LEN: usize = 15;

/// What a bridge network is made of.
#[derive(Debug, Clone)]
pub(crate) struct NetworkConfig {
    /// Name of the bridge interface, up to 15 characters.
    pub bridge: String,
    /// Its addresses; the first is the gateway's.
    pub subnet: Subnet,
    /// The nft table, `berth_<root tag>`; also marks the bridge as this root's.
    pub table: String,
    /// Directory of the address leases; made when first needed.
    pub leases: PathBuf,
}

/// One bridge network. Cloning is cheap and shares it.
#[derive(Debug, Clone)]
pub(crate) struct Bridge {
    config: Arc<NetworkConfig>,
    changes: Arc<Semaphore>,
}

impl Bridge {
    /// Checks the configuration; touches nothing.
    ///
    /// # Errors
    /// [`Error::Configuration`].
    pub fn new(config: NetworkConfig) -> Result<Self> {
        let name = &config.bridge;
        let valid = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
        if name.is_empty()
            || name.len() > MAX_INTERFACE_NAME_LEN
            || !name.bytes().all(valid)
            || !name.as_bytes()[0].is_ascii_alphanumeric()
        {
            let reason =
                "a bridge's name is 1 to 15 letters, digits, '_', '.' or '-', and begins with one of the first two";
            return Err(Error::Configuration { what: format!("bridge {name:?}"), reason: reason.to_owned() });
        }
        Ok(Self { config: Arc::new(config), changes: Arc::new(Semaphore::new(CONCURRENT_CHANGES)) })
    }

    /// Leases an address to container `id`; the one it has, if it has one. It stays leased until [`free`](Self::free),
    /// whoever dies, and no two containers of any process get the same. Blocks for a file lock.
    ///
    /// # Errors
    /// [`Error::SubnetExhausted`], [`Error::Io`].
    pub fn lease(&self, id: &str) -> Result<Lease> {
        lease::take(&self.config, id, None)
    }

    /// As [`lease`](Self::lease), but the address of an earlier lease if it is free: after a reboot, when leases are
    /// gone but containers are not.
    ///
    /// # Errors
    /// As [`lease`](Self::lease).
    pub fn lease_again(&self, id: &str, earlier: &Lease) -> Result<Lease> {
        lease::take(&self.config, id, Some(earlier.ip))
    }

    /// Gives the address of container `id` back; it may have none. Blocks for a file lock.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn free(&self, id: &str) -> Result<()> {
        lease::free(&self.config, |holder| holder == id).map(drop)
    }

    /// Frees the leases of containers that are not `known` and tells whose they were. A container that is being
    /// created must be known: it leases before it is on record. Blocks for a file lock.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn reconcile(&self, known: &dyn Fn(&str) -> bool) -> Result<Vec<String>> {
        lease::free(&self.config, |holder| !known(holder))
    }

    /// Connects the network namespace of process `pid`, which must be its own, to the bridge: an interface `eth0` with
    /// the leased address and the default route, `lo` up. Makes bridge and firewall table where they are missing. What
    /// a failure leaves half done is undone. Dropping the future lets it finish in the background: [`detach`](
    /// Self::detach) then, as after success.
    ///
    /// # Errors
    /// [`Error::Network`]; [`Error::Configuration`] when an interface of the bridge's name is not this root's.
    pub async fn attach(&self, lease: &Lease, pid: u32) -> Result<()> {
        let lease = lease.clone();
        self.change(move |config| attach::attach(config, &lease, pid)).await
    }

    /// Takes the container's interface away. There may be none: it vanishes with its network namespace.
    ///
    /// # Errors
    /// [`Error::Network`].
    pub async fn detach(&self, lease: &Lease) -> Result<()> {
        let name = lease.host_ifname.clone();
        self.change(move |config| attach::detach(config, &name)).await
    }

    /// Removes bridge and firewall table, if the bridge is this root's and nothing is attached to it.
    ///
    /// # Errors
    /// [`Error::Network`].
    pub async fn remove(&self) -> Result<()> {
        self.change(bridge::remove).await
    }

    async fn change<T: Send + 'static>(
        &self,
        work: impl FnOnce(&NetworkConfig) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let config = Arc::clone(&self.config);
        let failed = |source: Option<Box<dyn std::error::Error + Send + Sync>>| Error::Network {
            network: self.config.bridge.clone(),
            what: "its thread could not be run".to_owned(),
            source,
        };
        let permit = Arc::clone(&self.changes).acquire_owned().await.map_err(|e| failed(Some(Box::new(e))))?;
        on_own_thread(move || {
            let _permit = permit;
            work(&config)
        })
        .await
        .unwrap_or_else(|error| Err(failed(error.map(Into::into))))
    }
}

/// Refuses what is not built yet, before anything is made for it.
///
/// # Errors
/// [`Error::Unsupported`].
pub(crate) fn check(spec: &ServiceSpec) -> Result<()> {
    if let NetworkMode::Named(name) = spec.network_mode() {
        return Err(Error::Unsupported { what: format!("the network {name:?} (only bridge, none and host)") });
    }
    // With the host's network every port is open as it is, and with none there is nothing to publish, as with docker.
    if *spec.network_mode() == NetworkMode::Bridge && !spec.port_mappings.is_empty() {
        return Err(Error::Unsupported { what: "publishing ports".to_owned() });
    }
    Ok(())
}

/// Runs `work` on a thread of its own, which may enter another network namespace and never comes back from there: a
/// worker of the runtime would take every later task with it.
async fn on_own_thread<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> std::result::Result<T, Option<std::io::Error>> {
    let (answer, result) = oneshot::channel();
    std::thread::Builder::new()
        .name("berth-net".to_owned())
        .spawn(move || {
            // Nobody waits any more if the future was dropped.
            let _ = answer.send(work());
        })
        .map_err(Some)?;
    result.await.map_err(|_| None)
}

#[cfg(test)]
mod tests;

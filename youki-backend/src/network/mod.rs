//! Networks: a bridge on the host for each, addresses, published ports, names, and the way out.
//!
//! ```text
//! host                                      container
//!   berth0 ── bv<12 hex> ═══ veth ═══ eth0  02:be:<address>, <address>/16, default route by the gateway
//!   10.97.0.1, the gateway
//!   nft table `inet berth_<12 hex of the root>`: masquerade, forwarding, published ports
//! ```
//! Everything of a root carries its tag: the table by its name, bridges and veths by their alias. A bridge of that name
//! without that alias is somebody else's and is refused. A veth vanishes with the container's network namespace; its
//! address is leased in a file until the container is removed; ports and names are its own while it runs.
//!
//! | file | |
//! |---|---|
//! | `definition` | what networks there are, and where their state lies |
//! | `subnet`, `lease` | addresses |
//! | `bridge`, `attach`, `netlink`, `routes` | interfaces and routes |
//! | `firewall` | the nft table |
//! | `ports`, `sockets` | ports of the host |
//! | `names`, `etc` | `/etc/hosts` and `/etc/resolv.conf` |

mod attach;
mod bridge;
mod definition;
mod etc;
mod firewall;
mod lease;
mod names;
mod netlink;
mod ports;
mod routes;
mod sockets;
mod subnet;

use std::sync::Arc;

use chrono::{DateTime, Utc};
use runtime_core::spec::NetworkMode;
use runtime_core::{ContainerId, PortMapping, ServiceSpec};
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, oneshot};

use crate::config::NetworkConfig;
use crate::error::{Error, Result};
use attach::Attachment;

pub use definition::NetworkOptions;
pub(crate) use definition::{DEFAULT_NETWORK, Definition, Place};
pub(crate) use etc::{hosts_file, resolv_conf};
pub(crate) use lease::{Lease, Mac};
pub(crate) use ports::{MAX_HELD_SOCKETS, PortRequest, Reserved, Wish, exposed, wishes};
pub(crate) use subnet::Subnet;

/// How the table of every root begins, and so the alias of its interfaces.
pub(crate) const TABLE_PREFIX: &str = "berth_";

/// Pairs that are made at once. The kernel makes links one at a time whatever is asked (`rtnl_lock`): more only wait in
/// threads. Nobody who has his turn waits for another's lock.
const CONCURRENT_LINKS: usize = 4;
/// Threads at once that wait for locks, and change what those guard: 1,000 stops at once must not be as many threads.
const CONCURRENT_CHANGES: usize = 128;

/// A network, as `berth network inspect` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NetworkInfo {
    /// Its name; `bridge` is the default network's.
    pub name: String,
    /// Its bridge interface.
    pub bridge: String,
    /// Its addresses.
    pub subnet: String,
    /// The bridge's address.
    pub gateway: String,
    /// Its IPv6 addresses.
    pub ipv6_subnet: Option<String>,
    /// The bridge's IPv6 address.
    pub ipv6_gateway: Option<String>,
    /// Nothing leaves it, and nothing comes in.
    pub internal: bool,
    /// Its largest packet, if it was said.
    pub mtu: Option<u32>,
    /// When it was created; the default network was not.
    #[serde(with = "runtime_core::time::option")]
    pub created_at: Option<DateTime<Utc>>,
    /// Containers that have an address of it, by id.
    pub containers: Vec<NetworkMember>,
}

/// A container in a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NetworkMember {
    /// The container.
    pub id: String,
    /// Its address.
    pub ipv4: String,
    /// Its IPv6 address.
    pub ipv6: Option<String>,
    /// Its hardware address.
    pub mac: String,
}

/// What a container that is gone has of the networks, for whoever removes it without [`Networks`]: its supervisor.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Departure {
    place: Place,
    id: String,
    /// None for one in the host's network, which may have a port.
    lease: Option<Lease>,
}

impl Departure {
    /// Gives back ports, name, interface and address, from within the host's network namespace. Blocks. What fails is
    /// done by the next who opens the root.
    ///
    /// # Errors
    /// [`Error::Network`], [`Error::Io`].
    pub fn carry_out(&self) -> Result<()> {
        let Self { place, id, lease } = self;
        let closed = ports::close(place, id);
        let Some(lease) = lease else { return closed };
        let left = names::leave(place, lease, id);
        let detached = attach::detach(lease);
        // Whoever has the address next must not be reached by what leads to it still.
        closed.and(left).and(detached)?;
        lease::give_back(place, lease, id)
    }

    /// Whether it must be in the host's network namespace.
    pub fn is_on_bridge(&self) -> bool {
        self.lease.is_some()
    }
}

/// The networks of a root. Cloning is cheap and shares them.
#[derive(Debug, Clone)]
pub(crate) struct Networks {
    place: Arc<Place>,
    links: Arc<Semaphore>,
    changes: Arc<Semaphore>,
}

impl Networks {
    /// Checks the default network; touches nothing. Where containers are on another one, that is it.
    ///
    /// # Errors
    /// [`Error::Configuration`].
    pub fn new(place: Place) -> Result<Self> {
        definition::check_bridge_name(&place.default.bridge)?;
        if let Some(used) = place.default_in_use()? {
            tracing::warn!(
                bridge = used.bridge,
                subnet = %used.subnet,
                "containers are on this one: it stays the default network until they are gone"
            );
        }
        Ok(Self {
            place: Arc::new(place),
            links: Arc::new(Semaphore::new(CONCURRENT_LINKS)),
            changes: Arc::new(Semaphore::new(CONCURRENT_CHANGES)),
        })
    }

    /// Leases an address in `network` to container `id`; the one it has, if it has one, and then in no other network. It
    /// stays leased until [`free`](Self::free), whoever dies, and no two containers of any process get the same. Blocks for
    /// a file lock.
    ///
    /// # Errors
    /// [`Error::NoSuchNetwork`], [`Error::SubnetExhausted`], [`Error::Io`].
    pub fn lease(&self, network: &str, id: &str) -> Result<Lease> {
        let leased = lease::take(&self.place, network, id, None)?;
        lease::free_elsewhere(&self.place, &leased.network, id)?;
        Ok(leased)
    }

    /// As [`lease`](Self::lease), but the address of an earlier lease if it is free: after a reboot, when leases are
    /// gone but containers are not.
    ///
    /// # Errors
    /// As [`lease`](Self::lease).
    pub fn lease_again(&self, id: &str, earlier: &Lease) -> Result<Lease> {
        lease::take(&self.place, &earlier.network, id, Some(earlier.ip))
    }

    /// Gives the address of container `id` back.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn free(&self, lease: &Lease, id: &str) -> Result<()> {
        lease::give_back(&self.place, lease, id)
    }

    /// Frees whatever addresses `id` has, which nothing leads to any more. Blocks for a file lock.
    pub fn free_all_of(&self, id: &str) -> Result<()> {
        lease::free_elsewhere(&self.place, "", id)
    }

    /// Reserves ports of the host, and tells which: those asked for, and free ones where none was. They are opened with
    /// [`attach`](Self::attach), and given back by [`leave`](Self::leave); sockets keep them from the host's processes.
    /// Blocks for a file lock.
    ///
    /// # Errors
    /// [`Error::PortTaken`] naming the owner, [`Error::InvalidSpec`], [`Error::Io`].
    pub fn reserve(&self, request: &PortRequest<'_>) -> Result<Reserved> {
        ports::reserve(&self.place, request)
    }

    /// Frees what containers have that are not `known`, and tells whose addresses were. One whose ports cannot be closed
    /// keeps its address: who has it next would be reached by them. A container that is being created must be known: it
    /// leases before it is on record. Blocks for file locks.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn reconcile(&self, known: &dyn Fn(&str) -> bool) -> Result<Vec<String>> {
        let unclosed = ports::reconcile(&self.place, known)?;
        let named = names::reconcile(&self.place, known);
        let freed = lease::free(&self.place, |holder| !known(holder) && !unclosed.iter().any(|id| id == holder));
        named.and(freed)
    }

    /// Connects the network namespace of process `pid`, which must be its own, to the lease's bridge: an interface
    /// `eth0` with the leased address and the default route, `lo` up. Opens its ports, and tells the others of the
    /// network its `names`. Makes bridge and firewall table where they are missing. What a failure leaves half done is
    /// undone, but for ports and names ([`leave`](Self::leave)). Dropping the future lets what has begun finish in the
    /// background: [`detach`](Self::detach) then, as after success.
    ///
    /// # Errors
    /// [`Error::Network`]; [`Error::Configuration`] when an interface of the bridge's name is not this root's;
    /// [`Error::SubnetOverlap`] when the host is on a network that the bridge would hide.
    pub async fn attach(&self, lease: &Lease, id: &str, names: Vec<String>, pid: u32) -> Result<()> {
        let attachment = Attachment { lease: lease.clone(), id: id.to_owned(), names, pid };
        let ready = self.change(move |place| attach::prepare(place, attachment)).await?;
        let _turn = self.links.acquire().await;
        self.change(move |place| ready.attach(place)).await
    }

    /// Takes the container's interface away. There may be none: it vanishes with its network namespace.
    ///
    /// # Errors
    /// [`Error::Network`].
    pub async fn detach(&self, lease: &Lease) -> Result<()> {
        let lease = lease.clone();
        self.change(move |_| attach::detach(&lease)).await
    }

    /// Gives the ports of a container back that runs no more, and takes its name from the others' files.
    ///
    /// # Errors
    /// [`Error::Network`], [`Error::Io`].
    pub async fn leave(&self, id: &str, lease: Option<&Lease>) -> Result<()> {
        if !self.holds(id, lease) {
            return Ok(());
        }
        let (id, lease) = (id.to_owned(), lease.cloned());
        self.change(move |place| {
            let closed = ports::close(place, &id);
            lease.map_or(Ok(()), |lease| names::leave(place, &lease, &id)).and(closed)
        })
        .await
    }

    /// Whether a container has ports, or a name, that [`leave`](Self::leave) would give back.
    pub fn holds(&self, id: &str, lease: Option<&Lease>) -> bool {
        let named = |lease: &Lease| self.place.names(&lease.network).join(format!("{}@{id}", lease.ip)).exists();
        lease.is_some_and(named) || self.place.ports().join(id).exists()
    }

    /// Whether what keeps the address and the ports of a container from others is there.
    pub fn are_held(&self, id: &str, lease: &Lease, ports: &[PortMapping]) -> bool {
        lease::is_held(&self.place, lease, id) && (ports.is_empty() || self.place.ports().join(id).exists())
    }

    /// Puts back what keeps the address and the ports of a container that runs from others, where somebody took that away.
    ///
    /// # Errors
    /// [`Error::Network`] if another has them by now, [`Error::Io`].
    pub async fn hold_again(&self, id: &str, lease: &Lease, ports: &[PortMapping]) -> Result<()> {
        tracing::warn!(container = id, "what says that its address or ports are taken was gone, and is put back");
        let (id, lease, ports) = (id.to_owned(), lease.clone(), ports.to_vec());
        self.change(move |place| {
            lease::hold_again(place, &lease, &id)
                .and_then(|()| ports::hold_again(place, &lease, &id, ports))
                .and_then(|()| ports::open(place, &id))
        })
        .await
    }

    /// What `id` will have to give back when it is gone.
    pub fn departure(&self, id: &str, lease: Option<&Lease>) -> Departure {
        Departure { place: Place::clone(&self.place), id: id.to_owned(), lease: lease.cloned() }
    }

    /// Puts back what somebody took away: bridges that containers are on, their places at it, the firewall.
    ///
    /// # Errors
    /// [`Error::Network`], [`Error::Configuration`], [`Error::Io`].
    pub async fn reload(&self) -> Result<()> {
        self.change(|place| {
            for network in place.all()? {
                let leases = place.leases(&network.name);
                if !leases.exists() || lease::list(&leases)?.is_empty() {
                    continue;
                }
                let mut host = netlink::Netlink::open().map_err(|e| bridge::failed(&network, "opening netlink", e))?;
                let _held = bridge::hold(place, &network)?;
                let index = bridge::ensure(place, &network, &mut host)?;
                bridge::mend(place, &network, &mut host, index)?;
            }
            ports::reload(place)
        })
        .await
    }

    /// Removes all bridges and the firewall table, unless something is attached.
    ///
    /// # Errors
    /// [`Error::Network`].
    pub async fn dismantle(&self) -> Result<()> {
        self.change(|place| {
            let mut all_gone = true;
            for network in place.all()? {
                all_gone &= bridge::remove(place, &network)?;
            }
            if all_gone { firewall::remove(place) } else { Ok(()) }
        })
        .await
    }

    /// Defines a network.
    ///
    /// # Errors
    /// [`Error::NetworkExists`], [`Error::SubnetOverlap`], [`Error::InvalidSpec`].
    pub async fn create(&self, name: &str, options: &NetworkOptions) -> Result<NetworkInfo> {
        let (name, options) = (name.to_owned(), options.clone());
        self.change(move |place| Ok(info(place, definition::create(place, &name, &options)?, Vec::new()))).await
    }

    /// Removes a network that no container has an address of, nor any of those that `on_record` tells are to be in it.
    ///
    /// # Errors
    /// [`Error::NoSuchNetwork`], [`Error::NetworkInUse`], what `on_record` fails with.
    pub async fn remove(
        &self,
        name: &str,
        on_record: impl FnOnce() -> Result<Vec<String>> + Send + 'static,
    ) -> Result<()> {
        let name = name.to_owned();
        self.change(move |place| {
            definition::remove(place, &name, on_record, |network| bridge::remove(place, network))?;
            // The network is gone. Its rules stand in the way of nobody, and the next attach loads others.
            if let Err(error) = ports::refresh(place) {
                tracing::warn!(network = name, error = error.chain(), "its rules are still in the firewall");
            }
            Ok(())
        })
        .await
    }

    /// A network and who is in it.
    ///
    /// # Errors
    /// [`Error::NoSuchNetwork`], [`Error::Io`].
    pub fn inspect(&self, name: &str) -> Result<NetworkInfo> {
        let network = self.place.find(name)?;
        let leases = self.place.leases(&network.name);
        let held = if leases.exists() { lease::list(&leases)? } else { Vec::new() };
        Ok(info(&self.place, network, held))
    }

    /// All networks, the default one first.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn list(&self) -> Result<Vec<NetworkInfo>> {
        let mut all = Vec::new();
        for network in self.place.all()? {
            match self.inspect(&network.name) {
                Err(Error::NoSuchNetwork { .. }) => {}
                other => all.push(other?),
            }
        }
        Ok(all)
    }

    /// The network of a mode, where it is one of ours.
    pub fn of<'a>(&self, mode: &'a NetworkMode) -> Option<&'a str> {
        match mode {
            NetworkMode::Bridge => Some(DEFAULT_NETWORK),
            NetworkMode::Named(name) => Some(name).filter(|_| mode.container().is_none()).map(String::as_str),
            NetworkMode::Host | NetworkMode::None => None,
        }
    }

    async fn change<T: Send + 'static>(&self, work: impl FnOnce(&Place) -> Result<T> + Send + 'static) -> Result<T> {
        let place = Arc::clone(&self.place);
        let failed = |source: Option<Box<dyn std::error::Error + Send + Sync>>| Error::Network {
            network: self.place.table.clone(),
            what: "its thread could not be run".to_owned(),
            source,
        };
        let permit = Arc::clone(&self.changes).acquire_owned().await;
        let work = move || {
            let _permit = permit;
            work(&place)
        };
        on_own_thread(work).await.unwrap_or_else(|error| Err(failed(error.map(Into::into))))
    }
}

/// Checks the configured default network, before anything is made.
///
/// # Errors
/// [`Error::Configuration`].
pub(crate) fn check_default(network: &NetworkConfig) -> Result<()> {
    network.subnet.parse::<Subnet>()?;
    definition::check_bridge_name(&network.bridge)
}

/// Checks what a spec asks of the network, before anything is made for it.
///
/// # Errors
/// [`Error::InvalidSpec`].
pub(crate) fn check(spec: &ServiceSpec) -> Result<()> {
    for alias in &spec.network.aliases {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
        if alias.is_empty() || alias.len() > 253 || !alias.bytes().all(plain) {
            return Err(Error::invalid("network.aliases", format!("{alias:?} is not a host name")));
        }
    }
    if let (true, NetworkMode::Named(name)) = (spec.host_network, &spec.network.mode) {
        return Err(Error::invalid("host_network", format!("network.mode is {name:?}")));
    }
    if let Some(name) = spec.network_mode().container() {
        check_joined(spec, name)?;
    }
    ports::check(&ports::wishes(spec))
}

/// What belongs to a network is the other container's, where that is joined; docker's rules.
fn check_joined(spec: &ServiceSpec, name: &str) -> Result<()> {
    if name.parse::<ContainerId>().is_err() {
        return Err(Error::invalid("network.mode", format!("{name:?} is not a container's name")));
    }
    let sysctl = spec.sysctls.keys().find(|sysctl| sysctl.replace('/', ".").starts_with("net."));
    let sysctl = sysctl.map(|sysctl| format!("sysctls.{sysctl}"));
    for (is_set, field) in [
        (spec.hostname.as_deref().is_some_and(|name| !name.is_empty()), "hostname"),
        (!spec.network.aliases.is_empty(), "network.aliases"),
        (!spec.port_mappings.is_empty(), "port_mappings"),
        (!spec.port_ranges.is_empty(), "port_ranges"),
        (spec.publish_all, "publish_all"),
        (!spec.dns.is_empty(), "dns"),
        (!spec.dns_search.is_empty(), "dns_search"),
        (!spec.extra_hosts.is_empty(), "extra_hosts"),
        (sysctl.is_some(), sysctl.as_deref().unwrap_or_default()),
    ] {
        if is_set {
            return Err(Error::invalid(field, format!("it is that of the container {name}, whose network is joined")));
        }
    }
    Ok(())
}

/// What a container is called in its network: its own name, its service's, its host name and its aliases.
pub(crate) fn names_of(id: &ContainerId, hostname: &str, spec: &ServiceSpec) -> Vec<String> {
    let mut names = vec![id.service.clone()];
    for name in [id.to_string(), hostname.to_owned()].into_iter().chain(spec.network.aliases.iter().cloned()) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

fn info(place: &Place, network: Definition, held: Vec<(std::net::Ipv4Addr, String)>) -> NetworkInfo {
    let mut containers: Vec<NetworkMember> = held
        .into_iter()
        .map(|(ip, id)| {
            let lease = lease::lease(place, &network, &id, ip);
            NetworkMember {
                id,
                ipv4: ip.to_string(),
                ipv6: lease.v6.map(|v6| v6.ip.to_string()),
                mac: lease.mac.to_string(),
            }
        })
        .collect();
    containers.sort_by(|one, other| one.id.cmp(&other.id));
    NetworkInfo {
        subnet: network.subnet.to_string(),
        gateway: network.gateway.to_string(),
        ipv6_subnet: network.subnet6.map(|subnet| subnet.to_string()),
        ipv6_gateway: network.subnet6.map(|subnet| subnet.gateway().to_string()),
        name: network.name,
        bridge: network.bridge,
        internal: network.internal,
        mtu: network.mtu,
        created_at: network.created_at,
        containers,
    }
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

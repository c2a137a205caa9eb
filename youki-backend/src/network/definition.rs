//! What a network is, and where a root keeps what concerns its networks.
//!
//! ```text
//! <root>/networks/<name>.json     a definition; the default network's is the configuration's
//! <run>/networks.lock             flock'ed by whoever changes definitions
//! <run>/leases/<name>/            its addresses (`lease`)
//! <run>/names/<name>/             its containers that run, and what they are called (`names`)
//! <run>/ports/                    ports of the host that containers have (`ports`)
//! ```

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::bridge::{failed, is_own};
use super::netlink::Netlink;
use super::subnet::{Subnet, Subnet6};
use super::{lease, routes};
use crate::error::{Error, Result};
use crate::layout::hex;
use crate::record;

/// The default network's name.
pub(crate) const DEFAULT_NETWORK: &str = "bridge";
/// Longest name of a network: it becomes a file's.
const MAX_NAME_LEN: usize = 64;
/// Names that mean something else where a network is asked for.
const RESERVED: [&str; 4] = [DEFAULT_NETWORK, "default", "none", "host"];
/// Smallest MTU that IPv4 allows, and the one that IPv6 needs.
const MIN_MTU: u32 = 68;
const MIN_MTU_IPV6: u32 = 1280;
/// The kernel's largest for a veth.
const MAX_MTU: u32 = 65_535;
/// Second octets of the /24 networks in 10.0.0.0/8 that are given out when none is asked for.
const POOL: std::ops::RangeInclusive<u8> = 98..=105;
/// Prefix length of an IPv6 network that is made up: what hosts expect of a link.
const IPV6_PREFIX_LEN: u8 = 64;

/// A network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Definition {
    pub name: String,
    /// Its bridge interface, up to 15 characters.
    pub bridge: String,
    pub subnet: Subnet,
    /// The bridge's own address.
    pub gateway: Ipv4Addr,
    #[serde(default)]
    pub subnet6: Option<Subnet6>,
    /// No way out and none in.
    #[serde(default)]
    pub internal: bool,
    #[serde(default)]
    pub mtu: Option<u32>,
    #[serde(default, with = "runtime_core::time::option")]
    pub created_at: Option<DateTime<Utc>>,
}

/// What a new network shall be. What is not said is chosen.
#[derive(Debug, Clone, Default)]
pub struct NetworkOptions {
    /// An IPv4 network as `10.98.0.0/24`, and maybe an IPv6 one as `fd00:1::/64`, which turns IPv6 on.
    pub subnets: Vec<String>,
    /// The bridge's IPv4 address; the first of the subnet if `None`.
    pub gateway: Option<Ipv4Addr>,
    /// Nothing leaves it, and nothing from outside comes in.
    pub internal: bool,
    /// IPv6 beside IPv4.
    pub ipv6: bool,
    /// Largest packet; the kernel's 1,500 if `None`.
    pub mtu: Option<u32>,
}

/// Where a root keeps what concerns its networks, and what it is called on the host.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Place {
    /// The nft table, `berth_<root tag>`; also marks bridges as this root's.
    pub table: String,
    /// The network of containers that name none.
    pub default: Definition,
    /// `<root>/networks`.
    pub definitions: PathBuf,
    /// The run directory.
    pub run: PathBuf,
    /// `<root>/containers`.
    pub containers: PathBuf,
}

impl Definition {
    /// The default network's, from the configuration.
    pub fn default_network(bridge: &str, subnet: Subnet) -> Self {
        Self {
            name: DEFAULT_NETWORK.to_owned(),
            bridge: bridge.to_owned(),
            gateway: subnet.first(),
            subnet,
            subnet6: None,
            internal: false,
            mtu: None,
            created_at: None,
        }
    }
}

impl Place {
    pub fn leases(&self, network: &str) -> PathBuf {
        self.run.join("leases").join(network)
    }

    pub fn names(&self, network: &str) -> PathBuf {
        self.run.join("names").join(network)
    }

    pub fn ports(&self) -> PathBuf {
        self.run.join("ports")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.definitions.join(format!("{name}.json"))
    }

    /// All networks, the default one first, the others by name.
    pub fn all(&self) -> Result<Vec<Definition>> {
        let mut all = vec![self.default_now()?];
        let entries = match fs::read_dir(&self.definitions) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(all),
            other => other.map_err(Error::io("listing", &self.definitions))?,
        };
        let mut names = Vec::new();
        for entry in entries {
            let name = entry.map_err(Error::io("listing", &self.definitions))?.file_name();
            names.extend(name.to_str().and_then(|name| name.strip_suffix(".json")).map(str::to_owned));
        }
        names.sort();
        for name in names {
            // One that was removed in between is none.
            all.extend(record::read_intact(&self.file(&name))?);
        }
        Ok(all)
    }

    /// The default network that containers are on, if that is not the one of this configuration: another process's, or that
    /// of before. Its bridge and the rules for it are theirs as long as one is on it.
    pub fn default_in_use(&self) -> Result<Option<Definition>> {
        let used: Option<Definition> = record::read_intact(&self.default_used())?;
        match used {
            Some(used) if (&used.bridge, used.subnet) == (&self.default.bridge, self.default.subnet) => Ok(None),
            Some(used) if has_ports(self, &used)? => Ok(Some(used)),
            _ => Ok(None),
        }
    }

    /// The default network: the one that containers are on, else that of this configuration.
    fn default_now(&self) -> Result<Definition> {
        Ok(self.default_in_use()?.unwrap_or_else(|| self.default.clone()))
    }

    /// Notes that a container is about to be on `network`, the default one.
    pub fn use_default(&self, network: &Definition) -> Result<()> {
        let path = self.default_used();
        let noted = || record::read_intact::<Definition>(&path);
        if noted()?.as_ref() == Some(network) {
            return Ok(());
        }
        // One after the other: who comes second finds what the first has noted.
        let _lock = self.lock()?;
        match noted()? {
            Some(used) if used != *network && has_ports(self, &used)? => Err(Error::Network {
                network: network.name.clone(),
                what: format!("containers have come to be on {}, {}: try again", used.bridge, used.subnet),
                source: None,
            }),
            _ => record::write(&path, network),
        }
    }

    fn default_used(&self) -> PathBuf {
        self.run.join("default-network.json")
    }

    /// The network of that name.
    pub fn find(&self, name: &str) -> Result<Definition> {
        let missing = || Error::NoSuchNetwork { name: name.to_owned() };
        match name {
            DEFAULT_NETWORK | "default" => self.default_now(),
            _ if !is_name(name) => Err(missing()),
            _ => record::read(&self.file(name))?.ok_or_else(missing),
        }
    }

    /// What the bridge of a defined network is called: as long as an interface's name can be, less one; 48 bits tell
    /// networks apart.
    fn bridge_of(&self, name: &str) -> String {
        let digest = Sha256::new().chain_update(&self.table).chain_update([0]).chain_update(name).finalize();
        format!("bn{}", &hex(&digest)[..12])
    }

    fn lock(&self) -> Result<fs::File> {
        lease::lock(&self.run, "networks.lock", FlockOperation::LockExclusive)
    }
}

/// Whether anything is attached to the bridge of a network. One of another root's is none of it.
fn has_ports(place: &Place, network: &Definition) -> Result<bool> {
    let look = || {
        let mut host = Netlink::open()?;
        let bridge = host.link(&network.bridge)?.filter(|link| is_own(place, link));
        bridge.map_or(Ok(false), |bridge| host.has_ports(bridge.header.index))
    };
    look().map_err(|error| failed(network, "listing its ports", error))
}

/// Defines a network. Nothing is made of it on the host until a container needs it.
pub(super) fn create(place: &Place, name: &str, options: &NetworkOptions) -> Result<Definition> {
    check_name(name)?;
    let _lock = place.lock()?;
    if place.file(name).exists() {
        return Err(Error::NetworkExists { name: name.to_owned() });
    }
    let others = place.all()?;
    let (subnet, subnet6) = subnets(place, name, options, &others)?;
    let gateway = options.gateway.unwrap_or(subnet.first());
    if !subnet.is_inner(gateway) {
        return Err(wrong(name, format!("the gateway {gateway} is no host's address of {subnet}")));
    }
    let least = if subnet6.is_some() { MIN_MTU_IPV6 } else { MIN_MTU };
    if subnet.hosts() == 1 && subnet.is_host(gateway) {
        return Err(wrong(name, format!("with the gateway {gateway}, {subnet} has no address for a container")));
    }
    if let Some(mtu) = options.mtu
        && !(least..=MAX_MTU).contains(&mtu)
    {
        return Err(wrong(name, format!("an MTU of {mtu} is not between {least} and {MAX_MTU}")));
    }
    let definition = Definition {
        name: name.to_owned(),
        bridge: place.bridge_of(name),
        subnet,
        gateway,
        subnet6,
        internal: options.internal,
        mtu: options.mtu,
        created_at: Some(Utc::now()),
    };
    fs::create_dir_all(&place.definitions).map_err(Error::io("creating", &place.definitions))?;
    record::sync_names(place.definitions.parent().unwrap_or(&place.definitions))?;
    let file = place.file(name);
    record::write_synced(&file, &definition).inspect_err(|_| {
        // It may have come as far as its name, and what is told to have failed is not there.
        let _ = fs::remove_file(&file);
    })?;
    Ok(definition)
}

/// Forgets a network that no container has an address of, and none of those that are `on_record` for it: after a reboot
/// nobody has an address. `take_down` removes what the host has of it, and says whether all of it is gone. Until it is there
/// is a definition, by which the next removal finds it.
pub(super) fn remove(
    place: &Place,
    name: &str,
    on_record: impl FnOnce() -> Result<Vec<String>>,
    take_down: impl FnOnce(&Definition) -> Result<bool>,
) -> Result<()> {
    let _lock = place.lock()?;
    let definition = match place.find(name) {
        // Its name is all that a removal needs.
        Err(Error::Corrupt { .. }) => {
            Definition { name: name.to_owned(), bridge: place.bridge_of(name), ..place.default.clone() }
        }
        found => found?,
    };
    if definition.name == DEFAULT_NETWORK {
        return Err(Error::NetworkInUse { name: name.to_owned(), by: vec!["the root itself".to_owned()] });
    }
    let leases = place.leases(&definition.name);
    // Held until the definition is gone: whoever leases looks for it afterwards.
    let _leases = lease::lock(&leases, lease::LOCK, FlockOperation::LockExclusive)?;
    let holders = lease::list(&leases)?.into_iter().map(|(_, holder)| holder);
    let by: BTreeSet<String> = holders.chain(on_record()?).collect();
    if !by.is_empty() {
        return Err(Error::NetworkInUse { name: name.to_owned(), by: by.into_iter().collect() });
    }
    if !take_down(&definition)? {
        let by = vec!["an interface of its bridge that is no container's, or is just going".to_owned()];
        return Err(Error::NetworkInUse { name: name.to_owned(), by });
    }
    let path = place.file(&definition.name);
    fs::remove_file(&path).map_err(Error::io("removing", path))
}

fn subnets(
    place: &Place,
    name: &str,
    options: &NetworkOptions,
    others: &[Definition],
) -> Result<(Subnet, Option<Subnet6>)> {
    let (mut subnet, mut subnet6) = (None, None);
    for text in &options.subnets {
        let twice = match text.contains(':') {
            true => subnet6.replace(text.parse::<Subnet6>().map_err(asked)?).is_some(),
            false => subnet.replace(text.parse::<Subnet>().map_err(asked)?).is_some(),
        };
        if twice {
            return Err(wrong(name, "it has one subnet of each family at most".to_owned()));
        }
    }
    let subnet = match subnet {
        Some(subnet) => {
            refuse_overlap(name, subnet, others)?;
            routes::refuse_overlap(name, subnet, None)?;
            subnet
        }
        None => choose(place, name, others)?,
    };
    if subnet6.is_none() && options.ipv6 {
        subnet6 = Some(made_up(place, name));
    }
    if let Some(subnet6) = &subnet6 {
        if !subnet6.holds(subnet) {
            return Err(wrong(name, format!("{subnet6} has fewer addresses than {subnet}")));
        }
        if let Some(other) = others.iter().find(|other| other.subnet6.is_some_and(|theirs| theirs.overlaps(subnet6))) {
            return Err(overlap(name, subnet6.to_string(), other));
        }
        routes::refuse_overlap_6(name, *subnet6, None)?;
    }
    Ok((subnet, subnet6))
}

/// One of the pool that neither a network of this root nor a route of the host touches. Each root and name begins to look
/// at a place of its own: other roots' networks are no routes before their first container.
fn choose(place: &Place, name: &str, others: &[Definition]) -> Result<Subnet> {
    let routes = routes::all()?;
    let digest = Sha256::new().chain_update(&place.table).chain_update(" subnet ").chain_update(name).finalize();
    let size = POOL.len() * 256;
    let start = usize::from(digest[0]) << 8 | usize::from(digest[1]);
    for index in (0..size).map(|offset| (start + offset) % size) {
        let (second, third) = (POOL.start() + (index / 256) as u8, (index % 256) as u8);
        let subnet = Subnet::class_c(Ipv4Addr::new(10, second, third, 0));
        let free = !others.iter().any(|other| other.subnet.overlaps(&subnet));
        if free && !routes.iter().any(|route| route.touches(subnet)) {
            return Ok(subnet);
        }
    }
    Err(wrong(name, "every subnet of the pool is in use: name one by --subnet".to_owned()))
}

/// A unique local network (RFC 4193) of this root and name.
fn made_up(place: &Place, name: &str) -> Subnet6 {
    let digest = Sha256::new().chain_update(&place.table).chain_update(" ipv6 ").chain_update(name).finalize();
    let mut octets = [0; 16];
    octets[0] = 0xfd;
    octets[1..8].copy_from_slice(&digest[..7]);
    Subnet6::truncated(octets.into(), IPV6_PREFIX_LEN)
}

fn refuse_overlap(name: &str, subnet: Subnet, others: &[Definition]) -> Result<()> {
    match others.iter().find(|other| other.subnet.overlaps(&subnet)) {
        Some(other) => Err(overlap(name, subnet.to_string(), other)),
        None => Ok(()),
    }
}

fn overlap(name: &str, subnet: String, other: &Definition) -> Error {
    Error::SubnetOverlap { network: name.to_owned(), subnet, with: format!("the network {}", other.name) }
}

fn check_name(name: &str) -> Result<()> {
    if RESERVED.contains(&name) {
        return Err(wrong(name, "this name means something else".to_owned()));
    }
    if !is_name(name) {
        let reason = format!(
            "a network's name is 1 to {MAX_NAME_LEN} letters, digits, '_', '.' or '-', and begins with one of the first two"
        );
        return Err(wrong(name, reason));
    }
    Ok(())
}

fn is_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    (1..=MAX_NAME_LEN).contains(&name.len())
        && name.bytes().all(plain)
        && name.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric())
}

fn wrong(name: &str, reason: String) -> Error {
    Error::invalid(format!("network {name:?}"), reason)
}

/// What is wrong in a configuration is so in what somebody asks for.
fn asked(error: Error) -> Error {
    match error {
        Error::Configuration { what, reason } => Error::invalid(what, reason),
        other => other,
    }
}

/// Whether a bridge may be called so.
pub(super) fn check_bridge_name(name: &str) -> Result<()> {
    /// Longest name of an interface: `IFNAMSIZ` less the final 0.
    const MAX_INTERFACE_NAME_LEN: usize = 15;
    if name.len() > MAX_INTERFACE_NAME_LEN || !is_name(name) {
        let reason =
            "a bridge's name is 1 to 15 letters, digits, '_', '.' or '-', and begins with one of the first two";
        return Err(Error::Configuration { what: format!("bridge {name:?}"), reason: reason.to_owned() });
    }
    Ok(())
}

/// The directories of all networks that ever had something beneath `parent`.
pub(super) fn subdirectories(parent: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(parent) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(Error::io("listing", parent))?,
    };
    let mut found = Vec::new();
    for entry in entries {
        found.push(entry.map_err(Error::io("listing", parent))?.path());
    }
    Ok(found)
}

//! The bridge interface itself.

use std::fs;
use std::io;

use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use rustix::fs::FlockOperation;
use sha2::{Digest, Sha256};

use super::netlink::{CREATE, Netlink};
use super::{Mac, NetworkConfig, firewall, lease};
use crate::error::{Error, Result};
use crate::layout::hex;

const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";

/// Sees to it that bridge, forwarding and firewall are in place; the bridge's index.
pub(super) fn ensure(config: &NetworkConfig, netlink: &mut Netlink) -> Result<u32> {
    firewall::ensure(config)?;
    enable_forwarding()?;
    loop {
        match find(config, netlink)? {
            Found::Ready(index) => return Ok(index),
            Found::Unfinished(index) => {
                finish(config, netlink, index)?;
                return Ok(index);
            }
            Found::Outdated(index) => {
                let what = "is in use with another subnet";
                if netlink.has_ports(index).map_err(|e| failed(config, "listing its ports", e))? {
                    return Err(Error::Configuration {
                        what: format!("bridge {}", config.bridge),
                        reason: what.to_owned(),
                    });
                }
                delete(config, netlink, index)?;
            }
            Found::No => create(config, netlink)?,
        }
    }
}

/// Held shared while a container is attached, exclusively while bridge and table are removed: else one could be
/// attached, in another process, to what is just being removed.
const LOCK: &str = "bridge.lock";

/// Keeps [`remove`] of any process out while the file is open.
pub(super) fn hold(config: &NetworkConfig) -> Result<fs::File> {
    lease::lock(&config.leases, LOCK, FlockOperation::LockShared)
}

/// Removes bridge and table if nothing is attached.
pub(super) fn remove(config: &NetworkConfig) -> Result<()> {
    // Without the directory nobody has leased or attached anything.
    let _alone = match config.leases.exists() {
        true => Some(lease::lock(&config.leases, LOCK, FlockOperation::LockExclusive)?),
        false => None,
    };
    let mut netlink = Netlink::open().map_err(|e| failed(config, "opening netlink", e))?;
    match find(config, &mut netlink) {
        Ok(Found::Ready(index) | Found::Unfinished(index) | Found::Outdated(index)) => {
            if netlink.has_ports(index).map_err(|e| failed(config, "listing its ports", e))? {
                return Ok(());
            }
            delete(config, &mut netlink, index)?;
        }
        // Without a bridge, or with somebody else's, the table is ours all the same.
        Ok(Found::No) | Err(Error::Configuration { .. }) => {}
        Err(error) => return Err(error),
    }
    firewall::remove(config)
}

enum Found {
    No,
    /// Up, so with its address, which comes before.
    Ready(u32),
    /// Made, but not up: whoever made it died, or is about to.
    Unfinished(u32),
    /// Of this root, with a subnet of former times.
    Outdated(u32),
}

/// The alias that says whose a bridge is.
fn alias(config: &NetworkConfig) -> String {
    format!("{} {}", config.table, config.subnet)
}

fn find(config: &NetworkConfig, netlink: &mut Netlink) -> Result<Found> {
    let found = netlink.link(&config.bridge).map_err(|e| failed(config, "looking for it", e))?;
    let Some(link) = found else { return Ok(Found::No) };
    let index = link.header.index;
    let marked = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfAlias(text) => Some(text.as_str()),
        _ => None,
    });
    match marked {
        Some(text) if text == alias(config) => match link.header.flags.contains(LinkFlags::Up) {
            true => Ok(Found::Ready(index)),
            false => Ok(Found::Unfinished(index)),
        },
        Some(text) if text.split(' ').next() == Some(&config.table) => Ok(Found::Outdated(index)),
        _ => Err(Error::Configuration {
            what: format!("bridge {}", config.bridge),
            reason: "an interface of this name exists and is not this root's; choose another --bridge and --subnet"
                .to_owned(),
        }),
    }
}

/// What it is called until it is marked.
pub(super) fn unfinished_name(config: &NetworkConfig) -> String {
    format!("bt{}", &hex(&Sha256::digest(&config.table))[..12])
}

/// Makes it under a name that is this root's alone, marks it, and only then gives it its own: so a bridge of that name
/// is never ours without the mark, and never another's with it, whoever dies or is faster.
fn create(config: &NetworkConfig, netlink: &mut Netlink) -> Result<()> {
    let unfinished = unfinished_name(config);
    let mut bridge = LinkMessage::default();
    bridge.attributes = vec![
        LinkAttribute::IfName(unfinished.clone()),
        // Without one of its own it takes the lowest of its ports', and changes with them.
        LinkAttribute::Address(Mac::of(config.subnet.gateway()).0.to_vec()),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]),
    ];
    match netlink.request([(RouteNetlinkMessage::NewLink(bridge), CREATE)]) {
        // Left by a process of this root, or being made by one.
        Err(e) if e.raw_os_error() == Some(libc::EEXIST) => {}
        other => other.map_err(|e| failed(config, "creating it", e))?,
    }
    let link = netlink.link(&unfinished).map_err(|e| failed(config, "looking for it", e))?;
    // None: that other process has just finished it.
    let Some(index) = link.map(|link| link.header.index) else { return Ok(()) };
    let change = |attribute| {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.attributes.push(attribute);
        (RouteNetlinkMessage::SetLink(link), 0)
    };
    netlink
        .request([change(LinkAttribute::IfAlias(alias(config)))])
        .and_then(|()| netlink.request([change(LinkAttribute::IfName(config.bridge.clone()))]))
        .or_else(|error| {
            delete(config, netlink, index)?;
            match error.raw_os_error() {
                // Somebody has that name: whose it is, the next look will tell.
                Some(libc::EEXIST | libc::ENODEV) => Ok(()),
                _ => Err(failed(config, "naming it", error)),
            }
        })
}

fn finish(config: &NetworkConfig, netlink: &mut Netlink, index: u32) -> Result<()> {
    let up = RouteNetlinkMessage::SetLink(up(index));
    match netlink.request([(address(config, index), CREATE)]) {
        Err(e) if e.raw_os_error() != Some(libc::EEXIST) => return Err(failed(config, "giving it its address", e)),
        _ => {}
    }
    netlink.request([(up, 0)]).map_err(|e| failed(config, "setting it up", e))
}

fn address(config: &NetworkConfig, index: u32) -> RouteNetlinkMessage {
    super::attach::address(index, config.subnet.gateway(), config.subnet.prefix_len(), config.subnet.broadcast())
}

fn delete(config: &NetworkConfig, netlink: &mut Netlink, index: u32) -> Result<()> {
    let mut link = LinkMessage::default();
    link.header.index = index;
    match netlink.request([(RouteNetlinkMessage::DelLink(link), 0)]) {
        Err(e) if e.raw_os_error() == Some(libc::ENODEV) => Ok(()),
        other => other.map_err(|e| failed(config, "deleting it", e)),
    }
}

/// The message that sets a link up.
pub(super) fn up(index: u32) -> LinkMessage {
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    link
}

fn enable_forwarding() -> Result<()> {
    let now = fs::read(FORWARDING).map_err(Error::io("reading", FORWARDING))?;
    if now.first() == Some(&b'0') {
        fs::write(FORWARDING, "1").map_err(Error::io("writing", FORWARDING))?;
    }
    Ok(())
}

pub(super) fn failed(config: &NetworkConfig, what: &str, source: io::Error) -> Error {
    Error::Network { network: config.bridge.clone(), what: format!("{what} failed"), source: Some(Box::new(source)) }
}

//! The bridge interface itself.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{
    AfSpecInet, AfSpecInet6, AfSpecUnspec, Inet6DevConf, InetDevConf, InfoKind, LinkAttribute, LinkFlags, LinkInfo,
    LinkMessage,
};
use rustix::fs::FlockOperation;
use sha2::{Digest, Sha256};

use super::attach::{self, Ends};
use super::definition::{Definition, Place};
use super::netlink::{CREATE, Netlink};
use super::{Mac, TABLE_PREFIX, lease, routes};
use crate::error::{Error, Result};
use crate::layout::hex;

const SYSCTLS: &str = "/proc/sys/net";

/// Sees to it that bridge and forwarding are in place; the bridge's index. One made anew, because somebody deleted it, or
/// that somebody took its address from, gets the containers of before.
pub(super) fn ensure(place: &Place, network: &Definition, netlink: &mut Netlink) -> Result<u32> {
    enable_forwarding(network, netlink)?;
    loop {
        match find(place, network, netlink)? {
            Found::Ready(index) => return Ok(index),
            Found::Unfinished(index) => {
                mend(place, network, netlink, index)?;
                return Ok(index);
            }
            Found::Outdated(index) => {
                let what = "is in use with another subnet";
                if netlink.has_ports(index).map_err(|e| failed(network, "listing its ports", e))? {
                    return Err(Error::Configuration {
                        what: format!("bridge {}", network.bridge),
                        reason: what.to_owned(),
                    });
                }
                delete(network, netlink, index)?;
            }
            Found::No => {
                routes::refuse_overlap(&network.name, network.subnet, Some(&network.bridge))?;
                if let Some(subnet6) = network.subnet6 {
                    routes::refuse_overlap_6(&network.name, subnet6, Some(&network.bridge))?;
                }
                create(place, network, netlink)?;
            }
        }
    }
}

/// Gives the bridge all that it needs, and makes the host's ends of this network's containers its ports again.
pub(super) fn mend(place: &Place, network: &Definition, netlink: &mut Netlink, bridge: u32) -> Result<()> {
    finish(network, netlink, bridge)?;
    let dir = place.leases(&network.name);
    if !dir.exists() {
        return Ok(());
    }
    for (_, holder) in lease::list(&dir)? {
        let name = lease::host_ifname(&place.table, &holder);
        let link = netlink.link(&name).map_err(|e| failed(network, &format!("looking for {name}"), e))?;
        let Some(link) = link else { continue };
        let mut port = up(link.header.index);
        port.attributes.push(LinkAttribute::Controller(bridge));
        refuse_advertisements(&name)?;
        let settings = RouteNetlinkMessage::NewLink(attach::as_port(place, &name));
        match netlink.request([(RouteNetlinkMessage::SetLink(port), 0), (settings, 0)]) {
            // Its container has just ended.
            Err(e) if e.raw_os_error() == Some(libc::ENODEV) => {}
            other => other.map_err(|e| failed(network, &format!("taking {name} back"), e))?,
        }
    }
    Ok(())
}

/// Held shared while a container is attached, exclusively while bridge and table are removed: else one could be
/// attached, in another process, to what is just being removed.
const LOCK: &str = "bridge.lock";

/// Keeps [`remove`] of any process out while the file is open.
pub(super) fn hold(place: &Place, network: &Definition) -> Result<fs::File> {
    lease::lock(&place.leases(&network.name), LOCK, FlockOperation::LockShared)
}

/// Removes the bridge if nothing is attached; whether it is gone.
pub(super) fn remove(place: &Place, network: &Definition) -> Result<bool> {
    // Without the directory nobody has leased or attached anything.
    let _alone = match place.leases(&network.name).exists() {
        true => Some(lease::lock(&place.leases(&network.name), LOCK, FlockOperation::LockExclusive)?),
        false => None,
    };
    let mut netlink = Netlink::open().map_err(|e| failed(network, "opening netlink", e))?;
    match find(place, network, &mut netlink) {
        Ok(Found::Ready(index) | Found::Unfinished(index) | Found::Outdated(index)) => {
            if netlink.has_ports(index).map_err(|e| failed(network, "listing its ports", e))? {
                return Ok(false);
            }
            delete(network, &mut netlink, index)?;
        }
        // Somebody else's stays.
        Ok(Found::No) | Err(Error::Configuration { .. }) => {}
        Err(error) => return Err(error),
    }
    // Whoever made one was killed before it had its name.
    let unfinished =
        netlink.link(&unfinished_name(place, network)).map_err(|e| failed(network, "looking for it", e))?;
    if let Some(link) = unfinished {
        delete(network, &mut netlink, link.header.index)?;
    }
    Ok(true)
}

enum Found {
    No,
    /// Up, with its address.
    Ready(u32),
    /// Made, but not up: whoever made it died, or is about to. Or somebody has taken away what it had.
    Unfinished(u32),
    /// Of this root, with a subnet of former times.
    Outdated(u32),
}

/// The alias that says whose a bridge is.
fn alias(place: &Place, network: &Definition) -> String {
    let Definition { subnet, gateway, subnet6, mtu, .. } = network;
    let subnet6 = subnet6.map(|subnet6| subnet6.to_string()).unwrap_or_default();
    format!("{} {subnet} {gateway} {subnet6} {}", place.table, mtu.unwrap_or(0))
}

/// Whether a link is a bridge of this root.
pub(super) fn is_own(place: &Place, link: &LinkMessage) -> bool {
    let is_ours = |text: &String| text.split(' ').next() == Some(&place.table);
    link.attributes.iter().any(|attribute| matches!(attribute, LinkAttribute::IfAlias(text) if is_ours(text)))
}

fn find(place: &Place, network: &Definition, netlink: &mut Netlink) -> Result<Found> {
    let found = netlink.link(&network.bridge).map_err(|e| failed(network, "looking for it", e))?;
    let Some(link) = found else { return Ok(Found::No) };
    let index = link.header.index;
    let marked = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfAlias(text) => Some(text.as_str()),
        _ => None,
    });
    match marked {
        Some(text) if text == alias(place, network) => {
            let mut is_whole = link.header.flags.contains(LinkFlags::Up) && has_settings(network, &link);
            let gateways = [Some(network.gateway.into()), network.subnet6.map(|subnet| subnet.gateway().into())];
            for gateway in gateways.into_iter().flatten() {
                let has = netlink.has_address(index, gateway).map_err(|e| failed(network, "listing addresses", e));
                is_whole &= has?;
            }
            Ok(if is_whole { Found::Ready(index) } else { Found::Unfinished(index) })
        }
        Some(_) if is_own(place, &link) => Ok(Found::Outdated(index)),
        _ => Err(Error::Configuration {
            what: format!("bridge {}", network.bridge),
            reason: "an interface of this name exists and is not this root's; choose another --bridge and --subnet"
                .to_owned(),
        }),
    }
}

/// Whether it has what [`finish`] sets. The kernel tells it with the link.
fn has_settings(network: &Definition, link: &LinkMessage) -> bool {
    let (ipv4, ipv6) = settings(link);
    let leads_from_loopback = ipv4.is_some_and(|conf| conf.route_localnet == 1);
    // None: the host has no IPv6.
    let is_no_host_of_routers = ipv6.is_none_or(|conf| match network.subnet6 {
        Some(_) => conf.accept_ra == 0,
        None => conf.disable_ipv6 == 1,
    });
    (network.internal || leads_from_loopback) && is_no_host_of_routers
}

fn settings(link: &LinkMessage) -> (Option<InetDevConf>, Option<Inet6DevConf>) {
    let (mut ipv4, mut ipv6) = (None, None);
    let families = link.attributes.iter().filter_map(|attribute| match attribute {
        LinkAttribute::AfSpecUnspec(families) => Some(families),
        _ => None,
    });
    for family in families.flatten() {
        match family {
            AfSpecUnspec::Inet(parts) => {
                ipv4 = ipv4.or(parts.iter().find_map(|part| match part {
                    AfSpecInet::DevConf(conf) => Some(*conf),
                    _ => None,
                }));
            }
            AfSpecUnspec::Inet6(parts) => {
                ipv6 = ipv6.or(parts.iter().find_map(|part| match part {
                    AfSpecInet6::DevConf(conf) => Some(*conf),
                    _ => None,
                }));
            }
            _ => {}
        }
    }
    (ipv4, ipv6)
}

/// What it is called until it is marked.
pub(super) fn unfinished_name(place: &Place, network: &Definition) -> String {
    let digest = Sha256::new().chain_update(&place.table).chain_update([0]).chain_update(&network.bridge).finalize();
    format!("bt{}", &hex(&digest)[..12])
}

/// Makes it under a name that is this root's alone, marks it, and only then gives it its own: so a bridge of that name
/// is never ours without the mark, and never another's with it, whoever dies or is faster.
fn create(place: &Place, network: &Definition, netlink: &mut Netlink) -> Result<()> {
    let unfinished = unfinished_name(place, network);
    let mut bridge = LinkMessage::default();
    bridge.attributes = vec![
        LinkAttribute::IfName(unfinished.clone()),
        // Without one of its own it takes the lowest of its ports', and changes with them.
        LinkAttribute::Address(Mac::of(network.gateway).0.to_vec()),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]),
    ];
    bridge.attributes.extend(network.mtu.map(LinkAttribute::Mtu));
    match netlink.request([(RouteNetlinkMessage::NewLink(bridge), CREATE)]) {
        // Left by a process of this root, or being made by one.
        Err(e) if e.raw_os_error() == Some(libc::EEXIST) => {}
        other => other.map_err(|e| failed(network, "creating it", e))?,
    }
    let link = netlink.link(&unfinished).map_err(|e| failed(network, "looking for it", e))?;
    // None: that other process has just finished it.
    let Some(index) = link.map(|link| link.header.index) else { return Ok(()) };
    let change = |attribute| {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.attributes.push(attribute);
        (RouteNetlinkMessage::SetLink(link), 0)
    };
    netlink
        .request([change(LinkAttribute::IfAlias(alias(place, network)))])
        .and_then(|()| netlink.request([change(LinkAttribute::IfName(network.bridge.clone()))]))
        .or_else(|error| {
            let named = netlink.link(&unfinished).map_err(|e| failed(network, "looking for it", e))?.is_none();
            if named && error.raw_os_error() == Some(libc::EBUSY) {
                // Another process has named it and set it up meanwhile: before Linux 6.3 nobody names what is up.
                return Ok(());
            }
            delete(network, netlink, index)?;
            match error.raw_os_error() {
                // Somebody has that name: whose it is, the next look will tell.
                Some(libc::EEXIST | libc::ENODEV) => Ok(()),
                _ => Err(failed(network, "naming it", error)),
            }
        })
}

fn finish(network: &Definition, netlink: &mut Netlink, index: u32) -> Result<()> {
    if !network.internal {
        // So that what the host sends from its loopback to a published port may go this way; the firewall's raw chain
        // keeps what comes from the bridge away from the loopback.
        sysctl(&route_localnet(network), "1")?;
    }
    if network.subnet6.is_some() {
        sysctl(&format!("ipv6/conf/{}/disable_ipv6", network.bridge), "0")?;
    } else {
        disable_ipv6(&network.bridge)?;
    }
    refuse_advertisements(&network.bridge)?;
    let ends =
        Ends { ip: network.gateway, prefix_len: network.subnet.prefix_len(), broadcast: network.subnet.broadcast() };
    let v6 = network.subnet6.map(|subnet| attach::address6(index, subnet.gateway(), subnet.prefix_len()));
    for address in [Some(attach::address(index, &ends)), v6].into_iter().flatten() {
        match netlink.request([(address, CREATE)]) {
            Err(e) if e.raw_os_error() != Some(libc::EEXIST) => {
                return Err(failed(network, "giving it its address", e));
            }
            _ => {}
        }
    }
    netlink.request([(RouteNetlinkMessage::SetLink(up(index)), 0)]).map_err(|e| failed(network, "setting it up", e))
}

fn route_localnet(network: &Definition) -> String {
    format!("ipv4/conf/{}/route_localnet", network.bridge)
}

fn delete(network: &Definition, netlink: &mut Netlink, index: u32) -> Result<()> {
    let mut link = LinkMessage::default();
    link.header.index = index;
    match netlink.request([(RouteNetlinkMessage::DelLink(link), 0)]) {
        Err(e) if e.raw_os_error() == Some(libc::ENODEV) => Ok(()),
        other => other.map_err(|e| failed(network, "deleting it", e)),
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

/// Keeps an interface of this thread's network namespace from taking routes and addresses from whoever calls itself a
/// router there: to the host, any container with a raw socket.
pub(super) fn refuse_advertisements(ifname: &str) -> Result<()> {
    sysctl_of_ipv6(&format!("ipv6/conf/{ifname}/accept_ra"), "0")
}

/// Takes IPv6, link-local addresses too, from an interface of this thread's network namespace.
pub(super) fn disable_ipv6(ifname: &str) -> Result<()> {
    sysctl_of_ipv6(&format!("ipv6/conf/{ifname}/disable_ipv6"), "1")
}

/// Sets a parameter, unless there is none: the kernel has no IPv6, or none for so small an MTU.
fn sysctl_of_ipv6(name: &str, value: &str) -> Result<()> {
    let path = Path::new(SYSCTLS).join(name);
    match fs::OpenOptions::new().write(true).open(&path).and_then(|mut file| file.write_all(value.as_bytes())) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(Error::io("writing", path)),
    }
}

/// Lets the host pass packets on. With IPv6, hosts that pass them on no longer learn their own routes from routers
/// unless told so: those that did go on. Interfaces of Berth's, of whatever root, never did on purpose, and what is made
/// later is not decided on here.
fn enable_forwarding(network: &Definition, netlink: &mut Netlink) -> Result<()> {
    if network.internal {
        return Ok(());
    }
    sysctl("ipv4/ip_forward", "1")?;
    if network.subnet6.is_none() || read_sysctl("ipv6/conf/all/forwarding")? == "1" {
        return Ok(());
    }
    for link in netlink.links().map_err(|e| failed(network, "listing interfaces", e))? {
        let (mut name, mut is_ours) = (None, false);
        for attribute in &link.attributes {
            match attribute {
                LinkAttribute::IfName(text) => name = Some(text),
                LinkAttribute::IfAlias(text) => is_ours = text.starts_with(TABLE_PREFIX),
                _ => {}
            }
        }
        if let Some(name) = name
            && !is_ours
            && settings(&link).1.is_some_and(|conf| conf.accept_ra == 1)
        {
            sysctl_of_ipv6(&format!("ipv6/conf/{name}/accept_ra"), "2")?;
        }
    }
    sysctl("ipv6/conf/all/forwarding", "1")
}

/// Sets a parameter of the calling thread's network namespace, if it is not so already.
pub(super) fn sysctl(name: &str, value: &str) -> Result<()> {
    if read_sysctl(name)? == value {
        return Ok(());
    }
    let path = Path::new(SYSCTLS).join(name);
    fs::write(&path, value).map_err(Error::io("writing", path))
}

fn read_sysctl(name: &str) -> Result<String> {
    let path = Path::new(SYSCTLS).join(name);
    let text = fs::read_to_string(&path).map_err(Error::io("reading", path))?;
    Ok(text.trim_end().to_owned())
}

pub(super) fn failed(network: &Definition, what: &str, source: io::Error) -> Error {
    Error::Network { network: network.name.clone(), what: format!("{what} failed"), source: Some(Box::new(source)) }
}

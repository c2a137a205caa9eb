//! Connecting a container's network namespace.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;

use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkInfo, LinkMessage};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::bridge::{self, failed};
use super::netlink::{CREATE, Netlink};
use super::{Lease, NetworkConfig};
use crate::error::Result;

/// The container's end of the veth pair.
const CONTAINER_IFNAME: &str = "eth0";

/// `lo` is the first interface of every network namespace.
const LOOPBACK_INDEX: u32 = 1;

/// Attaches; the calling thread ends up in the container's network namespace.
pub(super) fn attach(config: &NetworkConfig, lease: &Lease, pid: u32) -> Result<()> {
    let namespace =
        open_namespace(pid).map_err(|e| failed(config, &format!("opening the network of process {pid}"), e))?;
    let mut host = Netlink::open().map_err(|e| failed(config, "opening netlink", e))?;
    make_pair(config, lease, &namespace, &mut host)?;
    let set_up = enter(&namespace).and_then(|()| configure(lease));
    set_up.map_err(|e| {
        // The first error is the one to tell; the pair also goes with the namespace.
        let _ = delete_link(&mut host, &lease.host_ifname);
        failed(config, &format!("giving {} to process {pid}", lease.ip), e)
    })
}

/// Deletes the host's end, and so the pair.
pub(super) fn detach(config: &NetworkConfig, host_ifname: &str) -> Result<()> {
    let mut host = Netlink::open().map_err(|e| failed(config, "opening netlink", e))?;
    delete_link(&mut host, host_ifname).map_err(|e| failed(config, &format!("deleting {host_ifname}"), e))
}

/// Holds the namespace, so that the process may die and its number be used again.
fn open_namespace(pid: u32) -> io::Result<File> {
    let namespace = File::open(format!("/proc/{pid}/ns/net"))?;
    let (own, its) = (std::fs::metadata("/proc/thread-self/ns/net")?, namespace.metadata()?);
    if (own.dev(), own.ino()) == (its.dev(), its.ino()) {
        // An address and a default route for the host itself would cut it off.
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it has the host's network"));
    }
    Ok(namespace)
}

fn enter(namespace: &File) -> io::Result<()> {
    let namespace: BorrowedFd<'_> = namespace.as_fd();
    Ok(move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network))?)
}

/// One message makes both ends: the host's up and in the bridge, the other in the container.
fn make_pair(config: &NetworkConfig, lease: &Lease, namespace: &File, host: &mut Netlink) -> Result<()> {
    let _held = bridge::hold(config)?;
    let mut tries = 0;
    loop {
        tries += 1;
        let bridge = bridge::ensure(config, host)?;
        let message = RouteNetlinkMessage::NewLink(pair(lease, namespace, bridge));
        match host.request([(message, CREATE)]) {
            Ok(()) => return Ok(()),
            // Left by an attempt whose namespace is still held by somebody. The lease is ours, so the name is.
            Err(e) if e.raw_os_error() == Some(libc::EEXIST) && tries == 1 => {
                delete_link(host, &lease.host_ifname)
                    .map_err(|e| failed(config, &format!("deleting {}", lease.host_ifname), e))?;
            }
            // The bridge was removed under us, by hand.
            Err(e) if e.raw_os_error() == Some(libc::ENODEV) && tries == 1 => {}
            Err(e) => return Err(failed(config, &format!("making {}", lease.host_ifname), e)),
        }
    }
}

fn pair(lease: &Lease, namespace: &File, bridge: u32) -> LinkMessage {
    // Not up yet: the kernel refuses that for the peer of a pair that is still being made.
    let mut inner = LinkMessage::default();
    inner.attributes = vec![
        LinkAttribute::IfName(CONTAINER_IFNAME.to_owned()),
        LinkAttribute::Address(lease.mac.0.to_vec()),
        LinkAttribute::NetNsFd(namespace.as_raw_fd()),
    ];
    let mut outer = bridge::up(0);
    outer.attributes = vec![
        LinkAttribute::IfName(lease.host_ifname.clone()),
        LinkAttribute::Controller(bridge),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(inner))),
        ]),
    ];
    outer
}

/// In the container's namespace: loopback, address, default route.
fn configure(lease: &Lease) -> io::Result<()> {
    let mut netlink = Netlink::open()?;
    let link = netlink.link(CONTAINER_IFNAME)?.ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))?;
    let index = link.header.index;
    let mask = u32::MAX.checked_shr(lease.prefix_len.into()).unwrap_or(0);
    let broadcast = Ipv4Addr::from_bits(lease.ip.to_bits() | mask);
    netlink.request([
        (RouteNetlinkMessage::SetLink(bridge::up(LOOPBACK_INDEX)), 0),
        (RouteNetlinkMessage::SetLink(bridge::up(index)), 0),
        (address(index, lease.ip, lease.prefix_len, broadcast), CREATE),
        (default_route(index, lease.gateway), CREATE),
    ])
}

/// The message that gives a link an address.
pub(super) fn address(index: u32, ip: Ipv4Addr, prefix_len: u8, broadcast: Ipv4Addr) -> RouteNetlinkMessage {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.prefix_len = prefix_len;
    message.header.index = index;
    message.attributes = vec![
        AddressAttribute::Local(IpAddr::V4(ip)),
        AddressAttribute::Address(IpAddr::V4(ip)),
        AddressAttribute::Broadcast(broadcast),
    ];
    RouteNetlinkMessage::NewAddress(message)
}

fn default_route(index: u32, gateway: Ipv4Addr) -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Boot;
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    message.attributes = vec![RouteAttribute::Gateway(RouteAddress::Inet(gateway)), RouteAttribute::Oif(index)];
    RouteNetlinkMessage::NewRoute(message)
}

fn delete_link(netlink: &mut Netlink, name: &str) -> io::Result<()> {
    let mut link = LinkMessage::default();
    link.attributes.push(LinkAttribute::IfName(name.to_owned()));
    match netlink.request([(RouteNetlinkMessage::DelLink(link), 0)]) {
        Err(e) if e.raw_os_error() == Some(libc::ENODEV) => Ok(()),
        other => other,
    }
}

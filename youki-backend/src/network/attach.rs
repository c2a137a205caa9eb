//! Connecting a container's network namespace.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;

use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use rtnetlink::packet_route::link::{
    InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, LinkAttribute, LinkInfo, LinkMessage,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::bridge::{self, failed};
use super::definition::{DEFAULT_NETWORK, Definition, Place};
use super::netlink::{CREATE, Netlink};
use super::{Lease, lease, names, ports};
use crate::error::{Error, Result};

/// The container's end of the veth pair.
const CONTAINER_IFNAME: &str = "eth0";

/// `lo` is the first interface of every network namespace.
const LOOPBACK_INDEX: u32 = 1;

/// What is attached.
#[derive(Debug, Clone)]
pub(super) struct Attachment {
    pub lease: Lease,
    pub id: String,
    /// What it is called in its network.
    pub names: Vec<String>,
    /// A process in its network namespace.
    pub pid: u32,
}

/// An attachment for which all locks were waited for.
#[derive(Debug)]
pub(super) struct Ready {
    attachment: Attachment,
    network: Definition,
    /// Of the container.
    namespace: File,
    /// Nobody removes the bridge meanwhile.
    held: File,
}

/// Opens the ports of `attachment`, and tells the others of the network its names.
pub(super) fn prepare(place: &Place, attachment: Attachment) -> Result<Ready> {
    let Attachment { lease, id, names, pid } = &attachment;
    let network = place.find(&lease.network)?;
    if !network.subnet.is_host(lease.ip) || network.gateway != lease.gateway {
        return Err(Error::Network {
            network: network.name.clone(),
            what: format!(
                "it has become {}, {}, since {} was leased: try again",
                network.bridge, network.subnet, lease.ip
            ),
            source: None,
        });
    }
    let namespace =
        open_namespace(*pid).map_err(|e| failed(&network, &format!("opening the network of process {pid}"), e))?;
    if network.name == DEFAULT_NETWORK {
        place.use_default(&network)?;
    }
    ports::open(place, id)?;
    // Before anything is made for one that is gone already.
    names::join(place, lease, id, names)?;
    let held = bridge::hold(place, &network)?;
    Ok(Ready { network, namespace, held, attachment })
}

impl Ready {
    /// Connects it; the calling thread ends up in the container's network namespace.
    pub(super) fn attach(self, place: &Place) -> Result<()> {
        let Self { network, namespace, held, attachment: Attachment { lease, id, .. } } = self;
        if !lease::is_held(place, &lease, &id) {
            let what = format!("{id} has given {} back before it was its turn", lease.ip);
            return Err(Error::Network { network: network.name, what, source: None });
        }
        let mut host = Netlink::open().map_err(|e| failed(&network, "opening netlink", e))?;
        make_pair(place, &network, &lease, &namespace, &mut host)?;
        drop(held);
        let set_up = enter(&namespace).map_err(|e| failed(&network, "entering the container's network", e));
        set_up.and_then(|()| configure(&network, &lease)).inspect_err(|_| {
            // The first error is the one to tell; the pair also goes with the namespace.
            let _ = delete_link(&mut host, &lease.host_ifname);
        })
    }
}

/// Deletes the host's end, and so the pair.
pub(super) fn detach(lease: &Lease) -> Result<()> {
    let gone = Netlink::open().and_then(|mut host| delete_link(&mut host, &lease.host_ifname));
    gone.map_err(|error| Error::Network {
        network: lease.network.clone(),
        what: format!("deleting {} failed", lease.host_ifname),
        source: Some(Box::new(error)),
    })
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
fn make_pair(place: &Place, network: &Definition, lease: &Lease, namespace: &File, host: &mut Netlink) -> Result<()> {
    let mut tries = 0;
    loop {
        tries += 1;
        let bridge = bridge::ensure(place, network, host)?;
        let message = RouteNetlinkMessage::NewLink(pair(network, lease, namespace, bridge));
        match host.request([(message, CREATE)]) {
            Ok(()) => {
                return set_up_outer(place, network, lease, host).inspect_err(|_| {
                    let _ = delete_link(host, &lease.host_ifname);
                });
            }
            // Left by an attempt whose namespace is still held by somebody. The lease is ours, so the name is.
            Err(e) if e.raw_os_error() == Some(libc::EEXIST) && tries == 1 => {
                delete_link(host, &lease.host_ifname)
                    .map_err(|e| failed(network, &format!("deleting {}", lease.host_ifname), e))?;
            }
            // The bridge was removed under us, by hand.
            Err(e) if e.raw_os_error() == Some(libc::ENODEV) && tries == 1 => {}
            Err(e) => return Err(failed(network, &format!("making {}", lease.host_ifname), e)),
        }
    }
}

/// Makes the host's end a port that containers are kept behind.
fn set_up_outer(place: &Place, network: &Definition, lease: &Lease, host: &mut Netlink) -> Result<()> {
    // A bridge leaves frames for the group addresses of 802.1D to the port itself.
    bridge::refuse_advertisements(&lease.host_ifname)?;
    let port = RouteNetlinkMessage::NewLink(as_port(place, &lease.host_ifname));
    let set = host.request([(port, 0)]);
    set.map_err(|e| failed(network, &format!("setting {} up", lease.host_ifname), e))
}

fn pair(network: &Definition, lease: &Lease, namespace: &File, bridge: u32) -> LinkMessage {
    // Not up yet: the kernel refuses that for the peer of a pair that is still being made.
    let mut inner = LinkMessage::default();
    inner.attributes = vec![
        LinkAttribute::IfName(CONTAINER_IFNAME.to_owned()),
        LinkAttribute::Address(lease.mac.0.to_vec()),
        LinkAttribute::NetNsFd(namespace.as_raw_fd()),
    ];
    inner.attributes.extend(network.mtu.map(LinkAttribute::Mtu));
    let mut outer = bridge::up(0);
    outer.attributes = vec![
        LinkAttribute::IfName(lease.host_ifname.clone()),
        LinkAttribute::Controller(bridge),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(inner))),
        ]),
    ];
    if let Some(mtu) = network.mtu {
        outer.attributes.push(LinkAttribute::Mtu(mtu));
    }
    outer
}

/// What the kernel takes only once the pair is made. The alias says whose it is. And a bridge sends back through the port it
/// came from: where the host filters bridged packets too (`bridge-nf-call-iptables`, as docker's hosts do), what a container
/// sends to its own published port goes this way.
pub(super) fn as_port(place: &Place, host_ifname: &str) -> LinkMessage {
    let mut port = LinkMessage::default();
    port.attributes = vec![
        LinkAttribute::IfName(host_ifname.to_owned()),
        LinkAttribute::IfAlias(place.table.clone()),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(vec![InfoBridgePort::HairpinMode(true)])),
        ]),
    ];
    port
}

/// In the container's namespace: loopback, addresses, default routes (none leads out of an internal network).
fn configure(network: &Definition, lease: &Lease) -> Result<()> {
    let what = format!("giving {} to the container", lease.ip);
    let failed = |e| failed(network, &what, e);
    let mut netlink = Netlink::open().map_err(failed)?;
    let link = netlink.link(CONTAINER_IFNAME).map_err(failed)?;
    let index = link.ok_or_else(|| failed(io::Error::from_raw_os_error(libc::ENODEV)))?.header.index;
    if lease.v6.is_some() {
        bridge::sysctl(&format!("ipv6/conf/{CONTAINER_IFNAME}/disable_ipv6"), "0")?;
        bridge::sysctl("ipv6/conf/lo/disable_ipv6", "0")?;
        // Its route is given to it.
        bridge::refuse_advertisements(CONTAINER_IFNAME)?;
    } else {
        bridge::disable_ipv6(CONTAINER_IFNAME)?;
    }
    let mask = u32::MAX.checked_shr(lease.prefix_len.into()).unwrap_or(0);
    let broadcast = Ipv4Addr::from_bits(lease.ip.to_bits() | mask);
    let ends = Ends { ip: lease.ip, prefix_len: lease.prefix_len, broadcast };
    let mut messages = vec![
        (RouteNetlinkMessage::SetLink(bridge::up(LOOPBACK_INDEX)), 0),
        (RouteNetlinkMessage::SetLink(bridge::up(index)), 0),
        (address(index, &ends), CREATE),
    ];
    if let Some(v6) = &lease.v6 {
        messages.push((address6(index, v6.ip, v6.prefix_len), CREATE));
    }
    if !network.internal {
        messages.push((default_route(index, lease.gateway.into()), CREATE));
        messages.extend(lease.v6.as_ref().map(|v6| (default_route(index, v6.gateway.into()), CREATE)));
    }
    netlink.request(messages).map_err(failed)
}

/// An interface's IPv4 address.
pub(super) struct Ends {
    pub ip: Ipv4Addr,
    pub prefix_len: u8,
    pub broadcast: Ipv4Addr,
}

/// The message that gives a link an address.
pub(super) fn address(index: u32, ends: &Ends) -> RouteNetlinkMessage {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.prefix_len = ends.prefix_len;
    message.header.index = index;
    message.attributes = vec![
        AddressAttribute::Local(IpAddr::V4(ends.ip)),
        AddressAttribute::Address(IpAddr::V4(ends.ip)),
        AddressAttribute::Broadcast(ends.broadcast),
    ];
    RouteNetlinkMessage::NewAddress(message)
}

/// The same for IPv6; of use at once, since nobody else was given it.
pub(super) fn address6(index: u32, ip: Ipv6Addr, prefix_len: u8) -> RouteNetlinkMessage {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet6;
    message.header.prefix_len = prefix_len;
    message.header.index = index;
    message.attributes = vec![AddressAttribute::Address(IpAddr::V6(ip)), AddressAttribute::Flags(AddressFlags::Nodad)];
    RouteNetlinkMessage::NewAddress(message)
}

fn default_route(index: u32, gateway: IpAddr) -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    let (family, gateway) = match gateway {
        IpAddr::V4(ip) => (AddressFamily::Inet, RouteAddress::Inet(ip)),
        IpAddr::V6(ip) => (AddressFamily::Inet6, RouteAddress::Inet6(ip)),
    };
    message.header.address_family = family;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Boot;
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    message.attributes = vec![RouteAttribute::Gateway(gateway), RouteAttribute::Oif(index)];
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

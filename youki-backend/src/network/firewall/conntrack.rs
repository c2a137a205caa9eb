//! What the kernel remembers of datagrams: where a sender's went before, its next ones go, whatever the rules say by
//! then. So these entries are deleted when a UDP port is opened and when it is closed; of TCP each connection is new.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};

use rtnetlink::sys::protocols::NETLINK_NETFILTER;
use rtnetlink::sys::{Socket, SocketAddr};
use runtime_core::spec::PortProtocol;

use super::kernel::{Message, NLM_F_ACK, NLM_F_REQUEST, NLMSG_ERROR, commit_plain, error_of};
use crate::network::ports::Reservation;

/// Messages and attributes of ctnetlink (linux/netfilter/nfnetlink_conntrack.h).
const NFNL_SUBSYS_CTNETLINK: u16 = 1;
const IPCTNL_MSG_CT_GET: u16 = 1;
const IPCTNL_MSG_CT_DELETE: u16 = 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ZONE: u16 = 18;
const CTA_FILTER: u16 = 25;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_DST_PORT: u16 = 3;
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
/// What is compared: the protocol; the port that was sent to.
const FILTER_PROTOCOL: u32 = 1 << 3;
const FILTER_DST_PORT: u32 = 1 << 5;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_DONE: u16 = 3;
const NLA_TYPE_MASK: u16 = 0x3fff;

/// Ports that are asked for one by one. Each question goes through the kernel's whole table, which takes milliseconds; one
/// for all gets every flow of UDP that the host has.
const MAX_QUESTIONS: usize = 8;

/// Room for one read of a dump; the kernel fills up to 32 KiB.
const ANSWER_BYTES: usize = 64 << 10;

/// Why entries are deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Since {
    /// The container has its ports: what led elsewhere, or nowhere, is old.
    Opened,
    /// It has them no more: what led to it is old.
    Closed,
}

/// Deletes what is old of the UDP ports of a container. What cannot be is only told: the entries end by themselves, half a
/// minute after the last datagram.
pub(super) fn forget(reservation: &Reservation, since: Since) {
    let mut ports = Ports::new();
    for mapping in reservation.ports.iter().filter(|mapping| mapping.protocol == PortProtocol::Udp) {
        let Some(port) = mapping.host_port else { continue };
        let host_ip = mapping.host_ip.as_ref().and_then(|ip| ip.parse::<IpAddr>().ok());
        ports.entry(port).or_default().push(host_ip.filter(|ip| !ip.is_unspecified()));
    }
    for target in [reservation.ip.map(IpAddr::V4), reservation.ip6.map(IpAddr::V6)].into_iter().flatten() {
        if let Err(error) = forget_of(&ports, target, since) {
            tracing::warn!(%target, %error, "flows of an earlier holder of its ports are not forgotten");
        }
    }
}

fn forget_of(ports: &Ports, target: IpAddr, since: Since) -> io::Result<()> {
    let questions = match ports.len() {
        0..=MAX_QUESTIONS => ports.keys().copied().map(Some).collect(),
        _ => vec![None],
    };
    for question in questions {
        forget_some(flows_to(question, ports, target.is_ipv4())?, ports, target, since)?;
    }
    Ok(())
}

fn forget_some(flows: Vec<Flow>, ports: &Ports, target: IpAddr, since: Since) -> io::Result<()> {
    for flow in flows {
        let at_host =
            |host_ip: &Option<IpAddr>| host_ip.map_or_else(|| is_local(flow.sent_to), |ip| ip == flow.sent_to);
        let old = match since {
            Since::Closed => flow.answered_by == target,
            Since::Opened => flow.answered_by != target && ports.get(&flow.port).into_iter().flatten().any(at_host),
        };
        if !old {
            continue;
        }
        let mut message = request(IPCTNL_MSG_CT_DELETE, NLM_F_ACK, target.is_ipv4());
        message.bytes(CTA_TUPLE_ORIG | super::kernel::NLA_F_NESTED, &flow.tuple);
        if let Some(zone) = &flow.zone {
            message.bytes(CTA_ZONE, zone);
        }
        match commit_plain(message) {
            // It ended meanwhile.
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {}
            other => other?,
        }
    }
    Ok(())
}

/// Ports of the host, and the address of it that each is at; `None` for all.
type Ports = HashMap<u16, Vec<Option<IpAddr>>>;

/// A sender's datagrams.
#[derive(Debug, PartialEq, Eq)]
struct Flow {
    port: u16,
    sent_to: IpAddr,
    answered_by: IpAddr,
    /// What tells it from all others, as the kernel writes it.
    tuple: Vec<u8>,
    zone: Option<Vec<u8>>,
}

/// The UDP flows to `ports`, of any address; `only` to the one that is named.
fn flows_to(only: Option<u16>, ports: &Ports, ipv4: bool) -> io::Result<Vec<Flow>> {
    let mut message = request(IPCTNL_MSG_CT_GET, NLM_F_DUMP, ipv4);
    message.nest(CTA_TUPLE_ORIG, |message| {
        message.nest(CTA_TUPLE_PROTO, |message| {
            message.bytes(CTA_PROTO_NUM, &[libc::IPPROTO_UDP as u8]);
            message.bytes(CTA_PROTO_DST_PORT, &only.unwrap_or(0).to_be_bytes());
        });
    });
    let filter = if only.is_some() { FILTER_PROTOCOL | FILTER_DST_PORT } else { FILTER_PROTOCOL };
    message.nest(CTA_FILTER, |message| message.bytes(CTA_FILTER_ORIG_FLAGS, &filter.to_ne_bytes()));
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.send_to(&message.finish(), &SocketAddr::new(0, 0), 0)?;
    let mut flows = Vec::new();
    loop {
        let mut answer = Vec::with_capacity(ANSWER_BYTES);
        match socket.recv_from(&mut answer, 0) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            other => other?,
        };
        let mut rest = answer.as_slice();
        while let Some((kind, body, behind)) = split_message(rest) {
            match kind {
                NLMSG_DONE => return Ok(flows),
                NLMSG_ERROR => return error_of(body).map_or(Ok(flows), Err),
                // Behind `nfgenmsg`.
                _ => flows.extend(body.get(4..).and_then(|attributes| parse(attributes, ports))),
            }
            rest = behind;
        }
    }
}

fn request(kind: u16, flags: u16, ipv4: bool) -> Message {
    let family = if ipv4 { libc::AF_INET } else { libc::AF_INET6 };
    Message::new(NFNL_SUBSYS_CTNETLINK << 8 | kind, NLM_F_REQUEST | flags, family as u8, 0)
}

/// Type and body of the first message, and what follows it.
fn split_message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
    let kind = u16::from_ne_bytes([*bytes.get(4)?, *bytes.get(5)?]);
    let body = bytes.get(16..length)?;
    Some((kind, body, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

/// An entry, if it is one of UDP to one of `ports`.
fn parse(attributes: &[u8], ports: &Ports) -> Option<Flow> {
    let tuple = attribute(attributes, CTA_TUPLE_ORIG)?;
    let protocol = attribute(tuple, CTA_TUPLE_PROTO)?;
    let port = u16::from_be_bytes(*attribute(protocol, CTA_PROTO_DST_PORT)?.first_chunk()?);
    if attribute(protocol, CTA_PROTO_NUM)? != [libc::IPPROTO_UDP as u8] || !ports.contains_key(&port) {
        return None;
    }
    let ip = |tuple: &[u8], v4: u16, v6: u16| {
        let ips = attribute(tuple, CTA_TUPLE_IP)?;
        let of_v4 = attribute(ips, v4).and_then(|ip| Some(IpAddr::V4(Ipv4Addr::from(*ip.first_chunk::<4>()?))));
        of_v4.or_else(|| Some(IpAddr::V6(Ipv6Addr::from(*attribute(ips, v6)?.first_chunk::<16>()?))))
    };
    let reply = attribute(attributes, CTA_TUPLE_REPLY)?;
    Some(Flow {
        port,
        sent_to: ip(tuple, CTA_IP_V4_DST, CTA_IP_V6_DST)?,
        answered_by: ip(reply, CTA_IP_V4_SRC, CTA_IP_V6_SRC)?,
        tuple: tuple.to_vec(),
        zone: attribute(attributes, CTA_ZONE).map(<[u8]>::to_vec),
    })
}

/// The value of the first attribute of a kind.
fn attribute(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let [a, b, c, d] = *attributes.first_chunk::<4>()?;
        let (length, kind) = (usize::from(u16::from_ne_bytes([a, b])), u16::from_ne_bytes([c, d]) & NLA_TYPE_MASK);
        let value = attributes.get(4..length)?;
        if kind == wanted {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

/// Whether an address is one of the host's: only those can be bound.
fn is_local(ip: IpAddr) -> bool {
    ip.is_loopback() || UdpSocket::bind((ip, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports(port: u16) -> Ports {
        Ports::from([(port, vec![None])])
    }

    fn entry() -> Vec<u8> {
        let mut message = request(IPCTNL_MSG_CT_GET, 0, true);
        for (kind, source, destination, port) in
            [(CTA_TUPLE_ORIG, [127, 0, 0, 1], [127, 0, 0, 1], 9u16), (CTA_TUPLE_REPLY, [10, 0, 0, 2], [10, 0, 0, 1], 5)]
        {
            message.nest(kind, |message| {
                message.nest(CTA_TUPLE_IP, |message| {
                    message.bytes(CTA_IP_V4_SRC, &source);
                    message.bytes(CTA_IP_V4_DST, &destination);
                });
                message.nest(CTA_TUPLE_PROTO, |message| {
                    message.bytes(CTA_PROTO_NUM, &[libc::IPPROTO_UDP as u8]);
                    message.bytes(CTA_PROTO_DST_PORT, &port.to_be_bytes());
                });
            });
        }
        message.finish()
    }

    #[test]
    fn an_entry_tells_where_datagrams_were_sent_and_who_answers() {
        let entry = entry();
        let (_, body, behind) = split_message(&entry).unwrap();
        assert!(behind.is_empty());
        let flow = parse(&body[4..], &ports(9)).unwrap();
        assert_eq!(flow.port, 9);
        assert_eq!((flow.sent_to.to_string(), flow.answered_by.to_string()), ("127.0.0.1".into(), "10.0.0.2".into()));
        assert_eq!(flow.zone, None);
        assert_eq!(parse(&body[4..], &ports(10)), None, "another port");
    }

    #[test]
    fn cut_or_changed_entries_are_none_never_a_panic() {
        let entry = entry();
        for end in 0..entry.len() {
            if let Some((_, body, _)) = split_message(&entry[..end]) {
                let _ = parse(body, &ports(9));
            }
            let _ = parse(&entry[..end], &ports(9));
            for at in 0..end {
                let mut changed = entry.clone();
                changed[at] ^= 0xff;
                let _ = split_message(&changed).map(|(_, body, _)| body.get(4..).map(|body| parse(body, &ports(9))));
            }
        }
    }
}

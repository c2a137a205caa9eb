//! A blocking netlink socket.
//!
//! Several requests go out in one call and the kernel works them off before it returns, so that setting up a container
//! is a handful of system calls on one thread. rtnetlink's own handle is a task of one runtime, with a trip through it
//! for each request; of that crate the message types are used, and its socket.

use std::io;
use std::net::IpAddr;

use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{Socket, SocketAddr};

/// Make what must not exist yet.
pub(super) const CREATE: u16 = NLM_F_CREATE | NLM_F_EXCL;

/// Room for one answer. The kernel fills up to 32 KiB when it lists links.
const ANSWER_BYTES: usize = 64 << 10;

/// A socket of the network namespace in which it was opened, whatever its thread enters later.
#[derive(Debug)]
pub(super) struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Sends all requests at once and waits for all answers. The kernel does them in order and does not stop at one
    /// that fails; the first failure is returned.
    pub fn request(&mut self, messages: impl IntoIterator<Item = (RouteNetlinkMessage, u16)>) -> io::Result<()> {
        let first = self.sequence.wrapping_add(1);
        let mut bytes = Vec::with_capacity(512);
        for (message, flags) in messages {
            self.put(&mut bytes, message, NLM_F_REQUEST | NLM_F_ACK | flags);
        }
        self.socket.send_to(&bytes, &SocketAddr::new(0, 0), 0)?;
        let mut outstanding = self.sequence.wrapping_sub(first).wrapping_add(1);
        let mut failure = None;
        while outstanding > 0 {
            self.receive(|header, payload| {
                if header.sequence_number.wrapping_sub(first) > u32::MAX / 2 {
                    return Ok(());
                }
                if let NetlinkPayload::Error(answer) = payload {
                    outstanding -= 1;
                    if answer.code.is_some() && failure.is_none() {
                        failure = Some(answer.to_io());
                    }
                }
                Ok(())
            })?;
        }
        failure.map_or(Ok(()), Err)
    }

    /// The link of a name, or `None`.
    pub fn link(&mut self, name: &str) -> io::Result<Option<LinkMessage>> {
        let mut query = LinkMessage::default();
        query.attributes.push(LinkAttribute::IfName(name.to_owned()));
        let mut found = None;
        match self.query(RouteNetlinkMessage::GetLink(query), 0, |answer| {
            if let RouteNetlinkMessage::NewLink(link) = answer {
                found = Some(link);
            }
        }) {
            Err(e) if e.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(e) => Err(e),
            Ok(()) => Ok(found),
        }
    }

    /// All links.
    pub fn links(&mut self) -> io::Result<Vec<LinkMessage>> {
        let mut found = Vec::new();
        self.query(RouteNetlinkMessage::GetLink(LinkMessage::default()), NLM_F_DUMP, |answer| {
            if let RouteNetlinkMessage::NewLink(link) = answer {
                found.push(link);
            }
        })?;
        Ok(found)
    }

    /// Whether any link has this one as its bridge.
    pub fn has_ports(&mut self, bridge: u32) -> io::Result<bool> {
        let mut query = LinkMessage::default();
        query.attributes.push(LinkAttribute::Controller(bridge));
        let mut found = false;
        self.query(RouteNetlinkMessage::GetLink(query), NLM_F_DUMP, |answer| {
            // Older kernels ignore the filter.
            found |= matches!(answer, RouteNetlinkMessage::NewLink(link)
                if link.attributes.contains(&LinkAttribute::Controller(bridge)));
        })?;
        Ok(found)
    }

    /// Whether the link has the address. Hosts have few of them: the other ends of veth pairs have none.
    pub fn has_address(&mut self, link: u32, ip: IpAddr) -> io::Result<bool> {
        let mut query = AddressMessage::default();
        // The kernel tells one of IPv6 as that of the link, which for IPv4 is the peer's.
        let (family, local) = match ip {
            IpAddr::V4(_) => (AddressFamily::Inet, AddressAttribute::Local(ip)),
            IpAddr::V6(_) => (AddressFamily::Inet6, AddressAttribute::Address(ip)),
        };
        query.header.family = family;
        let mut found = false;
        self.query(RouteNetlinkMessage::GetAddress(query), NLM_F_DUMP, |answer| {
            found |= matches!(answer, RouteNetlinkMessage::NewAddress(address)
                if address.header.index == link && address.attributes.contains(&local));
        })?;
        Ok(found)
    }

    fn query(
        &mut self,
        query: RouteNetlinkMessage,
        flags: u16,
        mut each: impl FnMut(RouteNetlinkMessage),
    ) -> io::Result<()> {
        let mut bytes = Vec::new();
        // A dump ends by itself; one answer is ended by the acknowledgement.
        let ack = if flags & NLM_F_DUMP == 0 { NLM_F_ACK } else { 0 };
        self.put(&mut bytes, query, NLM_F_REQUEST | ack | flags);
        self.socket.send_to(&bytes, &SocketAddr::new(0, 0), 0)?;
        let (sequence, mut done) = (self.sequence, false);
        while !done {
            self.receive(|header, payload| {
                if header.sequence_number != sequence {
                    return Ok(());
                }
                match payload {
                    NetlinkPayload::InnerMessage(answer) => each(answer),
                    NetlinkPayload::Done(_) => done = true,
                    NetlinkPayload::Error(answer) => {
                        done = true;
                        if answer.code.is_some() {
                            return Err(answer.to_io());
                        }
                    }
                    _ => {}
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    fn put(&mut self, bytes: &mut Vec<u8>, message: RouteNetlinkMessage, flags: u16) {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        message.finalize();
        let start = bytes.len();
        // Messages begin at multiples of 4 (NLMSG_ALIGN).
        bytes.resize(start + message.buffer_len().next_multiple_of(4), 0);
        message.serialize(&mut bytes[start..start + message.header.length as usize]);
    }

    fn receive(
        &self,
        mut each: impl FnMut(NetlinkHeader, NetlinkPayload<RouteNetlinkMessage>) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut answer = Vec::with_capacity(ANSWER_BYTES);
        loop {
            match self.socket.recv_from(&mut answer, 0) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                other => other?,
            };
            break;
        }
        let mut rest = answer.as_slice();
        while !rest.is_empty() {
            let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string()))?;
            let length = (message.header.length as usize).next_multiple_of(4);
            let (header, payload) = message.into_parts();
            each(header, payload)?;
            rest = rest.get(length..).unwrap_or_default();
        }
        Ok(())
    }
}

//! Messages of nf_tables: what is asked and changed without `nft`, since that costs some milliseconds.

use std::io;

use rtnetlink::sys::protocols::NETLINK_NETFILTER;
use rtnetlink::sys::{Socket, SocketAddr};
use rustix::net::sockopt::set_socket_send_buffer_size_force;

/// Messages and attributes of nfnetlink and nf_tables (linux/netfilter/nfnetlink.h, nf_tables.h).
const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;
const NFT_MSG_GETTABLE: u16 = 1;
const NFT_MSG_DELTABLE: u16 = 2;
const NFT_MSG_NEWSETELEM: u16 = 12;
const NFT_MSG_DELSETELEM: u16 = 14;
const NFTA_TABLE_NAME: u16 = 1;
const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
const NFTA_SET_ELEM_LIST_SET: u16 = 2;
const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_SET_ELEM_KEY: u16 = 1;
const NFTA_SET_ELEM_DATA: u16 = 2;
const NFTA_DATA_VALUE: u16 = 1;
pub(super) const NLA_F_NESTED: u16 = 1 << 15;
pub(super) const NLMSG_ERROR: u16 = 2;
pub(super) const NLM_F_REQUEST: u16 = 1;
pub(super) const NLM_F_ACK: u16 = 4;
const NLM_F_CREATE: u16 = 0x400;
/// The family whose tables see IPv4 and IPv6.
const NFPROTO_INET: u8 = 1;

/// Requests up to this size fit whatever a host has for a socket's default (`net.core.wmem_default`: 208 KiB).
const PLAIN_REQUEST_BYTES: usize = 16 << 10;
/// Room for one answer.
const ANSWER_BYTES: usize = 16 << 10;

/// An element of a map: where a published port leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Element {
    pub map: &'static str,
    /// Each part padded to 4 bytes, as the kernel keeps a concatenation.
    pub key: Vec<u8>,
    pub value: Vec<u8>,
}

/// What is to be done with an element.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    Add,
    Delete,
}

/// The kernel's description of the table; `None` if there is none.
pub(super) fn table(name: &str) -> io::Result<Option<Vec<u8>>> {
    let mut message = Message::new(nftables(NFT_MSG_GETTABLE), NLM_F_REQUEST, NFPROTO_INET, 0);
    message.text(NFTA_TABLE_NAME, name);
    let (kind, answer) = exchange(&message.finish())?;
    if kind != NLMSG_ERROR {
        return Ok(Some(answer));
    }
    match error_of(&answer) {
        Some(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Some(e) => Err(e),
        None => Ok(None),
    }
}

pub(super) fn delete_table(name: &str) -> io::Result<()> {
    let mut message = Message::new(nftables(NFT_MSG_DELTABLE), NLM_F_REQUEST | NLM_F_ACK, NFPROTO_INET, 0);
    message.text(NFTA_TABLE_NAME, name);
    commit(vec![message])
}

/// Adds or deletes elements, all or none. To add one that is there with the same value is no error.
pub(super) fn change(table: &str, elements: &[Element], change: Change) -> io::Result<()> {
    let count = elements.len();
    let messages = elements.iter().enumerate().map(|(index, element)| {
        // One acknowledgement is enough; failures are told in any case.
        let ack = if index + 1 == count { NLM_F_ACK } else { 0 };
        let (kind, flags) = match change {
            Change::Add => (NFT_MSG_NEWSETELEM, NLM_F_CREATE),
            Change::Delete => (NFT_MSG_DELSETELEM, 0),
        };
        let mut message = Message::new(nftables(kind), NLM_F_REQUEST | ack | flags, NFPROTO_INET, 0);
        message.text(NFTA_SET_ELEM_LIST_TABLE, table);
        message.text(NFTA_SET_ELEM_LIST_SET, element.map);
        message.nest(NFTA_SET_ELEM_LIST_ELEMENTS, |message| {
            message.nest(NFTA_LIST_ELEM, |message| {
                message.nest(NFTA_SET_ELEM_KEY, |message| message.bytes(NFTA_DATA_VALUE, &element.key));
                if change == Change::Add {
                    message.nest(NFTA_SET_ELEM_DATA, |message| message.bytes(NFTA_DATA_VALUE, &element.value));
                }
            });
        });
        message
    });
    commit(messages.collect())
}

fn nftables(kind: u16) -> u16 {
    (NFNL_SUBSYS_NFTABLES << 8) | kind
}

/// Sends messages as one transaction.
fn commit(messages: Vec<Message>) -> io::Result<()> {
    if messages.is_empty() {
        return Ok(());
    }
    let mut request = Message::new(NFNL_MSG_BATCH_BEGIN, NLM_F_REQUEST, 0, NFNL_SUBSYS_NFTABLES).finish();
    for message in messages {
        request.extend(message.finish());
    }
    request.extend(Message::new(NFNL_MSG_BATCH_END, NLM_F_REQUEST, 0, NFNL_SUBSYS_NFTABLES).finish());
    let (_, answer) = exchange(&request)?;
    error_of(&answer).map_or(Ok(()), Err)
}

/// Sends a message of another part of netfilter than nf_tables, which knows no transactions, and waits for its answer.
pub(super) fn commit_plain(message: Message) -> io::Result<()> {
    let (_, answer) = exchange(&message.finish())?;
    error_of(&answer).map_or(Ok(()), Err)
}

/// One message: `nlmsghdr`, `nfgenmsg`, attributes.
pub(super) struct Message(Vec<u8>);

impl Message {
    pub fn new(kind: u16, flags: u16, family: u8, resource: u16) -> Self {
        let mut bytes = vec![0; 4];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend([0; 8]);
        bytes.extend([family, 0]);
        bytes.extend(resource.to_be_bytes());
        Self(bytes)
    }

    pub fn bytes(&mut self, kind: u16, value: &[u8]) {
        let length = 4 + value.len() as u16;
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn text(&mut self, kind: u16, value: &str) {
        self.bytes(kind, &[value.as_bytes(), &[0]].concat());
    }

    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.0.len();
        self.bytes(kind | NLA_F_NESTED, &[]);
        fill(self);
        let length = (self.0.len() - start) as u16;
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    }

    pub fn finish(mut self) -> Vec<u8> {
        let length = self.0.len() as u32;
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0
    }
}

/// Sends a request; type and content of the first answer.
fn exchange(request: &[u8]) -> io::Result<(u16, Vec<u8>)> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    if request.len() > PLAIN_REQUEST_BYTES {
        // A message must fit into the buffer with what the kernel needs beside it: some 2,800 elements did not.
        set_socket_send_buffer_size_force(&socket, request.len())?;
    }
    socket.send_to(request, &SocketAddr::new(0, 0), 0)?;
    let mut answer = Vec::with_capacity(ANSWER_BYTES);
    loop {
        match socket.recv_from(&mut answer, 0) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            other => other?,
        };
        break;
    }
    let header = answer.get(..16).ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
    let kind = u16::from_ne_bytes([header[4], header[5]]);
    Ok((kind, answer.split_off(16)))
}

/// The error in an `nlmsgerr`; `None` is success.
pub(super) fn error_of(answer: &[u8]) -> Option<io::Error> {
    match answer.first_chunk::<4>().map(|code| i32::from_ne_bytes(*code)) {
        Some(0) => None,
        Some(code) => Some(io::Error::from_raw_os_error(code.saturating_neg())),
        None => Some(io::Error::from(io::ErrorKind::UnexpectedEof)),
    }
}

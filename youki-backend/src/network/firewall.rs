//! The root's nft table.
//!
//! It is loaded whole, in one transaction, by `nft`. That costs some milliseconds, so whether it is there, and is the
//! one this version would load, is asked of the kernel directly: a digest of the rules stands in the table's comment.
//! Asked at each attach, since whoever flushes the host's rules takes ours along.

use std::io;
use std::io::Write;
use std::process::{Command, Stdio};

use memchr::memmem;
use rtnetlink::sys::protocols::NETLINK_NETFILTER;
use rtnetlink::sys::{Socket, SocketAddr};
use sha2::{Digest, Sha256};

use super::NetworkConfig;
use super::bridge::failed;
use crate::error::{Error, Result};
use crate::layout::hex;

/// Messages of nfnetlink and nf_tables (linux/netfilter/nfnetlink.h, nf_tables.h).
const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;
const NFT_MSG_GETTABLE: u16 = 1;
const NFT_MSG_DELTABLE: u16 = 2;
const NFTA_TABLE_NAME: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;

/// Loads the table unless it is there as it should be.
pub(super) fn ensure(config: &NetworkConfig) -> Result<()> {
    let rules = rules(config);
    let marker = hex(&Sha256::digest(&rules))[..24].to_owned();
    let now = get_table(&config.table).map_err(|e| failed(config, "asking for its firewall table", e))?;
    if now.is_some_and(|table| memmem::find(&table, marker.as_bytes()).is_some()) {
        return Ok(());
    }
    let table = &config.table;
    // Adding it first makes the deletion succeed when there was none. All or nothing: nft commits once.
    load(
        config,
        &format!(
            "table ip {table}\ndelete table ip {table}\ntable ip {table} {{\n\tcomment \"berth {marker}\"\n{rules}}}\n"
        ),
    )
}

/// Deletes the table; there may be none.
pub(super) fn remove(config: &NetworkConfig) -> Result<()> {
    match delete_table(&config.table) {
        Err(e) if e.raw_os_error() != Some(libc::ENOENT) => Err(failed(config, "deleting its firewall table", e)),
        _ => Ok(()),
    }
}

/// What leaves the subnet by another interface carries the host's address. Into the bridge come answers only, and what
/// was sent to a published port: a neighbour of the host that knows the subnet does not reach the containers. A host
/// whose other rules drop forwarded packets drops ours too: an accept here does not overrule them.
fn rules(config: &NetworkConfig) -> String {
    let (bridge, subnet) = (&config.bridge, config.subnet);
    format!(
        "\tchain postrouting {{
\t\ttype nat hook postrouting priority srcnat; policy accept;
\t\tip saddr {subnet} ip daddr != {subnet} ip daddr != 224.0.0.0/4 oifname != \"{bridge}\" masquerade
\t}}
\tchain forward {{
\t\ttype filter hook forward priority filter; policy accept;
\t\tiifname \"{bridge}\" accept
\t\toifname \"{bridge}\" ct state established,related accept
\t\toifname \"{bridge}\" ct status dnat accept
\t\toifname \"{bridge}\" drop
\t}}
"
    )
}

fn load(config: &NetworkConfig, text: &str) -> Result<()> {
    let network = |what: String, source: Option<io::Error>| Error::Network {
        network: config.bridge.clone(),
        what,
        source: source.map(|e| Box::new(e) as _),
    };
    let mut nft = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| network("nft cannot be run; it is in the package nftables".to_owned(), Some(e)))?;
    if let Some(mut stdin) = nft.stdin.take() {
        // If it does not read it, it says why.
        let _ = stdin.write_all(text.as_bytes());
    }
    let output = nft.wait_with_output().map_err(|e| network("nft was lost".to_owned(), Some(e)))?;
    if !output.status.success() {
        let reason = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(network(format!("nft refused its table ({}): {reason}", output.status), None));
    }
    Ok(())
}

/// The kernel's description of the table; `None` if there is none.
fn get_table(name: &str) -> io::Result<Option<Vec<u8>>> {
    let mut request = Vec::new();
    put(
        &mut request,
        (NFNL_SUBSYS_NFTABLES << 8) | NFT_MSG_GETTABLE,
        NLM_F_REQUEST,
        libc::NFPROTO_IPV4 as u8,
        0,
        Some(name),
    );
    let (kind, answer) = exchange(&request)?;
    if kind != NLMSG_ERROR {
        return Ok(Some(answer));
    }
    match error_of(&answer) {
        Some(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Some(e) => Err(e),
        None => Ok(None),
    }
}

fn delete_table(name: &str) -> io::Result<()> {
    let mut request = Vec::new();
    put(&mut request, NFNL_MSG_BATCH_BEGIN, NLM_F_REQUEST, 0, NFNL_SUBSYS_NFTABLES, None);
    let delete = (NFNL_SUBSYS_NFTABLES << 8) | NFT_MSG_DELTABLE;
    put(&mut request, delete, NLM_F_REQUEST | NLM_F_ACK, libc::NFPROTO_IPV4 as u8, 0, Some(name));
    put(&mut request, NFNL_MSG_BATCH_END, NLM_F_REQUEST, 0, NFNL_SUBSYS_NFTABLES, None);
    let (_, answer) = exchange(&request)?;
    error_of(&answer).map_or(Ok(()), Err)
}

/// Appends one message: `nlmsghdr`, `nfgenmsg`, and the table's name as its one attribute.
fn put(request: &mut Vec<u8>, kind: u16, flags: u16, family: u8, resource: u16, table: Option<&str>) {
    let start = request.len();
    request.extend([0; 4]);
    request.extend(kind.to_ne_bytes());
    request.extend(flags.to_ne_bytes());
    request.extend([0; 8]);
    request.extend([family, 0]);
    request.extend(resource.to_be_bytes());
    if let Some(name) = table {
        let length = 4 + name.len() as u16 + 1;
        request.extend(length.to_ne_bytes());
        request.extend(NFTA_TABLE_NAME.to_ne_bytes());
        request.extend(name.as_bytes());
        request.push(0);
    }
    let length = (request.len() - start) as u32;
    request[start..start + 4].copy_from_slice(&length.to_ne_bytes());
    request.resize(request.len().next_multiple_of(4), 0);
}

/// Sends a request; type and content of the first answer.
fn exchange(request: &[u8]) -> io::Result<(u16, Vec<u8>)> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.send_to(request, &SocketAddr::new(0, 0), 0)?;
    let mut answer = Vec::with_capacity(16 << 10);
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
fn error_of(answer: &[u8]) -> Option<io::Error> {
    match answer.first_chunk::<4>().map(|code| i32::from_ne_bytes(*code)) {
        Some(0) => None,
        Some(code) => Some(io::Error::from_raw_os_error(code.saturating_neg())),
        None => Some(io::Error::from(io::ErrorKind::UnexpectedEof)),
    }
}

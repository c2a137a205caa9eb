//! The root's nft table, `inet berth_<tag>`: the only one that Berth ever touches.
//!
//! Its rules follow from the root's networks. They are loaded whole, in one transaction, by `nft`; a digest of them
//! stands in the table's comment, and is asked for at each attach, since whoever flushes the host's rules takes ours
//! along. Published ports are elements of its maps: one lookup however many there are, and a container's are added and
//! deleted in one transaction of their own, without `nft`.
//!
//! A host whose other rules drop forwarded packets (docker's do) drops ours too: an accept here does not overrule them.

mod conntrack;
mod kernel;
mod nft;

use std::fmt::Write as _;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::Command;

use memchr::memmem;
use runtime_core::spec::PortProtocol;
use sha2::{Digest, Sha256};

use super::definition::{Definition, Place};
use super::ports::Reservation;
use crate::error::{Error, Result};
use crate::layout::hex;
use conntrack::Since;
use kernel::{Change, Element};

/// Loads the table unless it is there as it should be. The lock on the ports is held, so that none is published or
/// taken back while they are read.
pub(super) fn ensure(place: &Place, reservations: impl FnOnce() -> Result<Vec<Reservation>>) -> Result<()> {
    let rules = rules(&place.all()?);
    let marker = marker(&rules);
    let now = kernel::table(&place.table).map_err(|e| failed(place, "asking for it failed", Some(e)))?;
    if now.is_some_and(|table| memmem::find(&table, marker.as_bytes()).is_some()) {
        return Ok(());
    }
    load(place, &rules, &marker, &reservations()?)
}

/// The same, but only if there is a table.
pub(super) fn refresh(place: &Place, reservations: impl FnOnce() -> Result<Vec<Reservation>>) -> Result<()> {
    match kernel::table(&place.table).map_err(|e| failed(place, "asking for it failed", Some(e)))? {
        Some(_) => ensure(place, reservations),
        None => Ok(()),
    }
}

/// Loads the table, whatever is there.
pub(super) fn reload(place: &Place, reservations: &[Reservation]) -> Result<()> {
    let rules = rules(&place.all()?);
    load(place, &rules, &marker(&rules), reservations)
}

/// Opens a container's ports.
pub(super) fn publish(place: &Place, reservation: &Reservation) -> io::Result<()> {
    kernel::change(&place.table, &elements(reservation), Change::Add)?;
    conntrack::forget(reservation, Since::Opened);
    Ok(())
}

/// Elements that are deleted in a transaction each, which takes milliseconds, where some of them are missing.
const MAX_ONE_BY_ONE: usize = 64;

/// Closes a container's ports. One that is not open is closed; an error where many are not: the table is to be loaded anew.
pub(super) fn unpublish(place: &Place, reservation: &Reservation) -> Result<()> {
    let elements = elements(reservation);
    let gone = |e: &io::Error| e.raw_os_error() == Some(libc::ENOENT);
    let closed = match kernel::change(&place.table, &elements, Change::Delete) {
        Err(e) if gone(&e) && elements.len() <= MAX_ONE_BY_ONE => {
            // One at a time: what is missing must not keep the rest.
            for element in elements {
                match kernel::change(&place.table, &[element], Change::Delete) {
                    Err(e) if !gone(&e) => return Err(failed(place, "closing a port failed", Some(e))),
                    _ => {}
                }
            }
            Ok(())
        }
        other => other.map_err(|e| failed(place, "closing ports failed", Some(e))),
    };
    conntrack::forget(reservation, Since::Closed);
    closed
}

/// Deletes the table; there may be none.
pub(super) fn remove(place: &Place) -> Result<()> {
    match kernel::delete_table(&place.table) {
        Err(e) if e.raw_os_error() != Some(libc::ENOENT) => Err(failed(place, "deleting it failed", Some(e))),
        _ => Ok(()),
    }
}

fn failed(place: &Place, what: &str, source: Option<io::Error>) -> Error {
    Error::Network {
        network: format!("nft table {}", place.table),
        what: what.to_owned(),
        source: source.map(|e| Box::new(e) as _),
    }
}

fn marker(rules: &str) -> String {
    hex(&Sha256::digest(rules))[..24].to_owned()
}

/// The rules of all networks.
///
/// - What leaves a subnet by another interface carries the host's address; so does what a container sends to a
///   published port of its own network, whose answer would else not come back the same way, and what the host sends
///   from its loopback.
/// - Nothing goes from an internal network's bridge to another interface or comes in by one, whatever others publish:
///   these rules come before those that let anything through.
/// - Into any other bridge come answers, neighbours, and what was sent to a published port: a neighbour of the host that
///   knows the subnet does not reach the containers, and networks do not reach each other.
/// - Published ports are those of the host's addresses only. The loopback's are for the host alone: with
///   `route_localnet` on the bridge, others could else send to them.
fn rules(networks: &[Definition]) -> String {
    let mut text = String::new();
    for (family, address) in [("4", "ipv4_addr"), ("6", "ipv6_addr")] {
        for protocol in ["tcp", "udp"] {
            text += &format!("\tmap {protocol}{family} {{ type inet_service : {address} . inet_service; }}\n");
            text += &format!(
                "\tmap {protocol}{family}_at {{ type {address} . inet_service : {address} . inet_service; }}\n"
            );
        }
    }
    text += "\tchain publish {\n";
    for (family, ip) in [("4", "ip"), ("6", "ip6")] {
        for protocol in ["tcp", "udp"] {
            text += &format!(
                "\t\tmeta nfproto ipv{family} meta l4proto {protocol} \
                 dnat {ip} to {ip} daddr . {protocol} dport map @{protocol}{family}_at\n\
                 \t\tmeta nfproto ipv{family} meta l4proto {protocol} \
                 dnat {ip} to {protocol} dport map @{protocol}{family}\n"
            );
        }
    }
    text += "\t}\n\
        \tchain prerouting {\n\t\ttype nat hook prerouting priority dstnat; policy accept;\n\
        \t\tiifname != \"lo\" ip daddr 127.0.0.0/8 return\n\t\tfib daddr type local jump publish\n\t}\n\
        \tchain output {\n\t\ttype nat hook output priority -100; policy accept;\n\
        \t\tip6 daddr ::1 return\n\t\tfib daddr type local jump publish\n\t}\n";
    let (mut raw, mut postrouting) = (String::new(), String::new());
    let (mut closed, mut forward) = (String::new(), String::new());
    for Definition { bridge, subnet, subnet6, internal, .. } in networks {
        // Writing to a String cannot fail.
        let _ = writeln!(raw, "\t\tiifname \"{bridge}\" ip daddr 127.0.0.0/8 drop");
        let mut out = |ip: &str, subnet: String, multicast: &str| {
            if !internal {
                let _ = writeln!(
                    postrouting,
                    "\t\t{ip} saddr {subnet} {ip} daddr != {subnet} {ip} daddr != {multicast} oifname != \"{bridge}\" \
                     masquerade\n\
                     \t\t{ip} saddr {subnet} oifname \"{bridge}\" ct status dnat masquerade"
                );
            }
        };
        out("ip", subnet.to_string(), "224.0.0.0/4");
        if let Some(subnet6) = subnet6 {
            out("ip6", subnet6.to_string(), "ff00::/8");
        }
        if *internal {
            let _ = writeln!(
                closed,
                "\t\tiifname \"{bridge}\" oifname != \"{bridge}\" drop\n\
                 \t\tiifname != \"{bridge}\" oifname \"{bridge}\" drop"
            );
        } else {
            let _ = writeln!(postrouting, "\t\tip saddr 127.0.0.0/8 oifname \"{bridge}\" ct status dnat masquerade");
            let _ = writeln!(
                forward,
                "\t\tiifname \"{bridge}\" oifname \"{bridge}\" accept\n\
                 \t\toifname \"{bridge}\" ct state established,related accept\n\
                 \t\toifname \"{bridge}\" ct status dnat accept\n\
                 \t\toifname \"{bridge}\" drop"
            );
        }
    }
    text + &format!(
        "\tchain raw {{\n\t\ttype filter hook prerouting priority raw; policy accept;\n{raw}\t}}\n\
         \tchain postrouting {{\n\t\ttype nat hook postrouting priority srcnat; policy accept;\n{postrouting}\t}}\n\
         \tchain forward {{\n\t\ttype filter hook forward priority filter; policy accept;\n{closed}{forward}\t}}\n"
    )
}

/// A container's ports as elements of the maps.
fn elements(reservation: &Reservation) -> Vec<Element> {
    let mut elements = Vec::new();
    let padded = |port: u16| [port.to_be_bytes(), [0; 2]].concat();
    for mapping in &reservation.ports {
        let Some(host_port) = mapping.host_port else { continue };
        let host_ip: Option<IpAddr> = mapping.host_ip.as_ref().and_then(|ip| ip.parse().ok());
        let mut add = |any: &'static str, at: &'static str, host: Option<Vec<u8>>, target: Vec<u8>| {
            let value = [target, padded(mapping.container_port)].concat();
            elements.push(match host {
                None => Element { map: any, key: host_port.to_be_bytes().to_vec(), value },
                Some(host) => Element { map: at, key: [host, padded(host_port)].concat(), value },
            });
        };
        let udp = mapping.protocol == PortProtocol::Udp;
        if let Some(ip) = reservation.ip {
            let (any, at) = if udp { ("udp4", "udp4_at") } else { ("tcp4", "tcp4_at") };
            match host_ip {
                None | Some(IpAddr::V4(Ipv4Addr::UNSPECIFIED)) => add(any, at, None, ip.octets().to_vec()),
                Some(IpAddr::V4(host)) => add(any, at, Some(host.octets().to_vec()), ip.octets().to_vec()),
                Some(IpAddr::V6(_)) => {}
            }
        }
        if let Some(ip) = reservation.ip6 {
            let (any, at) = if udp { ("udp6", "udp6_at") } else { ("tcp6", "tcp6_at") };
            match host_ip {
                None | Some(IpAddr::V6(Ipv6Addr::UNSPECIFIED)) => add(any, at, None, ip.octets().to_vec()),
                Some(IpAddr::V6(host)) => add(any, at, Some(host.octets().to_vec()), ip.octets().to_vec()),
                Some(IpAddr::V4(_)) => {}
            }
        }
    }
    elements
}

fn load(place: &Place, rules: &str, marker: &str, reservations: &[Reservation]) -> Result<()> {
    let table = &place.table;
    // Adding it first makes the deletion succeed when there was none. All or nothing: nft commits once.
    let mut text = format!(
        "table inet {table}\ndelete table inet {table}\ntable inet {table} {{\n\tcomment \"berth {marker}\"\n{rules}}}\n"
    );
    for element in reservations.iter().flat_map(elements) {
        let (key, value) = (written(&element.key), written(&element.value));
        let _ = writeln!(text, "add element inet {table} {} {{ {key} : {value} }}", element.map);
    }
    let (status, said) = nft::run(Command::new("nft").args(["-f", "-"]), &text, nft::PATIENCE).map_err(|e| {
        let what = if e.kind() == io::ErrorKind::TimedOut {
            "nft hangs"
        } else {
            "nft cannot be run; it is in the package nftables"
        };
        failed(place, what, Some(e))
    })?;
    if !status.success() {
        return Err(failed(place, &format!("nft refused it ({status}): {said}"), None));
    }
    Ok(())
}

/// A key or value as nft writes it: a port, or an address and a port.
fn written(bytes: &[u8]) -> String {
    let port = |at: usize| bytes.get(at..at + 2).map_or(0, |port| u16::from_be_bytes([port[0], port[1]]));
    match (bytes.first_chunk::<16>(), bytes.first_chunk::<4>()) {
        (Some(ip), _) => format!("{} . {}", Ipv6Addr::from(*ip), port(16)),
        (None, Some(ip)) => format!("{} . {}", Ipv4Addr::from(*ip), port(4)),
        (None, None) => port(0).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_closes_internal_networks_comes_before_all_that_lets_through() {
        let network = |bridge: &str, internal| Definition {
            internal,
            ..Definition::default_network(bridge, "10.0.0.0/24".parse().unwrap())
        };
        let rules = rules(&[network("open", false), network("inner", true), network("other", false)]);
        let (_, forward) = rules.split_once("chain forward").unwrap();
        let drops = ["iifname \"inner\" oifname != \"inner\" drop", "iifname != \"inner\" oifname \"inner\" drop"];
        let first_accept = forward.find("\" accept").unwrap().min(forward.find("dnat accept").unwrap());
        for drop in drops {
            assert!(forward.find(drop).unwrap() < first_accept, "{forward}");
        }
    }
}

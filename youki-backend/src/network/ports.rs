//! Ports of the host that containers have.
//!
//! ```text
//! <run>/ports/.lock         flock'ed by whoever changes anything here, or the firewall's maps
//! <run>/ports/web-rep-0     what web-rep-0 has
//! ```
//! A container's file appears whole, by rename, before its ports are opened, and goes after they are closed. So whoever
//! loads the firewall anew finds all of them here. A port is a container's while it runs: one that ended holds none,
//! whether or not somebody was there to close it.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use runtime_core::PortMapping;
use runtime_core::spec::PortProtocol;
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use super::definition::Place;
use super::{Lease, firewall, lease, sockets};
use crate::error::{Error, Result};
use crate::record;

const LOCK: &str = ".lock";
/// Free ports that the kernel offers and another container has; then it is given up.
const MAX_OFFERS: usize = 256;

/// What a container has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Reservation {
    /// With the host's port of each.
    pub ports: Vec<PortMapping>,
    /// Where they lead; nowhere for a container in the host's network.
    pub ip: Option<Ipv4Addr>,
    pub ip6: Option<Ipv6Addr>,
}

/// What is asked for.
pub(crate) struct PortRequest<'a> {
    pub id: &'a str,
    pub wanted: &'a [PortMapping],
    /// What it had in an earlier attempt: ephemeral ports are these again, if they are free.
    pub earlier: &'a [PortMapping],
    pub lease: Option<&'a Lease>,
    /// Whether a container has ended, and so holds its ports no more.
    pub ended: &'a dyn Fn(&str) -> bool,
}

/// Checks a spec's mappings as far as the host does not matter.
pub(super) fn check(mappings: &[PortMapping]) -> Result<()> {
    for (index, mapping) in mappings.iter().enumerate() {
        let wrong = |field: &str, reason: &str| Error::invalid(format!("port_mappings[{index}].{field}"), reason);
        if mapping.container_port == 0 {
            return Err(wrong("container_port", "there is no port 0"));
        }
        host_ip(mapping, index)?;
        let same = |other: &PortMapping| mapping.host_port.is_some_and(|port| port != 0) && clash(mapping, other);
        if mappings[..index].iter().any(same) {
            return Err(wrong("host_port", "it is asked for twice"));
        }
    }
    Ok(())
}

/// Reserves ports for a container, and tells which they are. They are opened by [`open`].
pub(super) fn reserve(place: &Place, request: &PortRequest<'_>) -> Result<Vec<PortMapping>> {
    if request.wanted.is_empty() {
        close(place, request.id)?;
        return Ok(Vec::new());
    }
    check(request.wanted)?;
    let v6 = request.lease.map_or(request.lease.is_none(), |lease| lease.v6.is_some());
    let _lock = lock(place)?;
    let mut others = all(place)?;
    others.retain(|(holder, _)| holder != request.id);
    let mut got: Vec<PortMapping> = Vec::new();
    for (index, wanted) in request.wanted.iter().enumerate() {
        let addresses = addresses(host_ip(wanted, index)?, v6).ok_or_else(|| {
            Error::invalid(format!("port_mappings[{index}].host_ip"), "the container's network has no IPv6")
        })?;
        let mapping = match wanted.host_port.filter(|port| *port != 0) {
            Some(_) => {
                while let Some(holder) = holder(&others, wanted) {
                    if !(request.ended)(&holder) {
                        return Err(taken(wanted, format!("container {holder}")));
                    }
                    close_locked(place, &holder)?;
                    others.retain(|(other, _)| *other != holder);
                }
                try_bind(wanted, &addresses, index)?;
                wanted.clone()
            }
            None => {
                let earlier = request.earlier.get(index).and_then(|earlier| earlier.host_port);
                let again = PortMapping { host_port: earlier, ..wanted.clone() };
                while let Some(holder) = holder(&others, &again).filter(|holder| (request.ended)(holder)) {
                    close_locked(place, &holder)?;
                    others.retain(|(other, _)| *other != holder);
                }
                ephemeral(wanted, earlier, &addresses, &others, &got, index)?
            }
        };
        got.push(mapping);
    }
    let reservation = Reservation {
        ports: got.clone(),
        ip: request.lease.map(|lease| lease.ip),
        ip6: request.lease.and_then(|lease| lease.v6.as_ref()).map(|v6| v6.ip),
    };
    record::write(&place.ports().join(request.id), &reservation)?;
    Ok(got)
}

/// Opens what is reserved for `id`, and sees to it that the firewall is there.
pub(super) fn open(place: &Place, id: &str) -> Result<()> {
    let _lock = lock(place)?;
    let read = || Ok(all(place)?.into_iter().map(|(_, reservation)| reservation).collect());
    firewall::ensure(place, read)?;
    let Some(reservation) = record::read::<Reservation>(&place.ports().join(id))? else { return Ok(()) };
    match firewall::publish(place, &reservation) {
        Ok(()) => Ok(()),
        // A port leads elsewhere still, or a map is gone: loaded anew, all is as the files say.
        Err(error) => {
            tracing::debug!(container = id, %error, "loading the firewall anew");
            let all = all(place)?.into_iter().map(|(_, reservation)| reservation).collect::<Vec<_>>();
            firewall::reload(place, &all)
        }
    }
}

/// Closes what `id` has, and gives it back.
pub(super) fn close(place: &Place, id: &str) -> Result<()> {
    if !place.ports().join(id).exists() {
        return Ok(());
    }
    let _lock = lock(place)?;
    close_locked(place, id)
}

/// Closes the ports of whoever is not `known`.
pub(super) fn reconcile(place: &Place, known: &dyn Fn(&str) -> bool) -> Result<()> {
    if !place.ports().exists() {
        return Ok(());
    }
    let _lock = lock(place)?;
    for (holder, _) in all(place)? {
        if !known(&holder) {
            close_locked(place, &holder)?;
        }
    }
    Ok(())
}

/// Loads the firewall anew if its rules are no longer those of the root's networks.
pub(super) fn refresh(place: &Place) -> Result<()> {
    let _lock = lock(place)?;
    firewall::refresh(place, || Ok(all(place)?.into_iter().map(|(_, reservation)| reservation).collect()))
}

/// Loads the firewall anew, with all ports.
pub(super) fn reload(place: &Place) -> Result<()> {
    let _lock = lock(place)?;
    let all = all(place)?.into_iter().map(|(_, reservation)| reservation).collect::<Vec<_>>();
    firewall::reload(place, &all)
}

fn close_locked(place: &Place, id: &str) -> Result<()> {
    let path = place.ports().join(id);
    if let Some(reservation) = record::read::<Reservation>(&path)? {
        firewall::unpublish(place, &reservation)?;
    }
    match fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("removing", path)(e)),
        _ => Ok(()),
    }
}

pub(super) fn lock(place: &Place) -> Result<fs::File> {
    lease::lock(&place.ports(), LOCK, FlockOperation::LockExclusive)
}

fn all(place: &Place) -> Result<Vec<(String, Reservation)>> {
    let dir = place.ports();
    let mut found = Vec::new();
    for entry in fs::read_dir(&dir).map_err(Error::io("listing", &dir))? {
        let name = entry.map_err(Error::io("listing", &dir))?.file_name();
        // What is left of a write that was cut off ends otherwise.
        if let Some(name) = name.to_str().filter(|name| name.contains("-rep-") && !name.contains(".tmp"))
            && let Some(reservation) = record::read(&dir.join(name))?
        {
            found.push((name.to_owned(), reservation));
        }
    }
    Ok(found)
}

/// A port that the kernel says is free and nobody has.
fn ephemeral(
    wanted: &PortMapping,
    earlier: Option<u16>,
    addresses: &[IpAddr],
    others: &[(String, Reservation)],
    got: &[PortMapping],
    index: usize,
) -> Result<PortMapping> {
    let with = |port: u16| PortMapping { host_port: Some(port), ..wanted.clone() };
    let free =
        |mapping: &PortMapping| holder(others, mapping).is_none() && !got.iter().any(|other| clash(mapping, other));
    if let Some(mapping) = earlier.map(with).filter(|mapping| free(mapping))
        && try_bind(&mapping, addresses, index).is_ok()
    {
        return Ok(mapping);
    }
    for _ in 0..MAX_OFFERS {
        let first = addresses.first().copied().unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let port =
            sockets::bind(wanted.protocol, first, 0).map_err(|error| cannot_bind(wanted, index, first, error))?;
        let mapping = with(port);
        if free(&mapping) && try_bind(&mapping, addresses, index).is_ok() {
            return Ok(mapping);
        }
    }
    Err(taken(wanted, "every port that was tried".to_owned()))
}

fn try_bind(mapping: &PortMapping, addresses: &[IpAddr], index: usize) -> Result<()> {
    for address in addresses {
        sockets::bind(mapping.protocol, *address, mapping.host_port.unwrap_or(0))
            .map_err(|error| cannot_bind(mapping, index, *address, error))?;
    }
    Ok(())
}

fn cannot_bind(mapping: &PortMapping, index: usize, address: IpAddr, error: io::Error) -> Error {
    match error.raw_os_error() {
        Some(libc::EADDRINUSE) => {
            let owner = mapping.host_port.and_then(|port| sockets::owner(mapping.protocol, address, port));
            taken(mapping, owner.unwrap_or_else(|| "a socket of the host that does not listen".to_owned()))
        }
        Some(libc::EADDRNOTAVAIL) => {
            let reason = format!("{address} is no address of this host");
            Error::invalid(format!("port_mappings[{index}].host_ip"), reason)
        }
        _ => Error::Io { action: "binding", path: spelled(mapping).into(), source: error },
    }
}

fn taken(mapping: &PortMapping, owner: String) -> Error {
    Error::PortTaken { port: spelled(mapping), owner }
}

/// As `127.0.0.1:80/tcp`.
fn spelled(mapping: &PortMapping) -> String {
    let host = mapping.host_ip.as_deref().unwrap_or("0.0.0.0");
    let protocol = match mapping.protocol {
        PortProtocol::Tcp => "tcp",
        PortProtocol::Udp => "udp",
    };
    format!("{host}:{}/{protocol}", mapping.host_port.unwrap_or(0))
}

fn holder(others: &[(String, Reservation)], mapping: &PortMapping) -> Option<String> {
    let has = |reservation: &Reservation| reservation.ports.iter().any(|other| clash(mapping, other));
    others.iter().find(|(_, reservation)| has(reservation)).map(|(holder, _)| holder.clone())
}

/// Whether both would be at one port of one address.
fn clash(one: &PortMapping, other: &PortMapping) -> bool {
    let ip = |mapping: &PortMapping| mapping.host_ip.as_ref().and_then(|ip| ip.parse::<IpAddr>().ok());
    let meet = match (ip(one), ip(other)) {
        (Some(one), Some(other)) => {
            one == other || one.is_ipv4() == other.is_ipv4() && (one.is_unspecified() || other.is_unspecified())
        }
        _ => true,
    };
    one.protocol == other.protocol && one.host_port == other.host_port && meet
}

fn host_ip(mapping: &PortMapping, index: usize) -> Result<Option<IpAddr>> {
    let Some(text) = mapping.host_ip.as_deref().filter(|text| !text.is_empty()) else { return Ok(None) };
    text.parse()
        .map(Some)
        .map_err(|_| Error::invalid(format!("port_mappings[{index}].host_ip"), format!("{text:?} is not an address")))
}

/// The addresses that the host must have the port free at; `None` if the network cannot be reached there.
fn addresses(host_ip: Option<IpAddr>, v6: bool) -> Option<Vec<IpAddr>> {
    let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    match host_ip {
        None if v6 && sockets::has_ipv6() => Some(vec![any, IpAddr::V6(Ipv6Addr::UNSPECIFIED)]),
        None => Some(vec![any]),
        Some(IpAddr::V6(_)) if !v6 => None,
        Some(ip) => Some(vec![ip]),
    }
}

//! Ports of the host that containers have.
//!
//! ```text
//! <run>/ports/.lock         flock'ed by whoever changes anything here, or the firewall's maps
//! <run>/ports/web-rep-0     what web-rep-0 has
//! ```
//! A container's file appears whole, by rename, before its ports are opened, and goes after they are closed. So whoever
//! loads the firewall anew finds all of them here. A port is a container's while it runs: one that ended holds none,
//! whether or not somebody was there to close it. Meanwhile its supervisor holds a socket at each of them, so that no
//! process of the host takes it: what is sent there is led to the container before any socket is looked for.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;

use runtime_core::spec::PortProtocol;
use runtime_core::{PortMapping, ServiceSpec};
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use super::definition::Place;
use super::{Lease, firewall, lease, sockets};
use crate::error::{Error, Result};
use crate::record;

const LOCK: &str = ".lock";
/// Free ports that the kernel offers and another container has; then it is given up.
const MAX_OFFERS: usize = 256;
/// Sockets that are held for a container; it may have more ports, which then are only checked to be free. One message
/// takes up to 253 descriptors along.
pub(crate) const MAX_HELD_SOCKETS: usize = 128;
/// Ports that an image may expose to be published all together: servers have a handful, `EXPOSE 1-65535` is a mistake.
const MAX_EXPOSED: usize = 1024;

/// What a container has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Reservation {
    /// With the host's port of each.
    pub ports: Vec<PortMapping>,
    /// Where they lead; nowhere for a container in the host's network.
    pub ip: Option<Ipv4Addr>,
    pub ip6: Option<Ipv6Addr>,
}

/// A port that is asked for.
#[derive(Debug, Clone)]
pub(crate) struct Wish {
    pub mapping: PortMapping,
    /// Last of a range that begins with the mapping's port of the host.
    pub host_port_end: Option<u16>,
    /// What asks for it, as `port_mappings[0]`.
    pub field: String,
}

/// What a spec asks for, but for what its image exposes.
pub(crate) fn wishes(spec: &ServiceSpec) -> Vec<Wish> {
    let plain = spec.port_mappings.iter().enumerate().map(|(index, mapping)| Wish {
        mapping: mapping.clone(),
        host_port_end: None,
        field: format!("port_mappings[{index}]"),
    });
    let ranges = spec.port_ranges.iter().enumerate().map(|(index, range)| Wish {
        mapping: PortMapping {
            host_port: Some(range.host_port),
            container_port: range.container_port,
            protocol: range.protocol,
            host_ip: range.host_ip.clone(),
        },
        host_port_end: Some(range.host_port_end),
        field: format!("port_ranges[{index}]"),
    });
    plain.chain(ranges).collect()
}

/// What is asked for.
pub(crate) struct PortRequest<'a> {
    pub id: &'a str,
    pub wanted: &'a [Wish],
    /// What it had in an earlier attempt: ephemeral ports are these again, if they are free.
    pub earlier: &'a [PortMapping],
    pub lease: Option<&'a Lease>,
    /// Whether a container has ended, and so holds its ports no more.
    pub ended: &'a dyn Fn(&str) -> bool,
}

/// What was got.
#[derive(Debug, Default)]
pub(crate) struct Reserved {
    /// With the host's port of each.
    pub ports: Vec<PortMapping>,
    /// The sockets that keep them from the host's processes while they are open.
    pub sockets: Vec<OwnedFd>,
}

/// The ports that an image exposes (`80/tcp`, `53/udp`, `8000-8010`), but for those that are `wished` for already.
///
/// # Errors
/// [`Error::InvalidSpec`] for more than anybody means.
pub(crate) fn exposed(image: &[String], wished: &[Wish]) -> Result<Vec<Wish>> {
    let mut found: Vec<Wish> = Vec::new();
    for text in image {
        let Some((range, protocol)) = parse_exposed(text) else {
            tracing::warn!(port = text, "what the image exposes is not published: it is no tcp or udp port");
            continue;
        };
        for container_port in range {
            let mapping = PortMapping { host_port: None, container_port, protocol, host_ip: None };
            let same =
                |other: &Wish| other.mapping.container_port == container_port && other.mapping.protocol == protocol;
            if !wished.iter().chain(&found).any(same) {
                found.push(Wish { mapping, host_port_end: None, field: "publish_all".to_owned() });
            }
            if found.len() > MAX_EXPOSED {
                return Err(Error::invalid("publish_all", format!("the image exposes more than {MAX_EXPOSED} ports")));
            }
        }
    }
    Ok(found)
}

fn parse_exposed(text: &str) -> Option<(std::ops::RangeInclusive<u16>, PortProtocol)> {
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = match protocol.to_ascii_lowercase().as_str() {
        "tcp" => PortProtocol::Tcp,
        "udp" => PortProtocol::Udp,
        _ => return None,
    };
    let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
    let (first, last): (u16, u16) = (first.parse().ok()?, last.parse().ok()?);
    (first > 0 && first <= last).then_some((first..=last, protocol))
}

/// Checks what is wished for as far as the host does not matter.
pub(super) fn check(wishes: &[Wish]) -> Result<()> {
    for (index, wish) in wishes.iter().enumerate() {
        let mapping = &wish.mapping;
        let wrong = |field: &str, reason: &str| Error::invalid(format!("{}.{field}", wish.field), reason);
        if mapping.container_port == 0 {
            return Err(wrong("container_port", "there is no port 0"));
        }
        if host_ip(wish)? == Some(IpAddr::V6(Ipv6Addr::LOCALHOST)) {
            // The kernel leads nothing from there to a bridge; docker has a proxy for it.
            let what = format!("{}.host_ip ::1 (nothing leads from there to a container)", wish.field);
            return Err(Error::Unsupported { what });
        }
        if wish.host_port_end.is_some_and(|end| !(1..=end).contains(&mapping.host_port.unwrap_or(0))) {
            return Err(wrong("host_port_end", "a range begins with a port and does not end before it"));
        }
        if wish.host_port_end.is_some() {
            continue;
        }
        let same = |other: &Wish| {
            let is_one = other.host_port_end.is_none() && mapping.host_port.is_some_and(|port| port != 0);
            is_one && clash(mapping, &other.mapping)
        };
        if wishes[..index].iter().any(same) {
            return Err(wrong("host_port", "it is asked for twice"));
        }
    }
    Ok(())
}

/// Reserves ports for a container, and tells which they are. They are opened by [`open`].
pub(super) fn reserve(place: &Place, request: &PortRequest<'_>) -> Result<Reserved> {
    if request.wanted.is_empty() {
        close(place, request.id)?;
        return Ok(Reserved::default());
    }
    check(request.wanted)?;
    let v6 = request.lease.map_or(request.lease.is_none(), |lease| lease.v6.is_some());
    let _lock = lock(place)?;
    let mut others = all(place)?;
    others.retain(|(holder, _)| holder != request.id);
    let mut search =
        Search { place, ended: request.ended, others, asked_for: request.wanted, got: Reserved::default() };
    for (index, wanted) in request.wanted.iter().enumerate() {
        let addresses = addresses(host_ip(wanted)?, v6).ok_or_else(|| {
            Error::invalid(format!("{}.host_ip", wanted.field), "the container's network has no IPv6")
        })?;
        let earlier = request.earlier.get(index).and_then(|earlier| earlier.host_port);
        let wanted = Wanted { wish: wanted, addresses: &addresses };
        match (wanted.wish.mapping.host_port.filter(|port| *port != 0), wanted.wish.host_port_end) {
            (Some(first), Some(last)) => search.one_of_range(&wanted, first..=last, earlier)?,
            (Some(port), None) => search.this(&wanted, port)?,
            (None, _) => search.ephemeral(&wanted, earlier)?,
        }
    }
    let got = search.got;
    let reservation = Reservation {
        ports: got.ports.clone(),
        ip: request.lease.map(|lease| lease.ip),
        ip6: request.lease.and_then(|lease| lease.v6.as_ref()).map(|v6| v6.ip),
    };
    record::write(&place.ports().join(request.id), &reservation)?;
    Ok(got)
}

/// Makes the reservation of ports again that is gone, for who has them all the same.
pub(super) fn hold_again(place: &Place, lease: &Lease, id: &str, ports: Vec<PortMapping>) -> Result<()> {
    let path = place.ports().join(id);
    let _lock = lock(place)?;
    if ports.is_empty() || path.exists() {
        return Ok(());
    }
    let meets = |other: &Reservation| other.ports.iter().any(|theirs| ports.iter().any(|own| clash(own, theirs)));
    if let Some((holder, _)) = all(place)?.into_iter().find(|(_, other)| meets(other)) {
        return Err(taken(&ports[0], format!("container {holder}, and by {id}")));
    }
    let (ip, ip6) = (Some(lease.ip), lease.v6.as_ref().map(|v6| v6.ip));
    record::write(&path, &Reservation { ports, ip, ip6 })
}

/// What a port is looked for.
struct Wanted<'a> {
    wish: &'a Wish,
    /// Where the host must have the port free.
    addresses: &'a [IpAddr],
}

impl Wanted<'_> {
    fn at(&self, port: u16) -> PortMapping {
        PortMapping { host_port: Some(port), ..self.wish.mapping.clone() }
    }
}

/// Ports that are being chosen, beside those that others have.
struct Search<'a> {
    place: &'a Place,
    ended: &'a dyn Fn(&str) -> bool,
    others: Vec<(String, Reservation)>,
    /// All that is: a port that is asked for by its number is no other's choice.
    asked_for: &'a [Wish],
    got: Reserved,
}

impl Search<'_> {
    /// The port asked for, or an error that names who has it.
    fn this(&mut self, wanted: &Wanted<'_>, port: u16) -> Result<()> {
        let mapping = wanted.at(port);
        if let Some(holder) = self.holder(&mapping)? {
            return Err(taken(&mapping, format!("container {holder}")));
        }
        if self.got.ports.iter().any(|other| clash(&mapping, other)) {
            return Err(Error::invalid(
                format!("{}.host_port", wanted.wish.field),
                format!("{port} is another mapping's already"),
            ));
        }
        let sockets = hold(&mapping, wanted);
        let sockets = sockets.map_err(|(at, error)| cannot_bind(&mapping, &wanted.wish.field, at, error))?;
        self.take(mapping, sockets);
        Ok(())
    }

    /// The first that is free.
    fn one_of_range(
        &mut self,
        wanted: &Wanted<'_>,
        range: std::ops::RangeInclusive<u16>,
        earlier: Option<u16>,
    ) -> Result<()> {
        let spelled = spelled(&wanted.wish.mapping, Some(*range.end()));
        let earlier = earlier.filter(|port| range.contains(port));
        for port in earlier.into_iter().chain(range) {
            if self.try_this(wanted, port)? {
                return Ok(());
            }
        }
        let owner = "containers and processes of the host, every one of them".to_owned();
        Err(Error::PortTaken { port: spelled, owner })
    }

    /// One that the kernel says is free and nobody has.
    fn ephemeral(&mut self, wanted: &Wanted<'_>, earlier: Option<u16>) -> Result<()> {
        if let Some(port) = earlier
            && self.try_this(wanted, port)?
        {
            return Ok(());
        }
        let first = wanted.addresses.first().copied().unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        for _ in 0..MAX_OFFERS {
            let port = sockets::free_port(wanted.wish.mapping.protocol, first)
                .map_err(|error| cannot_bind(&wanted.wish.mapping, &wanted.wish.field, first, error))?;
            if self.try_this(wanted, port)? {
                return Ok(());
            }
        }
        Err(taken(&wanted.wish.mapping, "every port that was tried".to_owned()))
    }

    fn try_this(&mut self, wanted: &Wanted<'_>, port: u16) -> Result<bool> {
        let mapping = wanted.at(port);
        let by_number = self.asked_for.iter().filter(|other| other.host_port_end.is_none()).map(|other| &other.mapping);
        let mut named = by_number.chain(&self.got.ports);
        if named.any(|other| clash(&mapping, other)) || self.holder(&mapping)?.is_some() {
            return Ok(false);
        }
        match hold(&mapping, wanted) {
            Ok(sockets) => {
                self.take(mapping, sockets);
                Ok(true)
            }
            // Whose it is nobody asks: to find that out is a look at every process of the host.
            Err((_, error)) if error.kind() == io::ErrorKind::AddrInUse => Ok(false),
            Err((at, error)) => Err(cannot_bind(&mapping, &wanted.wish.field, at, error)),
        }
    }

    /// The container that has a port; those that ended lose it here.
    fn holder(&mut self, mapping: &PortMapping) -> Result<Option<String>> {
        let has =
            |(_, reservation): &(String, Reservation)| reservation.ports.iter().any(|other| clash(mapping, other));
        while let Some((holder, _)) = self.others.iter().find(|other| has(other)) {
            let holder = holder.clone();
            if !(self.ended)(&holder) {
                return Ok(Some(holder));
            }
            close_locked(self.place, &holder)?;
            self.others.retain(|(other, _)| *other != holder);
        }
        Ok(None)
    }

    fn take(&mut self, mapping: PortMapping, sockets: Vec<OwnedFd>) {
        self.got.ports.push(mapping);
        if self.got.sockets.len() + sockets.len() <= MAX_HELD_SOCKETS {
            self.got.sockets.extend(sockets);
        }
    }
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
            reload_locked(place)
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

/// Closes the ports of whoever is not `known`. Tells whose could not be closed: they hold up no other, but lead to that
/// container's address still.
pub(super) fn reconcile(place: &Place, known: &dyn Fn(&str) -> bool) -> Result<Vec<String>> {
    if !place.ports().exists() {
        return Ok(Vec::new());
    }
    let _lock = lease::lock_within(&place.ports(), LOCK, FlockOperation::LockExclusive, lease::OPEN_PATIENCE)?;
    record::remove_temporaries(&place.ports())?;
    let mut unclosed = Vec::new();
    let mut firewall_works = true;
    for holder in holders(place)?.into_iter().filter(|holder| !known(holder)) {
        let closed = if firewall_works { close_locked(place, &holder) } else { Ok(()) };
        if let Err(error) = &closed {
            tracing::error!(container = holder, error = error.chain(), "its ports cannot be closed");
            // Each further try may wait as long for an answer.
            firewall_works = !matches!(error, Error::Network { .. });
        }
        if closed.is_err() || !firewall_works {
            unclosed.push(holder);
        }
    }
    Ok(unclosed)
}

/// Loads the firewall anew if its rules are no longer those of the root's networks.
pub(super) fn refresh(place: &Place) -> Result<()> {
    let _lock = lock(place)?;
    firewall::refresh(place, || Ok(all(place)?.into_iter().map(|(_, reservation)| reservation).collect()))
}

/// Loads the firewall anew, with all ports.
pub(super) fn reload(place: &Place) -> Result<()> {
    let _lock = lock(place)?;
    reload_locked(place)
}

fn close_locked(place: &Place, id: &str) -> Result<()> {
    let path = place.ports().join(id);
    let remove = || match fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("removing", &path)(e)),
        _ => Ok(()),
    };
    match record::read::<Reservation>(&path) {
        Ok(Some(reservation)) => {
            if let Err(error) = firewall::unpublish(place, &reservation) {
                tracing::warn!(container = id, error = error.chain(), "loading the firewall anew, without its ports");
                let others = all(place)?.into_iter().filter(|(holder, _)| holder != id);
                firewall::reload(place, &others.map(|(_, reservation)| reservation).collect::<Vec<_>>())?;
            }
            remove()
        }
        Ok(None) => remove(),
        // Which ports it had nobody knows: loaded anew, the firewall has those of all others.
        Err(Error::Corrupt { .. }) => {
            remove()?;
            reload_locked(place)
        }
        Err(error) => Err(error),
    }
}

fn reload_locked(place: &Place) -> Result<()> {
    firewall::reload(place, &all(place)?.into_iter().map(|(_, reservation)| reservation).collect::<Vec<_>>())
}

pub(super) fn lock(place: &Place) -> Result<fs::File> {
    lease::lock(&place.ports(), LOCK, FlockOperation::LockExclusive)
}

/// What containers have. A file that cannot be read hides no other: it is passed over, and goes with its container.
fn all(place: &Place) -> Result<Vec<(String, Reservation)>> {
    let mut found = Vec::new();
    for holder in holders(place)? {
        found.extend(record::read_intact(&place.ports().join(&holder))?.map(|reservation| (holder, reservation)));
    }
    Ok(found)
}

/// The containers that have a file here.
fn holders(place: &Place) -> Result<Vec<String>> {
    let dir = place.ports();
    let entries = fs::read_dir(&dir).map_err(Error::io("listing", &dir))?;
    let names = entries.map(|entry| Ok(entry.map_err(Error::io("listing", &dir))?.file_name().into_string().ok()));
    let is_holder = |name: &String| name.contains("-rep-") && !record::is_temporary(name);
    names.filter_map(|name| name.map(|name| name.filter(is_holder)).transpose()).collect()
}

/// Sockets at a port of all the addresses that are wanted, or the address that cannot be had.
fn hold(mapping: &PortMapping, wanted: &Wanted<'_>) -> std::result::Result<Vec<OwnedFd>, (IpAddr, io::Error)> {
    let one = |address: &IpAddr| {
        sockets::hold(mapping.protocol, *address, mapping.host_port.unwrap_or(0)).map_err(|error| (*address, error))
    };
    wanted.addresses.iter().map(one).collect()
}

fn cannot_bind(mapping: &PortMapping, field: &str, address: IpAddr, error: io::Error) -> Error {
    match error.raw_os_error() {
        Some(libc::EADDRINUSE) => {
            let owner = mapping.host_port.and_then(|port| sockets::owner(mapping.protocol, address, port));
            taken(mapping, owner.unwrap_or_else(|| "a socket of the host that does not listen".to_owned()))
        }
        Some(libc::EADDRNOTAVAIL) => {
            let reason = format!("{address} is no address of this host");
            Error::invalid(format!("{field}.host_ip"), reason)
        }
        _ => Error::Io { action: "binding", path: spelled(mapping, None).into(), source: error },
    }
}

fn taken(mapping: &PortMapping, owner: String) -> Error {
    Error::PortTaken { port: spelled(mapping, None), owner }
}

/// As `127.0.0.1:80/tcp`, or `127.0.0.1:80-90/tcp`.
fn spelled(mapping: &PortMapping, end: Option<u16>) -> String {
    let host = mapping.host_ip.as_deref().unwrap_or("0.0.0.0");
    let protocol = match mapping.protocol {
        PortProtocol::Tcp => "tcp",
        PortProtocol::Udp => "udp",
    };
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    let range = end.map(|end| format!("-{end}")).unwrap_or_default();
    format!("{host}:{}{range}/{protocol}", mapping.host_port.unwrap_or(0))
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

fn host_ip(wish: &Wish) -> Result<Option<IpAddr>> {
    let Some(text) = wish.mapping.host_ip.as_deref().filter(|text| !text.is_empty()) else { return Ok(None) };
    text.parse()
        .map(Some)
        .map_err(|_| Error::invalid(format!("{}.host_ip", wish.field), format!("{text:?} is not an address")))
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

//! The host's routes and addresses, for what a subnet must not cover.

use std::fmt::Display;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nix::ifaddrs::getifaddrs;

use super::subnet::{Subnet, Subnet6};
use crate::error::{Error, Result};

const ROUTES: &str = "/proc/thread-self/net/route";
const ROUTES_6: &str = "/proc/thread-self/net/ipv6_route";

/// A route of the main table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Route {
    interface: String,
    network: u32,
    mask: u32,
    /// Where it leads by; unspecified where its addresses are on the link itself.
    router: Ipv4Addr,
}

impl Route {
    /// Whether it leads to any address of `subnet`. The default route leads everywhere and is none of these.
    pub fn touches(&self, subnet: Subnet) -> bool {
        let mask = self.mask & subnet.mask();
        self.mask != 0 && self.network & mask == subnet.network().to_bits() & mask
    }

    /// Whether all that it leads to is in `subnet`.
    fn lies_within(&self, subnet: Subnet) -> bool {
        self.touches(subnet) && self.mask & subnet.mask() == subnet.mask()
    }
}

/// All routes of the calling thread's network namespace.
pub(super) fn all() -> Result<Vec<Route>> {
    let text = fs::read_to_string(ROUTES).map_err(Error::io("reading", ROUTES))?;
    Ok(parse(&text))
}

/// Refuses a subnet that would hide a network the host is on, or that has an address of the host or of a router of its own:
/// the bridge or a container would get that. One that lies elsewhere in a larger network is the caller's to judge. `own`: the
/// network's bridge.
pub(super) fn refuse_overlap(network: &str, subnet: Subnet, own: Option<&str>) -> Result<()> {
    for route in all()?.iter().filter(|route| own != Some(route.interface.as_str())) {
        let to = Ipv4Addr::from_bits(route.network);
        if route.router.is_unspecified() && route.lies_within(subnet) {
            let with = format!("{to}/{} on the host's interface {}", route.mask.count_ones(), route.interface);
            return Err(overlap(network, subnet, with));
        }
        if subnet.contains(route.router) {
            return Err(overlap(network, subnet, format!("{}, by which the host reaches {to}", route.router)));
        }
    }
    refuse_addresses(network, subnet, own, |address| matches!(address, IpAddr::V4(ip) if subnet.contains(ip)))
}

/// The same of IPv6.
pub(super) fn refuse_overlap_6(network: &str, subnet: Subnet6, own: Option<&str>) -> Result<()> {
    let text = match fs::read_to_string(ROUTES_6) {
        // The host has no IPv6.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        text => text.map_err(Error::io("reading", ROUTES_6))?,
    };
    for (to, router, interface) in parse_6(&text).into_iter().filter(|(.., interface)| own != Some(interface.as_str()))
    {
        if router.is_unspecified() && to.lies_within(&subnet) {
            return Err(overlap(network, subnet, format!("{to} on the host's interface {interface}")));
        }
        if subnet.contains(router) {
            return Err(overlap(network, subnet, format!("{router}, by which the host reaches {to}")));
        }
    }
    refuse_addresses(network, subnet, own, |address| matches!(address, IpAddr::V6(ip) if subnet.contains(ip)))
}

fn refuse_addresses(
    network: &str,
    subnet: impl Display,
    own: Option<&str>,
    is_in: impl Fn(IpAddr) -> bool,
) -> Result<()> {
    let all = getifaddrs().map_err(|error| Error::io("listing", "the host's addresses")(error.into()))?;
    for interface in all.filter(|interface| own != Some(interface.interface_name.as_str())) {
        let address = interface.address.as_ref();
        let v4 = address.and_then(|address| address.as_sockaddr_in()).map(|address| IpAddr::V4(address.ip()));
        let v6 = address.and_then(|address| address.as_sockaddr_in6()).map(|address| IpAddr::V6(address.ip()));
        if let Some(ip) = v4.or(v6).filter(|ip| is_in(*ip)) {
            let with = format!("{ip}, which the host has on its interface {}", interface.interface_name);
            return Err(overlap(network, subnet, with));
        }
    }
    Ok(())
}

fn overlap(network: &str, subnet: impl Display, with: String) -> Error {
    Error::SubnetOverlap { network: network.to_owned(), subnet: subnet.to_string(), with }
}

/// `Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT`; numbers are in memory order.
fn parse(text: &str) -> Vec<Route> {
    let line = |line: &str| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let number = |at: usize| u32::from_str_radix(words.get(at)?, 16).ok().map(u32::from_be);
        Some(Route {
            interface: (*words.first()?).to_owned(),
            network: number(1)?,
            router: Ipv4Addr::from_bits(number(2)?),
            mask: number(7)?,
        })
    };
    text.lines().skip(1).filter_map(line).collect()
}

/// `destination length source length router metric references uses flags interface`: where routes lead, by which router, and
/// on which interface. The default route leads everywhere, and is there with its router alone.
fn parse_6(text: &str) -> Vec<(Subnet6, Ipv6Addr, String)> {
    let line = |line: &str| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let address = |at: usize| u128::from_str_radix(words.get(at)?, 16).ok().map(Ipv6Addr::from_bits);
        let prefix_len = u8::from_str_radix(words.get(1)?, 16).ok().filter(|length| *length <= 128)?;
        Some((Subnet6::truncated(address(0)?, prefix_len), address(4)?, (*words.last()?).to_owned()))
    };
    text.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_are_read_and_compared_by_their_masks() {
        let text = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n\
            eth0\t00000000\t0100A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
            eth0\t0000A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n\
            vpn\t0000000A\t0100A8C0\t0003\t0\t0\t0\t000000FF\t0\t0\t0\nbroken\n";
        let routes = parse(text);
        assert_eq!(routes.len(), 3);
        let touched = |subnet: &str| -> Vec<&str> {
            let subnet = subnet.parse().unwrap();
            routes.iter().filter(|route| route.touches(subnet)).map(|route| route.interface.as_str()).collect()
        };
        assert_eq!(touched("10.97.0.0/16"), ["vpn"]);
        assert_eq!(touched("192.168.0.0/16"), ["eth0"]);
        assert!(touched("172.20.0.0/24").is_empty());
        assert!(routes[1].lies_within("192.168.0.0/16".parse().unwrap()));
        assert!(!routes[2].lies_within("10.97.0.0/16".parse().unwrap()));
    }

    #[test]
    fn routes_of_ipv6_are_read() {
        let text = "fd000000000000000000000000000000 40 00000000000000000000000000000000 00 \
            00000000000000000000000000000000 00000100 00000002 00000000 00000001     eth0\n\
            00000000000000000000000000000000 00 00000000000000000000000000000000 00 \
            fd000000000000000000000000000001 00000400 00000003 00000000 00000003     eth0\nbroken\n";
        let routes = parse_6(text);
        let shown: Vec<String> = routes.iter().map(|(to, router, on)| format!("{to} {router} {on}")).collect();
        assert_eq!(shown, ["fd00::/64 :: eth0", "::/0 fd00::1 eth0"]);
        let within = |subnet: &str| routes[0].0.lies_within(&subnet.parse().unwrap());
        assert!(within("fd00::/64") && within("fd00::/48") && !within("fd00::/80") && !within("fd01::/48"));
    }
}

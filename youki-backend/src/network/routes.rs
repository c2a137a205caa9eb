//! The host's IPv4 routes, for what a subnet must not cover.

use std::fs;
use std::net::Ipv4Addr;

use super::subnet::Subnet;
use crate::error::{Error, Result};

const ROUTES: &str = "/proc/thread-self/net/route";

/// A route of the main table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Route {
    interface: String,
    network: u32,
    mask: u32,
    /// Its addresses are on the link itself.
    direct: bool,
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

/// Refuses a subnet that would hide a network the host is on; one that lies in a larger one is the caller's to judge.
pub(super) fn refuse_overlap(network: &str, subnet: Subnet, own: Option<&str>) -> Result<()> {
    let hidden = |route: &Route| route.direct && route.lies_within(subnet) && own != Some(route.interface.as_str());
    match all()?.iter().find(|route| hidden(route)) {
        Some(route) => Err(Error::SubnetOverlap {
            network: network.to_owned(),
            subnet: subnet.to_string(),
            with: format!(
                "{}/{} on the host's interface {}",
                Ipv4Addr::from_bits(route.network),
                route.mask.count_ones(),
                route.interface
            ),
        }),
        None => Ok(()),
    }
}

/// `Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT`; numbers are in memory order.
fn parse(text: &str) -> Vec<Route> {
    let line = |line: &str| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let number = |at: usize| u32::from_str_radix(words.get(at)?, 16).ok().map(u32::from_be);
        Some(Route {
            interface: (*words.first()?).to_owned(),
            network: number(1)?,
            direct: number(2)? == 0,
            mask: number(7)?,
        })
    };
    text.lines().skip(1).filter_map(line).collect()
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
}

//! An IPv4 network, and an IPv6 one.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// Smallest and largest subnet: room for a gateway and a container, and no more than a private class A.
const PREFIX_LENGTHS: std::ops::RangeInclusive<u8> = 8..=30;

/// An IPv4 network, as `10.97.0.0/16`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Subnet {
    network: Ipv4Addr,
    prefix_len: u8,
}

impl Subnet {
    /// Bits of the network's part.
    pub fn prefix_len(&self) -> u8 {
        self.prefix_len
    }

    /// The 256 addresses that `ip` is one of.
    pub fn class_c(ip: Ipv4Addr) -> Self {
        let [a, b, c, _] = ip.octets();
        Self { network: Ipv4Addr::new(a, b, c, 0), prefix_len: 24 }
    }

    /// Its own address.
    pub fn network(&self) -> Ipv4Addr {
        self.network
    }

    /// The bits of the network's part.
    pub fn mask(&self) -> u32 {
        !(self.size() - 1)
    }

    /// Whether they have an address in common.
    pub fn overlaps(&self, other: &Self) -> bool {
        let mask = self.mask() & other.mask();
        self.network.to_bits() & mask == other.network.to_bits() & mask
    }

    /// Whether `ip` is one of its addresses.
    pub fn contains(&self, ip: Ipv4Addr) -> bool {
        self.index(ip).is_some()
    }

    /// The first address: the host's on the bridge, unless it is to be another.
    pub fn first(&self) -> Ipv4Addr {
        self.nth(1)
    }

    /// Whether `ip` is neither outside nor the network's own nor the broadcast address.
    pub fn is_inner(&self, ip: Ipv4Addr) -> bool {
        self.index(ip).is_some_and(|index| (1..self.size() - 1).contains(&index))
    }

    /// The last address.
    pub fn broadcast(&self) -> Ipv4Addr {
        self.nth(self.size() - 1)
    }

    /// Whether `ip` is one a container may have.
    pub fn is_host(&self, ip: Ipv4Addr) -> bool {
        self.index(ip).is_some_and(|index| (2..self.size() - 1).contains(&index))
    }

    /// The address a container may have that follows `ip`, round and round; the first for any other address.
    pub fn next_host(&self, ip: Ipv4Addr) -> Ipv4Addr {
        match self.index(ip) {
            Some(index) if (2..self.size() - 2).contains(&index) => self.nth(index + 1),
            _ => self.nth(2),
        }
    }

    /// How many containers fit.
    pub fn hosts(&self) -> u32 {
        // Less network, gateway, broadcast.
        self.size() - 3
    }

    fn size(&self) -> u32 {
        1 << (32 - self.prefix_len)
    }

    fn nth(&self, index: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.network.to_bits() | index)
    }

    /// Which of its addresses `ip` is.
    pub fn index(&self, ip: Ipv4Addr) -> Option<u32> {
        let index = ip.to_bits() & (self.size() - 1);
        (self.nth(index) == ip).then_some(index)
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix_len)
    }
}

impl From<Subnet> for String {
    fn from(subnet: Subnet) -> Self {
        subnet.to_string()
    }
}

impl TryFrom<String> for Subnet {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl FromStr for Subnet {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = |reason: &str| Error::Configuration { what: format!("subnet {text:?}"), reason: reason.to_owned() };
        let shape = || wrong("a subnet is written as 10.97.0.0/16");
        let (network, prefix_len) = text.split_once('/').ok_or_else(shape)?;
        let network: Ipv4Addr = network.parse().map_err(|_| shape())?;
        let prefix_len: u8 = prefix_len.parse().map_err(|_| shape())?;
        if !PREFIX_LENGTHS.contains(&prefix_len) {
            return Err(wrong("its prefix length is not between 8 and 30"));
        }
        let subnet = Self { network, prefix_len };
        if network.to_bits() & (subnet.size() - 1) != 0 {
            return Err(wrong("it has bits set behind the prefix"));
        }
        if network.is_loopback() || network.is_multicast() || network.is_link_local() || network.octets()[0] == 0 {
            return Err(wrong("containers cannot have these addresses"));
        }
        Ok(subnet)
    }
}

/// Longest and shortest prefix of an IPv6 network: a link of its own, and room for as many as an IPv4 one.
const PREFIX_LENGTHS_6: std::ops::RangeInclusive<u8> = 16..=112;

/// An IPv6 network, as `fd00:1::/64`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Subnet6 {
    network: Ipv6Addr,
    prefix_len: u8,
}

impl Subnet6 {
    /// The network of that prefix length that `ip` is in.
    pub fn truncated(ip: Ipv6Addr, prefix_len: u8) -> Self {
        Self { network: Ipv6Addr::from_bits(ip.to_bits() & mask_6(prefix_len)), prefix_len }
    }

    /// Bits of the network's part.
    pub fn prefix_len(&self) -> u8 {
        self.prefix_len
    }

    /// The address that goes with the IPv4 address of that number in its subnet; 1 is the bridge's.
    pub fn nth(&self, index: u32) -> Ipv6Addr {
        Ipv6Addr::from_bits(self.network.to_bits() | u128::from(index))
    }

    /// The bridge's address.
    pub fn gateway(&self) -> Ipv6Addr {
        self.nth(1)
    }

    /// Whether it has an address for each of `subnet`.
    pub fn holds(&self, subnet: Subnet) -> bool {
        128 - self.prefix_len >= 32 - subnet.prefix_len
    }

    /// Whether they have an address in common.
    pub fn overlaps(&self, other: &Self) -> bool {
        let mask = mask_6(self.prefix_len.min(other.prefix_len));
        self.network.to_bits() & mask == other.network.to_bits() & mask
    }

    /// Whether `ip` is one of its addresses.
    pub fn contains(&self, ip: Ipv6Addr) -> bool {
        ip.to_bits() & mask_6(self.prefix_len) == self.network.to_bits()
    }

    /// Whether all its addresses are `other`'s as well.
    pub fn lies_within(&self, other: &Self) -> bool {
        self.prefix_len >= other.prefix_len && self.overlaps(other)
    }
}

fn mask_6(prefix_len: u8) -> u128 {
    !u128::MAX.checked_shr(prefix_len.into()).unwrap_or(0)
}

impl fmt::Display for Subnet6 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix_len)
    }
}

impl From<Subnet6> for String {
    fn from(subnet: Subnet6) -> Self {
        subnet.to_string()
    }
}

impl TryFrom<String> for Subnet6 {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl FromStr for Subnet6 {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = |reason: &str| Error::Configuration { what: format!("subnet {text:?}"), reason: reason.to_owned() };
        let shape = || wrong("an IPv6 subnet is written as fd00:1::/64");
        let (network, prefix_len) = text.split_once('/').ok_or_else(shape)?;
        let network: Ipv6Addr = network.parse().map_err(|_| shape())?;
        let prefix_len: u8 = prefix_len.parse().map_err(|_| shape())?;
        if !PREFIX_LENGTHS_6.contains(&prefix_len) {
            return Err(wrong("its prefix length is not between 16 and 112"));
        }
        let subnet = Self::truncated(network, prefix_len);
        if subnet.network != network {
            return Err(wrong("it has bits set behind the prefix"));
        }
        if network.is_multicast() || network.is_unspecified() || network.is_unicast_link_local() {
            return Err(wrong("containers cannot have these addresses"));
        }
        Ok(subnet)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv6_subnet_is_read_whole_or_refused() {
        let subnet: Subnet6 = "fd00:1:2::/64".parse().unwrap();
        assert_eq!(subnet.to_string(), "fd00:1:2::/64");
        assert_eq!(subnet.gateway(), "fd00:1:2::1".parse::<Ipv6Addr>().unwrap());
        assert!(subnet.holds("10.0.0.0/8".parse().unwrap()));
        assert!(!"fd00::/112".parse::<Subnet6>().unwrap().holds("10.0.0.0/8".parse().unwrap()));
        assert!(subnet.overlaps(&"fd00:1::/32".parse().unwrap()));
        assert!(!subnet.overlaps(&"fd00:1:3::/64".parse().unwrap()));
        for wrong in ["", "fd00::", "fd00::1/64", "fd00::/8", "fd00::/127", "fe80::/64", "ff02::/64", "10.0.0.0/8"] {
            assert_eq!(wrong.parse::<Subnet6>().unwrap_err().code(), "config.invalid", "{wrong}");
        }
    }

    #[test]
    fn subnets_overlap_if_one_holds_the_other() {
        let subnet = |text: &str| text.parse::<Subnet>().unwrap();
        assert!(subnet("10.97.0.0/16").overlaps(&subnet("10.97.3.0/24")));
        assert!(subnet("10.97.3.0/24").overlaps(&subnet("10.0.0.0/8")));
        assert!(!subnet("10.97.0.0/16").overlaps(&subnet("10.98.0.0/16")));
    }

    #[test]
    fn a_subnet_is_read_whole_or_refused() {
        let subnet: Subnet = "10.97.0.0/16".parse().unwrap();
        assert_eq!(subnet.to_string(), "10.97.0.0/16");
        assert_eq!(subnet.first(), Ipv4Addr::new(10, 97, 0, 1));
        assert_eq!(subnet.broadcast(), Ipv4Addr::new(10, 97, 255, 255));
        assert_eq!(subnet.hosts(), 65_533);
        for wrong in [
            "",
            "10.97.0.0",
            "10.97.0.0/",
            "10.97.0.1/16",
            "10.0.0.0/7",
            "10.0.0.0/31",
            "127.0.0.0/8",
            "224.0.0.0/8",
            "10.97.0.0/16 ",
            "fd00::/64",
            "10.97.0/16",
        ] {
            assert_eq!(wrong.parse::<Subnet>().unwrap_err().code(), "config.invalid", "{wrong}");
        }
    }

    #[test]
    fn every_address_but_network_gateway_and_broadcast_comes_up_in_turn() {
        let subnet: Subnet = "192.168.7.8/29".parse().unwrap();
        let mut ip = subnet.first();
        let mut seen = Vec::new();
        for _ in 0..=subnet.hosts() {
            ip = subnet.next_host(ip);
            assert!(subnet.is_host(ip));
            seen.push(ip.octets()[3]);
        }
        assert_eq!(seen, [10, 11, 12, 13, 14, 10]);
        for no in [8, 9, 15, 16] {
            assert!(!subnet.is_host(Ipv4Addr::new(192, 168, 7, no)));
        }
        assert_eq!("10.0.0.0/30".parse::<Subnet>().unwrap().hosts(), 1);
    }
}

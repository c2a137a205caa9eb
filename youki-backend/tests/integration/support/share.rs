//! What of the host this run of the suite has for itself: subnets, and ports that the kernel gives to nobody by itself.
//!
//! Two runs at once must not meet. Each holds a number, as the name of a socket, which the kernel frees with the process.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Result, bail};

/// Runs at once.
const SHARES: u8 = 32;
/// Below those from which the kernel takes the ports of connections (`ip_local_port_range`): nobody is given one of these
/// between the moment in which it was found free and that in which it is used.
const FIRST_PORT: u16 = 20_000;
const PORTS: u16 = 300;

pub struct Share {
    number: u8,
    ports_given: AtomicU16,
    _held: UnixListener,
}

impl Share {
    /// The first that no other run holds.
    pub fn take() -> Result<Self> {
        for number in 0..SHARES {
            let name = SocketAddr::from_abstract_name(format!("berth-integration-share-{number}"))?;
            if let Ok(held) = UnixListener::bind_addr(&name) {
                return Ok(Self { number, ports_given: AtomicU16::new(0), _held: held });
            }
        }
        bail!("{SHARES} runs of this suite are under way");
    }

    /// The subnet of the root of this number, in 10.0.0.0/8; the first one has room for 1,000 containers at once.
    pub fn subnet(&self, root: u16) -> String {
        let first = 128 + 4 * self.number;
        match root {
            0 => format!("10.{first}.0.0/17"),
            1..128 => format!("10.{first}.{}.0/24", 128 + root),
            128..384 => format!("10.{}.{}.0/24", first + 1, root - 128),
            _ => panic!("more roots than subnets"),
        }
    }

    /// One of four /26 for further networks of the root that has `subnet`.
    pub fn further_subnet(subnet: &str, quarter: u8) -> String {
        let octets: Vec<u8> = subnet.split(['.', '/']).filter_map(|part| part.parse().ok()).collect();
        format!("10.{}.{}.{}/26", octets[1] + 2, octets[2], quarter * 64)
    }

    /// An address of the world outside, of RFC 2544's: this run has 254 of them.
    pub fn outside(&self, host: u8) -> Ipv4Addr {
        Ipv4Addr::new(198, 18, self.number, host)
    }

    /// A network of the same kind that no test has joined yet, without its last number: `198.19.7`.
    pub fn unjoined(&self) -> String {
        format!("198.19.{}", self.number)
    }

    /// Four digits at most, for the second group of an IPv6 prefix of this run's own.
    pub fn group(&self) -> String {
        format!("{:x}", 0xbe00 + u16::from(self.number))
    }

    /// So many ports in a row that no process has, and that no other test of this run is given.
    pub fn ports(&self, count: u16) -> u16 {
        loop {
            let given = self.ports_given.fetch_add(count, Ordering::Relaxed);
            assert!(given + count <= PORTS, "a test more than ports");
            let first = FIRST_PORT + u16::from(self.number) * PORTS + given;
            let is_free =
                |port| TcpListener::bind(("0.0.0.0", port)).is_ok() && UdpSocket::bind(("0.0.0.0", port)).is_ok();
            if (first..first + count).all(is_free) {
                return first;
            }
        }
    }

    /// One of them.
    pub fn port(&self) -> u16 {
        self.ports(1)
    }
}

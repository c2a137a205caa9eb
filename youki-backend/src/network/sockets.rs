//! Sockets of the host: whether a port can be had, and who has it.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::Path;

use procfs::process::Process;
use runtime_core::spec::PortProtocol;
use rustix::net::{
    AddressFamily, SocketFlags, SocketType, bind as bind_socket, connect_unspec, getsockname, listen, socket_with,
    sockopt,
};

/// States in `/proc/net/tcp` and `udp`: a listener, and a socket that is bound only.
const LISTENING: &str = "0A";
const BOUND: &str = "07";

/// A socket that keeps a port: nobody else can bind it while this one is open, and it answers nothing.
///
/// It listens for a moment, so that what a port is refused for are listeners and not connections that are ending. While
/// it does no more, and no longer says that it shares the port, whoever binds that finds it taken.
pub(super) fn hold(protocol: PortProtocol, ip: IpAddr, port: u16) -> io::Result<OwnedFd> {
    let socket = bound(protocol, ip, port)?;
    match protocol {
        PortProtocol::Tcp => {
            listen(&socket, 0)?;
            connect_unspec(&socket)?;
            sockopt::set_socket_reuseaddr(&socket, false)?;
        }
        // Nothing is to wait there, should the firewall be flushed.
        PortProtocol::Udp => sockopt::set_socket_recv_buffer_size(&socket, 0)?,
    }
    Ok(socket)
}

/// A port that is free now.
pub(super) fn free_port(protocol: PortProtocol, ip: IpAddr) -> io::Result<u16> {
    let socket = bound(protocol, ip, 0)?;
    let bound: SocketAddr = getsockname(&socket)?.try_into().map_err(io::Error::from)?;
    Ok(bound.port())
}

fn bound(protocol: PortProtocol, ip: IpAddr, port: u16) -> io::Result<OwnedFd> {
    let family = if ip.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let kind = match protocol {
        PortProtocol::Tcp => SocketType::STREAM,
        PortProtocol::Udp => SocketType::DGRAM,
    };
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
    if ip.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    if protocol == PortProtocol::Tcp {
        sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    bind_socket(&socket, &SocketAddr::new(ip, port))?;
    Ok(socket)
}

/// Whether the host has IPv6 at all.
pub(super) fn has_ipv6() -> bool {
    Path::new("/proc/thread-self/net/if_inet6").exists()
}

/// The process whose socket keeps a port, as `process 12 (nginx)`.
pub(super) fn owner(protocol: PortProtocol, ip: IpAddr, port: u16) -> Option<String> {
    let (files, state) = match protocol {
        PortProtocol::Tcp => (["tcp", "tcp6"], LISTENING),
        PortProtocol::Udp => (["udp", "udp6"], BOUND),
    };
    let inode = files.iter().find_map(|file| {
        let text = fs::read_to_string(format!("/proc/thread-self/net/{file}")).ok()?;
        text.lines().skip(1).find_map(|line| matching_inode(line, state, ip, port))
    })?;
    process_of(inode).or_else(|| Some("a socket of the host".to_owned()))
}

/// `sl local_address rem_address st … uid timeout inode`
fn matching_inode(line: &str, state: &str, ip: IpAddr, port: u16) -> Option<u64> {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let (local_ip, local_port) = address(words.get(1)?)?;
    let unspecified = local_ip.is_unspecified() || ip.is_unspecified();
    let meets = local_ip == ip || unspecified;
    (meets && local_port == port && *words.get(3)? == state).then_some(())?;
    words.get(9)?.parse().ok()
}

/// `0100007F:1F90`: words in memory order.
fn address(text: &str) -> Option<(IpAddr, u16)> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let words: Vec<u32> = ip
        .as_bytes()
        .chunks(8)
        .map(|word| u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok().map(u32::from_be))
        .collect::<Option<_>>()?;
    let ip = match words.as_slice() {
        [word] => IpAddr::V4(Ipv4Addr::from_bits(*word)),
        [a, b, c, d] => {
            let bits = [a, b, c, d].into_iter().fold(0u128, |bits, word| bits << 32 | u128::from(*word));
            Ipv6Addr::from_bits(bits).to_canonical()
        }
        _ => return None,
    };
    Some((ip, port))
}

/// The oldest of those that have the socket: what a process has just forked has all its sockets until it executes a program.
fn process_of(inode: u64) -> Option<String> {
    let wanted = format!("socket:[{inode}]");
    let has = |pid: &i32| {
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        let mut targets = descriptors.filter_map(|descriptor| fs::read_link(descriptor.path()).ok());
        targets.any(|target| target.as_os_str() == wanted.as_str())
    };
    let pids = fs::read_dir("/proc").ok()?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let holders = pids.filter(has).filter_map(|pid| Process::new(pid).and_then(|process| process.stat()).ok());
    let oldest = holders.min_by_key(|stat| stat.starttime)?;
    Some(format!("process {} ({})", oldest.pid, oldest.comm))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_in_memory_order() {
        assert_eq!(address("0100007F:1F90"), Some(("127.0.0.1".parse().unwrap(), 8080)));
        assert_eq!(address("00000000000000000000000001000000:0050"), Some(("::1".parse().unwrap(), 80)));
        for wrong in ["", "x:1", "0100007F", "0100007F:x", "01:1:1"] {
            assert_eq!(address(wrong).filter(|(_, port)| *port != 1), None, "{wrong}");
        }
    }

    /// At a port that the kernel gives to nobody by itself: let go, it stays free.
    fn listener() -> std::net::TcpListener {
        let first = 30_000 + (std::process::id() % 2_000) as u16;
        (first..32_768).find_map(|port| std::net::TcpListener::bind(("127.0.0.1", port)).ok()).expect("a free port")
    }

    #[test]
    fn a_listener_keeps_its_port_and_is_named() {
        let listener = listener();
        let SocketAddr::V4(at) = listener.local_addr().unwrap() else { unreachable!() };
        let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let error = hold(PortProtocol::Tcp, any, at.port()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EADDRINUSE));
        let owner = owner(PortProtocol::Tcp, any, at.port()).unwrap();
        assert!(owner.starts_with(&format!("process {} (", std::process::id())), "{owner}");
        drop(listener);
        hold(PortProtocol::Tcp, any, at.port()).unwrap();
    }

    #[test]
    fn a_held_port_is_nobody_elses_and_answers_nothing() {
        let local = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let port = listener().local_addr().unwrap().port();
        let held = hold(PortProtocol::Tcp, local, port).unwrap();
        // std's listeners say that they share their port.
        for ip in ["127.0.0.1", "0.0.0.0"] {
            let error = std::net::TcpListener::bind((ip, port)).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EADDRINUSE), "{ip}");
        }
        let refused = std::net::TcpStream::connect((local, port)).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::ECONNREFUSED));
        drop(held);
        std::net::TcpListener::bind((local, port)).unwrap();

        let held = hold(PortProtocol::Udp, local, port).unwrap();
        assert!(std::net::UdpSocket::bind((local, port)).is_err());
        drop(held);
        std::net::UdpSocket::bind((local, port)).unwrap();
        for protocol in [PortProtocol::Tcp, PortProtocol::Udp] {
            assert_ne!(free_port(protocol, local).unwrap(), 0);
        }
    }

    #[test]
    fn connections_that_are_ending_keep_no_port() {
        let listener = listener();
        let at = listener.local_addr().unwrap();
        let client = std::net::TcpStream::connect(at).unwrap();
        // The side that closes first is the one that waits.
        drop((listener.accept().unwrap(), listener));
        drop(client);
        hold(PortProtocol::Tcp, at.ip(), at.port()).unwrap();
    }
}

//! Who is whose router in IPv6: nobody by his own word.

use super::*;

/// A router advertisement (RFC 4861), in an Ethernet frame: a default route by whoever sends it.
fn advertisement(to: [u8; 6], from: [u8; 6]) -> Vec<u8> {
    let source = "fe80::be".parse::<Ipv6Addr>().unwrap().octets();
    let all_nodes = "ff02::1".parse::<Ipv6Addr>().unwrap().octets();
    // Hop limit, no flags, a lifetime of 1800 s, times that are not told.
    let mut message = [&[134, 0, 0, 0, 64, 0][..], &1800_u16.to_be_bytes(), &[0; 8]].concat();
    let pseudo = [&source[..], &all_nodes, &[0, 0, 0, message.len() as u8, 0, 0, 0, 58], &message].concat();
    let mut sum: u32 = pseudo.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    message[2..4].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    let header = [0x60, 0, 0, 0, 0, message.len() as u8, 58, 255];
    [&to[..], &from, &0x86dd_u16.to_be_bytes(), &header, &source, &all_nodes, &message].concat()
}

/// Sends a frame by `eth0`, as whoever has `CAP_NET_RAW` may.
fn send_frame(frame: &[u8]) {
    // SAFETY: plain system calls on a descriptor and a structure of this function's own; all zeros is a valid
    // `sockaddr_ll`.
    unsafe {
        let socket = libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0);
        let mut to: libc::sockaddr_ll = std::mem::zeroed();
        to.sll_family = libc::AF_PACKET as u16;
        to.sll_ifindex = libc::if_nametoindex(c"eth0".as_ptr()) as i32;
        let size = size_of_val(&to) as u32;
        let sent = libc::sendto(socket, frame.as_ptr().cast(), frame.len(), 0, (&raw const to).cast(), size);
        let error = std::io::Error::last_os_error();
        libc::close(socket);
        assert_eq!(sent, frame.len() as isize, "{error}");
    }
}

/// Interfaces that lead to a default route of IPv6 in this thread's network namespace.
fn ways_out() -> Vec<String> {
    let text = std::fs::read_to_string("/proc/thread-self/net/ipv6_route").unwrap();
    let defaults = text.lines().filter(|line| line.starts_with(&format!("{:032} 00 ", 0)));
    defaults.filter_map(|line| line.split(' ').next_back()).filter(|name| *name != "lo").map(str::to_owned).collect()
}

fn set(parameter: &str, value: &str) {
    std::fs::write(format!("/proc/sys/net/ipv6/conf/{parameter}"), value).unwrap();
}

fn get(parameter: &str) -> String {
    std::fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{parameter}")).unwrap().trim().to_owned()
}

#[test]
fn no_container_makes_itself_the_router_of_the_host_or_of_others() {
    isolated(async || {
        let dir = tempfile::tempdir().unwrap();
        let bridge = Bridge::new(place(&dir, "ra", "10.251.13.0/24")).unwrap();
        let (one, two) = (Container::new(), Container::new());
        let (first, second) = (bridge.lease("one").unwrap(), bridge.lease("two").unwrap());
        bridge.attach(&first, one.pid()).await.unwrap();
        bridge.attach(&second, two.pid()).await.unwrap();
        // To all nodes, and to a group that a bridge does not forward but leaves to the port.
        let groups = [[0x33, 0x33, 0, 0, 0, 1], [0x01, 0x80, 0xc2, 0, 0, 0x0e]];
        let advertise = || groups.map(|to| one.enter(move || send_frame(&advertisement(to, first.mac.0))));
        advertise();
        // What comes after it has come: so has it.
        assert!(one.talks_to(serve(TcpListener::bind((first.gateway, 0)).unwrap())));
        assert!(one.talks_to(two.echo_server(second.ip)));
        assert_eq!((ways_out(), two.enter(ways_out)), (vec![], vec![]));
        let name = bridge.place().default.bridge.clone();
        let settings = [format!("{name}/disable_ipv6"), format!("{name}/accept_ra")].map(|parameter| get(&parameter));
        assert_eq!(settings, ["1", "0"]);
        assert_eq!(two.enter(|| get("eth0/disable_ipv6")), "1");

        // As an earlier Berth left them.
        let host_ifname = first.host_ifname.clone();
        for (parameter, value) in [("disable_ipv6", "0"), ("accept_ra", "2")] {
            set(&format!("{name}/{parameter}"), value);
            set(&format!("{host_ifname}/{parameter}"), value);
        }
        let deadline = Instant::now() + Duration::from_secs(30);
        while ways_out().len() < 2 {
            assert!(Instant::now() < deadline, "the advertisement is none: {:?}", ways_out());
            advertise();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        // Whoever comes next mends them.
        let (third, lease) = (Container::new(), bridge.lease("three").unwrap());
        bridge.attach(&lease, third.pid()).await.unwrap();
        assert_eq!(
            (get(&format!("{name}/disable_ipv6")), get(&format!("{host_ifname}/accept_ra"))),
            ("1".into(), "0".into())
        );
    });
}

#[test]
fn forwarding_of_ipv6_keeps_the_hosts_routers_and_brings_it_no_new_ones() {
    isolated(async || {
        let dir = tempfile::tempdir().unwrap();
        let networks = Networks::new(place(&dir, "ra6", "10.251.14.0/24")).unwrap();
        make_bridge("uplink");
        let plain = Container::new();
        let lease = networks.lease(DEFAULT_NETWORK, "plain-rep-0").unwrap();
        networks.attach(&lease, "plain-rep-0", Vec::new(), plain.pid()).await.unwrap();
        // As an earlier Berth left it.
        let bridge = networks.place.default.bridge.clone();
        set(&format!("{bridge}/accept_ra"), "1");
        set("default/accept_ra", "1");
        assert_eq!((get("uplink/accept_ra"), get("all/forwarding")), ("1".into(), "0".into()));

        let subnets = vec!["10.251.15.0/24".to_owned(), "fd42:ae::/64".to_owned()];
        let six = NetworkOptions { subnets, ..NetworkOptions::default() };
        let six = definition::create(&networks.place, "six", &six).unwrap();
        let (container, lease) = (Container::new(), networks.lease("six", "six-rep-0").unwrap());
        networks.attach(&lease, "six-rep-0", Vec::new(), container.pid()).await.unwrap();
        assert_eq!(get("all/forwarding"), "1");
        assert_eq!(get("uplink/accept_ra"), "2", "the host learns its own routes from there");
        assert_eq!((get("default/accept_ra"), get(&format!("{bridge}/accept_ra"))), ("1".into(), "1".into()));
        let six = six.bridge;
        assert_eq!((get(&format!("{six}/disable_ipv6")), get(&format!("{six}/accept_ra"))), ("0".into(), "0".into()));
        assert_eq!(container.enter(|| (get("eth0/disable_ipv6"), get("eth0/accept_ra"))), ("0".into(), "0".into()));
    });
}

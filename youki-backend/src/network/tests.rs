//! Leases on disk, and real bridges. The latter are made in a network namespace of each test's own, so that nothing of
//! the host's is touched and nothing can be left. Without root they have nothing to check, and say so.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use super::*;

/// A root's networks with the calls of a container in the default one.
#[derive(Clone)]
struct Bridge(Networks);

pub(super) fn place(dir: &tempfile::TempDir, tag: &str, subnet: &str) -> Place {
    Place {
        table: format!("berth_{tag}"),
        default: Definition::default_network(&format!("bertht-{tag}"), subnet.parse().unwrap()),
        definitions: dir.path().join("networks"),
        run: dir.path().join("run"),
        containers: dir.path().join("containers"),
    }
}

impl Bridge {
    fn new(place: Place) -> Result<Self> {
        Networks::new(place).map(Self)
    }

    fn place(&self) -> &Place {
        &self.0.place
    }

    fn lease(&self, id: &str) -> Result<Lease> {
        self.0.lease(DEFAULT_NETWORK, id)
    }

    fn free(&self, id: &str) -> Result<()> {
        lease::free(self.place(), |holder| holder == id).map(drop)
    }

    async fn attach(&self, lease: &Lease, pid: u32) -> Result<()> {
        let held = lease::list(&self.place().leases(DEFAULT_NETWORK)).unwrap();
        let id = held.into_iter().find_map(|(ip, holder)| (ip == lease.ip).then_some(holder)).unwrap_or_default();
        self.0.attach(lease, &id, Vec::new(), pid).await
    }

    async fn detach(&self, lease: &Lease) -> Result<()> {
        self.0.detach(lease).await
    }

    async fn remove(&self) -> Result<()> {
        self.0.dismantle().await
    }
}

#[test]
fn who_is_stopped_with_a_lock_is_named_and_not_waited_for_without_end() {
    let dir = tempfile::tempdir().unwrap();
    let mut holder = Command::new("flock").arg(dir.path().join("lock")).args(["sleep", "60"]).spawn().unwrap();
    let lock = |patience| lease::lock_within(dir.path(), "lock", rustix::fs::FlockOperation::LockExclusive, patience);
    let error = loop {
        match lock(Duration::from_millis(50)) {
            // It has not begun yet.
            Ok(free) => drop(free),
            Err(error) => break error,
        }
    };
    let told = error.to_string();
    assert!(error.code() == "network.failed" && told.contains("process "), "{told}");
    let waiting = std::thread::spawn({
        let path = dir.path().to_owned();
        move || lease::lock(&path, "lock", rustix::fs::FlockOperation::LockExclusive).map(drop)
    });
    // flock's child has it, too.
    let _ = Command::new("pkill").args(["-P", &holder.id().to_string()]).status();
    holder.kill().unwrap();
    holder.wait().unwrap();
    waiting.join().unwrap().unwrap();
}

#[test]
fn another_default_network_waits_until_nobody_is_on_the_one_of_before() {
    isolated(async || {
        let dir = tempfile::tempdir().unwrap();
        let bridge = Bridge::new(place(&dir, "first", "10.251.20.0/24")).unwrap();
        // Opened before anybody was on a network, with another configuration.
        let early = Bridge::new(place(&dir, "first", "10.251.21.0/24")).unwrap();
        let (container, lease) = (Container::new(), bridge.lease("one-rep-0").unwrap());
        bridge.attach(&lease, container.pid()).await.unwrap();
        let late = Bridge::new(place(&dir, "first", "10.251.22.0/24")).unwrap();
        for other in [&early, &late] {
            assert_eq!(other.place().find(DEFAULT_NETWORK).unwrap(), bridge.place().default);
        }
        // Another root's, by mistake: that binds nobody to it.
        let elsewhere = tempfile::tempdir().unwrap();
        let lost = |tag: &str| {
            let place = place(&elsewhere, tag, "10.251.20.0/24");
            Bridge::new(Place { table: "berth_lost".into(), ..place }).unwrap()
        };
        let theirs = lost("first").lease("lost-rep-0").unwrap();
        let refused = lost("first").attach(&theirs, Container::new().pid()).await.unwrap_err();
        assert_eq!(refused.code(), "config.invalid", "{refused}");
        assert_eq!(lost("lost").place().find(DEFAULT_NETWORK).unwrap().bridge, "bertht-lost");
        let (second, beside) = (Container::new(), early.lease("two-rep-0").unwrap());
        early.attach(&beside, second.pid()).await.unwrap();
        assert!(talk(second.echo_server(beside.ip)) && bridge.place().default.subnet.is_host(beside.ip));
        bridge.detach(&lease).await.unwrap();
        early.detach(&beside).await.unwrap();
        // One that was leased before has no place there.
        let refused = early.attach(&beside, second.pid()).await.unwrap_err();
        assert_eq!(
            (refused.code(), early.place().find(DEFAULT_NETWORK).unwrap()),
            ("network.failed", early.place().default.clone())
        );
        assert!(!links().contains(&beside.host_ifname), "{:?}", links());
        for (id, lease) in [("one-rep-0", &lease), ("two-rep-0", &beside)] {
            early.0.free(lease, id).unwrap();
        }
        let (third, moved) = (Container::new(), early.lease("three-rep-0").unwrap());
        early.attach(&moved, third.pid()).await.unwrap();
        assert!(talk(third.echo_server(moved.ip)) && early.place().default.subnet.is_host(moved.ip));
    });
}

#[test]
fn no_two_containers_have_one_address_whoever_asks() {
    let dir = tempfile::tempdir().unwrap();
    // A Bridge each, as in processes of their own: only the lock file is between them.
    let threads: Vec<_> = (0..8)
        .map(|thread| {
            let bridge = Bridge::new(place(&dir, "lease", "10.251.0.0/24")).unwrap();
            std::thread::spawn(move || {
                (0..25).map(|n| bridge.lease(&format!("c{thread}-{n}-rep-0")).unwrap()).collect::<Vec<_>>()
            })
        })
        .collect();
    let leases: Vec<Lease> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
    let distinct = |key: fn(&Lease) -> String| leases.iter().map(key).collect::<std::collections::HashSet<_>>().len();
    assert_eq!(distinct(|lease| lease.ip.to_string()), 200);
    assert_eq!(distinct(|lease| lease.mac.to_string()), 200);
    assert_eq!(distinct(|lease| lease.host_ifname.clone()), 200);
    assert!(leases.iter().all(|lease| lease.host_ifname.len() <= 15));
}

#[test]
fn a_lease_lasts_until_it_is_freed_and_its_address_is_the_last_to_come_again() {
    let dir = tempfile::tempdir().unwrap();
    let bridge = Bridge::new(place(&dir, "lease", "10.251.1.0/29")).unwrap();
    bridge.free("never").unwrap();
    let first = bridge.lease("a").unwrap();
    assert_eq!(first.ip, Ipv4Addr::new(10, 251, 1, 2));
    assert_eq!(bridge.lease("a").unwrap(), first, "asked again");
    bridge.free("a").unwrap();
    let next: Vec<u8> = ["b", "c", "d", "e"].iter().map(|id| bridge.lease(id).unwrap().ip.octets()[3]).collect();
    assert_eq!(next, [3, 4, 5, 6]);
    assert_eq!(bridge.lease("f").unwrap().ip, first.ip);
    let error = bridge.lease("g").unwrap_err();
    assert_eq!((error.code(), error.to_string().contains("10.251.1.0/29")), ("network.exhausted", true));

    let mut gone = bridge.0.reconcile(&|id| id == "c").unwrap();
    gone.sort();
    assert_eq!(gone, ["b", "d", "e", "f"]);
    assert_eq!(bridge.0.lease_again("d", &first).unwrap().ip, first.ip);
    assert_ne!(bridge.0.lease_again("h", &first).unwrap().ip, first.ip);
    let json = serde_json::to_string(&first).unwrap();
    assert_eq!(serde_json::from_str::<Lease>(&json).unwrap(), first);
    for id in ["", "../x", "a/b"] {
        assert_eq!(bridge.lease(id).unwrap_err().code(), "spec.invalid", "{id:?}");
    }
    let longest = format!("{}-rep-4294967295", "x".repeat(200));
    assert_eq!(bridge.lease(&longest).unwrap(), bridge.lease(&longest).unwrap());
}

#[test]
fn a_bridge_name_the_kernel_would_refuse_is_refused_before() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["", "a/b", "..", "a b", "sixteen-letters-", "-x"] {
        let default = Definition::default_network(name, "10.251.2.0/24".parse().unwrap());
        let error = Networks::new(Place { default, ..place(&dir, "x", "10.251.2.0/24") }).unwrap_err();
        assert_eq!(error.code(), "config.invalid", "{name:?}");
    }
}

/// Runs a test on a thread with a network namespace of its own, with `lo` up and an uplink `up0` for the default route.
fn isolated(test: impl AsyncFnOnce() + Send + 'static) {
    if !rustix::process::geteuid().is_root() {
        eprintln!("not root: not checked");
        return;
    }
    let thread = std::thread::spawn(move || {
        // SAFETY: only the network namespace of this thread changes, on which nothing else relies.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
        let up = rtnetlink::packet_route::RouteNetlinkMessage::SetLink(bridge::up(1));
        netlink::Netlink::open().unwrap().request([(up, 0)]).unwrap();
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test());
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// A process in a network namespace of its own.
struct Container(Child);

impl Container {
    fn new() -> Self {
        let child = Command::new("unshare")
            .args(["-n", "sh", "-c", "echo in; exec sleep 600"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut container = Self(child);
        let mut line = [0; 3];
        container.0.stdout.as_mut().unwrap().read_exact(&mut line).unwrap();
        container
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Runs `work` inside.
    fn enter<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let namespace = std::fs::File::open(format!("/proc/{}/ns/net", self.pid())).unwrap();
        std::thread::spawn(move || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            work()
        })
        .join()
        .unwrap()
    }

    fn echo_server(&self, ip: Ipv4Addr) -> SocketAddr {
        let listener = self.enter(move || TcpListener::bind((ip, 0)).unwrap());
        serve(listener)
    }

    fn talks_to(&self, address: SocketAddr) -> bool {
        self.enter(move || talk(address))
    }

    /// Whether nothing comes of it in a time that is long for a network without cables.
    fn is_kept_from(&self, address: SocketAddr) -> bool {
        self.enter(move || TcpStream::connect_timeout(&address, Duration::from_secs(2)).is_err())
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// Serves one connection: a listener that stayed would hold its network namespace.
fn serve(listener: TcpListener) -> SocketAddr {
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let (mut connection, _) = listener.accept().unwrap();
        drop(listener);
        let mut bytes = [0; 5];
        connection.read_exact(&mut bytes).unwrap();
        connection.write_all(&bytes).unwrap();
    });
    address
}

fn talk(address: SocketAddr) -> bool {
    let Ok(mut connection) = TcpStream::connect_timeout(&address, Duration::from_secs(20)) else { return false };
    connection.write_all(b"hello").unwrap();
    let mut bytes = [0; 5];
    connection.read_exact(&mut bytes).is_ok() && &bytes == b"hello"
}

fn make_bridge(name: &str) {
    use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
    let mut link = LinkMessage::default();
    link.attributes =
        vec![LinkAttribute::IfName(name.into()), LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)])];
    let message = rtnetlink::packet_route::RouteNetlinkMessage::NewLink(link);
    netlink::Netlink::open().unwrap().request([(message, netlink::CREATE)]).unwrap();
}

fn links() -> Vec<String> {
    let text = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    let names = text.lines().skip(2).filter_map(|line| line.split_once(':'));
    names.map(|(name, _)| name.trim().to_owned()).filter(|name| name.starts_with('b')).collect()
}

fn tables() -> String {
    String::from_utf8(Command::new("nft").args(["list", "tables"]).output().unwrap().stdout).unwrap()
}

#[test]
fn containers_reach_each_other_and_the_host_and_nothing_is_left() {
    isolated(async || {
        let dir = tempfile::tempdir().unwrap();
        let bridge = Bridge::new(place(&dir, "talk", "10.251.3.0/24")).unwrap();
        let (one, two) = (Container::new(), Container::new());
        let (first, second) = (bridge.lease("one").unwrap(), bridge.lease("two").unwrap());
        bridge.attach(&first, one.pid()).await.unwrap();
        bridge.attach(&second, two.pid()).await.unwrap();
        assert!(one.talks_to(two.echo_server(second.ip)), "container to container");
        assert!(talk(two.echo_server(second.ip)), "host to container");
        let on_host = serve(TcpListener::bind((first.gateway, 0)).unwrap());
        assert!(one.talks_to(on_host), "container to host");
        assert!(one.talks_to(one.echo_server(Ipv4Addr::LOCALHOST)), "its own loopback");
        let (wanted, mac) = (first.mac.to_string(), "/sys/class/net/eth0/address");
        let seen = Command::new("nsenter")
            .args([&format!("-t{}", one.pid()), "-n", "unshare", "-m", "sh", "-c"])
            .arg(format!("mount -t sysfs none /sys && cat {mac}"))
            .output()
            .unwrap();
        assert_eq!(String::from_utf8(seen.stdout).unwrap().trim(), wanted);
        assert_eq!(std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap().trim(), "1");

        assert_eq!(links().len(), 3);
        let link = netlink::Netlink::open().unwrap().link(&first.host_ifname).unwrap().unwrap();
        let alias = rtnetlink::packet_route::link::LinkAttribute::IfAlias("berth_talk".to_owned());
        assert!(link.attributes.contains(&alias), "whose it is: {:?}", link.attributes);
        bridge.remove().await.unwrap();
        assert_eq!(links().len(), 3, "it is in use");
        bridge.detach(&first).await.unwrap();
        bridge.detach(&first).await.unwrap();
        drop(two);
        let deadline = Instant::now() + Duration::from_secs(30);
        while links().len() > 1 {
            assert!(Instant::now() < deadline, "a veth goes with its namespace: {:?}", links());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        bridge.remove().await.unwrap();
        bridge.remove().await.unwrap();
        assert_eq!((links(), tables()), (vec![], String::new()));
    });
}

#[test]
fn what_leaves_the_subnet_carries_the_hosts_address_and_neighbours_stay_out() {
    isolated(async || {
        let dir = tempfile::tempdir().unwrap();
        let inside = Bridge::new(place(&dir, "in", "10.251.4.0/24")).unwrap();
        // Stands for the network beyond the host: it knows no route back to the containers.
        let outside = Bridge::new(Place { run: dir.path().join("o"), ..place(&dir, "out", "10.251.5.0/24") });
        let outside = outside.unwrap();
        let (container, server) = (Container::new(), Container::new());
        let (lease, remote) = (inside.lease("c").unwrap(), outside.lease("s").unwrap());
        inside.attach(&lease, container.pid()).await.unwrap();
        outside.attach(&remote, server.pid()).await.unwrap();
        // The far side of a real uplink has no rules of ours; here only the inner bridge's are to be seen.
        firewall::remove(outside.place()).unwrap();
        let listener = server.enter(move || TcpListener::bind((remote.ip, 0)).unwrap());
        let address = listener.local_addr().unwrap();
        let seen = std::thread::spawn(move || listener.accept().unwrap().1.ip());
        container.enter(move || TcpStream::connect_timeout(&address, Duration::from_secs(20)).unwrap());
        assert_eq!(seen.join().unwrap(), outside.place().default.gateway);
        assert!(server.is_kept_from(container.echo_server(lease.ip)), "what nobody published is not reached");
        firewall::remove(inside.place()).unwrap();
        assert!(server.talks_to(container.echo_server(lease.ip)), "and it is the table that keeps it out");
    });
}

#[test]
fn half_made_things_are_finished_and_foreign_ones_left_alone() {
    isolated(async || {
        let dir = tempfile::tempdir().unwrap();
        let bridge = Bridge::new(place(&dir, "half", "10.251.6.0/24")).unwrap();
        let ours = bridge.place().default.clone();
        let lease = bridge.lease("c").unwrap();
        let mut host = netlink::Netlink::open().unwrap();
        // A process in the host's network must not get the container's address.
        // SAFETY: it has no preconditions.
        let own = unsafe { libc::gettid() };
        let error = bridge.attach(&lease, own as u32).await.unwrap_err();
        assert_eq!((error.code(), links()), ("network.failed", vec![]));
        let error = bridge.attach(&lease, u32::MAX >> 1).await.unwrap_err();
        assert_eq!(error.code(), "network.failed", "{error}");

        assert!(host.link(&ours.bridge).unwrap().is_none(), "nothing is made for a process that is not there");

        // Killed before the bridge had its name.
        make_bridge(&bridge::unfinished_name(bridge.place(), &ours));
        // Killed after the pair was made: the namespace is still held, so is the name.
        let stale = Container::new();
        bridge.attach(&lease, stale.pid()).await.unwrap();
        let container = Container::new();
        bridge.attach(&lease, container.pid()).await.unwrap();
        assert!(talk(container.echo_server(lease.ip)));
        // Whoever flushes the host's rules takes the table along.
        assert!(Command::new("nft").args(["flush", "ruleset"]).status().unwrap().success());
        let other = Container::new();
        bridge.attach(&bridge.lease("d").unwrap(), other.pid()).await.unwrap();
        assert!(tables().contains("berth_half"), "{}", tables());

        // Another root that was given the same bridge.
        let thief = Bridge::new(Place { table: "berth_other".into(), ..place(&dir, "half", "10.251.6.0/24") }).unwrap();
        let error = thief.attach(&lease, other.pid()).await.unwrap_err();
        assert_eq!(error.code(), "config.invalid", "{error}");
        thief.remove().await.unwrap();
        assert!(host.link(&ours.bridge).unwrap().is_some());

        // And one that nobody of us made.
        make_bridge("bertht-foreign");
        let elsewhere = tempfile::tempdir().unwrap();
        let theirs = Bridge::new(place(&elsewhere, "foreign", "10.251.6.0/24")).unwrap();
        assert_eq!(theirs.attach(&theirs.lease("c").unwrap(), other.pid()).await.unwrap_err().code(), "config.invalid");
        theirs.remove().await.unwrap();
        assert!(host.link("bertht-foreign").unwrap().is_some());

        // A subnet configured anew takes effect once nobody is attached.
        let moved = || Bridge::new(place(&dir, "half", "10.251.7.0/24")).unwrap();
        assert_eq!(moved().place().find(DEFAULT_NETWORK).unwrap(), ours);
        drop((stale, container, other));
        let index = host.link(&ours.bridge).unwrap().unwrap().header.index;
        let deadline = Instant::now() + Duration::from_secs(30);
        while host.has_ports(index).unwrap() {
            assert!(Instant::now() < deadline, "{:?}", links());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let moved = moved();
        let (third, lease) = (Container::new(), moved.lease("e").unwrap());
        moved.attach(&lease, third.pid()).await.unwrap();
        assert!(moved.place().default.subnet.is_host(lease.ip) && talk(third.echo_server(lease.ip)));
    });
}

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

/// `count` ports from 20000 on, of protocol udp.
fn many_ports(count: u16) -> Vec<Wish> {
    let one = |port: u16| PortMapping {
        host_port: Some(port),
        container_port: port,
        protocol: runtime_core::spec::PortProtocol::Udp,
        host_ip: None,
    };
    let port_mappings = (20_000..20_000 + count).map(one).collect();
    wishes(&ServiceSpec { port_mappings, ..ServiceSpec::new("image") })
}

fn elements(table: &str, map: &str) -> usize {
    let listed = Command::new("nft").args(["list", "map", "inet", table, map]).output().unwrap();
    assert!(listed.status.success(), "{listed:?}");
    String::from_utf8(listed.stdout).unwrap().matches(" : ").count().saturating_sub(1)
}

#[test]
fn however_many_ports_are_published_all_are_closed() {
    const MANY: u16 = 4000;
    isolated(async || {
        let dir = tempfile::tempdir().unwrap();
        let bridge = Bridge::new(place(&dir, "ports", "10.251.16.0/24")).unwrap();
        let (container, id) = (Container::new(), "one-rep-0");
        let lease = bridge.lease(id).unwrap();
        let wanted = many_ports(MANY);
        let request = PortRequest { id, wanted: &wanted, earlier: &[], lease: Some(&lease), ended: &|_: &str| false };
        let table = bridge.place().table.clone();
        bridge.0.reserve(&request).unwrap();
        bridge.attach(&lease, container.pid()).await.unwrap();
        assert_eq!(elements(&table, "udp4"), usize::from(MANY));
        let begun = Instant::now();
        bridge.0.leave(id, Some(&lease)).await.unwrap();
        assert!(begun.elapsed() < Duration::from_secs(5), "the lock on the ports was held for {:?}", begun.elapsed());
        assert_eq!((elements(&table, "udp4"), bridge.0.holds(id, Some(&lease))), (0, false));

        // And when all of them are gone already, which the kernel tells of each.
        bridge.0.reserve(&request).unwrap();
        bridge.attach(&lease, container.pid()).await.unwrap();
        assert!(Command::new("nft").args(["flush", "map", "inet", &table, "udp4"]).status().unwrap().success());
        bridge.0.leave(id, Some(&lease)).await.unwrap();
        assert!(!bridge.0.holds(id, Some(&lease)));
    });
}

#[test]
fn ports_that_cannot_be_closed_hold_up_no_other_and_keep_their_address() {
    isolated(async || {
        let dir = tempfile::tempdir().unwrap();
        // Longer than the kernel takes: whatever is asked of this table is refused.
        let table = format!("berth_{}", "x".repeat(300));
        let bridge = Bridge::new(Place { table, ..place(&dir, "stuck", "10.251.17.0/24") }).unwrap();
        let wanted = many_ports(1);
        let (one, other) = ("one-rep-0", "other-rep-0");
        let (stuck, _) = (bridge.lease(one).unwrap(), bridge.lease(other).unwrap());
        let request =
            PortRequest { id: one, wanted: &wanted, earlier: &[], lease: Some(&stuck), ended: &|_: &str| false };
        bridge.0.reserve(&request).unwrap();
        assert_eq!(bridge.0.reconcile(&|_| false).unwrap(), [other]);
        assert!(bridge.0.holds(one, Some(&stuck)));
        assert_eq!(bridge.lease(one).unwrap().ip, stuck.ip);
    });
}

#[test]
fn an_attach_that_comes_after_all_was_given_back_makes_nothing() {
    isolated(async || {
        let dir = tempfile::tempdir().unwrap();
        let bridge = Bridge::new(place(&dir, "late", "10.251.20.0/24")).unwrap();
        let (container, id) = (Container::new(), "late-rep-0");
        let lease = bridge.lease(id).unwrap();
        bridge.0.leave(id, Some(&lease)).await.unwrap();
        bridge.detach(&lease).await.unwrap();
        bridge.0.free(&lease, id).unwrap();
        let error = bridge.0.attach(&lease, id, vec!["late".into()], container.pid()).await.unwrap_err();
        assert_eq!((error.code(), links(), bridge.0.holds(id, Some(&lease))), ("network.failed", vec![], false));

        // In the middle of it: between the name and the look at the lease nobody sees the name.
        let lease = bridge.lease(id).unwrap();
        names::join(bridge.place(), &lease, id, &["late".to_owned()]).unwrap();
        assert!(bridge.0.holds(id, Some(&lease)));
        bridge.0.free(&lease, id).unwrap();
        assert!(!bridge.0.holds(id, Some(&lease)));
    });
}

#[test]
fn a_bridge_that_never_got_its_name_goes_with_the_rest() {
    isolated(async || {
        let dir = tempfile::tempdir().unwrap();
        let bridge = Bridge::new(place(&dir, "unnamed", "10.251.12.0/24")).unwrap();
        make_bridge(&bridge::unfinished_name(bridge.place(), &bridge.place().default));
        assert_eq!(links().len(), 1);
        bridge.remove().await.unwrap();
        assert_eq!(links(), Vec::<String>::new());
    });
}

#[test]
fn what_no_network_can_have_is_refused_by_its_field() {
    let mut spec = ServiceSpec::new("image");
    spec.network.aliases = vec!["web".into()];
    check(&spec).unwrap();
    for (field, mappings) in [
        ("port_mappings[0].container_port", r#"[{"container_port":0}]"#),
        ("port_mappings[0].host_ip", r#"[{"container_port":1,"host_ip":"nowhere"}]"#),
        ("port_mappings[1].host_port", r#"[{"host_port":8,"container_port":1},{"host_port":8,"container_port":2}]"#),
    ] {
        spec.port_mappings = serde_json::from_str(mappings).unwrap();
        let error = check(&spec).unwrap_err();
        assert!(error.code() == "spec.invalid" && error.to_string().starts_with(field), "{error}");
    }
    spec.port_mappings.clear();
    let range = r#"[{"host_port":90,"host_port_end":80,"container_port":80}]"#;
    spec.port_ranges = serde_json::from_str(range).unwrap();
    assert!(check(&spec).unwrap_err().to_string().starts_with("port_ranges[0].host_port_end"));
    spec.port_ranges.clear();
    // One port is two of two protocols, and of two addresses.
    spec.port_mappings = serde_json::from_str(
        r#"[{"host_port":8,"container_port":1},{"host_port":8,"container_port":1,"protocol":"udp"}]"#,
    )
    .unwrap();
    check(&spec).unwrap();
    spec.network.aliases = vec!["a b".into()];
    assert_eq!(check(&spec).unwrap_err().code(), "spec.invalid");
}

#[test]
fn networks_are_defined_listed_and_never_overlap() {
    let dir = tempfile::tempdir().unwrap();
    let networks = Networks::new(place(&dir, "defs", "10.251.9.0/24")).unwrap();
    let with = |subnet: &str| NetworkOptions { subnets: vec![subnet.into()], ..NetworkOptions::default() };
    let made = definition::create(&networks.place, "front", &with("10.251.10.0/24")).unwrap();
    assert_eq!(made.gateway, Ipv4Addr::new(10, 251, 10, 1));
    for (name, options, code) in [
        ("front", with("10.251.11.0/24"), "network.exists"),
        ("back", with("10.251.10.128/25"), "network.overlap"),
        ("back", with("10.251.9.0/24"), "network.overlap"),
        ("back", with("nonsense"), "spec.invalid"),
        ("bridge", with("10.251.11.0/24"), "spec.invalid"),
        ("../x", with("10.251.11.0/24"), "spec.invalid"),
    ] {
        let error = definition::create(&networks.place, name, &options).unwrap_err();
        assert_eq!(error.code(), code, "{name}: {error}");
    }
    let lease = networks.lease("front", "web-rep-0").unwrap();
    assert_eq!((lease.network.as_str(), lease.ip), ("front", Ipv4Addr::new(10, 251, 10, 2)));
    assert_eq!(networks.lease("nosuch", "web-rep-0").unwrap_err().code(), "network.not_found");
    assert_eq!(networks.inspect("front").unwrap().containers[0].id, "web-rep-0");
    let names: Vec<String> = networks.list().unwrap().into_iter().map(|network| network.name).collect();
    assert_eq!(names, ["bridge", "front"]);
}

#[test]
fn a_network_is_known_until_the_host_has_nothing_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let networks = Networks::new(place(&dir, "gone", "10.251.18.0/24")).unwrap();
    let options = NetworkOptions { subnets: vec!["10.251.19.0/24".into()], ..NetworkOptions::default() };
    definition::create(&networks.place, "front", &options).unwrap();
    let fails = |_: &Definition| Err(Error::Network { network: "front".into(), what: "no".into(), source: None });
    let nobody = || Ok(Vec::new());
    definition::remove(&networks.place, "front", nobody, fails).unwrap_err();
    let error = definition::remove(&networks.place, "front", nobody, |_| Ok(false)).unwrap_err();
    assert_eq!(error.code(), "network.in_use");
    networks.place.find("front").unwrap();
    definition::remove(&networks.place, "front", nobody, |_| Ok(true)).unwrap();
    assert_eq!(networks.place.find("front").unwrap_err().code(), "network.not_found");
}

#[test]
fn a_network_that_is_gone_is_removed_though_the_firewall_fails() {
    isolated(async || {
        let dir = tempfile::tempdir().unwrap();
        // Longer than the kernel takes: whatever is asked of this table is refused.
        let table = format!("berth_{}", "x".repeat(300));
        let networks = Networks::new(Place { table, ..place(&dir, "gone", "10.251.18.0/24") }).unwrap();
        let options = NetworkOptions { subnets: vec!["10.251.19.0/24".into()], ..NetworkOptions::default() };
        definition::create(&networks.place, "front", &options).unwrap();
        networks.remove("front", || Ok(Vec::new())).await.unwrap();
        assert_eq!(networks.place.find("front").unwrap_err().code(), "network.not_found");
    });
}

#[test]
fn many_at_once_all_get_their_network() {
    const MANY: usize = 24;
    isolated(async || {
        let dir = tempfile::tempdir().unwrap();
        let bridge = Bridge::new(place(&dir, "many", "10.251.8.0/24")).unwrap();
        let containers: Vec<Container> = (0..MANY).map(|_| Container::new()).collect();
        let leases: Vec<Lease> = (0..MANY).map(|n| bridge.lease(&n.to_string()).unwrap()).collect();
        let all = containers.iter().zip(&leases).map(|(container, lease)| bridge.attach(lease, container.pid()));
        for result in futures_util::future::join_all(all).await {
            result.unwrap();
        }
        assert_eq!(links().len(), MANY + 1);
        for (container, lease) in containers.iter().zip(&leases).take(3) {
            assert!(talk(container.echo_server(lease.ip)));
        }
    });
}

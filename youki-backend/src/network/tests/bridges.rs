//! Real bridges: who reaches whom, what is finished, and what is left.

use super::*;

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

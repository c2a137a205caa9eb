//! Which networks there are, and which addresses are whose.

use super::*;

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
    let is_it =
        |fd: &std::fs::DirEntry| std::fs::read_link(fd.path()).is_ok_and(|file| file == dir.path().join("lock"));
    let left = std::fs::read_dir("/proc/self/fd").unwrap().flatten().filter(is_it).count();
    assert_eq!(left, 0, "who has given up still waits");
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
fn what_a_killed_create_has_leased_is_free_once_its_name_is_used_in_another_network() {
    let dir = tempfile::tempdir().unwrap();
    let networks = Networks::new(place(&dir, "else", "10.71.0.0/24")).unwrap();
    definition::create(&networks.place, "first", &NetworkOptions::default()).unwrap();
    let lease = |network, id| networks.lease(network, id).unwrap();
    let (killed, others, again) = (lease("first", "a"), lease("first", "b"), lease(DEFAULT_NETWORK, "a"));
    let is_held = |lease, id| lease::is_held(&networks.place, lease, id);
    assert_eq!((is_held(&killed, "a"), is_held(&others, "b"), is_held(&again, "a")), (false, true, true));
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

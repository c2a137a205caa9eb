//! Networks of one's own: subnets, gateways, IPv6, internal ones, MTU; and what happens when the host takes them away.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use runtime_core::spec::{NetworkMode, PortProtocol};
use runtime_core::{AgentError, ContainerId, ContainerState, PortMapping, Runtime, ServiceSpec};
use youki_backend::{NetworkOptions, YoukiRuntime};

use crate::networks::{Outside, curl, ip, published, web};
use crate::published_ports::datagrams_in;
use crate::support::Case;
use crate::support::agent::{Agent, Request};
use crate::support::case::{IDLE, asked, eventually, soon, words};
use crate::support::leftovers;
use crate::support::root::Root;
use crate::support::share::Share;

crate::tests![
    a_named_network_has_its_addresses_gateway_and_names_and_is_a_world_of_its_own,
    an_ipv6_network_reaches_its_own_the_world_and_is_reached,
    an_internal_network_lets_nothing_out_or_in,
    packets_are_as_large_as_the_network_says,
    a_network_in_use_is_kept_and_names_its_containers,
    one_whose_definition_is_damaged_hides_no_other_and_can_be_removed,
    subnets_that_meet_others_are_refused_and_name_them,
    who_runs_keeps_its_address_and_ports_when_their_files_are_lost,
    a_full_subnet_says_so_and_takes_the_next_once_somebody_goes,
    what_the_host_lost_is_put_back,
    a_container_created_after_the_host_lost_it_all_has_its_network,
    who_is_created_while_its_agent_dies_attaching_it_is_attached_when_it_starts,
];

/// A root of the test's own, with networks.
pub struct Place {
    case: Case,
    pub root: Root,
    pub runtime: YoukiRuntime,
}

impl Place {
    pub async fn new(case: &Case) -> Self {
        let root = case.root("root");
        let runtime = YoukiRuntime::open(root.config()).await.unwrap();
        Self { case: case.clone(), root, runtime }
    }

    /// A /26 that no other root of this suite has.
    pub fn subnet(&self, quarter: u8) -> String {
        Share::further_subnet(&self.root.subnet, quarter)
    }

    pub async fn network(&self, name: &str, options: NetworkOptions) {
        self.runtime.create_network(name, &options).await.unwrap_or_else(|error| panic!("{name}: {error}"));
    }

    pub async fn spec(&self, network: &str, script: &str) -> ServiceSpec {
        let mut spec = self.case.script(script).await;
        spec.network.mode = NetworkMode::from(network.to_owned());
        spec
    }

    pub async fn start(&self, spec: &ServiceSpec) -> ContainerId {
        let id = self.case.id_in(&self.root);
        crate::support::case::start_on(&self.runtime, &id, spec).await.unwrap_or_else(|error| panic!("{id}: {error}"));
        id
    }

    pub async fn idle(&self, network: &str) -> ContainerId {
        self.start(&self.spec(network, IDLE).await).await
    }

    async fn exec(&self, id: &ContainerId, script: &str) -> (i32, String) {
        let (code, stdout, stderr) = self.runtime.exec(id, &words(&["sh", "-c", script])).await.unwrap();
        (code, stdout + &stderr)
    }

    pub async fn exec_ok(&self, id: &ContainerId, script: &str) -> String {
        let (code, text) = self.exec(id, script).await;
        assert_eq!(code, 0, "{script:?} in {id}: {text}");
        text
    }

    pub async fn ipv4(&self, id: &ContainerId) -> String {
        self.runtime.inspect(id).await.unwrap().networks[0].ipv4.clone().unwrap()
    }

    pub async fn ipv6(&self, id: &ContainerId) -> String {
        self.runtime.inspect(id).await.unwrap().networks[0].ipv6.clone().unwrap()
    }

    pub fn bridge(&self, network: &str) -> String {
        self.runtime.network(network).unwrap().bridge
    }

    /// Removes what the test made, and looks that the host has no trace of the networks.
    pub async fn close(self, networks: &[&str]) {
        for id in self.runtime.list_containers().await.unwrap() {
            self.runtime.remove(&id.id, true).await.unwrap();
        }
        for network in networks {
            let bridge = self.bridge(network);
            // The last veth goes with the end of its namespace.
            eventually("the network is removed", || async { self.runtime.remove_network(network).await.is_ok() }).await;
            assert!(!Path::new("/sys/class/net").join(&bridge).exists(), "{bridge} of {network}");
        }
    }
}

async fn a_named_network_has_its_addresses_gateway_and_names_and_is_a_world_of_its_own(case: Case) {
    let place = Place::new(&case).await;
    let subnet = place.subnet(1);
    let gateway = subnet.replace(".64/26", ".126");
    let options = NetworkOptions {
        subnets: vec![subnet.clone()],
        gateway: Some(gateway.parse().unwrap()),
        ..NetworkOptions::default()
    };
    place.network("front", options).await;
    place.network("back", NetworkOptions { subnets: vec![place.subnet(2)], ..NetworkOptions::default() }).await;
    let mut spec = place.spec("front", IDLE).await;
    spec.network.aliases = vec!["db".into()];
    let (one, two) = (place.start(&spec).await, place.idle("front").await);
    let (elsewhere, by_default) = (place.idle("back").await, place.idle("bridge").await);

    let details = place.runtime.inspect_detailed(&one).await.unwrap();
    assert_eq!(
        (details.networks[0].network.as_str(), &details.networks[0].aliases[..]),
        ("front", &["db".to_owned()][..])
    );
    assert_eq!(details.networks[0].ipv4, Some(place.ipv4(&one).await));
    let inside = place.runtime.network("front").unwrap();
    assert_eq!((inside.subnet, inside.gateway, inside.containers.len()), (subnet.clone(), gateway.clone(), 2));
    let last: u8 = place.ipv4(&one).await.rsplit_once('.').unwrap().1.parse().unwrap();
    assert!((66..126).contains(&last), "{last} is one of {subnet}");
    let shown = place.exec_ok(&one, "ip -4 -o addr show dev eth0 | awk '{print $4}'").await;
    assert_eq!(shown.trim(), format!("{}/26", place.ipv4(&one).await));
    assert!(place.exec_ok(&two, "ip route").await.contains(&format!("default via {gateway} ")));
    place.exec_ok(&two, &format!("ping -c 1 -W 5 {gateway}")).await;
    for name in [one.service.as_str(), "db"] {
        place.exec_ok(&two, &format!("ping -c 1 -W 5 {name}")).await;
    }
    place.exec_ok(&one, &format!("ping -c 1 -W 5 {}", two.service)).await;

    for (from, to) in [(&one, &elsewhere), (&elsewhere, &one), (&one, &by_default), (&by_default, &one)] {
        let address = place.ipv4(to).await;
        let (code, text) = place.exec(from, &format!("ping -c 1 -W 1 {address}")).await;
        assert_ne!(code, 0, "{from} reaches {to}: {text}");
        let hosts = place.exec_ok(from, "cat /etc/hosts").await;
        assert!(!hosts.contains(&to.service), "{from} knows {to}: {hosts}");
    }
    place.close(&["front", "back"]).await;
}

async fn an_ipv6_network_reaches_its_own_the_world_and_is_reached(case: Case) {
    let place = Place::new(&case).await;
    let outside = Outside::new(&case, "six", 8);
    // Documentation (RFC 3849)
    let group = case.suite.share.group();
    let (host, far) = (format!("2001:db8:{group}::1"), format!("2001:db8:{group}::2"));
    let prefix = format!("fd42:{group}:7::");
    ip(&format!("addr add {host}/64 dev {} nodad", outside.link));
    ip(&format!("-n {} addr add {far}/64 dev far0 nodad", outside.name));
    let options =
        NetworkOptions { subnets: vec![place.subnet(1), format!("{prefix}/64")], ..NetworkOptions::default() };
    place.network("six", options).await;
    let mut spec = place.spec("six", &web("six")).await;
    spec.port_mappings = vec![published(None, 80, None)];
    let server = place.start(&spec).await;
    let client = place.idle("six").await;
    let (one, two) = (place.ipv6(&server).await, place.ipv6(&client).await);
    assert!(one.starts_with(&prefix) && one != two, "{one} {two}");
    assert!(place.exec_ok(&server, "ip -6 addr show dev eth0").await.contains(&format!("{one}/64")));
    assert!(place.exec_ok(&client, "ip -6 route").await.contains(&format!("default via {prefix}1 ")));
    place.exec_ok(&client, &format!("ping -6 -c 1 -W 5 {one}")).await;
    place.exec_ok(&client, &format!("ping -6 -c 1 -W 5 {}", server.service)).await;
    place.exec_ok(&client, &format!("ping -6 -c 1 -W 5 {prefix}1")).await;

    // Outbound: the world sees the host's address.
    let mut seen = tokio::process::Command::new("ip")
        .args(["netns", "exec", &outside.name, "busybox", "nc", "-ll", "-p", "7006", "-e", "/bin/busybox", "sh", "-c"])
        .arg("busybox netstat -tn | busybox grep :7006")
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let text = place.exec_ok(&client, &asked(&far, 7006)).await;
    seen.kill().await.unwrap();
    assert!(text.contains(&host) && !text.contains(&two), "the other end sees {text:?}");

    // Inbound: the published port, on addresses of either family, and nothing that is not published.
    let port = place.runtime.inspect(&server).await.unwrap().ports[0].host_port.unwrap();
    // The kernel lets nothing from ::1 leave the host's loopback: refused at once, so that clients try 127.0.0.1.
    let port_of = |address: &str| format!("{address}:{port}").parse::<std::net::SocketAddr>().unwrap();
    let refused =
        std::net::TcpStream::connect_timeout(&port_of("[::1]"), std::time::Duration::from_secs(5)).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    for address in ["127.0.0.1".to_owned(), format!("[{host}]"), format!("[{prefix}1]")] {
        assert_eq!(curl(&format!("http://{address}:{port}/")).await, "six", "{address}");
    }
    assert_eq!(outside.curl(&format!("http://[{host}]:{port}/")).await, "six", "from outside");
    ip(&format!("-n {} route add {prefix}/64 via {host}", outside.name));
    let unpublished = format!("http://[{one}]/");
    let args = ["netns", "exec", outside.name.as_str(), "curl", "-s", "-g", "-m", "3", unpublished.as_str()];
    assert!(!Command::new("ip").args(args).status().unwrap().success(), "what nobody published is not reached");
    drop(outside);
    place.close(&["six"]).await;
}

async fn an_internal_network_lets_nothing_out_or_in(case: Case) {
    let place = Place::new(&case).await;
    let outside = Outside::new(&case, "int", 12);
    let subnet = place.subnet(1);
    place
        .network("inner", NetworkOptions { subnets: vec![subnet.clone()], internal: true, ..NetworkOptions::default() })
        .await;
    place.network("outer", NetworkOptions { subnets: vec![place.subnet(2)], ..NetworkOptions::default() }).await;
    let mut spec = place.spec("inner", IDLE).await;
    spec.capabilities = vec!["NET_ADMIN".into()];
    let (one, two) = (place.start(&spec).await, place.idle("inner").await);
    place.exec_ok(&one, &format!("ping -c 1 -W 5 {}", two.service)).await;
    assert!(!place.exec_ok(&one, "ip route").await.contains("default"));
    // With a route of its own making, too.
    place.exec_ok(&one, &format!("ip route add default via {}", subnet.replace(".64/26", ".65"))).await;
    let other = place.idle("outer").await;
    place.exec_ok(&other, &format!("ping -c 1 -W 5 {}", outside.host)).await;
    for address in [outside.far.clone(), place.ipv4(&other).await] {
        let (code, text) = place.exec(&one, &format!("ping -c 1 -W 1 {address}")).await;
        assert_ne!(code, 0, "{address} is reached: {text}");
    }
    // Nor to what others publish: a datagram needs no answer.
    let mut spec_of_open = place.spec("bridge", IDLE).await;
    let port = case.suite.share.port();
    spec_of_open.port_mappings = vec![PortMapping { protocol: PortProtocol::Udp, ..published(Some(port), 9, None) }];
    let open = place.start(&spec_of_open).await;
    let (server, client) = (datagrams_in(&place.runtime, &open, 9).await, datagrams_in(&place.runtime, &one, 9).await);
    for address in [subnet.replace(".64/26", ".65"), outside.host.clone()] {
        client.send_to(b"secret", (address, port)).await.unwrap();
    }
    let host = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    host.send_to(b"the host's", ("127.0.0.1", port)).await.unwrap();
    let mut bytes = [0; 16];
    let (length, _) = soon("a datagram", server.recv_from(&mut bytes)).await.unwrap();
    assert_eq!(&bytes[..length], b"the host's");
    let inner = place.ipv4(&one).await;
    ip(&format!("-n {} route add default via {}", outside.name, outside.host));
    let into = Command::new("ip").args(["netns", "exec", &outside.name, "ping", "-c", "1", "-W", "1", &inner]).output();
    assert!(!into.unwrap().status.success(), "it is reached from outside");

    spec.port_mappings = vec![published(None, 80, None)];
    let error = place.runtime.create_container(&case.id_in(&place.root), &spec).await.unwrap_err();
    assert!(error.code() == "spec.invalid" && error.to_string().contains("internal"), "{error}");
    place.close(&["inner", "outer"]).await;
}

async fn packets_are_as_large_as_the_network_says(case: Case) {
    let place = Place::new(&case).await;
    let options = NetworkOptions { subnets: vec![place.subnet(1)], mtu: Some(1280), ..NetworkOptions::default() };
    place.network("small", options).await;
    let id = place.idle("small").await;
    assert_eq!(place.exec_ok(&id, "cat /sys/class/net/eth0/mtu").await, "1280\n");
    let bridge = Path::new("/sys/class/net").join(place.bridge("small")).join("mtu");
    assert_eq!(std::fs::read_to_string(bridge).unwrap(), "1280\n");
    for mtu in [67, 65_536] {
        let options = NetworkOptions { mtu: Some(mtu), ..NetworkOptions::default() };
        let error = place.runtime.create_network("never", &options).await.unwrap_err();
        assert!(error.code() == "spec.invalid" && error.to_string().contains("MTU"), "{error}");
    }
    place.close(&["small"]).await;
}

async fn one_whose_definition_is_damaged_hides_no_other_and_can_be_removed(case: Case) {
    let place = Place::new(&case).await;
    for (name, quarter) in [("whole", 1), ("damaged", 2)] {
        place.network(name, NetworkOptions { subnets: vec![place.subnet(quarter)], ..NetworkOptions::default() }).await;
    }
    let (member, other) = (place.idle("whole").await, place.idle("damaged").await);
    place.runtime.stop(&other, Some(Duration::ZERO)).await.unwrap();
    let bridge = place.bridge("damaged");
    let file = place.root.dir.join("networks/damaged.json");
    std::fs::write(&file, "").unwrap();
    // Names of one container too.
    let names = place.root.run_dir.join("names/whole").join(format!("{}@{member}", place.ipv4(&member).await));
    std::fs::write(names, "{").unwrap();
    drop(place.root.open().await.unwrap());
    place.idle("whole").await;
    let listed: Vec<String> = place.runtime.networks().unwrap().into_iter().map(|network| network.name).collect();
    assert_eq!(listed, ["bridge", "whole"]);
    let error = place.runtime.create_container(&case.id_in(&place.root), &place.spec("damaged", IDLE).await).await;
    assert_eq!(error.unwrap_err().code(), "root.corrupt");
    let error = place.runtime.remove_network("damaged").await.unwrap_err();
    assert!(error.code() == "network.in_use" && error.to_string().contains(&other.to_string()), "{error}");
    place.runtime.remove(&other, true).await.unwrap();
    place.runtime.remove_network("damaged").await.unwrap();
    assert!(!file.exists() && !std::path::Path::new("/sys/class/net").join(bridge).exists());
    place.close(&["whole"]).await;
}

async fn a_network_in_use_is_kept_and_names_its_containers(case: Case) {
    let place = Place::new(&case).await;
    place.network("used", NetworkOptions { subnets: vec![place.subnet(1)], ..NetworkOptions::default() }).await;
    let id = place.idle("used").await;
    for state in ["running", "ended"] {
        let error = place.runtime.remove_network("used").await.unwrap_err();
        assert_eq!(error.code(), "network.in_use", "{state}");
        assert!(error.to_string().contains(&id.to_string()) && error.hint().is_some(), "{state}: {error}");
        place.runtime.stop(&id, Some(Duration::ZERO)).await.unwrap();
    }
    // As after a reboot: nobody has an address, and it is to be started again.
    std::fs::remove_dir_all(place.root.run_dir.join("leases/used")).unwrap();
    let error = place.runtime.remove_network("used").await.unwrap_err();
    assert!(error.code() == "network.in_use" && error.to_string().contains(&id.to_string()), "{error}");
    place.runtime.start(&id).await.unwrap();
    place.exec_ok(&id, "ip route | grep ^default").await;
    let error = place.runtime.remove_network("bridge").await.unwrap_err();
    assert_eq!(error.code(), "network.in_use", "the default network stays: {error}");
    for error in [
        place.runtime.remove_network("nosuch").await.unwrap_err(),
        place.runtime.network("../etc").unwrap_err(),
        place.runtime.remove_network("").await.unwrap_err(),
    ] {
        assert!(error.code() == "network.not_found" && error.hint().is_some(), "{error}");
        assert!(matches!(AgentError::from(error), AgentError::Network(_)));
    }
    place.close(&["used"]).await;
}

async fn subnets_that_meet_others_are_refused_and_name_them(case: Case) {
    let place = Place::new(&case).await;
    let outside = Outside::new(&case, "ovl", 16);
    let (group, unjoined) = (case.suite.share.group(), case.suite.share.unjoined());
    let (v6, within_v6) = (format!("fd42:{group}:9::/64"), format!("fd42:{group}:9::/80"));
    let around_outside = format!("{}/28", case.suite.share.outside(16));
    let with = |subnets: &[&str]| NetworkOptions {
        subnets: subnets.iter().map(|subnet| (*subnet).to_owned()).collect(),
        ..NetworkOptions::default()
    };
    let subnet = place.subnet(1);
    place.network("first", with(&[&subnet, &v6])).await;
    let around = subnet.replace(".64/26", ".0/24");
    for (subnets, other) in [
        (&[subnet.as_str()][..], "first"),
        (&[around.as_str()], "first"),
        (&[&place.subnet(2), &within_v6], "first"),
        (&[place.root.subnet.as_str()], "bridge"),
        (&[&around_outside], outside.link.as_str()),
    ] {
        let error = place.runtime.create_network("second", &with(subnets)).await.unwrap_err();
        assert_eq!(error.code(), "network.overlap", "{subnets:?}: {error}");
        assert!(error.to_string().contains(other) && error.hint().is_some(), "{subnets:?}: {error}");
    }
    // A part of the host's own network, and IPv6: the bridge or a container would get what is the host's.
    let theirs_v6 = format!("fd42:{group}:a::");
    for address in [format!("{unjoined}.7/24"), format!("{theirs_v6}7/64 nodad")] {
        ip(&format!("addr add {address} dev {}", outside.link));
    }
    for subnets in [vec![format!("{unjoined}.0/28")], vec![place.subnet(2), format!("{theirs_v6}/64")]] {
        let subnets: Vec<&str> = subnets.iter().map(String::as_str).collect();
        let error = place.runtime.create_network("second", &with(&subnets)).await.unwrap_err();
        assert_eq!(error.code(), "network.overlap", "{subnets:?}: {error}");
        assert!(error.to_string().contains(&outside.link), "{subnets:?}: {error}");
    }
    ip(&format!("addr del {unjoined}.7/24 dev {}", outside.link));
    let error = place.runtime.create_network("first", &with(&[&place.subnet(2)])).await.unwrap_err();
    assert!(error.code() == "network.exists" && error.hint().is_some(), "{error}");
    // The one address that a container could have is the gateway's.
    let smallest = place.subnet(3).replace("/26", "/30");
    let (begin, last) = smallest.trim_end_matches("/30").rsplit_once('.').unwrap();
    let second = format!("{begin}.{}", last.parse::<u8>().unwrap() + 2);
    for (name, options) in [
        ("second", NetworkOptions { gateway: Some(second.parse().unwrap()), ..with(&[&smallest]) }),
        ("second", with(&["10.0.0.0/31"])),
        ("second", with(&["10.0.0.1/24"])),
        ("second", with(&["127.1.0.0/16"])),
        ("second", with(&["224.1.0.0/16"])),
        ("second", with(&["10.300.0.0/16"])),
        ("second", with(&["fd00::/128"])),
        ("second", with(&[&place.subnet(2), &place.subnet(3)])),
        ("second", NetworkOptions { gateway: Some("10.9.9.9".parse().unwrap()), ..with(&[&place.subnet(2)]) }),
        ("none", with(&[])),
        ("host", with(&[])),
        ("-x", with(&[])),
        ("a/b", with(&[])),
        ("", with(&[])),
    ] {
        let error = place.runtime.create_network(name, &options).await.unwrap_err();
        assert_eq!(error.code(), "spec.invalid", "{name:?} {options:?}: {error}");
    }
    assert_eq!(place.runtime.networks().unwrap().len(), 2, "nothing half-made stays");
    // One that the host joins later is met when the bridge is made.
    place.network("late", with(&[&format!("{unjoined}.0/24")])).await;
    ip(&format!("addr add {unjoined}.7/25 dev {}", outside.link));
    let spec = place.spec("late", IDLE).await;
    place.runtime.pull_image(&spec.image.name).await.unwrap();
    let error = place.runtime.create_container(&case.id_in(&place.root), &spec).await.unwrap_err();
    assert_eq!(error.code(), "network.overlap", "{error}");
    place.close(&["first", "late"]).await;
}

async fn who_runs_keeps_its_address_and_ports_when_their_files_are_lost(case: Case) {
    let place = Place::new(&case).await;
    place.network("lost", NetworkOptions { subnets: vec![place.subnet(1)], ..NetworkOptions::default() }).await;
    let mut spec = place.spec("lost", IDLE).await;
    spec.port_mappings = vec![published(None, 80, None)];
    let id = case.id_in(&place.root);
    crate::support::case::start_on(&place.runtime, &id, &spec).await.unwrap();
    let address = place.ipv4(&id).await;
    let ports = place.root.run_dir.join("ports").join(id.to_string());
    let before = std::fs::read(&ports).unwrap();
    std::fs::remove_file(&ports).unwrap();
    std::fs::remove_dir_all(place.root.run_dir.join("leases/lost")).unwrap();
    drop(place.root.open().await.unwrap());
    assert_eq!(std::fs::read(&ports).unwrap(), before);
    let other = place.idle("lost").await;
    assert_ne!(place.ipv4(&other).await, address);
    place.runtime.remove_container(&id).await.unwrap();
    place.close(&["lost"]).await;
}

async fn a_full_subnet_says_so_and_takes_the_next_once_somebody_goes(case: Case) {
    let place = Place::new(&case).await;
    let subnet = place.subnet(1).replace("/26", "/30");
    place.network("tiny", NetworkOptions { subnets: vec![subnet.clone()], ..NetworkOptions::default() }).await;
    let one = place.idle("tiny").await;
    let address = place.ipv4(&one).await;
    let spec = place.spec("tiny", IDLE).await;
    let refused = case.id_in(&place.root);
    let error = place.runtime.create_container(&refused, &spec).await.unwrap_err();
    assert!(error.code() == "network.exhausted" && error.to_string().contains(&subnet), "{error}");
    assert!(place.runtime.inspect(&refused).await.is_err(), "nothing of it is left");
    // Ended it still has its address; only removed it has none.
    place.runtime.stop(&one, Some(Duration::ZERO)).await.unwrap();
    assert_eq!(place.runtime.create_container(&refused, &spec).await.unwrap_err().code(), "network.exhausted");
    place.runtime.remove(&one, true).await.unwrap();
    let two = place.start(&spec).await;
    assert_eq!(place.ipv4(&two).await, address);
    place.close(&["tiny"]).await;
}

async fn what_the_host_lost_is_put_back(case: Case) {
    let place = Place::new(&case).await;
    place.network("mend", NetworkOptions { subnets: vec![place.subnet(1)], ..NetworkOptions::default() }).await;
    let mut spec = place.spec("mend", &web("mended")).await;
    spec.port_mappings = vec![published(None, 80, None)];
    let server = place.start(&spec).await;
    let client = place.idle("mend").await;
    let port = place.runtime.inspect(&server).await.unwrap().ports[0].host_port.unwrap();
    let (url, table, bridge) =
        (format!("http://127.0.0.1:{port}/"), leftovers::table(&place.root), place.bridge("mend"));
    let works = async || {
        assert_eq!(curl(&url).await, "mended");
        place.exec_ok(&client, &format!("ping -c 1 -W 5 {}", server.service)).await;
        let brif = std::fs::read_dir(format!("/sys/class/net/{bridge}/brif")).unwrap().flatten();
        let hairpins = brif.map(|port| std::fs::read_to_string(port.path().join("hairpin_mode")).unwrap());
        assert!(hairpins.map(|mode| mode.trim() == "1").reduce(|one, other| one && other).unwrap(), "its own port");
    };
    works().await;
    let nft = |words: &[&str]| assert!(Command::new("nft").args(words).status().unwrap().success(), "{words:?}");
    let lose_table = || nft(&["delete", "table", "inet", &table]);
    let lose_bridge = || ip(&format!("link delete {bridge}"));
    let lose_port = || nft(&["flush", "map", "inet", &table, "tcp4"]);
    let lose_place = || {
        let brif = std::fs::read_dir(format!("/sys/class/net/{bridge}/brif")).unwrap();
        for port in brif.flatten() {
            ip(&format!("link set {} nomaster", port.file_name().to_string_lossy()));
        }
    };
    let lose_address = || ip(&format!("addr flush dev {bridge}"));
    let lose_localnet = || std::fs::write(format!("/proc/sys/net/ipv4/conf/{bridge}/route_localnet"), "0").unwrap();
    let lose_ends = || {
        for port in std::fs::read_dir(format!("/sys/class/net/{bridge}/brif")).unwrap().flatten() {
            ip(&format!("link set {} down", port.file_name().to_string_lossy()));
        }
    };
    type Loss<'a> = &'a (dyn Fn() + Sync);
    let losses: [(&str, &[Loss<'_>]); 8] = [
        ("its address", &[&lose_address]),
        ("what leads the loopback there", &[&lose_localnet]),
        ("the hosts' ends", &[&lose_ends]),
        ("the table", &[&lose_table]),
        ("a map's elements", &[&lose_port]),
        ("the bridge", &[&lose_bridge]),
        ("the places at the bridge", &[&lose_place]),
        ("both", &[&lose_table, &lose_bridge]),
    ];
    for (what, lose) in losses {
        lose.iter().for_each(|lose| lose());
        let (code, _) = (soon(what, place.runtime.reload_networks()).await, ());
        code.unwrap_or_else(|error| panic!("{what}: {error}"));
        works().await;
    }
    place.close(&["mend"]).await;
}

async fn a_container_created_after_the_host_lost_it_all_has_its_network(case: Case) {
    let place = Place::new(&case).await;
    let v6 = format!("fd42:{}:b::", case.suite.share.group());
    let subnets = vec![place.subnet(1), format!("{v6}/64")];
    place.network("lost", NetworkOptions { subnets, ..NetworkOptions::default() }).await;
    let earlier = place.idle("lost").await;
    let (table, bridge) = (leftovers::table(&place.root), place.bridge("lost"));
    for lost in
        [format!("link delete {bridge}"), format!("addr flush dev {bridge}"), format!("addr del {v6}1/64 dev {bridge}")]
    {
        assert!(Command::new("nft").args(["delete", "table", "inet", &table]).status().unwrap().success());
        ip(&lost);
        let mut spec = place.spec("lost", &web("back")).await;
        spec.port_mappings = vec![published(None, 80, None)];
        let later = place.start(&spec).await;
        place.exec_ok(&earlier, &format!("ping -c 1 -W 5 {}", later.service)).await;
        place.exec_ok(&later, &format!("ping -c 3 -W 5 {v6}1")).await;
        let port = place.runtime.inspect(&later).await.unwrap().ports[0].host_port.unwrap();
        assert_eq!(curl(&format!("http://127.0.0.1:{port}/")).await, "back", "{lost}");
    }
    place.close(&["lost"]).await;
}

async fn who_is_created_while_its_agent_dies_attaching_it_is_attached_when_it_starts(case: Case) {
    let place = Place::new(&case).await;
    place.network("late", NetworkOptions { subnets: vec![place.subnet(2)], ..NetworkOptions::default() }).await;
    let mut spec = place.spec("late", IDLE).await;
    spec.port_mappings = vec![published(None, 80, None)];
    place.runtime.pull_image(&spec.image.name).await.unwrap();
    // Whoever removes the network's bridge holds this; an attach waits for that.
    let leases = place.root.run_dir.join("leases/late");
    std::fs::create_dir_all(&leases).unwrap();
    let bridge = std::fs::File::create(leases.join("bridge.lock")).unwrap();
    rustix::fs::flock(&bridge, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let mut agent = Agent::start(&place.root, &[]).await;
    let id = case.id_in(&place.root);
    agent.send(&Request::CreateOnly { id: id.clone(), spec: Box::new(spec) }).await;
    let created = place.root.dir.join("containers").join(id.to_string()).join("created");
    eventually("its supervisor has built it", || async { created.exists() }).await;
    agent.kill().await;
    drop(bridge);
    let runtime = place.root.open().await.unwrap();
    eventually("it is created", || async { runtime.container_state(&id).await == Ok(ContainerState::Initializing) })
        .await;
    runtime.start_container(&id).await.unwrap();
    place.exec_ok(&id, "ip route | grep ^default").await;
    let address = place.ipv4(&id).await;
    assert!(place.exec_ok(&id, "ip -4 -o addr show eth0").await.contains(&address));
    drop(runtime);
    place.close(&["late"]).await;
}

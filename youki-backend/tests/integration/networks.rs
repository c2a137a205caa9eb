//! The default bridge, `none` and `host`.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::process::Command;

use runtime_core::spec::NetworkMode;
use runtime_core::{AgentError, ContainerId};

use crate::support::Case;
use crate::support::case::IDLE;

crate::tests![
    two_containers_reach_each_other,
    an_address_is_the_bridges_the_inspected_and_the_containers_own,
    addresses_are_unique_and_come_back,
    the_default_route_leads_to_the_bridge,
    the_world_outside_sees_the_hosts_address,
    none_has_loopback_alone,
    host_shares_the_hosts_links,
    resolv_conf_and_hosts_are_the_containers_own,
    an_unknown_network_is_an_error,
    the_network_is_there_before_the_program,
    nothing_of_a_removed_container_stays_on_the_bridge,
];

async fn on_bridge(case: &Case, script: &str) -> ContainerId {
    let mut spec = case.script(script).await;
    spec.network.mode = NetworkMode::Bridge;
    case.start(&spec).await
}

async fn address(case: &Case, id: &ContainerId) -> IpAddr {
    case.runtime.get_container_ip(id).await.unwrap().expect("a container on the bridge has an address")
}

async fn two_containers_reach_each_other(case: Case) {
    let server = on_bridge(&case, "while :; do echo hello from the server | nc -l -p 7000; done").await;
    let client = on_bridge(&case, IDLE).await;
    let ip = address(&case, &server).await;
    let script =
        format!("for i in 1 2 3 4 5 6 7 8 9 10; do nc -w 2 {ip} 7000 < /dev/null && exit 0; sleep 0.2; done; exit 1");
    assert_eq!(case.exec_ok(&client, &script).await, "hello from the server\n");
    let back = address(&case, &client).await;
    case.exec_ok(&server, &format!("ping -c 1 -W 5 {back}")).await;
}

async fn an_address_is_the_bridges_the_inspected_and_the_containers_own(case: Case) {
    let id = on_bridge(&case, IDLE).await;
    let ip = address(&case, &id).await;
    let subnet = &case.suite.shared().await.root.subnet;
    let network = subnet.rsplit_once('.').unwrap().0.rsplit_once('.').unwrap().0;
    assert!(ip.to_string().starts_with(network), "{ip} is not in {subnet}");
    let shown = case.exec_ok(&id, "ip -4 -o addr show dev eth0 | awk '{print $4}'").await;
    assert_eq!(shown.trim(), format!("{ip}/{}", subnet.rsplit_once('/').unwrap().1));
    let details = case.runtime.inspect_detailed(&id).await.unwrap();
    assert_eq!(details.ipv4.as_deref(), Some(ip.to_string().as_str()));
    assert_eq!(details.networks.len(), 1);
    assert_eq!(details.networks[0].ipv4, details.ipv4);
}

async fn addresses_are_unique_and_come_back(case: Case) {
    let root = case.root("few");
    let root = crate::support::root::Root { subnet: root.subnet.replace(".0/24", ".0/29"), ..root };
    let runtime = root.open().await.unwrap();
    let mut spec = case.script(IDLE).await;
    spec.network.mode = NetworkMode::Bridge;
    // A /29 has five addresses for containers. Three rounds of them: each must come back when its container goes.
    for _ in 0..3 {
        let mut seen = BTreeSet::new();
        let mut ids = Vec::new();
        for _ in 0..5 {
            let id = case.id_on(&runtime);
            crate::support::case::start_on(&*runtime, &id, &spec).await.unwrap();
            assert!(seen.insert(runtime.get_container_ip(&id).await.unwrap().unwrap()), "one address was given twice");
            ids.push(id);
        }
        let one_more = case.id_on(&runtime);
        let error = runtime.create_container(&one_more, &spec).await.unwrap_err();
        assert!(error.to_string().contains("address"), "a full subnet: {error}");
        assert!(matches!(runtime.container_state(&one_more).await, Err(AgentError::NotFound { .. })));
        for id in ids {
            runtime.remove_container(&id).await.unwrap();
        }
    }
}

async fn the_default_route_leads_to_the_bridge(case: Case) {
    let id = on_bridge(&case, IDLE).await;
    let route = case.exec_ok(&id, "ip route | grep ^default").await;
    let subnet = &case.suite.shared().await.root.subnet;
    let gateway = format!("{}.1", subnet.split('/').next().unwrap().rsplit_once('.').unwrap().0);
    assert!(route.contains(&format!("via {gateway} ")), "{route}");
    case.exec_ok(&id, &format!("ping -c 1 -W 5 {gateway}")).await;
}

/// A network namespace joined to the host by a veth pair; it has no route back to any container.
struct Outside {
    name: String,
    link: String,
    host: String,
    far: String,
}

impl Outside {
    fn new() -> Self {
        let pid = std::process::id();
        // TEST-NET-2 (RFC 5737)
        let outside = Self {
            name: format!("berth-out-{pid}"),
            link: format!("bo{pid}"),
            host: "198.51.100.1".into(),
            far: "198.51.100.2".into(),
        };
        let (name, link) = (&outside.name, &outside.link);
        ip(&format!("netns add {name}"));
        ip(&format!("link add {link} type veth peer name far0 netns {name}"));
        ip(&format!("addr add {}/30 dev {link}", outside.host));
        ip(&format!("link set {link} up"));
        ip(&format!("-n {name} addr add {}/30 dev far0", outside.far));
        ip(&format!("-n {name} link set far0 up"));
        outside
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        let _gone_with_its_namespace = Command::new("ip").args(["link", "delete", &self.link]).status();
        let _ = Command::new("ip").args(["netns", "delete", &self.name]).status();
    }
}

fn ip(words: &str) {
    let output = Command::new("ip").args(words.split(' ')).output().expect("ip (Debian: iproute2)");
    assert!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
}

async fn the_world_outside_sees_the_hosts_address(case: Case) {
    let outside = Outside::new();
    let id = on_bridge(&case, IDLE).await;
    // Tells each caller the address it sees.
    let mut server = tokio::process::Command::new("ip")
        .args(["netns", "exec", &outside.name, "busybox", "nc", "-ll", "-p", "7001", "-e", "/bin/busybox", "sh", "-c"])
        .arg("busybox netstat -tn | busybox grep :7001")
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let script = format!(
        "for i in 1 2 3 4 5 6 7 8 9 10; do nc -w 3 {} 7001 < /dev/null && exit 0; sleep 0.3; done; exit 1",
        outside.far
    );
    let seen = case.exec_ok(&id, &script).await;
    server.kill().await.unwrap();
    assert!(seen.contains(&format!("{}:", outside.host)), "the other end sees {seen:?}");
    let own = address(&case, &id).await.to_string();
    assert!(!seen.contains(&own), "the container's own address {own} got out: {seen:?}");
}

async fn none_has_loopback_alone(case: Case) {
    let id = case.idle().await;
    assert_eq!(case.runtime.get_container_ip(&id).await.unwrap(), None);
    assert_eq!(case.exec_ok(&id, "ls /sys/class/net; ip route | wc -l").await, "lo\n0\n");
    case.exec_ok(&id, "ping -c 1 -W 5 127.0.0.1").await;
}

async fn host_shares_the_hosts_links(case: Case) {
    let mut spec = case.script("readlink /proc/self/ns/net").await;
    spec.host_network = true;
    let id = case.start(&spec).await;
    let host = std::fs::read_link("/proc/self/ns/net").unwrap().display().to_string();
    assert_eq!(case.finish(&id).await.succeeded(), [host]);
    assert_eq!(case.runtime.get_container_ip(&id).await.unwrap(), None);
}

async fn resolv_conf_and_hosts_are_the_containers_own(case: Case) {
    let mut spec = case.script(IDLE).await;
    spec.network.mode = NetworkMode::Bridge;
    spec.dns = vec!["192.0.2.53".into()];
    spec.dns_search = vec!["berth.test".into()];
    spec.extra_hosts = vec!["other:192.0.2.7".into()];
    spec.hostname = Some("me".into());
    let id = case.start(&spec).await;
    let ip = address(&case, &id).await.to_string();
    let resolv = case.exec_ok(&id, "cat /etc/resolv.conf").await;
    assert!(resolv.lines().any(|line| line == "nameserver 192.0.2.53"), "{resolv}");
    assert!(resolv.lines().any(|line| line == "search berth.test"), "{resolv}");
    let hosts = case.exec_ok(&id, "cat /etc/hosts").await;
    let has = |address: &str, name: &str| {
        hosts.lines().any(|line| {
            let mut words = line.split_whitespace();
            words.next() == Some(address) && words.any(|word| word == name)
        })
    };
    assert!(has("127.0.0.1", "localhost") && has("192.0.2.7", "other") && has(&ip, "me"), "{hosts}");
}

async fn an_unknown_network_is_an_error(case: Case) {
    let mut spec = case.script("true").await;
    spec.network.mode = NetworkMode::Named("nosuch".into());
    case.runtime.pull_image(&spec.image.name).await.unwrap();
    let error = case.runtime.create_container(&case.id(), &spec).await.unwrap_err();
    assert!(error.to_string().contains("nosuch"), "{error}");
}

async fn the_network_is_there_before_the_program(case: Case) {
    for _ in 0..10 {
        let id = on_bridge(&case, "ip -4 -o addr show dev eth0 | wc -l; ip route | grep -c ^default").await;
        assert_eq!(case.finish(&id).await.succeeded(), ["1", "1"]);
    }
}

async fn nothing_of_a_removed_container_stays_on_the_bridge(case: Case) {
    let root = case.root("links");
    let runtime = root.open().await.unwrap();
    let ports = || std::fs::read_dir(format!("/sys/class/net/{}/brif", root.bridge)).map_or(0, Iterator::count);
    let mut spec = case.script(IDLE).await;
    spec.network.mode = NetworkMode::Bridge;
    let id = case.id_on(&runtime);
    crate::support::case::start_on(&*runtime, &id, &spec).await.unwrap();
    assert_eq!(ports(), 1);
    runtime.remove_container(&id).await.unwrap();
    assert_eq!(ports(), 0);
}

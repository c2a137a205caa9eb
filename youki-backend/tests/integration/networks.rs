//! The default bridge, `none` and `host`.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use runtime_core::spec::{NetworkMode, PortProtocol};
use runtime_core::{AgentError, ContainerId, PortMapping};

use crate::support::Case;
use crate::support::case::{IDLE, asked, shortly};
use crate::support::pace::repetitions;

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
    the_last_stats_hold_the_traffic,
    others_are_found_by_name_while_they_run,
    a_replica_in_the_hosts_network_is_given_a_port_of_its_own,
    two_hundred_at_once_are_all_distinct_and_all_freed,
];

pub async fn on_bridge(case: &Case, script: &str) -> ContainerId {
    let mut spec = case.script(script).await;
    spec.network.mode = NetworkMode::Bridge;
    case.start(&spec).await
}

pub async fn address(case: &Case, id: &ContainerId) -> IpAddr {
    case.runtime.get_container_ip(id).await.unwrap().expect("a container on the bridge has an address")
}

async fn two_containers_reach_each_other(case: Case) {
    let server = on_bridge(&case, "while :; do echo hello from the server | nc -l -p 7000; done").await;
    let client = on_bridge(&case, IDLE).await;
    let ip = address(&case, &server).await;
    assert_eq!(case.exec_ok(&client, &asked(&ip.to_string(), 7000)).await, "hello from the server\n");
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

/// What the name of each [`Outside`], and of its link, begins with; both end in the process id of the run that made them.
pub const OUTSIDE_PREFIX: &str = "berth-out-";
pub const OUTSIDE_LINK_PREFIX: &str = "bo";

/// A network namespace joined to the host by a veth pair; it has no route back to any container.
pub struct Outside {
    pub name: String,
    pub link: String,
    pub host: String,
    pub far: String,
}

impl Outside {
    /// One of a word of its own, and of the /30 that begins at `from`.
    pub fn new(case: &Case, word: &str, from: u8) -> Self {
        let pid = std::process::id();
        let outside = Self {
            name: format!("{OUTSIDE_PREFIX}{word}-{pid}"),
            link: format!("{OUTSIDE_LINK_PREFIX}{word}{pid}"),
            host: case.suite.share.outside(from + 1).to_string(),
            far: case.suite.share.outside(from + 2).to_string(),
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

pub fn ip(words: &str) {
    let output = Command::new("ip").args(words.split(' ')).output().expect("ip (Debian: iproute2)");
    assert!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
}

async fn the_world_outside_sees_the_hosts_address(case: Case) {
    let outside = Outside::new(&case, "out", 0);
    let id = on_bridge(&case, IDLE).await;
    // Tells each caller the address it sees.
    let mut server = tokio::process::Command::new("ip")
        .args(["netns", "exec", &outside.name, "busybox", "nc", "-ll", "-p", "7001", "-e", "/bin/busybox", "sh", "-c"])
        .arg("busybox netstat -tn | busybox grep :7001")
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let seen = case.exec_ok(&id, &asked(&outside.far, 7001)).await;
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

/// Answers each connection to port 80 with its name.
pub fn web(name: &str) -> String {
    format!("while :; do printf 'HTTP/1.0 200 OK\\r\\n\\r\\n{name}' | nc -l -p 80; done")
}

pub fn published(host_port: Option<u16>, container_port: u16, host_ip: Option<&str>) -> PortMapping {
    let host_ip = host_ip.map(str::to_owned);
    PortMapping { host_port, container_port, protocol: PortProtocol::Tcp, host_ip }
}

/// What curl gets, asking again while the server is coming up, or is between two connections.
pub async fn curl(url: &str) -> String {
    curl_by(&["curl"], url).await
}

impl Outside {
    /// What curl gets in this namespace.
    pub async fn curl(&self, url: &str) -> String {
        curl_by(&["ip", "netns", "exec", &self.name, "curl"], url).await
    }
}

async fn curl_by(words: &[&str], url: &str) -> String {
    let begin = Instant::now();
    loop {
        let mut command = tokio::process::Command::new(words[0]);
        command.args(&words[1..]).args(["-s", "-g", "-m", "5", "--noproxy", "*", url]);
        let output = command.output().await.expect("curl (Debian: curl)");
        if output.status.success() {
            return String::from_utf8_lossy(&output.stdout).into_owned();
        }
        assert!(begin.elapsed() < shortly(), "no answer from {url}: {}", output.status);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn others_are_found_by_name_while_they_run(case: Case) {
    let first = on_bridge(&case, IDLE).await;
    let mut spec = case.script(IDLE).await;
    spec.network.mode = NetworkMode::Bridge;
    spec.network.aliases = vec!["an-alias".into()];
    let second = case.start(&spec).await;
    let (one, two) = (address(&case, &first).await.to_string(), address(&case, &second).await.to_string());
    let find = async |from: &ContainerId, name: &str| {
        let script = format!("awk -v n={name} '{{for(i=2;i<=NF;i++) if($i==n) print $1}}' /etc/hosts");
        case.exec_ok(from, &script).await.trim().to_owned()
    };
    // The later one knows the earlier, and the earlier learns of the later.
    assert_eq!(find(&second, &first.service).await, one);
    for name in [second.service.as_str(), &second.to_string(), "an-alias"] {
        assert_eq!(find(&first, name).await, two, "{name}");
    }
    // Itself as well: a member of a cluster looks for its own name in the list.
    for name in [second.service.as_str(), "an-alias"] {
        assert_eq!(find(&second, name).await, two, "{name}");
    }
    case.exec_ok(&first, "ping -c 1 -W 5 an-alias").await;
    case.runtime.stop_container(&second, std::time::Duration::ZERO).await.unwrap();
    assert_eq!(find(&first, "an-alias").await, "", "what does not run has no name");
    case.runtime.start_container(&second).await.unwrap();
    assert_eq!(find(&first, "an-alias").await, two);
    case.runtime.remove_container(&second).await.unwrap();
    assert_eq!(find(&first, "an-alias").await, "");
}

async fn a_replica_in_the_hosts_network_is_given_a_port_of_its_own(case: Case) {
    let mut spec = case.script(&format!("echo $PORT; {IDLE}")).await;
    spec.host_network = true;
    let (one, two) = (case.start(&spec).await, case.start(&spec).await);
    let mut ports = BTreeSet::new();
    for id in [one, two] {
        let port = case.runtime.get_container_port_override(&id).await.unwrap().expect("it has one");
        case.until_logged(&id, &port.to_string()).await;
        assert_eq!(case.exec_ok(&id, "echo $PORT").await.trim(), port.to_string(), "of an exec");
        assert_eq!(case.berth(&["inspect", &id.to_string()]).await.json()[0]["port_override"], port);
        let listed = case.berth(&["ps", "--filter", "network=host", "--format", "{{.Names}} {{.Networks}}"]).await;
        let listed = listed.succeeded();
        let name = case.berth(&["inspect", "-f", "{{.name}}", &id.to_string()]).await.succeeded();
        assert!(listed.contains(&format!("{} host", name.trim())), "{listed}");
        assert!(ports.insert(port), "{port} was given twice");
    }
    let id = on_bridge(&case, IDLE).await;
    assert_eq!(case.runtime.get_container_port_override(&id).await.unwrap(), None);
}

async fn two_hundred_at_once_are_all_distinct_and_all_freed(case: Case) {
    let many = repetitions(200, 50);
    let root = case.root("many");
    let runtime = root.open().await.unwrap();
    let mut spec = case.script(IDLE).await;
    spec.network.mode = NetworkMode::Bridge;
    spec.port_mappings = vec![published(None, 80, None)];
    runtime.pull_image(&spec.image.name).await.unwrap();
    let ids: Vec<ContainerId> = (0..many).map(|_| case.id_on(&runtime)).collect();
    let created = futures_util::future::join_all(ids.iter().map(|id| runtime.create_container(id, &spec))).await;
    for (id, created) in ids.iter().zip(created) {
        created.unwrap_or_else(|error| panic!("{id}: {error}"));
    }
    let (mut addresses, mut ports) = (BTreeSet::new(), BTreeSet::new());
    for id in &ids {
        let details = runtime.inspect_detailed(id).await.unwrap();
        addresses.insert(details.ipv4.unwrap());
        ports.insert(details.ports[0].host_port.unwrap());
    }
    assert_eq!((addresses.len(), ports.len()), (many, many));
    for removed in futures_util::future::join_all(ids.iter().map(|id| runtime.remove_container(id))).await {
        removed.unwrap();
    }
    let left = |dir: &str| {
        let found = Command::new("find").arg(root.run_dir.join(dir)).args(["-name", "*-rep-*"]).output().unwrap();
        String::from_utf8_lossy(&found.stdout).into_owned()
    };
    assert_eq!((left("leases"), left("ports"), left("names")), (String::new(), String::new(), String::new()));
}

async fn the_last_stats_hold_the_traffic(case: Case) {
    let mut spec = case.script("ping -c 3 -W 5 $(ip route | awk '/^default/ {print $3}')").await;
    spec.network.mode = NetworkMode::Bridge;
    let id = case.start(&spec).await;
    case.finish(&id).await.succeeded();
    let stats = case.runtime.stats_detailed(&id).await.unwrap();
    let eth0 = &stats.network.expect("it has a network of its own")["eth0"];
    assert!(eth0.tx_packets >= 3 && eth0.rx_packets >= 3 && eth0.tx_bytes >= 3 * 64, "{eth0:?}");
    let mut spec = case.script("true").await;
    spec.host_network = true;
    let id = case.start(&spec).await;
    case.finish(&id).await.succeeded();
    assert_eq!(case.runtime.stats_detailed(&id).await.unwrap().network, None, "the host's is not its own");
}

//! The default bridge, `none` and `host`.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::process::Command;

use runtime_core::spec::{NetworkMode, PortProtocol};
use runtime_core::{AgentError, ContainerId, PortMapping};

use crate::support::Case;
use crate::support::case::IDLE;
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
    a_published_port_answers_on_every_address_of_the_host,
    an_ephemeral_port_is_reported_and_udp_is_published,
    a_port_that_is_taken_is_an_error_that_names_its_owner,
    a_stopped_container_holds_no_port_and_gets_it_again,
    no_process_of_the_host_takes_a_published_port,
    a_container_keeps_its_port_and_name_from_one_restart_to_the_next,
    what_ends_by_itself_gives_its_port_and_name_back,
    what_ended_unseen_gives_its_port_and_name_back_at_the_next_open,
    a_port_out_of_a_range_is_the_first_that_is_free,
    what_an_image_exposes_is_published_where_asked,
    datagrams_reach_the_container_that_has_the_port_now,
    the_last_stats_hold_the_traffic,
    a_container_reaches_its_own_published_port,
    others_are_found_by_name_while_they_run,
    a_replica_in_the_hosts_network_is_given_a_port_of_its_own,
    two_hundred_at_once_are_all_distinct_and_all_freed,
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
pub struct Outside {
    pub name: String,
    pub link: String,
    pub host: String,
    pub far: String,
}

impl Outside {
    /// One of a word of its own, and of the /30 that begins at `from`.
    pub fn new(word: &str, from: u8) -> Self {
        let pid = std::process::id();
        // TEST-NET-2 (RFC 5737)
        let outside = Self {
            name: format!("berth-out-{word}-{pid}"),
            link: format!("bo{word}{pid}"),
            host: format!("198.51.100.{}", from + 1),
            far: format!("198.51.100.{}", from + 2),
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
    let outside = Outside::new("out", 0);
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

/// Answers each connection to port 80 with its name.
pub fn web(name: &str) -> String {
    format!("while :; do printf 'HTTP/1.0 200 OK\\r\\n\\r\\n{name}' | nc -l -p 80; done")
}

pub fn published(host_port: Option<u16>, container_port: u16, host_ip: Option<&str>) -> PortMapping {
    let host_ip = host_ip.map(str::to_owned);
    PortMapping { host_port, host_port_end: None, container_port, protocol: PortProtocol::Tcp, host_ip }
}

/// What curl gets, asking again while the server is coming up.
pub async fn curl(url: &str) -> String {
    for _ in 0..20 {
        let output = tokio::process::Command::new("curl").args(["-s", "-m", "3", "--noproxy", "*", url]).output();
        let output = output.await.expect("curl (Debian: curl)");
        if output.status.success() {
            return String::from_utf8_lossy(&output.stdout).into_owned();
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    panic!("no answer from {url}")
}

async fn serving(case: &Case, name: &str, mapping: PortMapping) -> ContainerId {
    let mut spec = case.script(&web(name)).await;
    spec.network.mode = NetworkMode::Bridge;
    spec.port_mappings = vec![mapping];
    case.start(&spec).await
}

async fn host_port(case: &Case, id: &ContainerId) -> u16 {
    case.runtime.inspect_detailed(id).await.unwrap().ports[0].host_port.expect("it is reported")
}

async fn a_published_port_answers_on_every_address_of_the_host(case: Case) {
    let outside = Outside::new("pub", 4);
    let id = serving(&case, "hello", published(None, 80, None)).await;
    let port = host_port(&case, &id).await;
    assert_eq!(curl(&format!("http://127.0.0.1:{port}/")).await, "hello", "the loopback");
    assert_eq!(curl(&format!("http://{}:{port}/", outside.host)).await, "hello", "another address of the host");
    let far = tokio::process::Command::new("ip")
        .args(["netns", "exec", &outside.name, "curl", "-s", "-m", "5", &format!("http://{}:{port}/", outside.host)])
        .output()
        .await
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&far.stdout), "hello", "from outside: {}", far.status);
    let local = serving(&case, "local", published(None, 80, Some("127.0.0.1"))).await;
    let port = host_port(&case, &local).await;
    assert_eq!(curl(&format!("http://127.0.0.1:{port}/")).await, "local");
    let refused = tokio::process::Command::new("ip")
        .args(["netns", "exec", &outside.name, "curl", "-s", "-m", "2", &format!("http://{}:{port}/", outside.host)])
        .status()
        .await
        .unwrap();
    assert!(!refused.success(), "what is published on the loopback is not reached from outside");
}

async fn an_ephemeral_port_is_reported_and_udp_is_published(case: Case) {
    let mut spec = case.script(IDLE).await;
    spec.network.mode = NetworkMode::Bridge;
    spec.port_mappings = vec![PortMapping { protocol: PortProtocol::Udp, ..published(None, 9, Some("127.0.0.1")) }];
    let id = case.start(&spec).await;
    let server = datagrams_in(&case, &id, 9).await;
    let client = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    client.connect(("127.0.0.1", host_port(&case, &id).await)).await.unwrap();
    client.send(b"hello").await.unwrap();
    let mut bytes = [0; 16];
    let (length, from) = crate::support::case::soon("a datagram", server.recv_from(&mut bytes)).await.unwrap();
    assert_eq!(&bytes[..length], b"hello");
    server.send_to(b"back", from).await.unwrap();
    let length = crate::support::case::soon("an answer", client.recv(&mut bytes)).await.unwrap();
    assert_eq!(&bytes[..length], b"back");
}

async fn a_port_that_is_taken_is_an_error_that_names_its_owner(case: Case) {
    let first = serving(&case, "first", published(None, 80, None)).await;
    let port = host_port(&case, &first).await;
    let mut spec = case.script(IDLE).await;
    spec.network.mode = NetworkMode::Bridge;
    spec.port_mappings = vec![published(Some(port), 80, Some("127.0.0.1"))];
    let id = case.id();
    let error = case.runtime.create_container(&id, &spec).await.unwrap_err().to_string();
    assert!(error.contains(&first.to_string()) && error.contains("[port.taken]"), "{error}");
    assert!(matches!(case.runtime.container_state(&id).await, Err(AgentError::NotFound { .. })));
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    spec.port_mappings = vec![published(Some(listener.local_addr().unwrap().port()), 80, None)];
    let error = case.runtime.create_container(&case.id(), &spec).await.unwrap_err().to_string();
    assert!(error.contains(&format!("process {} (", std::process::id())), "{error}");
}

async fn a_stopped_container_holds_no_port_and_gets_it_again(case: Case) {
    let first = serving(&case, "first", published(None, 80, None)).await;
    let port = host_port(&case, &first).await;
    case.runtime.stop_container(&first, std::time::Duration::ZERO).await.unwrap();
    let second = serving(&case, "second", published(Some(port), 80, None)).await;
    assert_eq!(curl(&format!("http://127.0.0.1:{port}/")).await, "second");
    // One that ended by itself, with nobody there to see it, holds none either.
    case.runtime.kill_container(&second, None).await.unwrap();
    case.runtime.wait_container(&second).await.unwrap();
    case.runtime.start_container(&first).await.unwrap();
    assert_eq!(host_port(&case, &first).await, port, "an ephemeral port comes back");
    assert_eq!(curl(&format!("http://127.0.0.1:{port}/")).await, "first");
}

async fn a_container_reaches_its_own_published_port(case: Case) {
    let id = serving(&case, "myself", published(None, 80, None)).await;
    let port = host_port(&case, &id).await;
    let subnet = &case.suite.shared().await.root.subnet;
    let gateway = format!("{}.1", subnet.split('/').next().unwrap().rsplit_once('.').unwrap().0);
    let script = format!(
        "for i in 1 2 3 4 5 6 7 8 9 10; do nc -w 3 {gateway} {port} < /dev/null && exit 0; sleep 0.2; done; exit 1"
    );
    assert!(case.exec_ok(&id, &script).await.ends_with("myself"));
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

async fn no_process_of_the_host_takes_a_published_port(case: Case) {
    let id = serving(&case, "held", published(None, 80, None)).await;
    let port = host_port(&case, &id).await;
    let bind = |ip: &str| std::net::TcpListener::bind((ip, port)).map_err(|error| error.kind());
    for ip in ["0.0.0.0", "127.0.0.1"] {
        assert_eq!(bind(ip).unwrap_err(), std::io::ErrorKind::AddrInUse, "{ip}");
    }
    assert_eq!(curl(&format!("http://127.0.0.1:{port}/")).await, "held", "the container's all the same");
    // An exec, and what it starts, holds nothing of it.
    case.exec_ok(&id, "sleep 3600 > /dev/null 2>&1 &").await;
    case.runtime.stop_container(&id, std::time::Duration::ZERO).await.unwrap();
    bind("0.0.0.0").unwrap();
}

/// Whether the nft table leads `port` anywhere, and whether whoever has `ip` is said to run.
async fn traces(root: &crate::support::root::Root, port: u16, ip: &str) -> (bool, bool) {
    let table = crate::support::leftovers::table(root);
    let output = Command::new("nft").args(["list", "map", "inet", &table, "tcp4"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let named = std::fs::read_dir(root.run_dir.join("names/bridge")).map(|entries| {
        entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with(&format!("{ip}@")))
    });
    (text.contains(&format!("{port} : ")), named.unwrap_or(false))
}

async fn a_container_keeps_its_port_and_name_from_one_restart_to_the_next(case: Case) {
    let other = on_bridge(&case, IDLE).await;
    let once = "printf 'HTTP/1.0 200 OK\\r\\n\\r\\nonce' | nc -l -p 80";
    let mut spec = case.script(once).await;
    spec.network.mode = NetworkMode::Bridge;
    spec.port_mappings = vec![published(None, 80, None)];
    spec.restart_policy.kind = runtime_core::spec::RestartKind::Always;
    let id = case.start(&spec).await;
    let (port, ip) = (host_port(&case, &id).await, address(&case, &id).await.to_string());
    for _ in 0..3 {
        assert_eq!(curl(&format!("http://127.0.0.1:{port}/")).await, "once");
        assert!(std::net::TcpListener::bind(("127.0.0.1", port)).is_err(), "also in the pause");
        assert!(case.exec_ok(&other, "cat /etc/hosts").await.contains(&format!("{ip}\t{}", id.service)));
    }
    case.runtime.stop_container(&id, std::time::Duration::ZERO).await.unwrap();
    std::net::TcpListener::bind(("0.0.0.0", port)).unwrap();
    assert!(!case.exec_ok(&other, "cat /etc/hosts").await.contains(&id.service));
}

async fn what_ends_by_itself_gives_its_port_and_name_back(case: Case) {
    let root = case.suite.shared().await.root.clone();
    let other = on_bridge(&case, IDLE).await;
    let mut spec = case.script("while [ ! -e /end ]; do sleep 0.1; done").await;
    spec.network.mode = NetworkMode::Bridge;
    spec.port_mappings = vec![published(None, 80, None)];
    let id = case.start(&spec).await;
    let (port, ip) = (host_port(&case, &id).await, address(&case, &id).await.to_string());
    let known = || case.exec_ok(&other, "cat /etc/hosts");
    assert_eq!(traces(&root, port, &ip).await, (true, true));
    assert!(known().await.contains(&id.service));
    case.exec_ok(&id, "touch /end").await;
    case.runtime.wait_container(&id).await.unwrap();
    crate::support::case::eventually("the keeper sees it", || async {
        traces(&root, port, &ip).await == (false, false)
    })
    .await;
    assert!(!known().await.contains(&id.service));
    std::net::TcpListener::bind(("0.0.0.0", port)).unwrap();
    assert_eq!(address(&case, &id).await.to_string(), ip, "its address stays its own");
}

async fn what_ended_unseen_gives_its_port_and_name_back_at_the_next_open(case: Case) {
    let root = crate::support::root::Root { keeper: false, ..case.root("unseen") };
    let runtime = root.open().await.unwrap();
    let mut spec = case.script("true").await;
    spec.network.mode = NetworkMode::Bridge;
    spec.port_mappings = vec![published(None, 80, None)];
    let id = case.id_on(&runtime);
    crate::support::case::start_on(&*runtime, &id, &spec).await.unwrap();
    runtime.wait_container(&id).await.unwrap();
    let port = runtime.inspect_detailed(&id).await.unwrap().ports[0].host_port.unwrap();
    let ip = runtime.get_container_ip(&id).await.unwrap().unwrap().to_string();
    assert_eq!(traces(&root, port, &ip).await, (true, true), "nobody looked");
    // Somebody who starts it, which may take its time: an open does not wait for that.
    let starting = std::fs::File::create(root.run_dir.join("locks").join(id.to_string())).unwrap();
    starting.lock().unwrap();
    crate::support::case::soon("an open", root.open()).await.unwrap();
    assert_eq!(traces(&root, port, &ip).await, (true, true));
    drop(starting);
    root.open().await.unwrap();
    assert_eq!(traces(&root, port, &ip).await, (false, false));
}

async fn a_port_out_of_a_range_is_the_first_that_is_free(case: Case) {
    // Beyond what the kernel gives out by itself, so that no other test's is in the way.
    let taken = std::net::TcpListener::bind("127.0.0.1:21100").expect("a free port");
    let range = PortMapping { host_port_end: Some(21_102), ..published(Some(21_100), 80, Some("127.0.0.1")) };
    let first = serving(&case, "first", range.clone()).await;
    let second = serving(&case, "second", range.clone()).await;
    assert_eq!((host_port(&case, &first).await, host_port(&case, &second).await), (21_101, 21_102));
    let mut spec = case.script(IDLE).await;
    spec.port_mappings = vec![range];
    spec.network.mode = NetworkMode::Bridge;
    let error = case.runtime.create_container(&case.id(), &spec).await.unwrap_err();
    assert!(error.code() == "port.taken" && error.to_string().contains("127.0.0.1:21100-21102/tcp"), "{error}");
    drop(taken);
    let third = serving(&case, "third", spec.port_mappings.remove(0)).await;
    assert_eq!(host_port(&case, &third).await, 21_100);
}

async fn what_an_image_exposes_is_published_where_asked(case: Case) {
    let exposing = serde_json::json!({"80/tcp": {}, "53/udp": {}, "90/tcp": {}, "70/sctp": {}});
    let image = crate::support::image::Image::busybox().with("ExposedPorts", exposing);
    let mut spec = case.script(&web("exposed")).await;
    spec.image.name = case.push("exposing", &image).await;
    spec.network.mode = NetworkMode::Bridge;
    spec.publish_all = true;
    spec.port_mappings = vec![published(None, 90, Some("127.0.0.1"))];
    let id = case.start(&spec).await;
    let ports = case.runtime.inspect_detailed(&id).await.unwrap().ports;
    let shown: BTreeSet<_> = ports
        .iter()
        .map(|port| (port.container_port, port.protocol == PortProtocol::Udp, port.host_ip.clone()))
        .collect();
    let local = Some("127.0.0.1".to_owned());
    assert_eq!(shown, BTreeSet::from([(90, false, local), (80, false, None), (53, true, None)]));
    let web = ports.iter().find(|port| port.container_port == 80).unwrap().host_port.unwrap();
    assert_eq!(curl(&format!("http://127.0.0.1:{web}/")).await, "exposed");
}

/// A socket for datagrams in the network of a container, since busybox has no server for them.
async fn datagrams_in(case: &Case, id: &ContainerId, port: u16) -> tokio::net::UdpSocket {
    let pid = case.runtime.get_container_pid(id).await.unwrap().expect("it runs");
    let namespace = std::fs::File::open(format!("/proc/{pid}/ns/net")).unwrap();
    let bind = move || {
        let network = Some(rustix::thread::LinkNameSpaceType::Network);
        rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(&namespace), network).unwrap();
        std::net::UdpSocket::bind(("0.0.0.0", port)).unwrap()
    };
    let socket = std::thread::spawn(bind).join().unwrap();
    socket.set_nonblocking(true).unwrap();
    tokio::net::UdpSocket::from_std(socket).unwrap()
}

async fn datagrams_reach_the_container_that_has_the_port_now(case: Case) {
    let mut spec = case.script(IDLE).await;
    spec.network.mode = NetworkMode::Bridge;
    spec.port_mappings = vec![PortMapping { protocol: PortProtocol::Udp, ..published(None, 9, None) }];
    // A client that never closes its socket: the kernel remembers where its datagrams went.
    let client = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let first = case.start(&spec).await;
    let port = host_port(&case, &first).await;
    client.connect(("127.0.0.1", port)).await.unwrap();
    let mut bytes = [0; 16];
    let server = datagrams_in(&case, &first, 9).await;
    client.send(b"one").await.unwrap();
    let (length, from) = crate::support::case::soon("a datagram", server.recv_from(&mut bytes)).await.unwrap();
    assert_eq!(&bytes[..length], b"one");
    server.send_to(b"back", from).await.unwrap();
    crate::support::case::soon("an answer", client.recv(&mut bytes)).await.unwrap();
    drop(server);
    case.runtime.stop_container(&first, std::time::Duration::ZERO).await.unwrap();
    // While nobody has the port, it is remembered that it leads nowhere.
    let _refused = client.send(b"nobody").await;
    spec.port_mappings[0].host_port = Some(port);
    let second = case.start(&spec).await;
    let server = datagrams_in(&case, &second, 9).await;
    while client.send(b"two").await.is_err() {}
    let (length, _) = crate::support::case::soon("a datagram", server.recv_from(&mut bytes)).await.unwrap();
    assert_eq!(&bytes[..length], b"two");
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

//! Published ports: who answers at them, who holds them, and when they are free again.

use std::collections::BTreeSet;
use std::process::Command;

use runtime_core::spec::{NetworkMode, PortProtocol, PortRange};
use runtime_core::{AgentError, ContainerId, PortMapping, Runtime};

use crate::networks::{Outside, address, curl, on_bridge, published, web};
use crate::support::Case;
use crate::support::case::{IDLE, asked, eventually, seen_root};

crate::tests![
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
    a_container_reaches_its_own_published_port,
    the_loopback_of_ipv6_is_refused_by_its_name,
];

async fn serving(case: &Case, name: &str, mapping: PortMapping) -> ContainerId {
    let mut spec = case.script(&web(name)).await;
    spec.network.mode = NetworkMode::Bridge;
    spec.port_mappings = vec![mapping];
    case.start(&spec).await
}

async fn serving_at_one_of(case: &Case, name: &str, range: PortRange) -> ContainerId {
    let mut spec = case.script(&web(name)).await;
    spec.network.mode = NetworkMode::Bridge;
    spec.port_ranges = vec![range];
    case.start(&spec).await
}

async fn host_port(case: &Case, id: &ContainerId) -> u16 {
    case.runtime.inspect_detailed(id).await.unwrap().ports[0].host_port.expect("it is reported")
}

async fn a_published_port_answers_on_every_address_of_the_host(case: Case) {
    let outside = Outside::new(&case, "pub", 4);
    let id = serving(&case, "hello", published(None, 80, None)).await;
    let port = host_port(&case, &id).await;
    assert_eq!(curl(&format!("http://127.0.0.1:{port}/")).await, "hello", "the loopback");
    assert_eq!(curl(&format!("http://{}:{port}/", outside.host)).await, "hello", "another address of the host");
    assert_eq!(outside.curl(&format!("http://{}:{port}/", outside.host)).await, "hello", "from outside");
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
    let server = datagrams_in(&*case.runtime, &id, 9).await;
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
    let listener = std::net::TcpListener::bind(("127.0.0.1", case.suite.share.port())).unwrap();
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
    assert!(case.exec_ok(&id, &asked(&gateway, port)).await.ends_with("myself\n"));
}

async fn the_loopback_of_ipv6_is_refused_by_its_name(case: Case) {
    let mut spec = case.script(IDLE).await;
    spec.network.mode = NetworkMode::Bridge;
    spec.port_mappings = vec![published(None, 80, Some("::1"))];
    let id = case.id();
    let error = case.runtime.create_container(&id, &spec).await.unwrap_err();
    assert!(matches!(&error, AgentError::Unsupported(text) if text.contains("host_ip ::1")), "{error}");
    assert!(matches!(case.runtime.container_state(&id).await, Err(AgentError::NotFound { .. })));
    let told = case.berth(&["create", "-p", "[::1]:8080:80", &spec.image.name]).await;
    assert!(told.code == 125 && told.stderr.contains("::1"), "{told:?}");
}

async fn no_process_of_the_host_takes_a_published_port(case: Case) {
    // None that a connection of another process could be given once it is free.
    let port = case.suite.share.port();
    let id = serving(&case, "held", published(Some(port), 80, None)).await;
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
    let port = case.suite.share.port();
    spec.port_mappings = vec![published(Some(port), 80, None)];
    spec.restart_policy.kind = runtime_core::spec::RestartKind::Always;
    let id = case.start(&spec).await;
    let ip = address(&case, &id).await.to_string();
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
    let port = case.suite.share.port();
    spec.port_mappings = vec![published(Some(port), 80, None)];
    let id = case.start(&spec).await;
    let ip = address(&case, &id).await.to_string();
    let known = || case.exec_ok(&other, "cat /etc/hosts");
    assert_eq!(traces(&root, port, &ip).await, (true, true));
    assert!(known().await.contains(&id.service));
    std::fs::write(seen_root(&*case.runtime, &id).await.join("end"), "").unwrap();
    case.runtime.wait_container(&id).await.unwrap();
    eventually("the keeper sees it", || async { traces(&root, port, &ip).await == (false, false) }).await;
    eventually("its name is gone", || async { !known().await.contains(&id.service) }).await;
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
    let lowest = case.suite.share.ports(3);
    let taken = std::net::TcpListener::bind(("127.0.0.1", lowest)).expect("a free port");
    let range = PortRange {
        host_port: lowest,
        host_port_end: lowest + 2,
        container_port: 80,
        protocol: PortProtocol::Tcp,
        host_ip: Some("127.0.0.1".into()),
    };
    let first = serving_at_one_of(&case, "first", range.clone()).await;
    let second = serving_at_one_of(&case, "second", range.clone()).await;
    assert_eq!((host_port(&case, &first).await, host_port(&case, &second).await), (lowest + 1, lowest + 2));
    let mut spec = case.script(IDLE).await;
    spec.port_ranges = vec![range];
    spec.network.mode = NetworkMode::Bridge;
    let error = case.runtime.create_container(&case.id(), &spec).await.unwrap_err();
    assert!(
        error.code() == "port.taken" && error.to_string().contains(&format!("127.0.0.1:{lowest}-{}/tcp", lowest + 2)),
        "{error}"
    );
    drop(taken);
    let third = serving_at_one_of(&case, "third", spec.port_ranges.remove(0)).await;
    assert_eq!(host_port(&case, &third).await, lowest);
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
pub async fn datagrams_in(runtime: &dyn Runtime, id: &ContainerId, port: u16) -> tokio::net::UdpSocket {
    let pid = runtime.get_container_pid(id).await.unwrap().expect("it runs");
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
    let port = case.suite.share.port();
    spec.port_mappings = vec![PortMapping { protocol: PortProtocol::Udp, ..published(Some(port), 9, None) }];
    // A client that never closes its socket: the kernel remembers where its datagrams went.
    let client = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let first = case.start(&spec).await;
    client.connect(("127.0.0.1", port)).await.unwrap();
    let mut bytes = [0; 16];
    let server = datagrams_in(&*case.runtime, &first, 9).await;
    client.send(b"one").await.unwrap();
    let (length, from) = crate::support::case::soon("a datagram", server.recv_from(&mut bytes)).await.unwrap();
    assert_eq!(&bytes[..length], b"one");
    server.send_to(b"back", from).await.unwrap();
    crate::support::case::soon("an answer", client.recv(&mut bytes)).await.unwrap();
    drop(server);
    case.runtime.stop_container(&first, std::time::Duration::ZERO).await.unwrap();
    // While nobody has the port, it is remembered that it leads nowhere.
    let _refused = client.send(b"nobody").await;
    let second = case.start(&spec).await;
    let server = datagrams_in(&*case.runtime, &second, 9).await;
    while client.send(b"two").await.is_err() {}
    let (length, _) = crate::support::case::soon("a datagram", server.recv_from(&mut bytes)).await.unwrap();
    assert_eq!(&bytes[..length], b"two");
}

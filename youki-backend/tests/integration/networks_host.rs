//! What a root's networks are on the host: one table that is never gone, beside those of others; ports at the addresses that
//! were asked for, and at no other.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use runtime_core::spec::PortProtocol;
use runtime_core::{ContainerId, PortMapping, Runtime};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::net::UdpSocket;
use youki_backend::{NetworkOptions, YoukiRuntime};

use crate::networks::{Outside, curl, ip, published, web};
use crate::networks_named::Place;
use crate::support::Case;
use crate::support::case::{IDLE, eventually, shortly, soon, start_on};
use crate::support::leftovers;
use crate::support::pace::repetitions;
use crate::support::root::Root;
use crate::support::share::Share;

crate::tests![
    a_port_is_never_closed_while_the_table_is_replaced,
    no_other_table_of_the_host_is_touched,
    two_containers_have_one_port_at_two_addresses,
    datagrams_come_in_from_outside_at_the_addresses_asked_for,
];

/// Does `work` in a network namespace.
fn within<T: Send + 'static>(namespace: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let namespace = std::fs::File::open(namespace).unwrap_or_else(|error| panic!("{namespace}: {error}"));
    let enter = move || {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        work()
    };
    std::thread::spawn(enter).join().unwrap()
}

impl Outside {
    fn namespace(&self) -> String {
        format!("/run/netns/{}", self.name)
    }
}

async fn namespace_of(place: &Place, id: &ContainerId) -> String {
    format!("/proc/{}/ns/net", place.runtime.inspect(id).await.unwrap().pid.expect("it runs"))
}

async fn a_port_is_never_closed_while_the_table_is_replaced(case: Case) {
    let place = Place::new(&case).await;
    let mut spec = place.spec("bridge", IDLE).await;
    spec.port_mappings = vec![published(None, 80, Some("127.0.0.1"))];
    let id = place.start(&spec).await;
    let port = place.runtime.inspect(&id).await.unwrap().ports[0].host_port.unwrap();
    let listener = within(&namespace_of(&place, &id).await, || TcpListener::bind("0.0.0.0:80").unwrap());
    let over = Arc::new(AtomicBool::new(false));
    let serving = {
        let over = over.clone();
        std::thread::spawn(move || {
            while let Ok((mut client, _)) = listener.accept() {
                if over.load(Ordering::Relaxed) {
                    break;
                }
                // Who has gone was not refused.
                let _ = client.write_all(b"here");
            }
        })
    };
    let asking = {
        let over = over.clone();
        std::thread::spawn(move || {
            let (address, mut answers) = (SocketAddr::from(([127, 0, 0, 1], port)), 0u32);
            while !over.load(Ordering::Relaxed) {
                let mut said = String::new();
                let asked = TcpStream::connect_timeout(&address, shortly())
                    .and_then(|mut server| server.read_to_string(&mut said));
                // Who serves may have gone without a word.
                if over.load(Ordering::Relaxed) {
                    break;
                }
                asked.unwrap_or_else(|error| panic!("after {answers} answers: {error}"));
                assert_eq!(said, "here");
                answers += 1;
                std::thread::sleep(Duration::from_micros(200));
            }
            // The last one, for who serves.
            drop(TcpStream::connect_timeout(&address, shortly()));
            answers
        })
    };
    let reloads = repetitions(50, 5);
    for _ in 0..reloads {
        place.runtime.reload_networks().await.unwrap();
        if asking.is_finished() {
            break;
        }
    }
    over.store(true, Ordering::Relaxed);
    // What it met is told as it is.
    let answers = asking.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    serving.join().unwrap();
    assert!(answers as usize > reloads, "{answers} answers");
    place.close(&[]).await;
}

/// A table of nobody's. It goes with this value.
struct Foreign(String);

impl Foreign {
    fn new() -> Self {
        let name = format!("foreign_it_{}", std::process::id());
        let rules = format!(
            "table inet {name} {{ map m {{ type inet_service : ipv4_addr; elements = {{ 9 : 198.51.100.9 }}; }}; \
             chain c {{ type filter hook forward priority 300; tcp dport 9 accept; }}; }}"
        );
        assert!(Command::new("nft").arg(rules).status().unwrap().success());
        Self(name)
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        let _ = Command::new("nft").args(["delete", "table", "inet", &self.0]).status();
    }
}

/// A table's rules and elements, without what is counted.
fn listed(table: &str) -> String {
    let output = Command::new("nft").args(["-s", "list", "table", "inet", table]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

async fn no_other_table_of_the_host_is_touched(case: Case) {
    let foreign = Foreign::new();
    let beside = Place::new(&case).await;
    let mut spec = beside.spec("bridge", &web("beside")).await;
    spec.port_mappings = vec![published(None, 80, Some("127.0.0.1"))];
    let served = beside.start(&spec).await;
    let tables = [foreign.0.clone(), leftovers::table(&beside.root)];
    let before = tables.clone().map(|table| listed(&table));
    assert!(before[1].contains(&format!("{} . 80", beside.ipv4(&served).await)), "{}", before[1]);

    // All that a root does with its own.
    let root = Root { keeper: false, ..case.root("other") };
    let runtime = YoukiRuntime::open(root.config()).await.unwrap();
    let inner = NetworkOptions {
        subnets: vec![Share::further_subnet(&root.subnet, 1)],
        internal: true,
        ..NetworkOptions::default()
    };
    runtime.create_network("inner", &inner).await.unwrap();
    let id = case.id_in(&root);
    start_on(&runtime, &id, &spec).await.unwrap();
    assert!(listed(&leftovers::table(&root)).contains("dnat"));
    runtime.reload_networks().await.unwrap();
    runtime.remove_network("inner").await.unwrap();
    runtime.remove(&id, true).await.unwrap();
    let gone = || async { runtime.dismantle().await.is_ok() && !is_there(&leftovers::table(&root)) };
    eventually("its own table is gone", gone).await;
    assert_eq!(tables.map(|table| listed(&table)), before);
    let port = beside.runtime.inspect(&served).await.unwrap().ports[0].host_port.unwrap();
    assert_eq!(curl(&format!("http://127.0.0.1:{port}/")).await, "beside");
    beside.close(&[]).await;
}

fn is_there(table: &str) -> bool {
    Command::new("nft").args(["list", "table", "inet", table]).output().unwrap().status.success()
}

async fn two_containers_have_one_port_at_two_addresses(case: Case) {
    let outside = Outside::new(&case, "two", 20);
    let (first, second) = (outside.host.clone(), case.suite.share.outside(24).to_string());
    ip(&format!("addr add {second}/32 dev {}", outside.link));
    ip(&format!("-n {} route add {second}/32 dev far0", outside.name));
    let place = Place::new(&case).await;
    let port = case.suite.share.port();
    let mut ids = Vec::new();
    for (name, address) in [("one", &first), ("two", &second)] {
        let mut spec = place.spec("bridge", &web(name)).await;
        spec.port_mappings = vec![published(Some(port), 80, Some(address))];
        ids.push(place.start(&spec).await);
    }
    for (name, address) in [("one", &first), ("two", &second)] {
        let url = format!("http://{address}:{port}/");
        assert_eq!(curl(&url).await, name, "of the host");
        assert_eq!(outside.curl(&url).await, name, "from outside");
    }
    let refused = |address: &str| {
        let address = SocketAddr::new(address.parse().unwrap(), port);
        TcpStream::connect_timeout(&address, shortly()).map_err(|error| error.kind()).err()
    };
    assert_eq!(refused("127.0.0.1"), Some(ErrorKind::ConnectionRefused), "they are at no other address");
    let mut spec = place.spec("bridge", IDLE).await;
    for (address, holder) in [(None, &ids[0]), (Some(first.as_str()), &ids[0]), (Some(&second), &ids[1])] {
        spec.port_mappings = vec![published(Some(port), 80, address)];
        let error = place.runtime.create_container(&case.id_in(&place.root), &spec).await.unwrap_err();
        let told = error.to_string();
        let names_one = ids.iter().any(|id| told.contains(&id.to_string()));
        assert!(
            error.code() == "port.taken" && (told.contains(&holder.to_string()) || address.is_none() && names_one),
            "{told}"
        );
    }
    // Each is its own container's.
    place.runtime.remove(&ids[0], true).await.unwrap();
    assert_eq!(refused(&first), Some(ErrorKind::ConnectionRefused));
    assert_eq!(outside.curl(&format!("http://{second}:{port}/")).await, "two");
    drop(outside);
    place.close(&[]).await;
}

/// A socket that is bound in the network namespace that a path leads to.
fn datagrams_in(namespace: &str, bound: String) -> UdpSocket {
    let bind = move || std::net::UdpSocket::bind(&bound).unwrap_or_else(|error| panic!("{bound}: {error}"));
    let socket = within(namespace, bind);
    socket.set_nonblocking(true).unwrap();
    UdpSocket::from_std(socket).unwrap()
}

/// Where a client of `server` is bound.
fn any_port(server: SocketAddr) -> String {
    if server.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" }.to_owned()
}

async fn datagrams_come_in_from_outside_at_the_addresses_asked_for(case: Case) {
    let place = Place::new(&case).await;
    let outside = Outside::new(&case, "udp", 28);
    // Documentation (RFC 3849)
    let group = case.suite.share.group();
    let (host6, far6) = (format!("2001:db8:{group}:1::1"), format!("2001:db8:{group}:1::2"));
    ip(&format!("addr add {host6}/64 dev {} nodad", outside.link));
    ip(&format!("-n {} addr add {far6}/64 dev far0 nodad", outside.name));
    let subnets = vec![place.subnet(1), format!("fd42:{group}:8::/64")];
    place.network("six", NetworkOptions { subnets, ..NetworkOptions::default() }).await;
    let udp = |port, address| PortMapping { protocol: PortProtocol::Udp, ..published(None, port, address) };
    let mut spec = place.spec("six", IDLE).await;
    spec.port_mappings = vec![udp(9, None), udp(10, Some(outside.host.as_str())), udp(11, Some(host6.as_str()))];
    let id = place.start(&spec).await;
    let namespace = namespace_of(&place, &id).await;
    let ports = place.runtime.inspect(&id).await.unwrap().ports;
    let at = |index: usize, address: &str| {
        let address: IpAddr = address.parse().unwrap();
        SocketAddr::new(address, ports[index].host_port.unwrap())
    };
    let mut servers = Vec::new();
    for (index, address, from) in
        [(0, &outside.host, &outside.far), (1, &outside.host, &outside.far), (0, &host6, &far6), (2, &host6, &far6)]
    {
        let to = at(index, address);
        let server = datagrams_in(&namespace, format!("[::]:{}", 9 + index));
        let client = datagrams_in(&outside.namespace(), any_port(to));
        client.connect(to).await.unwrap();
        client.send(b"hello").await.unwrap();
        let mut bytes = [0; 16];
        let (length, seen) = soon("a datagram", server.recv_from(&mut bytes)).await.unwrap();
        let by = seen.ip().to_canonical().to_string();
        assert_eq!((&bytes[..length], by), (&b"hello"[..], from.clone()), "{to}");
        server.send_to(b"back", seen).await.unwrap();
        // From where it was sent to, or the kernel would not give it to who is connected.
        let length = soon("an answer", client.recv(&mut bytes)).await.unwrap();
        assert_eq!(&bytes[..length], b"back", "{to}");
        // The other one's is bound again.
        servers.extend(Some(server).filter(|_| index != 0));
    }
    // What is at one address is at no other, where each would be heard.
    for (index, address) in [(1, "127.0.0.1"), (2, "127.0.0.1"), (1, &*host6)] {
        let to = at(index, address);
        let client = UdpSocket::bind(any_port(to)).await.unwrap();
        client.connect(to).await.unwrap();
        client.send(b"hello").await.unwrap();
        let error = soon("a refusal", client.recv(&mut [0; 16])).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{to}");
    }
    drop(outside);
    place.close(&["six"]).await;
}

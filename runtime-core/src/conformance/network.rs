//! Addresses, networks and published ports.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use super::case::{Case, OrStop, Stop, Verdict, ensure, equal};
use super::{Ability, Check, Workload, check};
use crate::spec::{NetworkMode, NetworkSpec, PortMapping, PortProtocol};
use crate::{AgentError, ContainerId, LogEntry, ServiceSpec};

pub(super) fn checks() -> Vec<Check> {
    vec![
        check!(
            "network.address",
            "a container in the default network has the address that is told, by every way",
            address
        ),
        check!("network.distinct", "no two containers have one address", distinct),
        check!("network.none", "without a network there is no address, and loopback alone", none),
        check!("network.host", "in the host's network there is no address", host),
        check!(
            "network.port_override",
            "a replica in the host's network has a port of its own, given as PORT",
            port_override
        ),
        check!("network.unknown", "a network that is not there is an error that leaves nothing", unknown),
        check!("ports.ephemeral", "a port that is left open is chosen, reported, and nobody else's", ephemeral),
        check!("ports.udp", "a port of UDP is published as that, and a datagram comes through", udp),
        check!(
            "ports.host_ip",
            "a port is published at the address given and no other; at all of them without one",
            host_ip
        ),
        check!("ports.conflict", "a port that another container has fails the create, and leaves nothing", conflict),
        check!("ports.freed", "a port can be had again once its container is removed", freed),
    ]
}

/// Port that the mappings of these checks lead to; nobody needs to listen.
const CONTAINER_PORT: u16 = 80;

pub(super) fn needs_networks(case: &Case) -> Verdict {
    match case.lacks(Ability::Network) {
        true => Err(Stop::Unsupported("the backend has no networks".to_owned())),
        false => Ok(()),
    }
}

fn that(what: &str, holds: bool) -> Verdict {
    ensure(holds, || format!("not so: {what}"))
}

pub(super) fn idle_in(case: &Case, mode: NetworkMode) -> Verdict<ServiceSpec> {
    let mut spec = case.spec(&Workload::idle())?;
    spec.network.mode = mode;
    Ok(spec)
}

pub(super) fn mapping(host_port: Option<u16>) -> PortMapping {
    let (protocol, host_ip) = (PortProtocol::Tcp, Some("127.0.0.1".to_owned()));
    PortMapping { host_port, container_port: CONTAINER_PORT, protocol, host_ip }
}

pub(super) async fn ip(case: &Case, id: &ContainerId) -> Verdict<IpAddr> {
    let ip = case.runtime().get_container_ip(id).await.or_fail("get_container_ip")?;
    ip.ok_or_else(|| Stop::Failed(format!("{id} is in the default network and has no address")))
}

/// The host's port of the only mapping.
pub(super) async fn host_port(case: &Case, id: &ContainerId) -> Verdict<u16> {
    let ports = case.runtime().inspect_detailed(id).await.or_fail("inspect_detailed")?.ports;
    let reported = match ports.as_slice() {
        [one] => one.host_port.filter(|port| *port != 0 && one.container_port == CONTAINER_PORT),
        _ => None,
    };
    reported.ok_or_else(|| Stop::Failed(format!("inspect_detailed does not tell the host's port: {ports:?}")))
}

async fn address(case: Case) -> Verdict {
    needs_networks(&case)?;
    let id = case.start_spec(&idle_in(&case, NetworkMode::Bridge)?).await?;
    case.line(&id, "ready").await?;
    let ip = ip(&case, &id).await?;
    let details = case.runtime().inspect_detailed(&id).await.or_fail("inspect_detailed")?;
    equal("ipv4 of inspect_detailed", &details.ipv4, &Some(ip.to_string()))?;
    let told: Vec<_> = details.networks.iter().map(|network| network.ipv4.clone()).collect();
    equal("the addresses of its networks", &told, &vec![Some(ip.to_string())])?;
    that("its network has a name", !details.networks[0].network.is_empty())?;
    // The kernel's own list, as the container sees it.
    let script =
        format!("while read -r mark ip rest; do [ \"$ip\" = {ip} ] && exit 0; done < /proc/net/fib_trie; exit 1");
    let (code, ..) = case.exec(&id, &Workload::Script(script)).await?;
    equal(&format!("whether the container itself has {ip}"), &code, &0)
}

async fn distinct(case: Case) -> Verdict {
    needs_networks(&case)?;
    let spec = idle_in(&case, NetworkMode::Bridge)?;
    let mut seen = BTreeSet::new();
    for _ in 0..3 {
        let id = case.start_spec(&spec).await?;
        let ip = ip(&case, &id).await?;
        that(&format!("{ip} is one container's alone"), seen.insert(ip))?;
    }
    Ok(())
}

/// What a backend without networks can be asked.
async fn no_address(case: &Case, mode: NetworkMode) -> Verdict {
    let id = case.start_spec(&idle_in(case, mode)?).await?;
    equal("get_container_ip", &case.runtime().get_container_ip(&id).await.or_fail("get_container_ip")?, &None)
}

async fn none(case: Case) -> Verdict {
    if case.lacks(Ability::Network) {
        return no_address(&case, NetworkMode::None).await;
    }
    let mut spec =
        case.spec(&Workload::Script("while read -r name rest; do echo $name; done < /proc/net/dev".into()))?;
    spec.network.mode = NetworkMode::None;
    let id = case.start_spec(&spec).await?;
    equal("get_container_ip", &case.runtime().get_container_ip(&id).await.or_fail("get_container_ip")?, &None)?;
    let details = case.runtime().inspect_detailed(&id).await.or_fail("inspect_detailed")?;
    equal("ipv4 of inspect_detailed", &details.ipv4, &None)?;
    case.wait(&id).await?;
    // Two lines of headings come first.
    let logs = case.logs(&id, 3).await?;
    let links: Vec<&str> = logs.iter().skip(2).map(|entry| entry.message.as_str()).collect();
    equal("its interfaces", &links, &vec!["lo:"])
}

async fn host(case: Case) -> Verdict {
    if case.lacks(Ability::Network) {
        return no_address(&case, NetworkMode::Host).await;
    }
    for host_network in [true, false] {
        let mut spec = idle_in(&case, NetworkMode::Host)?;
        if host_network {
            spec = ServiceSpec { host_network, network: NetworkSpec::default(), ..spec };
        }
        let id = case.start_spec_ready(&spec).await?;
        equal("get_container_ip", &case.runtime().get_container_ip(&id).await.or_fail("get_container_ip")?, &None)?;
    }
    Ok(())
}

async fn port_override(case: Case) -> Verdict {
    needs_networks(&case)?;
    let mut spec = case.spec(&Workload::Script("echo \"PORT=$PORT\"; echo ready; sleep 86400".into()))?;
    spec.host_network = true;
    let mut seen = BTreeSet::new();
    for _ in 0..2 {
        let id = case.start_spec_ready(&spec).await?;
        let port =
            case.runtime().get_container_port_override(&id).await.or_unsupported("get_container_port_override")?;
        let none = || Stop::Unsupported("a replica in the host's network is given no port".to_owned());
        let port = port.ok_or_else(none)?;
        that(&format!("the port {port} is one container's alone"), port != 0 && seen.insert(port))?;
        case.line(&id, &format!("PORT={port}")).await?;
    }
    // Not for one that has a network of its own.
    let id = case.start_spec(&idle_in(&case, NetworkMode::Bridge)?).await?;
    let port = case.runtime().get_container_port_override(&id).await.or_fail("get_container_port_override")?;
    equal("the port of one with an address", &port, &None)
}

async fn unknown(case: Case) -> Verdict {
    needs_networks(&case)?;
    let spec = idle_in(&case, NetworkMode::Named("conformance-no-such-network".into()))?;
    let id = case.id();
    match case.runtime().create_container(&id, &spec).await {
        Ok(()) => return Err(Stop::Failed("create_container took a network that is not there".to_owned())),
        Err(AgentError::Unsupported(reason)) => return Err(Stop::Unsupported(reason)),
        Err(error) => that(
            &format!("the error names the network: {error}"),
            error.to_string().contains("conformance-no-such-network"),
        )?,
    }
    is_unknown(&case, &id).await
}

async fn is_unknown(case: &Case, id: &ContainerId) -> Verdict {
    let state = case.runtime().container_state(id).await;
    that(&format!("nothing of it is left: {state:?}"), matches!(state, Err(AgentError::NotFound { .. })))
}

async fn published(case: &Case, host_port: Option<u16>) -> Verdict<ContainerId> {
    let mut spec = idle_in(case, NetworkMode::Bridge)?;
    spec.port_mappings = vec![mapping(host_port)];
    case.start_spec(&spec).await
}

async fn ephemeral(case: Case) -> Verdict {
    needs_networks(&case)?;
    let mut seen = BTreeSet::new();
    for asked in [None, None, Some(0)] {
        let id = published(&case, asked).await?;
        let port = host_port(&case, &id).await?;
        that(&format!("the port {port} is one container's alone"), seen.insert(port))?;
    }
    Ok(())
}

/// A container in the host's network that sends to published ports: the suite itself may be elsewhere.
pub(super) async fn client(case: &Case, script: String) -> Verdict<ContainerId> {
    let mut client = case.script(script)?;
    client.host_network = true;
    case.start_spec(&client).await
}

async fn udp(case: Case) -> Verdict {
    needs_networks(&case)?;
    let mut spec = idle_in(&case, NetworkMode::Bridge)?;
    spec.port_mappings = vec![PortMapping { protocol: PortProtocol::Udp, ..mapping(None) }];
    let id = case.start_spec_ready(&spec).await?;
    let port = host_port(&case, &id).await?;
    let details = case.runtime().inspect_detailed(&id).await.or_fail("inspect_detailed")?;
    equal("the protocol told", &details.ports[0].protocol, &PortProtocol::Udp)?;
    // Nobody listens there: the container's kernel counts what comes.
    let script = format!(
        "command -v tftp > /dev/null || {{ echo no tftp; exit; }}; echo ready; \
         while :; do tftp -g -r conformance -l /dev/null 127.0.0.1 {port} > /dev/null 2>&1; sleep 1; done"
    );
    let client = client(&case, script).await?;
    if case.logs(&client, 1).await?.iter().any(|entry| entry.message == "no tftp") {
        return Err(Stop::Unsupported("the image has no tftp".to_owned()));
    }
    // A line of names, and one of numbers.
    let count =
        "while read -r kind received nobody rest; do [ $kind = Udp: ] && n=$nobody; done < /proc/net/snmp; echo $n";
    case.until("no datagram comes to the container", || async {
        Ok(case.ask(&id, count).await?.parse().is_ok_and(|datagrams: u64| datagrams > 0).then_some(()))
    })
    .await
}

/// The address that the host has in the container's network.
async fn gateway(case: &Case, id: &ContainerId) -> Verdict<Ipv4Addr> {
    let script = "while read -r link to by rest; do [ $to = 00000000 ] && echo $by; done < /proc/net/route";
    let route = case.ask(id, script).await?;
    let address = u32::from_str_radix(route.lines().next().unwrap_or_default(), 16);
    // As it lies in memory.
    let address = address.map(|address| Ipv4Addr::from(address.to_ne_bytes()));
    address.map_err(|_| Stop::Failed(format!("the container's way out is by {route:?}")))
}

async fn host_ip(case: Case) -> Verdict {
    needs_networks(&case)?;
    for host_ip in [Some("127.0.0.1"), None] {
        let mut server = case.script(SERVER)?;
        server.port_mappings = vec![PortMapping { host_ip: host_ip.map(str::to_owned), ..mapping(None) }];
        let id = case.start_spec(&server).await?;
        serves(&case, &id).await?;
        let (port, gateway) = (host_port(&case, &id).await?, gateway(&case, &id).await?);
        let script = format!(
            "while :; do for at in {gateway} 127.0.0.1; do echo $at | nc -w 1 $at {port} > /dev/null 2>&1; done; \
             sleep 0.1 2>/dev/null || sleep 1; done"
        );
        client(&case, script).await?;
        let came_to = |logs: &[LogEntry], at: &str| logs.iter().filter(|entry| entry.message == at).count();
        let gateway = gateway.to_string();
        case.until(&format!("what is published at {host_ip:?} is not reached"), || async {
            let logs = case.runtime().get_logs(&id).await.or_fail("get_logs")?;
            let elsewhere = came_to(&logs, &gateway);
            ensure(host_ip.is_none() || elsewhere == 0, || {
                format!("published at {host_ip:?} it is reached at {gateway}")
            })?;
            // Each time the other address was tried first.
            let enough = came_to(&logs, "127.0.0.1") >= 2 && (host_ip.is_some() || elsewhere > 0);
            Ok(enough.then_some(()))
        })
        .await?;
    }
    Ok(())
}

/// Writes what comes to its port, connection by connection.
pub(super) const SERVER: &str =
    "command -v nc > /dev/null || { echo no nc; exit; }; echo ready; while :; do nc -l -p 80; done";

/// Waits until a [`SERVER`] has begun.
pub(super) async fn serves(case: &Case, id: &ContainerId) -> Verdict {
    match case.logs(id, 1).await?.iter().any(|entry| entry.message == "no nc") {
        true => Err(Stop::Unsupported("the image has no nc".to_owned())),
        false => Ok(()),
    }
}

async fn conflict(case: Case) -> Verdict {
    needs_networks(&case)?;
    let first = published(&case, None).await?;
    let port = host_port(&case, &first).await?;
    let mut spec = idle_in(&case, NetworkMode::Bridge)?;
    spec.port_mappings = vec![mapping(Some(port))];
    let id = case.id();
    match case.runtime().create_container(&id, &spec).await {
        Ok(()) => Err(Stop::Failed(format!("create_container took the port {port}, which {first} has"))),
        Err(error) => {
            that(&format!("the error names port and owner: {error}"), {
                let text = error.to_string();
                text.contains(&port.to_string()) && text.contains(&first.to_string())
            })?;
            is_unknown(&case, &id).await
        }
    }
}

async fn freed(case: Case) -> Verdict {
    needs_networks(&case)?;
    let first = published(&case, None).await?;
    let port = host_port(&case, &first).await?;
    case.runtime().remove_container(&first).await.or_fail("remove_container")?;
    let second = published(&case, Some(port)).await?;
    equal("the host's port", &host_port(&case, &second).await?, &port)
}

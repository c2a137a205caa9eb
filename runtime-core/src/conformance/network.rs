//! Addresses, networks and published ports.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::case::{Case, OrStop, Stop, Verdict, ensure, equal};
use super::{Ability, Check, Workload, check};
use crate::spec::{NetworkMode, PortMapping, PortProtocol};
use crate::{AgentError, ContainerId, ServiceSpec};

pub(super) fn checks() -> Vec<Check> {
    vec![
        check!(
            "network.address",
            "a container in the default network has the address that is told, by every way",
            address
        ),
        check!("network.distinct", "no two containers have one address", distinct),
        check!("network.none", "without a network there is no address, and loopback alone", none),
        check!("network.host", "in the host's network there is no address, and a port override is given as PORT", host),
        check!("network.unknown", "a network that is not there is an error that leaves nothing", unknown),
        check!("ports.ephemeral", "a port that is left open is chosen, reported, and nobody else's", ephemeral),
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
    let mut spec = case.spec(&Workload::Script("echo \"PORT=$PORT\"; echo ready; sleep 86400".into()))?;
    spec.host_network = true;
    let mut seen = BTreeSet::new();
    for _ in 0..2 {
        let id = case.start_spec(&spec).await?;
        case.line(&id, "ready").await?;
        equal("get_container_ip", &case.runtime().get_container_ip(&id).await.or_fail("get_container_ip")?, &None)?;
        let port = case.runtime().get_container_port_override(&id).await.or_fail("get_container_port_override")?;
        if let Some(port) = port {
            that(&format!("the port {port} is one container's alone"), port != 0 && seen.insert(port))?;
            case.line(&id, &format!("PORT={port}")).await?;
        }
    }
    Ok(())
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

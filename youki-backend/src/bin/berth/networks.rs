//! `network …` and `port`.

use runtime_core::spec::{PortMapping, PortProtocol};
use serde_json::{Value, json};
use youki_backend::{Inspect, NetworkInfo, NetworkOptions};

use crate::cli::{NetworkCreateArgs, NetworkLsArgs, NetworkNamesArgs, NetworkPruneArgs, NetworkRmArgs, PortArgs};
use crate::failure::{Failure, Result};
use crate::format::Template;
use crate::images::confirmed;
use crate::lifecycle::container;
use crate::output::{self, Table, or_dash};
use crate::publish::ports_and_protocol;
use crate::session::Session;

/// The option of docker's bridge driver that is `--mtu` here.
const MTU_OPTIONS: [&str; 2] = ["com.docker.network.driver.mtu", "mtu"];

/// `berth network ls`
pub fn ls(session: &Session, args: &NetworkLsArgs) -> Result<i32> {
    let template = args.format.as_deref().map(Template::parse).transpose()?;
    let networks = session.runtime.networks()?;
    if session.json {
        output::print_json(&networks)?;
    } else if args.quiet {
        output::print(&names(networks.iter().map(|network| network.name.as_str())))?;
    } else if let Some(template) = template {
        let lines = networks.iter().map(|network| template.render(&json!(network), |path| dockers(network, path)));
        output::print(&output::lines(template.is_table.then(|| template.headings()), lines)?)?;
    } else {
        let mut table = Table::new(["NAME", "BRIDGE", "SUBNET", "IPV6 SUBNET", "INTERNAL", "MTU", "CONTAINERS"]);
        for network in networks {
            table.row([
                network.name,
                network.bridge,
                network.subnet,
                or_dash(network.ipv6_subnet),
                network.internal.to_string(),
                or_dash(network.mtu),
                network.containers.len().to_string(),
            ]);
        }
        output::print(&table.render())?;
    }
    Ok(0)
}

/// Docker's names for what a network has here in another way, or not at all.
fn dockers(network: &NetworkInfo, path: &[String]) -> Option<Value> {
    Some(match path.join(".").as_str() {
        "ID" => json!(network.name),
        "Driver" => "bridge".into(),
        "Scope" => "local".into(),
        "IPv6" => network.ipv6_subnet.is_some().into(),
        "CreatedAt" => json!(network.created_at.map(output::time)),
        _ => return None,
    })
}

/// `berth network create`
pub async fn create(session: &Session, args: &NetworkCreateArgs) -> Result<i32> {
    let options = options(args)?;
    let made = session.runtime.create_network(&args.name, &options).await?;
    match session.json {
        true => output::print_json(&made)?,
        false => output::print_line(&made.name)?,
    }
    Ok(0)
}

fn options(args: &NetworkCreateArgs) -> Result<NetworkOptions> {
    if args.driver != "bridge" {
        return Err(Failure::unsupported(format!("--driver {}", args.driver)));
    }
    let mut mtu = args.mtu;
    for option in &args.opt {
        let (key, value) = option.split_once('=').unwrap_or((option, ""));
        if !MTU_OPTIONS.contains(&key) {
            return Err(Failure::unsupported(format!("--opt {option}")));
        }
        let number = value.parse().map_err(|_| Failure::usage(format!("--opt {option:?}: not a number of bytes")))?;
        mtu = mtu.or(Some(number));
    }
    Ok(NetworkOptions {
        subnets: args.subnet.clone(),
        gateway: args.gateway,
        internal: args.internal,
        ipv6: args.ipv6,
        mtu,
    })
}

/// `berth network inspect`
pub async fn inspect(session: &Session, args: &NetworkNamesArgs) -> Result<i32> {
    let (found, status) = session.each(&args.names, async |name| session.runtime.network(name)).await;
    output::print_json(&found)?;
    Ok(status)
}

/// `berth network rm`
pub async fn rm(session: &Session, args: &NetworkRmArgs) -> Result<i32> {
    let remove = async |name: &str| match session.runtime.remove_network(name).await {
        Err(youki_backend::Error::NoSuchNetwork { .. }) if args.force => Ok(None),
        other => other.map(|()| Some(name.to_owned())),
    };
    let (removed, status) = session.each(&args.names, remove).await;
    print_removed(session, &removed.into_iter().flatten().collect::<Vec<_>>())?;
    Ok(status)
}

/// `berth network prune`
pub async fn prune(session: &Session, args: &NetworkPruneArgs) -> Result<i32> {
    let mut removed = Vec::new();
    if confirmed(args.force, "This removes all networks that no container is in.")? {
        let unused = |network: &NetworkInfo| network.created_at.is_some() && network.containers.is_empty();
        for network in session.runtime.networks()?.into_iter().filter(unused) {
            match session.runtime.remove_network(&network.name).await {
                // Somebody came, or was faster.
                Err(youki_backend::Error::NetworkInUse { .. } | youki_backend::Error::NoSuchNetwork { .. }) => {}
                other => {
                    other?;
                    removed.push(network.name);
                }
            }
        }
    }
    match session.json {
        true => output::print_json(&json!({"deleted": removed, "space_reclaimed": 0}))?,
        false => print_removed(session, &removed)?,
    }
    Ok(0)
}

/// `berth network reload`
pub async fn reload(session: &Session) -> Result<i32> {
    session.runtime.reload_networks().await?;
    if session.json {
        output::print_json(&session.runtime.networks()?)?;
    }
    Ok(0)
}

/// `berth port`
pub async fn port(session: &Session, args: &PortArgs) -> Result<i32> {
    let one = session.runtime.inspect(&container(&args.name)?).await?;
    let mut ports = one.ports.clone();
    if let Some(text) = &args.port {
        let ((first, last), protocol) = ports_and_protocol("port", text, text)?;
        ports.retain(|port| port.protocol == protocol && (first..=last).contains(&port.container_port));
        if ports.is_empty() {
            let message = format!("{}: no port of the host is published for {first}/{}", one.name, word(protocol));
            let hint = format!("`berth port {}` lists what is published", one.name);
            return Err(Failure::found("port.not_published", message, hint));
        }
    }
    if session.json {
        output::print_json(&ports)?;
        return Ok(0);
    }
    let mut text = String::new();
    for port in &ports {
        let prefix = match args.port {
            Some(_) => String::new(),
            None => format!("{}/{} -> ", port.container_port, word(port.protocol)),
        };
        for address in addresses(&one, port) {
            text.push_str(&format!("{prefix}{address}:{}\n", or_dash(port.host_port)));
        }
    }
    output::print(&text)?;
    Ok(0)
}

/// The addresses of the host that a port is published at, as docker writes them.
pub fn addresses(one: &Inspect, port: &PortMapping) -> Vec<String> {
    match port.host_ip.as_deref() {
        Some(ip) if ip.contains(':') => vec![format!("[{ip}]")],
        Some(ip) => vec![ip.to_owned()],
        None if one.networks.iter().any(|network| network.ipv6.is_some()) => vec!["0.0.0.0".into(), "[::]".into()],
        None => vec!["0.0.0.0".into()],
    }
}

/// `0.0.0.0:8000-8003->8000-8003/tcp`: ports in a row are one range, as docker shows them.
pub fn shown(one: &Inspect) -> String {
    let mut runs: Vec<(&PortMapping, u16)> = Vec::new();
    for port in &one.ports {
        let follows = |(first, length): &(&PortMapping, u16)| {
            first.protocol == port.protocol
                && first.host_ip == port.host_ip
                && first.container_port.checked_add(*length) == Some(port.container_port)
                && first.host_port.and_then(|host| host.checked_add(*length)) == port.host_port
        };
        match runs.last_mut().filter(|run| follows(run)) {
            Some((_, length)) => *length += 1,
            None => runs.push((port, 1)),
        }
    }
    let range = |first: u16, length: u16| match length {
        1 => first.to_string(),
        _ => format!("{first}-{}", first.saturating_add(length - 1)),
    };
    let texts = runs.into_iter().flat_map(|(port, length)| {
        let host = port.host_port.map_or_else(|| "-".to_owned(), |first| range(first, length));
        let behind = format!(":{host}->{}/{}", range(port.container_port, length), word(port.protocol));
        addresses(one, port).into_iter().map(move |address| address + &behind)
    });
    texts.collect::<Vec<_>>().join(", ")
}

/// tcp or udp.
pub fn word(protocol: PortProtocol) -> &'static str {
    match protocol {
        PortProtocol::Tcp => "tcp",
        PortProtocol::Udp => "udp",
    }
}

fn names<'a>(all: impl Iterator<Item = &'a str>) -> String {
    all.map(|name| format!("{name}\n")).collect()
}

fn print_removed(session: &Session, removed: &[String]) -> Result<()> {
    match session.json {
        true => output::print_json(&removed),
        false => output::print(&names(removed.iter().map(String::as_str))),
    }
}

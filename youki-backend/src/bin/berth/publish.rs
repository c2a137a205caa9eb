//! `--publish` and `--expose`, in docker's grammar: `[[IP:][HOST_PORT]:]CONTAINER_PORT[/PROTOCOL]` with ranges, and
//! `published=…,target=…,protocol=…`.

use std::net::IpAddr;

use runtime_core::spec::{PortMapping, PortProtocol, PortRange};

use crate::failure::{Failure, Result};

const PUBLISH: &str = "--publish";
const EXPOSE: &str = "--expose";

/// What one `--publish` asks for.
#[derive(Debug, Default)]
pub struct Published {
    pub mappings: Vec<PortMapping>,
    /// Any of several for one port of the container.
    pub range: Option<PortRange>,
}

/// Reads one `--publish`.
pub fn publish(text: &str) -> Result<Published> {
    let standard = if text.contains('=') { from_pairs(text)? } else { text.to_owned() };
    let wrong = |reason: &str| wrong(PUBLISH, text, reason);
    let (host, container) = standard.rsplit_once(':').unwrap_or(("", &standard));
    let (ip, host_ports) = host.rsplit_once(':').unwrap_or(("", host));
    let (container_ports, protocol) = ports_and_protocol(PUBLISH, text, container)?;
    let host_ip = match ip.strip_prefix('[').and_then(|ip| ip.strip_suffix(']')).unwrap_or(ip) {
        "" => None,
        ip => Some(ip.parse::<IpAddr>().map_err(|_| wrong(&format!("{ip:?} is not an address")))?.to_string()),
    };
    let host_ports = match host_ports {
        "" => None,
        range => Some(ports(range).ok_or_else(|| wrong(&format!("{range:?} is no port of the host")))?),
    };
    let (first, last) = container_ports;
    let one = |container_port: u16, host_port: Option<u16>| PortMapping {
        host_port,
        container_port,
        protocol,
        host_ip: host_ip.clone(),
    };
    let mappings = match host_ports {
        None => (first..=last).map(|port| one(port, None)).collect(),
        Some((begin, end)) if end - begin == last - first => {
            (first..=last).zip(begin..=end).map(|(port, host)| one(port, Some(host))).collect()
        }
        Some((host_port @ 1.., host_port_end)) if first == last => {
            let range = PortRange { host_port, host_port_end, container_port: first, protocol, host_ip };
            return Ok(Published { mappings: Vec::new(), range: Some(range) });
        }
        Some(_) => return Err(wrong("the two ranges are not of the same length")),
    };
    Ok(Published { mappings, range: None })
}

/// The ports that one `--expose` names.
pub fn expose(text: &str) -> Result<Vec<PortMapping>> {
    let ((first, last), protocol) = ports_and_protocol(EXPOSE, text, text)?;
    let one = |container_port| PortMapping { host_port: None, container_port, protocol, host_ip: None };
    Ok((first..=last).map(one).collect())
}

/// `80`, `53/udp`: as of `berth port`, too.
pub fn ports_and_protocol(flag: &str, whole: &str, text: &str) -> Result<((u16, u16), PortProtocol)> {
    let (range, protocol) = text.split_once('/').unwrap_or((text, ""));
    let protocol = match protocol.to_ascii_lowercase().as_str() {
        "" | "tcp" => PortProtocol::Tcp,
        "udp" => PortProtocol::Udp,
        "sctp" => return Err(Failure::unsupported(format!("{flag} {whole}: sctp"))),
        _ => return Err(wrong(flag, whole, "a protocol is tcp or udp")),
    };
    match ports(range).filter(|(first, _)| *first > 0) {
        Some(range) => Ok((range, protocol)),
        None => Err(wrong(flag, whole, &format!("{range:?} is no port of the container"))),
    }
}

/// `8000` or `8000-8010`.
fn ports(text: &str) -> Option<(u16, u16)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse::<u16>().ok())?;
    let (first, last) = (number(first)?, number(last)?);
    (first <= last).then_some((first, last))
}

/// `published=8080,target=80,protocol=tcp` in the short form.
fn from_pairs(text: &str) -> Result<String> {
    let (mut published, mut target, mut protocol) = ("", "", "tcp");
    for pair in text.split(',') {
        let (key, value) = pair.split_once('=').ok_or_else(|| wrong(PUBLISH, text, "write KEY=VALUE,…"))?;
        match key {
            "published" | "source" => published = value,
            "target" | "destination" => target = value,
            "protocol" => protocol = value,
            "mode" => {}
            _ => return Err(wrong(PUBLISH, text, "a key is published, target or protocol")),
        }
    }
    Ok(format!("{published}:{target}/{protocol}"))
}

fn wrong(flag: &str, text: &str, reason: &str) -> Failure {
    Failure::usage(format!("{flag} {text:?}: {reason}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `ip host[-end] container/protocol`.
    fn shown(text: &str) -> Vec<String> {
        let one = |ip: Option<String>, host: String, container_port: u16, protocol: PortProtocol| {
            format!("{} {host} {container_port}/{protocol:?}", ip.unwrap_or_else(|| "*".to_owned())).to_lowercase()
        };
        let plain = |port: PortMapping| {
            let host = port.host_port.map_or_else(|| "-".to_owned(), |host| host.to_string());
            one(port.host_ip, host, port.container_port, port.protocol)
        };
        let range = |range: PortRange| {
            let host = format!("{}-{}", range.host_port, range.host_port_end);
            one(range.host_ip, host, range.container_port, range.protocol)
        };
        match publish(text) {
            Ok(found) => found.mappings.into_iter().map(plain).chain(found.range.map(range)).collect(),
            Err(failure) => vec![format!("! {}", failure.code())],
        }
    }

    #[test]
    fn a_published_port_is_written_as_dockers() {
        for (text, want) in [
            ("80", &["* - 80/tcp"][..]),
            ("8080:80", &["* 8080 80/tcp"]),
            ("8080:80/udp", &["* 8080 80/udp"]),
            ("8080:80/TCP", &["* 8080 80/tcp"]),
            ("0:80", &["* 0 80/tcp"]),
            (":80", &["* - 80/tcp"]),
            ("127.0.0.1:8080:80", &["127.0.0.1 8080 80/tcp"]),
            ("127.0.0.1::80", &["127.0.0.1 - 80/tcp"]),
            ("[::1]:8080:80", &["::1 8080 80/tcp"]),
            ("[::1]::80/udp", &["::1 - 80/udp"]),
            ("::1:8080:80", &["::1 8080 80/tcp"]),
            ("8000-8001:90-91", &["* 8000 90/tcp", "* 8001 91/tcp"]),
            ("90-91", &["* - 90/tcp", "* - 91/tcp"]),
            ("127.0.0.1::90-91", &["127.0.0.1 - 90/tcp", "127.0.0.1 - 91/tcp"]),
            ("8000-8010:80", &["* 8000-8010 80/tcp"]),
            ("8000-8000:80", &["* 8000 80/tcp"]),
            ("published=8080,target=80,protocol=udp", &["* 8080 80/udp"]),
            ("target=80", &["* - 80/tcp"]),
            ("65535:65535", &["* 65535 65535/tcp"]),
            ("", &["! usage"]),
            ("80/icmp", &["! usage"]),
            ("80/sctp", &["! unsupported"]),
            ("65536:80", &["! usage"]),
            ("8080:65536", &["! usage"]),
            ("8080:0", &["! usage"]),
            ("8080:", &["! usage"]),
            ("x:80", &["! usage"]),
            ("+80:80", &["! usage"]),
            ("-1:80", &["! usage"]),
            ("host:8080:80", &["! usage"]),
            ("1.2.3:8080:80", &["! usage"]),
            ("[::1:8080:80", &["! usage"]),
            ("8000-8002:90-91", &["! usage"]),
            ("0-5:80", &["! usage"]),
            ("8001-8000:80-81", &["! usage"]),
            ("target=80,color=red", &["! usage"]),
            ("published=80", &["! usage"]),
        ] {
            assert_eq!(shown(text), want, "{text:?}");
        }
    }

    #[test]
    fn exposed_ports_may_be_a_range() {
        let ports = |text: &str| expose(text).unwrap().into_iter().map(|port| port.container_port).collect::<Vec<_>>();
        assert_eq!(ports("80"), [80]);
        assert_eq!(ports("80-82/udp"), [80, 81, 82]);
        assert_eq!(expose("x").unwrap_err().code(), "usage");
    }
}

//! `/etc/hosts` and `/etc/resolv.conf` of a container.

use std::fmt::Write;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use runtime_core::spec::NetworkMode;
use runtime_core::{ContainerId, ServiceSpec};

use super::{Lease, names_of};
use crate::error::{Error, Result};

const HOST_RESOLV_CONF: &str = "/etc/resolv.conf";

/// The real name servers where `/etc/resolv.conf` names only systemd-resolved's stub on the loopback.
const SYSTEMD_RESOLV_CONF: &str = "/run/systemd/resolve/resolv.conf";

/// Largest host file that is read: nobody's is near it.
const MAX_HOST_FILE_BYTES: u64 = 1 << 20;

/// What `extra_hosts` writes for the host's own address.
const HOST_GATEWAY: &str = "host-gateway";

/// Of `/etc/hosts`: the container's own names, then the spec's `extra_hosts`. With the host's network it is the host's
/// file, and the extra ones. Blocks to read it.
///
/// # Errors
/// [`Error::InvalidSpec`] for a malformed extra host, [`Error::Io`].
pub(crate) fn hosts_file(
    id: &ContainerId,
    spec: &ServiceSpec,
    hostname: &str,
    lease: Option<&Lease>,
) -> Result<String> {
    let host = match spec.network_mode() {
        NetworkMode::Host => read_host_file(Path::new("/etc/hosts"))?,
        _ => None,
    };
    // What the others of its network call it.
    let names = if lease.is_some() { names_of(id, hostname, spec) } else { Vec::new() };
    hosts(&spec.extra_hosts, hostname, &names, lease, host.as_deref())
}

/// Which of the host's name servers a container can ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    /// All of them: the network is the host's.
    All,
    /// Those beyond the host, of IPv4 alone or of IPv6 too.
    Beyond { v6: bool },
}

/// Of `/etc/resolv.conf`: the spec's `dns` and `dns_search`, and the host's for whichever of them is empty. Blocks to
/// read the host's.
///
/// # Errors
/// [`Error::InvalidSpec`] for a name server that is no address, [`Error::Io`].
pub(crate) fn resolv_conf(spec: &ServiceSpec, lease: Option<&Lease>) -> Result<String> {
    let host = read_host_file(Path::new(HOST_RESOLV_CONF))?.unwrap_or_default();
    let systemd = match only_loopback(&host) {
        true => read_host_file(Path::new(SYSTEMD_RESOLV_CONF))?,
        false => None,
    };
    let reach = match spec.network_mode() {
        NetworkMode::Host => Reach::All,
        _ => Reach::Beyond { v6: lease.is_some_and(|lease| lease.v6.is_some()) },
    };
    resolv(&spec.dns, &spec.dns_search, reach, &host, systemd.as_deref())
}

fn read_host_file(path: &Path) -> Result<Option<String>> {
    use std::io::Read;
    let failed = |e| Error::io("reading", path)(e);
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(e)),
    };
    let mut bytes = Vec::new();
    file.take(MAX_HOST_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_HOST_FILE_BYTES {
        return Err(Error::Corrupt { path: path.to_owned(), reason: "it is larger than 1 MiB".to_owned() });
    }
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

fn hosts(
    extra: &[String],
    hostname: &str,
    names: &[String],
    lease: Option<&Lease>,
    host: Option<&str>,
) -> Result<String> {
    let mut text = match host {
        Some(host) => host.trim_end().to_owned() + "\n",
        None => "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\n\
                 ff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n"
            .to_owned(),
    };
    if host.is_none() {
        let own = lease.map_or(Ipv4Addr::LOCALHOST, |lease| lease.ip);
        // The short name too, as docker does.
        let short = hostname.split_once('.').map(|(short, _)| short);
        let others = names.iter().map(String::as_str).filter(|name| *name != hostname && Some(*name) != short);
        let all = [hostname].into_iter().chain(short).chain(others).collect::<Vec<_>>().join(" ");
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{own}\t{all}");
        if let Some(v6) = lease.and_then(|lease| lease.v6.as_ref()) {
            let _ = writeln!(text, "{}\t{all}", v6.ip);
        }
    }
    let gateway = lease.map_or(Ipv4Addr::LOCALHOST, |lease| lease.gateway);
    for line in extra {
        let wrong = |reason: &str| Error::invalid("extra_hosts", format!("{line:?}: {reason}"));
        let (name, address) = line.split_once([':', '=']).ok_or_else(|| wrong("it is written as host:address"))?;
        if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte)) {
            return Err(wrong("that is not a host name"));
        }
        let address = match address {
            HOST_GATEWAY => IpAddr::V4(gateway),
            _ => address
                .trim_matches(['[', ']'])
                .parse()
                .map_err(|_| wrong("that is neither an address nor host-gateway"))?,
        };
        let _ = writeln!(text, "{address}\t{name}");
    }
    Ok(text)
}

fn resolv(servers: &[String], search: &[String], reach: Reach, host: &str, systemd: Option<&str>) -> Result<String> {
    let mut text = String::new();
    for server in servers {
        let address: IpAddr =
            server.parse().map_err(|_| Error::invalid("dns", format!("{server:?} is not an address")))?;
        let _ = writeln!(text, "nameserver {address}");
    }
    for domain in search {
        if domain.is_empty() || domain.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err(Error::invalid("dns_search", format!("{domain:?} is not a domain")));
        }
    }
    // With the host's network its loopback servers can be reached, also the stub that knows more than they do.
    let from_host = if reach == Reach::All { host } else { systemd.unwrap_or(host) };
    if servers.is_empty() {
        let usable = nameservers(from_host).filter(|server| reach.has(server));
        let count = usable.map(|server| writeln!(text, "nameserver {server}")).count();
        if count == 0 && reach != Reach::All {
            tracing::warn!("the host's resolv.conf names no server that a container can reach: names will not resolve");
        }
    }
    if search.is_empty() {
        // The last of these lines counts.
        let line = directives(from_host).filter(|(key, _)| matches!(*key, "search" | "domain")).last();
        if let Some((_, domains)) = line {
            let _ = writeln!(text, "search {domains}");
        }
    } else if search != ["."] {
        let _ = writeln!(text, "search {}", search.join(" "));
    }
    for (_, options) in directives(from_host).filter(|(key, _)| *key == "options") {
        let _ = writeln!(text, "options {options}");
    }
    Ok(text)
}

fn directives(text: &str) -> impl Iterator<Item = (&str, &str)> {
    // A comment begins in the first column only (resolv.conf(5)).
    text.lines()
        .filter(|line| !line.starts_with(['#', ';']))
        .filter_map(|line| line.trim().split_once(char::is_whitespace))
        .map(|(key, value)| (key, value.trim()))
}

fn nameservers(text: &str) -> impl Iterator<Item = &str> {
    directives(text).filter(|(key, _)| *key == "nameserver").map(|(_, server)| server)
}

impl Reach {
    fn has(self, server: &str) -> bool {
        match (self, server.parse::<IpAddr>()) {
            (Self::All, _) => true,
            (Self::Beyond { .. }, Ok(IpAddr::V4(ip))) => !ip.is_loopback() && !ip.is_unspecified(),
            // Link-local: it is on one of the host's links.
            (Self::Beyond { v6 }, Ok(IpAddr::V6(ip))) => {
                v6 && !ip.is_loopback() && !ip.is_unspecified() && !ip.is_unicast_link_local()
            }
            (Self::Beyond { .. }, Err(_)) => false,
        }
    }
}

fn only_loopback(text: &str) -> bool {
    nameservers(text).all(|server| server.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback()))
}

#[cfg(test)]
mod tests {
    use super::super::Mac;
    use super::super::lease::Lease6;
    use super::*;

    fn lease() -> Lease {
        let ip = Ipv4Addr::new(10, 97, 0, 7);
        let gateway = Ipv4Addr::new(10, 97, 0, 1);
        Lease {
            ip,
            prefix_len: 16,
            gateway,
            mac: Mac::of(ip),
            host_ifname: "bv0".into(),
            network: "bridge".into(),
            v6: None,
        }
    }

    fn own(strings: &[&str]) -> Vec<String> {
        strings.iter().map(|s| (*s).to_owned()).collect()
    }

    #[test]
    fn hosts_name_the_container_and_what_the_spec_adds() {
        let extra = own(&["db:10.1.2.3", "six:fd00::1", "host.docker.internal:host-gateway", "eq=1.1.1.1"]);
        let text = hosts(&extra, "web.example.org", &own(&["web", "alias"]), Some(&lease()), None).unwrap();
        for line in [
            "127.0.0.1\tlocalhost",
            "10.97.0.7\tweb.example.org web alias",
            "10.1.2.3\tdb",
            "fd00::1\tsix",
            "10.97.0.1\thost.docker.internal",
            "1.1.1.1\teq",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
        }
        let v6 = Lease6 { ip: "fd00::7".parse().unwrap(), prefix_len: 64, gateway: "fd00::1".parse().unwrap() };
        let text = hosts(&[], "web", &[], Some(&Lease { v6: Some(v6), ..lease() }), None).unwrap();
        assert!(text.ends_with("10.97.0.7\tweb\nfd00::7\tweb\n"), "{text}");
        assert!(hosts(&[], "web", &[], None, None).unwrap().ends_with("127.0.0.1\tweb\n"));
        assert_eq!(
            hosts(&own(&["a:host-gateway"]), "web", &[], None, Some("1.2.3.4 x")).unwrap(),
            "1.2.3.4 x\n127.0.0.1\ta\n"
        );
        for wrong in ["db", ":1.2.3.4", "db:nowhere", "a b:1.2.3.4", "a\n:1.2.3.4", "db:"] {
            assert_eq!(hosts(&own(&[wrong]), "web", &[], None, None).unwrap_err().code(), "spec.invalid", "{wrong:?}");
        }
    }

    #[test]
    fn name_servers_on_the_hosts_loopback_are_replaced() {
        let stub = "# by systemd\nnameserver 127.0.0.53\noptions edns0 trust-ad\nsearch lan\n";
        let real = "nameserver 192.168.1.1\nnameserver fe80::1%eth0\nnameserver fe80::1\nnameserver fd00::1\nsearch home lan\n";
        let (beyond, both) = (Reach::Beyond { v6: false }, Reach::Beyond { v6: true });
        assert!(only_loopback(stub) && !only_loopback(real));
        for (servers, search, reach, systemd, want) in [
            (&[][..], &[][..], beyond, Some(real), "nameserver 192.168.1.1\nsearch home lan\n"),
            (&[], &[], both, Some(real), "nameserver 192.168.1.1\nnameserver fd00::1\nsearch home lan\n"),
            (&[], &[], beyond, None, "search lan\noptions edns0 trust-ad\n"),
            (&[], &[], Reach::All, Some(real), "nameserver 127.0.0.53\nsearch lan\noptions edns0 trust-ad\n"),
            (
                &["9.9.9.9", "fd00::53"],
                &["a", "b"],
                beyond,
                Some(real),
                "nameserver 9.9.9.9\nnameserver fd00::53\nsearch a b\n",
            ),
            (&["9.9.9.9"], &["."], beyond, Some(real), "nameserver 9.9.9.9\n"),
        ] {
            let text = resolv(&own(servers), &own(search), reach, stub, systemd).unwrap();
            assert_eq!(text, want, "{servers:?} {search:?} {reach:?}");
        }
        assert_eq!(resolv(&own(&["dns.google"]), &[], beyond, "", None).unwrap_err().code(), "spec.invalid");
        assert_eq!(resolv(&[], &own(&["a\nnameserver 6.6.6.6"]), beyond, "", None).unwrap_err().code(), "spec.invalid");
    }
}

//! Kernel parameters that belong to the container's own namespaces.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::error::{Error, Result};

/// Parameters of the IPC namespace, besides `fs.mqueue.*`.
const IPC: [&str; 8] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shm_rmid_forced",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
];

/// What docker sets in every network namespace of a container's own: ports below 1024 and ping need no capability.
const NET_DEFAULTS: [(&str, &str); 2] =
    [("net.ipv4.ip_unprivileged_port_start", "0"), ("net.ipv4.ping_group_range", "0 2147483647")];

/// The spec's parameters by who sets them.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Sysctls {
    /// Set by libcontainer in the new IPC namespace.
    pub ipc: BTreeMap<String, String>,
    /// Set by whoever is in the container's network namespace: [`apply`]. libcontainer refuses these, since the spec
    /// that it reads lists no network namespace.
    pub net: Vec<(String, String)>,
}

/// Sorts the spec's parameters; one that would change the host is refused.
pub(super) fn sort(spec: &BTreeMap<String, String>, host_network: bool) -> Result<Sysctls> {
    let mut ipc = BTreeMap::new();
    let mut net: BTreeMap<String, String> = BTreeMap::new();
    if !host_network {
        net.extend(NET_DEFAULTS.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }
    for (name, value) in spec {
        let field = || format!("sysctls.{name}");
        let dotted = name.replace('/', ".");
        let well_formed = dotted.split('.').all(|part| {
            !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
        });
        if !well_formed {
            return Err(Error::invalid(field(), "not a kernel parameter's name"));
        }
        if value.contains(['\0', '\n']) {
            return Err(Error::invalid(field(), "its value must be one line"));
        }
        if IPC.contains(&dotted.as_str()) || dotted.starts_with("fs.mqueue.") {
            ipc.insert(dotted, value.clone());
        } else if dotted.starts_with("net.") {
            if host_network {
                return Err(Error::invalid(
                    field(),
                    "it would change the host: the container shares the host's network",
                ));
            }
            net.insert(dotted, value.clone());
        } else {
            return Err(Error::invalid(
                field(),
                "it belongs to no namespace of the container; it would change the host",
            ));
        }
    }
    Ok(Sysctls { ipc, net: net.into_iter().collect() })
}

/// Writes parameters of the calling thread's network namespace. Those that docker would set by default are left out
/// where the kernel lacks them (IPv4 off). Blocks briefly.
///
/// # Errors
/// [`Error::InvalidSpec`] with the kernel's reason, for one that the spec asks for.
pub(crate) fn apply(net: &[(String, String)]) -> Result<()> {
    for (name, value) in net {
        let path = Path::new("/proc/sys").join(name.replace('.', "/"));
        match fs::write(&path, value) {
            Err(_) if NET_DEFAULTS.iter().any(|(known, default)| known == name && default == value) => {}
            Err(error) => return Err(Error::invalid(format!("sysctls.{name}"), format!("{value:?}: {error}"))),
            Ok(()) => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(name: &str, value: &str) -> BTreeMap<String, String> {
        BTreeMap::from([(name.to_owned(), value.to_owned())])
    }

    #[test]
    fn only_namespaced_parameters_are_accepted() {
        for (name, value, host_network, accepted) in [
            ("kernel.shmmax", "1", false, true),
            ("kernel/shmmax", "1", true, true),
            ("kernel.sem", "1 2 3 4", true, true),
            ("fs.mqueue.msg_max", "20", false, true),
            ("net.core.somaxconn", "1024", false, true),
            ("net.core.somaxconn", "1024", true, false),
            ("kernel.hostname", "x", false, false),
            ("kernel.core_pattern", "|/x", false, false),
            ("vm.overcommit_memory", "1", false, false),
            ("fs.file-max", "1", false, false),
            ("net..x", "1", false, false),
            ("net.../../../kernel.x", "1", false, false),
            ("net.core.x\0", "1", false, false),
            ("", "1", false, false),
            ("kernel.shmmax", "1\n2", false, false),
        ] {
            let result = sort(&one(name, value), host_network);
            assert_eq!(result.is_ok(), accepted, "{name} host={host_network}: {result:?}");
            if let Err(error) = result {
                assert!(error.to_string().starts_with(&format!("sysctls.{name}: ")), "{error}");
            }
        }
    }

    #[test]
    fn a_network_of_ones_own_has_dockers_defaults_unless_overridden() {
        let sysctls = sort(&one("net.ipv4.ip_unprivileged_port_start", "80"), false).unwrap();
        let text: Vec<String> = sysctls.net.iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(text, ["net.ipv4.ip_unprivileged_port_start=80", "net.ipv4.ping_group_range=0 2147483647"]);
        assert!(sort(&BTreeMap::new(), true).unwrap().net.is_empty());
    }
}

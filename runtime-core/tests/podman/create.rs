//! What `podman create` is told.

use runtime_core::spec::{LogMode, PortProtocol, RestartKind, SeccompSpec, StorageSpec};
use runtime_core::{AgentError, ContainerId, Result, ServiceSpec};
use serde_json::Value;

use crate::host::ULIMITS;

/// What `podman create` is given for `spec`.
pub fn create_args(id: &ContainerId, spec: &ServiceSpec) -> Result<Vec<String>> {
    let mut args: Vec<String> = vec!["create".into(), "--pull=never".into(), "--name".into(), id.to_string()];
    let mut option = |name: &str, value: String| args.extend([name.to_owned(), value]);
    let command = &spec.command;
    if let Some(entrypoint) = &command.entrypoint {
        option("--entrypoint", Value::from(entrypoint.clone()).to_string());
    }
    for (name, value) in &spec.env {
        if value.starts_with("$E:") || value.starts_with("$S:") {
            return Err(AgentError::Unsupported("values that are looked up elsewhere".to_owned()));
        }
        option("--env", format!("{name}={value}"));
    }
    let memory = spec.resources.memory.map(|size| size.as_u64().to_string());
    // podman's counts the memory too.
    let both = spec.resources.swap.zip(spec.resources.memory);
    let both = both.map(|(swap, memory)| (swap.as_u64() + memory.as_u64()).to_string());
    let settings = [
        ("--workdir", command.workdir.clone()),
        ("--user", spec.user.clone()),
        ("--stop-signal", spec.stop_signal.clone()),
        ("--memory", memory),
        ("--memory-swap", both),
        ("--cpus", spec.resources.cpu.map(|cores| cores.to_string())),
        ("--cpu-shares", spec.resources.cpu_shares.map(|shares| shares.to_string())),
        ("--cpuset-cpus", spec.resources.cpuset.clone()),
        ("--blkio-weight", spec.resources.io.as_ref().and_then(|io| io.weight).map(|weight| weight.to_string())),
        ("--shm-size", spec.shm_size.map(|size| size.as_u64().to_string())),
    ];
    for (name, value) in settings {
        if let Some(value) = value {
            option(name, value);
        }
    }
    for (name, list) in [("--dns", &spec.dns), ("--dns-search", &spec.dns_search), ("--add-host", &spec.extra_hosts)] {
        list.iter().for_each(|value| option(name, value.clone()));
    }
    spec.labels.iter().for_each(|(name, value)| option("--label", format!("{name}={value}")));
    spec.network.aliases.iter().for_each(|alias| option("--network-alias", alias.clone()));
    for device in &spec.devices {
        let rights = [(device.read, 'r'), (device.write, 'w'), (device.mknod, 'm')];
        let rights: String = rights.iter().filter(|(given, _)| *given).map(|(_, right)| right).collect();
        let (host, inside) = device.paths();
        option("--device", format!("{host}:{inside}:{rights}"));
    }
    match &spec.seccomp {
        SeccompSpec::Default => {}
        SeccompSpec::Unconfined => option("--security-opt", "seccomp=unconfined".to_owned()),
        SeccompSpec::File(path) => option("--security-opt", format!("seccomp={path}")),
    }
    if let Some(bytes) = spec.logs.max_size_bytes {
        option("--log-opt", format!("max-size={bytes}"));
    }
    if spec.logs.mode == Some(LogMode::NonBlocking) {
        return Err(AgentError::Unsupported("logs that do not hold the writer back".to_owned()));
    }
    if let Some(hostname) = &spec.hostname {
        option("--hostname", hostname.clone());
    }
    for (name, limit) in ULIMITS.iter().filter(|(name, _)| !spec.rlimits.contains_key(*name)) {
        option("--ulimit", format!("{name}={limit}"));
    }
    for (name, limit) in &spec.rlimits {
        option("--ulimit", format!("{name}={}:{}", limit.soft, limit.hard));
    }
    for (name, value) in &spec.sysctls {
        option("--sysctl", format!("{name}={value}"));
    }
    spec.drop_capabilities.iter().for_each(|name| option("--cap-drop", name.clone()));
    spec.capabilities.iter().for_each(|name| option("--cap-add", name.clone()));
    if spec.no_new_privileges {
        option("--security-opt", "no-new-privileges".to_owned());
    }
    if let Some(limit) = spec.resources.pids {
        option("--pids-limit", limit.to_string());
    }
    for storage in &spec.storage {
        match storage {
            StorageSpec::Tmpfs { target, size, mode } => {
                let size = size.map(|size| format!("size={}", size.as_u64()));
                let mode = mode.map(|mode| format!("mode={mode:o}"));
                let options: Vec<String> = size.into_iter().chain(mode).collect();
                let options = if options.is_empty() { String::new() } else { format!(":{}", options.join(",")) };
                option("--tmpfs", format!("{target}{options}"));
            }
            StorageSpec::Named { size: Some(_), .. } => {
                return Err(AgentError::Unsupported(
                    "the size of a volume, which podman keeps on XFS alone".to_owned(),
                ));
            }
            StorageSpec::Bind { source, target, readonly }
            | StorageSpec::Named { name: source, target, readonly, .. } => {
                option("--volume", format!("{source}:{target}{}", if *readonly { ":ro" } else { "" }));
            }
            StorageSpec::Anonymous { target } => option("--volume", target.clone()),
            other => return Err(AgentError::Unsupported(format!("storage {other:?}"))),
        }
    }
    option("--network", spec.network_mode().to_string());
    if !spec.port_ranges.is_empty() {
        return Err(AgentError::Unsupported("a port of a range, of which podman publishes all".to_owned()));
    }
    for port in &spec.port_mappings {
        let host = port.host_ip.as_ref().map(|ip| format!("{ip}:")).unwrap_or_default();
        let host_port = port.host_port.filter(|port| *port != 0).map(|port| port.to_string()).unwrap_or_default();
        let protocol = if port.protocol == PortProtocol::Udp { "udp" } else { "tcp" };
        option("--publish", format!("{host}{host_port}:{}/{protocol}", port.container_port));
    }
    let times = spec.restart_policy.max_attempts.map(|max| format!(":{max}")).unwrap_or_default();
    match spec.restart_policy.kind {
        RestartKind::No => {}
        RestartKind::Always => option("--restart", "always".to_owned()),
        RestartKind::UnlessStopped => option("--restart", "unless-stopped".to_owned()),
        RestartKind::OnFailure => option("--restart", format!("on-failure{times}")),
    }
    if spec.health.is_some() {
        return Err(AgentError::Unsupported("health checks, which podman leaves to timers of systemd".to_owned()));
    }
    let flags = [
        ("publish-all", spec.publish_all),
        ("rm", spec.remove_on_exit),
        ("read-only", spec.read_only),
        ("privileged", spec.privileged),
        ("tty", spec.tty),
    ];
    args.extend(flags.map(|(name, on)| format!("--{name}={on}")));
    args.extend([("interactive", spec.stdin), ("init", spec.init)].map(|(name, on)| format!("--{name}={on}")));
    args.push(spec.image.name.clone());
    args.extend(command.args.clone().unwrap_or_default());
    Ok(args)
}

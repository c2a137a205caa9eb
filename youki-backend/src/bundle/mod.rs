//! From an image's configuration and a [`ServiceSpec`] to what the create helper needs: the OCI runtime spec for
//! libcontainer, and beside it what libcontainer must not do itself ([`ProcessPlan`]), all with Docker's defaults.
//!
//! Capabilities, identity, rlimits, seccomp, resources and the cgroup view are left out of libcontainer's spec on
//! purpose: it would compile the filter for each create, resolve no names, and write limits through slow paths.

mod capabilities;
pub(crate) mod cgroup_view;
mod command;
mod devices;
mod mounts;
pub(crate) mod resources;
mod rlimits;
pub(crate) mod seccomp;
pub(crate) mod signal;
mod sysctls;
#[cfg(test)]
mod tests;
pub(crate) mod users;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use oci_spec::OciSpecError;
use oci_spec::image::ImageConfiguration;
use oci_spec::runtime::{
    LinuxBuilder, LinuxNamespaceBuilder, LinuxNamespaceType, MountBuilder, ProcessBuilder, RootBuilder, Spec,
    UserBuilder,
};
use runtime_core::spec::NetworkMode;
use runtime_core::{ContainerId, ServiceSpec};
use serde::{Deserialize, Serialize};

pub(crate) use capabilities::CapabilitySets;
pub(crate) use command::{check_line, environment, image_volumes, workdir as working_directory};
pub(crate) use devices::device_rules;
pub(crate) use mounts::{MountPlan, MountSource, check as check_storage, is_own};
pub(crate) use rlimits::Rlimit;
pub(crate) use seccomp::SeccompPlan;
pub(crate) use sysctls::apply as apply_sysctls;

use crate::error::{Error, Result};

/// What of `/proc` and `/sys` a container must not see; Docker's list. The thermal files of each CPU come to it.
const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];
/// What of `/proc` a container must not change; Docker's list.
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];
/// The kernel's longest host name.
const MAX_HOSTNAME_LEN: usize = 64;
/// Longest name that DNS and tools take; a container's longer name is cut to it.
const MAX_LABEL_LEN: usize = 63;

/// What a bundle is built from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BundleInput<'a> {
    /// Its host name.
    pub hostname: &'a str,
    /// What is asked for.
    pub spec: &'a ServiceSpec,
    /// The image's configuration.
    pub image: &'a ImageConfiguration,
    /// The spec's environment with `$E:` and `$S:` resolved.
    pub env: &'a BTreeMap<String, String>,
    /// Where the root filesystem will be mounted; absolute.
    pub rootfs: &'a Path,
    /// Path of the container's cgroup within each hierarchy, as `/berth/web-rep-0`.
    pub cgroup_path: &'a str,
    /// The spec's binds and volumes and the image's, resolved to host paths.
    pub mounts: &'a [VolumeMount],
    /// Files to bind over the image's.
    pub etc: EtcFiles<'a>,
    /// Whether the host has cgroup v2 alone.
    pub cgroup_v2: bool,
}

/// A host directory or file in the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VolumeMount {
    /// Absolute path on the host.
    pub source: PathBuf,
    /// Absolute path in the container.
    pub target: String,
    /// Read-only, with everything mounted beneath it.
    pub readonly: bool,
}

/// Host paths of the files that are bound over the image's.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EtcFiles<'a> {
    /// `/etc/hosts`.
    pub hosts: &'a Path,
    /// `/etc/hostname`.
    pub hostname: &'a Path,
    /// `/etc/resolv.conf`.
    pub resolv_conf: &'a Path,
}

/// What the create helper and every exec apply to a process themselves. Holds no secret, so it may be stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessPlan {
    /// `name|uid[:group|gid]` for [`users::resolve`] in the merged root.
    pub user: Option<String>,
    /// For uid 0; [`CapabilitySets::for_uid`] for another.
    pub capabilities: CapabilitySets,
    /// `PR_SET_NO_NEW_PRIVS`.
    pub no_new_privileges: bool,
    /// The filter, compiled by [`seccomp::filter`] with the bounding set; none if `None`.
    pub seccomp: Option<SeccompPlan>,
    /// Written explicitly: the supervisor's own, lower one would be inherited.
    pub oom_score_adj: Option<i32>,
    /// For setrlimit(2).
    pub rlimits: Vec<Rlimit>,
    /// Kernel parameters for [`apply_sysctls`], written in the container's network namespace before libcontainer runs.
    pub net_sysctls: Vec<(String, String)>,
    /// Whether the container may write to its view of its cgroups ([`cgroup_view`]): only a privileged one.
    pub cgroup_view_writable: bool,
}

/// What the init does to its root filesystem once it stands in it, in place of libcontainer, which takes ten times the
/// system calls for each mount, and names neither it nor the reason when one fails.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RootPlan {
    /// In order.
    pub mounts: Vec<MountPlan>,
    /// Paths that are hidden.
    pub masked: Vec<String>,
    /// Paths that are made read-only.
    pub read_only_paths: Vec<String>,
    /// The root itself is made read-only.
    pub read_only: bool,
    /// Where the program starts.
    pub workdir: String,
}

/// A container, ready to be created.
#[derive(Debug)]
pub(crate) struct Bundle {
    /// For libcontainer. Its environment may hold secrets: keep it on tmpfs, and not longer than needed.
    pub oci: Spec,
    /// For the init.
    pub root: RootPlan,
    /// The rest.
    pub process: ProcessPlan,
    /// What asks the container to stop.
    pub stop_signal: i32,
    /// The command line, as in `oci`.
    pub args: Vec<String>,
}

/// Builds a container's bundle. Reads device nodes and a profile file of the host's, so it blocks briefly.
///
/// `process.user` of the result is 0:0 and HOME is absent unless someone set it: whoever has the merged root resolves
/// the user ([`users::resolve`]), puts it in place, and adds [`users::home`].
///
/// # Errors
/// [`Error::InvalidSpec`] naming the field; [`Error::Unsupported`] for what is not built.
pub(crate) fn build(input: &BundleInput<'_>) -> Result<Bundle> {
    let BundleInput { spec, image, .. } = *input;
    // Of a network that it shares it changes nothing.
    let shares_network = *spec.network_mode() == NetworkMode::Host || spec.network_mode().container().is_some();
    let args = command::args(image, spec)?;
    let sysctls = sysctls::sort(&spec.sysctls, shares_network)?;
    let config = image.config().as_ref();
    // An empty one is none: who means root says so.
    let given = |user: Option<String>| user.filter(|user| !user.is_empty());
    let user = given(spec.user.clone()).or_else(|| given(config.and_then(|c| c.user().clone())));
    let process = ProcessPlan {
        user,
        capabilities: capabilities::sets(&spec.capabilities, &spec.drop_capabilities, spec.privileged)?,
        no_new_privileges: spec.no_new_privileges,
        seccomp: seccomp::plan(spec)?,
        oom_score_adj: Some(0),
        rlimits: rlimits::limits(&spec.rlimits)?,
        net_sysctls: sysctls.net,
        cgroup_view_writable: spec.privileged,
    };
    let env = command::environment(image, input.env, input.hostname, spec.tty)?;
    let workdir = command::workdir(image, spec)?;
    let (masked, read_only_paths) = if spec.privileged {
        (Vec::new(), Vec::new())
    } else {
        (masked_paths(), READ_ONLY.map(str::to_owned).to_vec())
    };
    let root = RootPlan {
        mounts: mounts::mounts(spec, input.mounts, &input.etc, input.cgroup_v2)?,
        masked,
        read_only_paths,
        read_only: spec.read_only,
        workdir,
    };
    let devices = devices::nodes(spec)?;
    let parts =
        OciParts { hostname: input.hostname.to_owned(), args: args.clone(), env, devices, ipc_sysctls: sysctls.ipc };
    let oci = oci(input, parts).map_err(|error| Error::invalid("spec", error.to_string()))?;
    Ok(Bundle { oci, root, process, stop_signal: stop_signal(image, spec)?, args })
}

/// The container's host name: the spec's; on the host's network the host's own; else the container's name, cut to 63
/// characters.
///
/// # Errors
/// [`Error::InvalidSpec`] for one that the kernel or `/etc/hosts` could not hold.
pub(crate) fn hostname(id: &ContainerId, spec: &ServiceSpec) -> Result<String> {
    let Some(name) = spec.hostname.as_deref().filter(|name| !name.is_empty()) else {
        if *spec.network_mode() == NetworkMode::Host {
            return Ok(rustix::system::uname().nodename().to_string_lossy().into_owned());
        }
        let name: String = id.to_string().chars().take(MAX_LABEL_LEN).collect();
        return Ok(name.trim_end_matches(['-', '.', '_']).to_owned());
    };
    let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
    if name.len() > MAX_HOSTNAME_LEN || !plain || name.starts_with(['-', '.']) {
        let reason = format!("{name:?} is not a host name: up to {MAX_HOSTNAME_LEN} letters, digits, '-', '.' and '_'");
        return Err(Error::invalid("hostname", reason));
    }
    Ok(name.to_owned())
}

/// The spec's stop signal, else the image's, else TERM.
fn stop_signal(image: &ImageConfiguration, spec: &ServiceSpec) -> Result<i32> {
    if let Some(text) = &spec.stop_signal {
        return signal::parse(text).ok_or_else(|| Error::invalid("stop_signal", format!("{text:?} is not a signal")));
    }
    match image.config().as_ref().and_then(|config| config.stop_signal().as_deref()).filter(|text| !text.is_empty()) {
        None => Ok(libc::SIGTERM),
        Some(text) => signal::parse(text)
            .ok_or_else(|| Error::invalid("image.config.StopSignal", format!("{text:?} is not a signal"))),
    }
}

/// What [`build`] has worked out for the OCI spec.
struct OciParts {
    hostname: String,
    args: Vec<String>,
    env: Vec<String>,
    devices: Vec<oci_spec::runtime::LinuxDevice>,
    ipc_sysctls: BTreeMap<String, String>,
}

fn oci(input: &BundleInput<'_>, parts: OciParts) -> std::result::Result<Spec, OciSpecError> {
    let mut process = ProcessBuilder::default()
        // The init makes its terminal itself: see `supervisor::stage::console`.
        .terminal(false)
        .user(UserBuilder::default().uid(0u32).gid(0u32).build()?)
        .args(parts.args)
        .env(parts.env)
        .cwd("/")
        .build()?;
    process.set_capabilities(None).set_rlimits(None).set_no_new_privileges(None);

    // The network namespace is missing on purpose: the supervisor is in the container's already.
    let kinds = [
        LinuxNamespaceType::Pid,
        LinuxNamespaceType::Ipc,
        LinuxNamespaceType::Uts,
        LinuxNamespaceType::Mount,
        LinuxNamespaceType::Cgroup,
    ];
    let namespaces = kinds.map(|kind| LinuxNamespaceBuilder::default().typ(kind).build());
    let mut linux = LinuxBuilder::default()
        .namespaces(namespaces.into_iter().collect::<std::result::Result<Vec<_>, _>>()?)
        .cgroups_path(input.cgroup_path)
        .rootfs_propagation("private")
        .build()?;
    linux
        .set_resources(None)
        .set_seccomp(None)
        .set_devices(Some(parts.devices).filter(|devices| !devices.is_empty()))
        .set_sysctl(Some(parts.ipc_sysctls.into_iter().collect()))
        .set_masked_paths(None)
        .set_readonly_paths(None);
    // The device nodes are libcontainer's, so what holds them is, too; and it looks into /proc of the new root.
    let mount = |kind: &str, target: &str, options: &[&str]| {
        let options: Vec<String> = options.iter().map(|option| (*option).to_owned()).collect();
        MountBuilder::default().typ(kind).source(kind).destination(target).options(options).build()
    };
    let mounts = vec![
        mount("proc", "/proc", &["nosuid", "noexec", "nodev"])?,
        mount("tmpfs", "/dev", &["nosuid", "strictatime", "mode=755", "size=65536k"])?,
    ];

    let mut oci = Spec::default();
    oci.set_root(Some(RootBuilder::default().path(input.rootfs).readonly(false).build()?))
        .set_mounts(Some(mounts))
        .set_process(Some(process))
        .set_hostname(Some(parts.hostname))
        .set_annotations(None)
        .set_hooks(None)
        .set_linux(Some(linux));
    Ok(oci)
}

/// The masked paths of this host.
fn masked_paths() -> Vec<String> {
    use std::sync::OnceLock;
    static THERMAL: OnceLock<Vec<String>> = OnceLock::new();
    let thermal = THERMAL.get_or_init(|| {
        let Ok(entries) = std::fs::read_dir("/sys/devices/system/cpu") else { return Vec::new() };
        let paths = entries.flatten().map(|entry| entry.path().join("thermal_throttle"));
        let mut paths: Vec<String> =
            paths.filter(|path| path.exists()).filter_map(|path| path.to_str().map(str::to_owned)).collect();
        paths.sort();
        paths
    });
    MASKED.iter().map(|path| (*path).to_owned()).chain(thermal.iter().cloned()).collect()
}

//! System packages: which are needed, which are missing, how they are installed.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::Workspace;
use crate::process::{must_run, output_of};
use crate::tools::Tool;

/// Needed to build the workspace.
pub(crate) const BUILD: &[&str] = &["gcc", "libc6-dev", "pkg-config", "libseccomp-dev"];
/// Needed to run containers, and for the image that the demo and the tests make.
pub(crate) const RUN: &[&str] = &["nftables", "busybox-static"];

/// What the conformance suite is proven on (with what podman only recommends: its networks and its `--init`), what the
/// suite sets namespaces up with, the profile ours is compared with, and what makes archives of images.
pub(crate) const TEST: &[&str] = &[
    "podman",
    "runc",
    "crun",
    "conmon",
    "netavark",
    "iptables",
    "catatonit",
    "util-linux",
    "iproute2",
    "golang-github-containers-common",
    "skopeo",
    "curl",
];

/// Makes Debian's package scripts start no service: 101 is "action forbidden by policy" (invoke-rc.d(8)).
const POLICY_FILE: &str = "/usr/sbin/policy-rc.d";
/// Its text. A run that is killed leaves it: it then takes itself away when it is next asked, and forbids nothing.
fn policy(pid: u32) -> String {
    format!("#!/bin/sh\nkill -0 {pid} 2>/dev/null && exit 101\nrm -f \"$0\"\nexit 0\n")
}

/// Containers need root.
pub(crate) fn require_root(command: &str) -> Result<()> {
    let status = std::fs::read_to_string("/proc/self/status").context("reading /proc/self/status")?;
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap_or_default();
    // real, effective, saved, filesystem
    if uids.split_whitespace().nth(1) != Some("0") {
        bail!("`cargo xtask {command}` makes namespaces, mounts and cgroups: run it as root");
    }
    Ok(())
}

/// Makes `packages` and `tools` available: says what is missing, then installs it, or refuses with the list.
pub(crate) fn provide(workspace: &Workspace, packages: &[&str], tools: &[Tool]) -> Result<()> {
    if !is_debian() {
        let missing_tools = tools.iter().any(|tool| tool.find(workspace).is_none());
        eprintln!(
            "xtask: this is not Debian, so nothing is checked or installed; needed here are what Debian calls {}",
            packages.join(" ")
        );
        if missing_tools {
            bail!("missing: {}", names(workspace, tools).join(", "));
        }
        return Ok(());
    }
    let mut packages = missing_packages(packages)?;
    let absent = names(workspace, tools);
    if packages.is_empty() && absent.is_empty() {
        return Ok(());
    }
    let needed: Vec<&str> = packages.iter().map(String::as_str).chain(absent.iter().copied()).collect();
    if !workspace.install {
        bail!("missing, and --no-install was given: {}", needed.join(", "));
    }
    println!("Installing what is missing: {}", needed.join(", "));
    for tool in tools.iter().filter(|tool| tool.find(workspace).is_none()) {
        packages.extend(tool.needs()?);
    }
    packages.sort();
    packages.dedup();
    let fetches_packages = tools.iter().any(|tool| tool.is_debian_package() && tool.find(workspace).is_none());
    if !packages.is_empty() || fetches_packages {
        apt_get(&["update"])?;
    }
    if !packages.is_empty() {
        let _no_services = ServicePolicy::forbid()?;
        let words = ["install", "--yes", "--no-install-recommends"];
        apt_get(&words.into_iter().chain(packages.iter().map(String::as_str)).collect::<Vec<_>>())?;
    }
    for tool in tools {
        if tool.find(workspace).is_none() {
            tool.install(workspace)?;
        }
    }
    Ok(())
}

/// Those of `packages` that are not installed.
pub(crate) fn missing_packages(packages: &[&str]) -> Result<Vec<String>> {
    // It fails when it knows one of them not at all, and still prints the others.
    let output = Command::new("dpkg-query")
        .args(["--show", "--showformat=${db:Status-Abbrev} ${Package}\n"])
        .args(packages)
        .output()
        .context("running dpkg-query")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let installed: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("ii ")).map(str::trim).collect();
    Ok(packages.iter().filter(|package| !installed.contains(package)).map(|package| (*package).to_owned()).collect())
}

fn names(workspace: &Workspace, tools: &[Tool]) -> Vec<&'static str> {
    tools.iter().filter(|tool| tool.find(workspace).is_none()).map(Tool::name).collect()
}

fn is_debian() -> bool {
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let named = release.lines().any(|line| {
        line.split_once('=').is_some_and(|(key, value)| {
            (key == "ID" || key == "ID_LIKE") && value.trim_matches('"').split(' ').any(|id| id == "debian")
        })
    });
    named && output_of(Command::new("dpkg-query").arg("--version")).is_some()
}

fn apt_get(words: &[&str]) -> Result<()> {
    // Another apt may hold the lock, as unattended-upgrades does after boot.
    let lock = ["-qq", "-o", "DPkg::Lock::Timeout=600"];
    must_run(Command::new("apt-get").args(lock).args(words).env("DEBIAN_FRONTEND", "noninteractive"))
}

/// While it lives, installing a package starts no service.
struct ServicePolicy {
    ours: bool,
}

impl ServicePolicy {
    fn forbid() -> Result<Self> {
        use std::os::unix::fs::PermissionsExt;
        if std::fs::read_to_string(POLICY_FILE).is_ok_and(|text| !is_left_over(&text)) {
            return Ok(Self { ours: false });
        }
        std::fs::write(POLICY_FILE, policy(std::process::id())).with_context(|| format!("writing {POLICY_FILE}"))?;
        let guard = Self { ours: true };
        std::fs::set_permissions(POLICY_FILE, std::fs::Permissions::from_mode(0o755))
            .with_context(|| format!("making {POLICY_FILE} executable"))?;
        Ok(guard)
    }
}

/// Whether it is the policy of a run that was killed.
fn is_left_over(text: &str) -> bool {
    let pid = text.split_whitespace().skip_while(|word| *word != "-0").nth(1).and_then(|pid| pid.parse().ok());
    pid.is_some_and(|pid: u32| text == policy(pid) && !Path::new("/proc").join(pid.to_string()).exists())
}

impl Drop for ServicePolicy {
    fn drop(&mut self) {
        if self.ours && std::fs::remove_file(POLICY_FILE).is_err() {
            eprintln!("xtask: {POLICY_FILE} could not be removed again; it keeps packages from starting services");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_whose_run_was_killed_goes_and_forbids_nothing() {
        let file = std::env::temp_dir().join(format!("berth-policy-{}", std::process::id()));
        let ask = || Command::new("sh").arg(&file).arg("ssh").arg("start").status().unwrap().code();
        std::fs::write(&file, policy(std::process::id())).unwrap();
        assert_eq!((ask(), file.exists()), (Some(101), true));
        let mut dead = Command::new("true").spawn().unwrap();
        dead.wait().unwrap();
        assert!(is_left_over(&policy(dead.id())) && !is_left_over(&policy(std::process::id())));
        assert!(!is_left_over("#!/bin/sh\nexit 101\n"));
        std::fs::write(&file, policy(dead.id())).unwrap();
        assert_eq!((ask(), file.exists()), (Some(0), false));
    }
}

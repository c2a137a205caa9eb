//! The last test: when every container was removed, nothing of them is left on the machine.
//!
//! What belongs to a root and not to a container (its bridge, its nft table, its cgroup parent) may stand until the
//! root is dismantled; then that must be gone, too.

use std::collections::BTreeSet;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use sha2::{Digest, Sha256};

use super::pace::patience;
use super::process::gone;
use super::root::Root;
use super::{Shared, Suite};
use crate::networks::{OUTSIDE_LINK_PREFIX, OUTSIDE_PREFIX};

/// A supervisor ends by itself a moment after its container was removed.
const SETTLED_WITHIN: Duration = Duration::from_secs(10);
/// The kernel takes its time to remove a bridge, and none of the CPU's.
const DISMANTLED_AT_ONCE: usize = 8;

/// Veth pairs and named network namespaces that were there before the first test. Those of other runs of this suite, of
/// which any number may come and go meanwhile, are told from ours by their names and their alias.
#[derive(Debug)]
pub struct Before {
    veths: BTreeSet<String>,
    netns: BTreeSet<String>,
}

impl Before {
    pub fn look() -> Self {
        Self { veths: free_veths(), netns: names_in(Path::new("/run/netns")) }
    }
}

/// Everything that is left, as a text; Ok when nothing is.
pub fn check(suite: &Suite) -> Result<(), String> {
    let mut left = Vec::new();
    suite.tokio.block_on(async {
        if let Some(shared) = suite.shared_if_opened() {
            left.extend(empty_image_store(shared).await);
        }
    });
    let roots = suite.roots.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
    let begin = Instant::now();
    // A root of which nothing is left stays so: its containers are gone, and each look takes its time.
    let mut unsettled: Vec<&Root> = roots.iter().collect();
    loop {
        let mut found = left_on_host(&suite.before, &roots);
        unsettled.retain(|root| {
            let of_root = left_of(root);
            found.extend(of_root.iter().cloned());
            !of_root.is_empty()
        });
        if found.is_empty() {
            break;
        }
        if begin.elapsed() > patience(SETTLED_WITHIN) {
            left.extend(found);
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    let dismantling = stream::iter(roots.iter().filter(|root| root.dir.exists())).map(dismantle);
    left.extend(suite.tokio.block_on(dismantling.buffer_unordered(DISMANTLED_AT_ONCE).concat()));
    if left.is_empty() { Ok(()) } else { Err(left.join("\n")) }
}

/// Removes every image of the shared root; then no blob and no layer may be there.
async fn empty_image_store(shared: &Shared) -> Vec<String> {
    let mut left = Vec::new();
    match shared.runtime.list_containers().await {
        Ok(containers) => left.extend(containers.iter().map(|container| format!("container {}", container.id))),
        Err(error) => left.push(format!("listing containers: {error}")),
    }
    match shared.runtime.list_images().await {
        Ok(images) => {
            for image in images {
                if let Err(error) = shared.runtime.remove_image(&image.reference, true).await {
                    left.push(format!("removing {}: {error}", image.reference));
                }
            }
        }
        Err(error) => left.push(format!("listing images: {error}")),
    }
    match shared.runtime.prune_images().await {
        Ok(_) | Err(runtime_core::AgentError::Unsupported(_)) => {}
        Err(error) => left.push(format!("pruning images: {error}")),
    }
    for dir in ["images/blobs/sha256", "layers/diff", "layers/chain"] {
        let dir = shared.root.dir.join(dir);
        left.extend(names_in(&dir).into_iter().map(|name| format!("{}/{name}", dir.display())));
    }
    left
}

/// What containers of `root` left.
fn left_of(root: &Root) -> Vec<String> {
    let mut left = Vec::new();
    left.extend(processes(root));
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let own_paths = [root.dir.display().to_string(), root.run_dir.display().to_string()];
    for line in mounts.lines().filter(|line| own_paths.iter().any(|path| line.contains(path.as_str()))) {
        left.push(format!("mount {line}"));
    }
    for parent in root.cgroup_parents() {
        for name in directories_in(&parent) {
            // Every supervisor moves there; it stays, empty.
            if name != "supervisors" || !directories_in(&parent.join(&name)).is_empty() {
                left.push(format!("cgroup {}/{name}", parent.display()));
            }
        }
    }
    let ports = Path::new("/sys/class/net").join(&root.bridge).join("brif");
    left.extend(names_in(&ports).into_iter().map(|port| format!("link {port} on {}", root.bridge)));
    left.extend(addresses_in_table(root).into_iter().map(|address| format!("nft rule for {address} of {}", root.name)));
    left.extend(names_in(&root.dir.join("containers")).into_iter().map(|name| format!("{}: {name}", root.name)));
    let mut files = Vec::new();
    files_beneath(&root.run_dir, &mut files);
    for file in files {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let socket = file.extension().is_some_and(|extension| extension == "sock");
        let lease = file.components().any(|part| part.as_os_str() == "leases")
            && fs::read(&file).is_ok_and(|content| contains(&content, b"-rep-"));
        if name.contains("-rep-") || socket || lease {
            left.push(format!("file {}", file.display()));
        }
    }
    left
}

/// What any container may have left and no root's directory tells: all that is new and not known to be somebody else's.
fn left_on_host(before: &Before, roots: &[Root]) -> Vec<String> {
    let new = |now: BTreeSet<String>, then: &BTreeSet<String>| now.difference(then).cloned().collect::<Vec<_>>();
    let tables: Vec<String> = roots.iter().map(table).collect();
    let links = new(free_veths(), &before.veths).into_iter().filter(|name| !is_anothers_link(name, &tables));
    let netns = new(names_in(Path::new("/run/netns")), &before.netns);
    let netns = netns.into_iter().filter(|name| !is_anothers_namespace(name));
    links.map(|name| format!("link {name}")).chain(netns.map(|name| format!("netns {name}"))).collect()
}

/// Whether another root's table stands in its alias, or another run's process id in its name. A pair that is just being
/// made has no alias yet: one that stays so is told.
fn is_anothers_link(name: &str, tables: &[String]) -> bool {
    let alias = fs::read_to_string(Path::new("/sys/class/net").join(name).join("ifalias")).unwrap_or_default();
    let of_another_root = alias.starts_with("berth_") && !tables.iter().any(|table| table == alias.trim_end());
    let pid = name.trim_start_matches(|c: char| !c.is_ascii_digit());
    of_another_root || (name.starts_with(OUTSIDE_LINK_PREFIX) && pid != std::process::id().to_string())
}

/// Whether another run of this suite made it, or a podman, whose names are `netns-` and a UUID. Berth itself names none.
fn is_anothers_namespace(name: &str) -> bool {
    let of_another_run = name.starts_with(OUTSIDE_PREFIX) && !name.ends_with(&format!("-{}", std::process::id()));
    of_another_run || name.starts_with("podman-proof-") || name.strip_prefix("netns-").is_some_and(is_uuid)
}

fn is_uuid(text: &str) -> bool {
    let lengths: Vec<usize> = text.split('-').map(str::len).collect();
    lengths == [8, 4, 4, 4, 12] && text.bytes().all(|byte| byte == b'-' || byte.is_ascii_hexdigit())
}

/// Dismantles the root and looks whether that was true. What the host is left with is named, not mended.
async fn dismantle(root: &Root) -> Vec<String> {
    let mut left = Vec::new();
    // A keeper would begin to work.
    let config = Root { keeper: false, ..root.clone() }.config();
    let dismantled = match youki_backend::YoukiRuntime::open(config).await {
        Ok(runtime) => runtime.dismantle().await,
        Err(error) => Err(error),
    };
    if let Err(error) = dismantled {
        left.push(format!("dismantling {}: {error}", root.name));
    }
    left.extend(root.cgroup_parents().iter().map(|dir| format!("cgroup {}", dir.display())));
    if Path::new("/sys/class/net").join(&root.bridge).exists() {
        left.push(format!("link {}", root.bridge));
    }
    left.extend(table_families(root).iter().map(|family| format!("nft table {family} {}", table(root))));
    for dir in [&root.dir, &root.run_dir] {
        if let Err(error) = fs::remove_dir_all(dir) {
            left.push(format!("{}: {error}", dir.display()));
        }
    }
    left
}

/// Processes in the root's cgroups, or with one of its directories on their command line.
fn processes(root: &Root) -> Vec<String> {
    let mut found = Vec::new();
    let own = std::process::id();
    for pid in names_in(Path::new("/proc")).iter().filter_map(|name| name.parse::<u32>().ok()) {
        let proc = PathBuf::from(format!("/proc/{pid}"));
        let command = fs::read(proc.join("cmdline")).unwrap_or_default();
        let cgroups = fs::read_to_string(proc.join("cgroup")).unwrap_or_default();
        let named = [&root.dir, &root.run_dir].iter().any(|dir| contains(&command, dir.as_os_str().as_encoded_bytes()));
        if pid != own && !gone(pid) && (named || cgroups.contains(&format!("/{}/", root.cgroup_parent))) {
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            found.push(format!("process {pid} of {}: {command}", root.name));
        }
    }
    found
}

/// Veth links that are no bridge's port.
fn free_veths() -> BTreeSet<String> {
    let net = Path::new("/sys/class/net");
    let is_free_veth = |name: &String| {
        let link = net.join(name);
        // Only a virtual link whose peer has another index is one end of a pair.
        let read = |file: &str| fs::read_to_string(link.join(file)).unwrap_or_default();
        let is_pair = read("iflink") != read("ifindex") && !link.join("device").exists();
        is_pair && !link.join("master").exists()
    };
    names_in(net).into_iter().filter(is_free_veth).collect()
}

/// `berth_` and the first 12 hex digits of the SHA-256 of the canonical path of the root.
pub fn table(root: &Root) -> String {
    let path = fs::canonicalize(&root.dir).unwrap_or_else(|_| root.dir.clone());
    let hex: String = Sha256::digest(path.as_os_str().as_encoded_bytes()).iter().map(|b| format!("{b:02x}")).collect();
    format!("berth_{}", &hex[..12])
}

fn table_families(root: &Root) -> Vec<String> {
    let output = Command::new("nft").args(["list", "tables"]).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let name = table(root);
    text.lines()
        .filter_map(|line| line.strip_prefix("table ")?.split_once(' '))
        .filter(|(_, table)| table.trim() == name)
        .map(|(family, _)| family.to_owned())
        .collect()
}

/// Addresses of containers in the root's nft table: those of its subnet that are neither the subnet nor its gateway.
fn addresses_in_table(root: &Root) -> Vec<Ipv4Addr> {
    let (network, bits) = root.subnet.split_once('/').expect("a subnet");
    let network = u32::from(network.parse::<Ipv4Addr>().expect("a subnet"));
    let mask = u32::MAX << (32 - bits.parse::<u32>().expect("a subnet"));
    let mut found = Vec::new();
    for family in table_families(root) {
        let output = Command::new("nft").args(["list", "table", &family, &table(root)]).output();
        let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
        let words = text.split(|c: char| !(c.is_ascii_digit() || c == '.'));
        found.extend(words.filter_map(|word| word.parse::<Ipv4Addr>().ok()).filter(|address| {
            let address = u32::from(*address);
            let is_a_containers = address > network + 1 && address != network | !mask;
            address & mask == network && is_a_containers
        }));
    }
    found
}

fn names_in(dir: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn directories_in(dir: &Path) -> Vec<String> {
    names_in(dir).into_iter().filter(|name| dir.join(name).is_dir()).collect()
}

fn files_beneath(dir: &Path, files: &mut Vec<PathBuf>) {
    for path in names_in(dir).into_iter().map(|name| dir.join(name)) {
        if path.is_dir() && !path.is_symlink() {
            files_beneath(&path, files);
        }
        files.push(path);
    }
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

//! Finds the cgroup hierarchies in a mount table.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::Hierarchy;

/// The controllers that containers are put in; any other hierarchy (systemd's, one made by hand) is left alone.
const CONTROLLERS: [&str; 13] = [
    "blkio",
    "cpu",
    "cpuacct",
    "cpuset",
    "devices",
    "freezer",
    "hugetlb",
    "memory",
    "misc",
    "net_cls",
    "net_prio",
    "perf_event",
    "pids",
];

/// Those of v1 without which no container is limited. A host that has another alone beside v2, as a VPN mounts `net_cls`, has
/// what containers need in v2.
const OF_V1: [&str; 3] = ["pids", "memory", "devices"];

/// Finds the hierarchies in the text of `/proc/<pid>/mountinfo`. v1 if it has what containers need, or if there is no v2.
pub(super) fn find(table: &str) -> Option<Hierarchy> {
    let mut controllers: BTreeMap<String, (PathBuf, bool)> = BTreeMap::new();
    let mut unified: Option<(PathBuf, bool)> = None;
    for mount in table.lines().filter_map(parse) {
        // Of several mounts of one hierarchy the one that shows its root is wanted, else the first.
        let better = |have: Option<&(PathBuf, bool)>| have.is_none_or(|(_, whole)| mount.whole && !whole);
        match mount.kind {
            "cgroup2" if better(unified.as_ref()) => unified = Some((mount.point.clone(), mount.whole)),
            "cgroup" => {
                for name in mount.options.split(',').filter(|name| CONTROLLERS.contains(name)) {
                    if better(controllers.get(name)) {
                        controllers.insert(name.to_owned(), (mount.point.clone(), mount.whole));
                    }
                }
            }
            _ => {}
        }
    }
    if !OF_V1.iter().any(|name| controllers.contains_key(*name))
        && let Some((root, _)) = unified
    {
        return Some(Hierarchy::V2 { root });
    }
    if controllers.is_empty() {
        return None;
    }
    Some(Hierarchy::V1 { controllers: controllers.into_iter().map(|(name, (point, _))| (name, point)).collect() })
}

struct Mount<'a> {
    point: PathBuf,
    /// Shows the hierarchy from its root.
    whole: bool,
    kind: &'a str,
    options: &'a str,
}

/// `31 23 0:28 /root /point rw,relatime shared:1 - type source super-options` (proc_pid_mountinfo(5)).
fn parse(line: &str) -> Option<Mount<'_>> {
    let (left, right) = line.split_once(" - ")?;
    let mut left = left.split(' ').skip(3);
    let (root, point) = (left.next()?, left.next()?);
    let mut right = right.split(' ');
    let kind = right.next()?;
    let options = right.nth(1)?;
    Some(Mount { point: PathBuf::from(unescape(point)), whole: root == "/", kind, options })
}

/// The kernel writes space, tab, newline and backslash as `\040` and the like.
fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        match rest.get(at + 1..at + 4).and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if byte.is_ascii() => {
                out.push(char::from(byte));
                rest = &rest[at + 4..];
            }
            _ => {
                out.push('\\');
                rest = &rest[at + 1..];
            }
        }
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v1(pairs: &[(&str, &str)]) -> Option<Hierarchy> {
        let controllers = pairs.iter().map(|(name, path)| ((*name).to_owned(), PathBuf::from(path))).collect();
        Some(Hierarchy::V1 { controllers })
    }

    #[test]
    fn hierarchies_are_found_wherever_they_are_mounted() {
        let v2 = |root: &str| Some(Hierarchy::V2 { root: PathBuf::from(root) });
        for (table, want) in [
            ("", None),
            ("24 1 8:1 / / rw - ext4 /dev/sda1 rw\n", None),
            ("30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n", v2("/sys/fs/cgroup")),
            // Hybrid is v1, and systemd's own hierarchy is not taken.
            (
                "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                 35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                 40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
                 41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
                v1(&[
                    ("cpu", "/sys/fs/cgroup/cpu,cpuacct"),
                    ("cpuacct", "/sys/fs/cgroup/cpu,cpuacct"),
                    ("memory", "/sys/fs/cgroup/memory"),
                ]),
            ),
            // What somebody mounted of v1 beside v2 makes no v1 host, unless there is nothing else.
            (
                "1 1 0:1 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n2 1 0:2 / /vpn rw - cgroup net_cls rw,net_cls\n",
                v2("/sys/fs/cgroup"),
            ),
            ("2 1 0:2 / /vpn rw - cgroup net_cls rw,net_cls\n", v1(&[("net_cls", "/vpn")])),
            // A bind of a part does not win over the whole, whichever comes first.
            (
                "1 1 0:1 /docker/x /mnt/part rw - cgroup cgroup rw,pids\n2 1 0:1 / /a\\040b rw - cgroup cgroup rw,pids\n",
                v1(&[("pids", "/a b")]),
            ),
            ("1 1 0:1 / /whole rw - cgroup2 none rw\n2 1 0:1 /x /part rw - cgroup2 none rw\n", v2("/whole")),
            // Nonsense lines are skipped.
            ("- - -\n1 2 3\n\\\n1 1 0:1 / /c rw - cgroup2 none rw", v2("/c")),
        ] {
            assert_eq!(find(table), want, "{table}");
        }
    }
}

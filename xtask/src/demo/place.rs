//! Where the demo lives: never in the user's own root, cgroups or network.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde::{Deserialize, Serialize};
use youki_backend::Config;

use super::image::digest_of;

/// A root of the demo's own, and where its volumes go.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Place {
    pub root: PathBuf,
    pub run_dir: PathBuf,
    pub cgroup_parent: String,
    pub bridge: String,
    pub subnet: String,
    pub s3_endpoint: Option<String>,
    pub s3_bucket: String,
    pub s3_prefix: String,
}

impl Place {
    pub fn new(dir: &Path, s3_endpoint: Option<String>, s3_bucket: String) -> Self {
        let pid = std::process::id();
        Self {
            root: dir.join("root"),
            run_dir: PathBuf::from(format!("/run/berth-demo-{pid}")),
            cgroup_parent: format!("berth-demo-{pid}"),
            bridge: format!("bd{pid}"),
            // Of 198.18.0.0/15, which is set aside for test networks (RFC 2544) and so is nobody's.
            subnet: format!("198.19.{}.0/24", pid % 256),
            s3_endpoint,
            s3_bucket,
            s3_prefix: format!("berth-demo-{pid}"),
        }
    }

    pub fn config(&self) -> Config {
        let mut config = Config::new(&self.root);
        config.run_dir.clone_from(&self.run_dir);
        config.cgroup_parent.clone_from(&self.cgroup_parent);
        config.network.bridge.clone_from(&self.bridge);
        config.network.subnet.clone_from(&self.subnet);
        config.s3 = Some(volumes_s3::S3Config {
            bucket: self.s3_bucket.clone(),
            endpoint: self.s3_endpoint.clone(),
            prefix: Some(self.s3_prefix.clone()),
            ..volumes_s3::S3Config::default()
        });
        config
    }

    /// Removes the directories; returns what the runtime left on the host when it was dismantled, and what will not go.
    pub fn remove(&self) -> Vec<String> {
        let mut left = Vec::new();
        let top = PathBuf::from("/sys/fs/cgroup");
        let hierarchies = std::fs::read_dir(&top).into_iter().flatten().flatten().map(|entry| entry.path());
        let cgroups = hierarchies.chain([top.clone()]).map(|dir| dir.join(&self.cgroup_parent));
        let bridge = Path::new("/sys/class/net").join(&self.bridge);
        let in_the_way = cgroups.chain([bridge]).filter(|path| path.exists());
        left.extend(in_the_way.map(|path| path.display().to_string()));
        left.extend(self.nft_table());
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let root = self.root.display().to_string();
        left.extend(mounts.lines().filter(|line| line.contains(&root)).map(|line| format!("mount {line}")));
        for dir in [&self.root, &self.run_dir] {
            if let Err(error) = std::fs::remove_dir_all(dir) {
                left.push(format!("{}: {error}", dir.display()));
            }
        }
        left
    }

    /// The root's nft table, if there is one: `berth_` and the first 12 hex digits of the SHA-256 of the root's path.
    fn nft_table(&self) -> Option<String> {
        let path = std::fs::canonicalize(&self.root).unwrap_or_else(|_| self.root.clone());
        let digest = digest_of(path.as_os_str().as_encoded_bytes());
        let name = format!("berth_{}", super::account::short(&digest));
        let output = Command::new("nft").args(["list", "tables"]).output().ok()?;
        let tables = String::from_utf8_lossy(&output.stdout);
        tables.contains(&name).then(|| format!("nft table {name}"))
    }
}

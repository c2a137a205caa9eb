//! Roots: directory, run directory, cgroup parent, bridge and subnet, each of its own.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use runtime_core::{ContainerId, Runtime};
use serde::{Deserialize, Serialize};

use super::Suite;
use super::servers::S3Location;

/// Everything that must differ between two roots on one host. Handed to agents as JSON.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Root {
    pub name: String,
    pub dir: PathBuf,
    pub run_dir: PathBuf,
    pub cgroup_parent: String,
    pub bridge: String,
    pub subnet: String,
    pub s3: Option<S3Location>,
    /// Whether whoever opens it is its keeper.
    pub keeper: bool,
}

impl Root {
    /// A root that nobody has used yet.
    pub fn new(suite: &Suite, name: &str, s3: Option<S3Location>) -> Self {
        static COUNT: AtomicU16 = AtomicU16::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        // Two runs of this suite at once must not meet: what is named host-wide is derived from the process id.
        let pid = std::process::id();
        let root = Self {
            name: name.to_owned(),
            dir: suite.dir.path().join(name),
            run_dir: suite.run.path().join(name),
            cgroup_parent: format!("berth-it-{pid}-{number}"),
            bridge: format!("bt{number}x{pid}"),
            subnet: suite.share.subnet(number),
            s3,
            keeper: true,
        };
        suite.roots.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(root.clone());
        root
    }

    /// The same host as seen after its data root was wiped.
    pub fn wipe(&self) {
        // A removal's files may still be on their way out.
        let wiped = (0..50).any(|_| {
            let left = std::fs::remove_dir_all(&self.dir).is_err() && self.dir.exists();
            if left {
                std::thread::sleep(std::time::Duration::from_millis(100));
            }
            !left
        });
        assert!(wiped, "{} is still there", self.dir.display());
    }

    pub fn config(&self) -> youki_backend::Config {
        let mut config = youki_backend::Config::new(&self.dir);
        config.run_dir = self.run_dir.clone();
        config.cgroup_parent = self.cgroup_parent.clone();
        config.network.bridge = self.bridge.clone();
        config.network.subnet = self.subnet.clone();
        config.keeper = self.keeper;
        // Test programs lie in `deps`, one directory below the helpers.
        config.helper_dir = option_env!("CARGO_BIN_EXE_berth-supervisor")
            .and_then(|program| Path::new(program).parent())
            .map(Path::to_owned);
        config.s3 = self.s3.as_ref().map(|location| volumes_s3::S3Config {
            bucket: location.bucket.clone(),
            endpoint: Some(location.endpoint.clone()),
            prefix: Some(location.prefix.clone()),
            region: Some("us-east-1".into()),
            ..volumes_s3::S3Config::default()
        });
        config
    }

    /// This root's parent in every cgroup hierarchy.
    pub fn cgroup_parents(&self) -> Vec<PathBuf> {
        let top = PathBuf::from("/sys/fs/cgroup");
        let hierarchies = std::fs::read_dir(&top).into_iter().flatten().flatten().map(|entry| entry.path());
        let all = hierarchies.chain([top.clone()]);
        all.map(|dir| dir.join(&self.cgroup_parent)).filter(|dir| dir.is_dir()).collect()
    }

    /// The cgroups of one container, `/<parent>/<id>` in every hierarchy.
    pub fn cgroups_of(&self, id: &ContainerId) -> Vec<PathBuf> {
        let name = id.to_string();
        self.cgroup_parents().iter().map(|dir| dir.join(&name)).filter(|dir| dir.is_dir()).collect()
    }

    pub async fn open(&self) -> Result<Arc<dyn Runtime>, youki_backend::Error> {
        Ok(Arc::new(youki_backend::YoukiRuntime::open(self.config()).await?))
    }
}

//! A create whose processes do not get on is given up, and leaves nothing.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use runtime_core::{AgentError, ContainerId, Runtime, Secret, SecretsProvider, ServiceSpec};
use rustix::process::Signal;
use youki_backend::YoukiRuntime;

use crate::support::Case;
use crate::support::case::{eventually, start_on};
use crate::support::pace::patience;
use crate::support::process::{gone, signal};
use crate::support::root::Root;

crate::tests![a_supervisor_that_is_stopped_is_killed, a_build_in_a_frozen_cgroup_is_given_up];

/// A build has a minute, and its end some seconds.
const LONGEST: Duration = Duration::from_secs(100);

/// Asked for a secret while the supervisor waits for its plan, it stops that.
struct Stopping {
    /// What the supervisor has as its standard error.
    log: PathBuf,
    stopped: Arc<OnceLock<u32>>,
}

impl Stopping {
    fn supervisor(&self) -> Option<u32> {
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        pids.find(|pid| std::fs::read_link(format!("/proc/{pid}/fd/2")).is_ok_and(|path| path == self.log))
    }
}

#[async_trait::async_trait]
impl SecretsProvider for Stopping {
    async fn secret(&self, _name: &str) -> runtime_core::Result<Secret> {
        eventually("its supervisor is there", || async { self.supervisor().is_some() }).await;
        let supervisor = self.supervisor().unwrap();
        signal(supervisor, Signal::STOP);
        self.stopped.set(supervisor).unwrap();
        Ok(Secret::new("word".into()))
    }
}

/// The text of the error of a create that must fail, and leave nothing.
async fn refused(root: &Root, runtime: &dyn Runtime, id: &ContainerId, spec: &ServiceSpec) -> String {
    let creating = start_on(runtime, id, spec);
    let error = tokio::time::timeout(patience(LONGEST), creating).await.expect("it is given up").unwrap_err();
    assert!(matches!(runtime.container_state(id).await, Err(AgentError::NotFound { .. })));
    assert!(root.cgroups_of(id).is_empty(), "its cgroup is there");
    assert!(!root.dir.join("containers").join(id.to_string()).exists(), "its directory is there");
    error.to_string()
}

async fn a_supervisor_that_is_stopped_is_killed(case: Case) {
    let root = case.root("root");
    let (id, stopped) = (case.id_in(&root), Arc::<OnceLock<u32>>::default());
    let log = root.dir.join("containers").join(id.to_string()).join("supervisor.log");
    let provider = Stopping { log, stopped: stopped.clone() };
    let config = youki_backend::Config { secrets: Some(Arc::new(provider)), ..root.config() };
    let runtime = YoukiRuntime::open(config).await.unwrap();
    let mut spec = case.script("true").await;
    spec.env.insert("PASSWORD".into(), "$S:password".into());
    let error = refused(&root, &runtime, &id, &spec).await;
    assert!(error.contains("was stopped by a signal"), "{error}");
    assert!(gone(*stopped.get().unwrap()), "the supervisor is there");
}

async fn a_build_in_a_frozen_cgroup_is_given_up(case: Case) {
    let root = case.root("root");
    let (runtime, id) = (root.open().await.unwrap(), case.id_in(&root));
    let mut frozen = 0;
    for parent in root.cgroup_parents() {
        let dir = parent.join(id.to_string());
        std::fs::create_dir(&dir).unwrap();
        for (file, value) in [("freezer.state", "FROZEN"), ("cgroup.freeze", "1")] {
            frozen += usize::from(dir.join(file).exists() && std::fs::write(dir.join(file), value).is_ok());
        }
    }
    assert_eq!(frozen, 1, "nothing would freeze the helper");
    let error = refused(&root, &*runtime, &id, &case.script("true").await).await;
    assert!(error.contains("took longer than 60s"), "{error}");
}

//! Changing the limits and the restart policy of a container, running or not.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use runtime_core::spec::{ResourcesSpec, RestartPolicy};
use runtime_core::{ContainerId, Event, EventKind};

use super::create::check_restart;
use super::{Container, Observed};
use crate::bundle::resources::{self, CgroupLimits, CgroupWrite, write_all};
use crate::cgroup::{CgroupPaths, Hierarchy};
use crate::driven::{self, Caller};
use crate::error::{Error, Result};
use crate::record::{self, ContainerRecord};
use crate::runtime::Inner;
use crate::supervisor::wire::{Reply, Request};

/// What of a container is to be changed; the rest stays.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Changes {
    /// Limits: those that are set.
    pub resources: ResourcesSpec,
    /// What is done when it ends by itself. Without a `delay` it keeps the one it has.
    pub restart_policy: Option<RestartPolicy>,
}

impl From<ResourcesSpec> for Changes {
    fn from(resources: ResourcesSpec) -> Self {
        Self { resources, ..Self::default() }
    }
}

impl Inner {
    /// Sets what `changes` names, and leaves the rest. A running container has it when this returns; any keeps it for its
    /// next start. What is refused changes nothing. Once it has its turn it goes on to its end when the future is dropped.
    pub(crate) async fn update(self: &Arc<Self>, id: &ContainerId, changes: Changes) -> Result<()> {
        let (inner, id) = (self.clone(), id.clone());
        driven::to_the_end(|caller| async move { inner.update_to_the_end(&id, &caller, changes).await }).await
    }

    async fn update_to_the_end(&self, id: &ContainerId, caller: &Caller, changes: Changes) -> Result<()> {
        let (_lock, mut container) = self.lock_for(caller, id).await?;
        let mut spec = container.record.spec.clone();
        if let Some(policy) = changes.restart_policy {
            spec.restart_policy = RestartPolicy { delay: policy.delay.or(spec.restart_policy.delay), ..policy };
            check_restart(&spec)?;
        }
        let before = spec.resources.clone();
        let after = merged(&before, &changes.resources);
        resources::check_cpus(&after)?;
        let cgroup_v2 = matches!(self.hierarchy, Hierarchy::V2 { .. });
        let new = CgroupLimits::new(&after, cgroup_v2)?;
        let cgroup = self.hierarchy.container_dirs(&container.record.cgroup_path);
        let is_supervised = matches!(self.observe(&container).await?, Observed::Supervised(_));
        let sets_limits = is_supervised && before != after;
        spec.resources = after;
        let former = std::mem::replace(&mut container.record.spec, spec);
        let (path, updated) = (container.paths.record(), container.record.clone());
        let kept = ContainerRecord { spec: former.clone(), ..updated.clone() };
        let set = move || {
            // Between two attempts there is no cgroup; the next one gets what is on record.
            let apply = || if sets_limits && cgroup.exists() { apply(&cgroup, &new) } else { Ok(Vec::new()) };
            let former = apply()?;
            // A full disk may not take it.
            record::write(&path, &updated).inspect_err(|_| put_back(&former))?;
            // Who builds the next attempt may have written what was on record before; and looks at the record after that.
            match apply() {
                Err(error) if cgroup.exists() => {
                    put_back(&former);
                    if let Err(unwritten) = record::write(&path, &kept) {
                        let path = path.display();
                        tracing::error!(%path, error = unwritten.chain(), "it names limits that the kernel refused");
                    }
                    Err(error)
                }
                _ => Ok(()),
            }
        };
        tokio::task::spawn_blocking(set).await.map_err(Error::ThreadLost)??;
        if is_supervised
            && former.restart_policy != container.record.spec.restart_policy
            && let Err(error) = self.tell_restart_policy(&container).await
        {
            // It is told as soon as it goes on: then what is on record is what it does.
            if error.is_without_answer() {
                return Err(error);
            }
            container.record.spec.restart_policy = former.restart_policy;
            record::write(&container.paths.record(), &container.record)?;
            return Err(error);
        }
        self.tell(Event::now(EventKind::Update).of(id));
        Ok(())
    }
}

impl Inner {
    /// Restarts are the supervisor's: it follows what it is told, also once nobody else is there.
    async fn tell_restart_policy(&self, container: &Container) -> Result<()> {
        let Some(mut connection) = self.supervisor(container).await? else { return Ok(()) };
        let request = Request::SetRestart(container.record.spec.restart_policy.clone());
        match connection.ask(&request).await.map_err(Error::supervisor(&container.record.id))? {
            Some(Reply::Error(what)) => {
                Err(Error::Supervisor { id: container.record.id.to_string(), what, source: None })
            }
            // It has ended meanwhile, and the next one begins by the record.
            _ => Ok(()),
        }
    }
}

fn merged(before: &ResourcesSpec, changes: &ResourcesSpec) -> ResourcesSpec {
    let changes = changes.clone();
    ResourcesSpec {
        cpu: changes.cpu.or(before.cpu),
        memory: changes.memory.or(before.memory),
        gpu: changes.gpu.or(before.gpu.clone()),
        pids: changes.pids.or(before.pids),
        swap: changes.swap.or(before.swap),
        cpu_shares: changes.cpu_shares.or(before.cpu_shares),
        cpuset: changes.cpuset.or(before.cpuset.clone()),
        io: changes.io.or(before.io.clone()),
    }
}

/// A file of a cgroup, and what it says or is to say.
type Setting = (PathBuf, String);

/// Writes `limits`, and returns what was there; where the kernel refuses one, that is written again.
fn apply(cgroup: &CgroupPaths, limits: &CgroupLimits) -> Result<Vec<Setting>> {
    let mut former = Vec::new();
    for CgroupWrite { controller, files, field, optional, .. } in &limits.writes {
        match file_of(cgroup, controller, files) {
            // What cannot be read is no setting: it only takes commands.
            Some(file) => former.extend(fs::read_to_string(&file).ok().map(|value| (file, value))),
            None if *optional => {}
            None => {
                return Err(Error::Unsupported { what: format!("{field} (this host has no {controller} controller)") });
            }
        }
    }
    write_all(&limits.writes, |one| {
        let Some(file) = file_of(cgroup, &one.controller, &one.files) else { return Ok(()) };
        fs::write(&file, &one.value).map_err(|error| {
            Error::invalid(&one.field, format!("{} was refused by {}: {error}", one.value, one.controller))
        })
    })
    .inspect_err(|_| put_back(&former))?;
    Ok(former)
}

fn put_back(former: &[Setting]) {
    let written = write_all(former, |(file, value)| fs::write(file, value).map_err(Error::io("writing", file)));
    if let Err(error) = written {
        tracing::warn!(error = error.chain(), "the former limits could not be set again");
    }
}

fn file_of(cgroup: &CgroupPaths, controller: &str, files: &[String]) -> Option<PathBuf> {
    let dir = cgroup.dir(controller)?;
    files.iter().map(|file| dir.join(file)).find(|file| file.exists())
}

//! Changing the limits and the restart policy of a container, running or not.

use std::fs;
use std::sync::Arc;

use runtime_core::spec::{ResourcesSpec, RestartPolicy};
use runtime_core::{ContainerId, Event, EventKind};

use super::create::check_restart;
use super::{Container, Observed};
use crate::bundle::resources::{self, CgroupLimits, CgroupWrite};
use crate::cgroup::{CgroupPaths, Hierarchy};
use crate::error::{Error, Result};
use crate::record;
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
    /// next start. What is refused changes nothing. Goes on to its end when the future is dropped.
    pub(crate) async fn update(self: &Arc<Self>, id: &ContainerId, changes: Changes) -> Result<()> {
        let (inner, id) = (self.clone(), id.clone());
        tokio::spawn(async move { inner.update_to_the_end(&id, changes).await }).await.map_err(Error::ThreadLost)?
    }

    async fn update_to_the_end(&self, id: &ContainerId, changes: Changes) -> Result<()> {
        let (_lock, mut container) = self.lock(&self.container(id)?).await?;
        let mut spec = container.record.spec.clone();
        if let Some(policy) = changes.restart_policy {
            spec.restart_policy = RestartPolicy { delay: policy.delay.or(spec.restart_policy.delay), ..policy };
            check_restart(&spec)?;
        }
        let before = spec.resources.clone();
        let after = merged(&before, &changes.resources);
        resources::check_cpus(&after)?;
        let cgroup_v2 = matches!(self.hierarchy, Hierarchy::V2 { .. });
        let (old, new) = (CgroupLimits::new(&before, cgroup_v2)?, CgroupLimits::new(&after, cgroup_v2)?);
        let cgroup = self.hierarchy.container_dirs(&container.record.cgroup_path);
        let is_supervised = matches!(self.observe(&container).await?, Observed::Supervised(_));
        // Between two attempts there is no cgroup; the next one gets what is on record.
        let has_cgroup = is_supervised && before != after && cgroup.exists();
        spec.resources = after;
        let former = std::mem::replace(&mut container.record.spec, spec);
        let (path, updated) = (container.paths.record(), container.record.clone());
        let set = move || {
            if has_cgroup {
                apply(&cgroup, &new, &old)?;
            }
            // A full disk may not take it.
            record::write(&path, &updated).inspect_err(|_| {
                if has_cgroup {
                    put_back(&cgroup, &old);
                }
            })
        };
        tokio::task::spawn_blocking(set).await.map_err(Error::ThreadLost)??;
        if is_supervised
            && former.restart_policy != container.record.spec.restart_policy
            && let Err(error) = self.tell_restart_policy(&container).await
        {
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

/// Writes `new`; where the kernel refuses one, `old` again.
fn apply(cgroup: &CgroupPaths, new: &CgroupLimits, old: &CgroupLimits) -> Result<()> {
    write_all(cgroup, new).inspect_err(|_| put_back(cgroup, old))
}

fn put_back(cgroup: &CgroupPaths, old: &CgroupLimits) {
    if let Err(error) = write_all(cgroup, old) {
        tracing::warn!(error = error.chain(), "the former limits could not be set again");
    }
}

/// Memory may never be above memory and swap together: which of the two must be written first depends on what there is.
/// So what is refused is tried once more after the rest.
fn write_all(cgroup: &CgroupPaths, limits: &CgroupLimits) -> Result<()> {
    let refused: Vec<_> = limits.writes.iter().filter(|one| write(cgroup, one).is_err()).collect();
    refused.into_iter().try_for_each(|one| write(cgroup, one))
}

fn write(cgroup: &CgroupPaths, CgroupWrite { controller, files, value, field, optional }: &CgroupWrite) -> Result<()> {
    let found =
        cgroup.dir(controller).and_then(|dir| files.iter().map(|file| dir.join(file)).find(|file| file.exists()));
    match found {
        Some(file) => fs::write(&file, value)
            .map_err(|error| Error::invalid(field, format!("{value} was refused by {controller}: {error}"))),
        None if *optional => Ok(()),
        None => Err(Error::Unsupported { what: format!("{field} (this host has no {controller} controller)") }),
    }
}

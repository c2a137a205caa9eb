//! Changing the limits of a container, running or not.

use std::fs;

use runtime_core::spec::ResourcesSpec;
use runtime_core::{ContainerId, Event, EventKind};

use super::Observed;
use crate::bundle::resources::{self, CgroupLimits, CgroupWrite};
use crate::cgroup::{CgroupPaths, Hierarchy};
use crate::error::{Error, Result};
use crate::record;
use crate::runtime::Inner;

impl Inner {
    /// Sets what `changes` names, and leaves the rest. A running container has it when this returns; any keeps it for its
    /// next start. What the kernel refuses changes nothing.
    pub(crate) async fn update(&self, id: &ContainerId, changes: &ResourcesSpec) -> Result<()> {
        let (_lock, mut container) = self.lock(&self.container(id)?).await?;
        let before = container.record.spec.resources.clone();
        let after = merged(&before, changes);
        resources::check_cpus(&after)?;
        let cgroup_v2 = matches!(self.hierarchy, Hierarchy::V2 { .. });
        let (old, new) = (CgroupLimits::new(&before, cgroup_v2)?, CgroupLimits::new(&after, cgroup_v2)?);
        let cgroup = self.hierarchy.container_dirs(&container.record.cgroup_path);
        // Between two attempts there is no cgroup; the next one gets what is on record.
        if matches!(self.observe(&container).await?, Observed::Supervised(_)) && cgroup.exists() {
            tokio::task::spawn_blocking(move || apply(&cgroup, &new, &old)).await.map_err(Error::ThreadLost)??;
        }
        container.record.spec.resources = after;
        record::write(&container.paths.record(), &container.record)?;
        self.tell(Event::now(EventKind::Update).of(id));
        Ok(())
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
    let applied = write_all(cgroup, new);
    if applied.is_err()
        && let Err(error) = write_all(cgroup, old)
    {
        tracing::warn!(error = error.chain(), "the former limits could not be set again");
    }
    applied
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

//! `--network container:NAME`: the network namespace of another container, with its host name and its files of `/etc`.

use std::fs::File;
use std::os::fd::OwnedFd;

use runtime_core::ContainerId;

use super::{Container, Observed};
use crate::error::{Error, Result};
use crate::record::{ContainerRecord, JoinedNetwork, NetworkRecord};
use crate::runtime::Inner;
use crate::supervisor::wire::{Phase, Reply, Request};

impl Inner {
    /// The network of the container `name`, which must run, for `id` to join.
    pub(super) async fn join_network(&self, id: &ContainerId, name: &str) -> Result<JoinedNetwork> {
        let other: ContainerId = name.parse()?;
        if other == *id {
            return Err(Error::invalid("network", "it cannot join its own network"));
        }
        let other = self.container(&other)?;
        let observed = self.observe(&other).await?;
        if observed.pid().is_none() {
            return Err(not_running(&other, &observed));
        }
        Ok(match &other.record.network {
            // Which may have joined one itself.
            NetworkRecord::Container(joined) => JoinedNetwork { container: other.record.id, ..joined.clone() },
            network => JoinedNetwork {
                hostname: other.record.hostname()?,
                is_hosts: *network == NetworkRecord::Host,
                owner: other.record.id.clone(),
                container: other.record.id,
            },
        })
    }

    /// Its network namespace, for the supervisor of the one that joins.
    pub(super) async fn open_network(&self, joined: &JoinedNetwork) -> Result<OwnedFd> {
        let other = self.container(&joined.container)?;
        let ended = || Error::NotRunning { id: joined.container.to_string(), state: "exited" };
        let mut connection = self.supervisor(&other).await?.ok_or_else(ended)?;
        let mut namespace = None;
        // Asked again afterwards, it answers: so the process was its own.
        for _ in 0..2 {
            match connection.ask(&Request::Status).await.map_err(Error::supervisor(&joined.container))? {
                Some(Reply::Status(status)) if matches!(status.phase, Phase::Running | Phase::Stopping) => {
                    let path = format!("/proc/{}/ns/net", status.supervisor_pid);
                    namespace.get_or_insert(File::open(&path).map_err(Error::io("opening", path))?);
                }
                _ => return Err(ended()),
            }
        }
        namespace.map(OwnedFd::from).ok_or_else(ended)
    }

    /// Whose files of `/etc` a container has.
    pub(super) fn etc_files(&self, container: &Container) -> [std::path::PathBuf; 3] {
        let paths = match &container.record.network {
            NetworkRecord::Container(joined) => &self.layout.container(&joined.owner),
            _ => &container.paths,
        };
        [paths.etc("hosts"), paths.etc("hostname"), paths.etc("resolv.conf")]
    }
}

impl ContainerRecord {
    /// Its host name: with the network of another, the other's.
    pub fn hostname(&self) -> Result<String> {
        match &self.network {
            NetworkRecord::Container(joined) => Ok(joined.hostname.clone()),
            _ => crate::bundle::hostname(&self.id, &self.spec),
        }
    }
}

fn not_running(container: &Container, observed: &Observed) -> Error {
    Error::NotRunning { id: container.record.id.to_string(), state: observed.state().word() }
}

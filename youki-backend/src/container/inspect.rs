//! Everything that is known of a container, in the names of the interface.

use std::path::PathBuf;

use chrono::{DateTime, Utc};
use futures_util::{StreamExt, stream};
use runtime_core::{
    ContainerId, ContainerInspectDetails, ContainerState, ContainerSummary, DetailedStats, HealthDetail,
    NetworkAttachmentDetail, PortMapping, ServiceSpec, WaitOutcome,
};
use serde::Serialize;

use super::{CONCURRENT_LOOKS, Container, Observed};
use crate::attempts::{Attempts, EarlierAttempt};
use crate::error::{Error, Result};
use crate::record::{ExitRecord, MountKind, NetworkRecord};
use crate::runtime::Inner;
use crate::supervisor::wire::Phase;

/// What `berth inspect` and `berth ps` show. Unknown is `null`.
#[derive(Debug, Clone, Serialize)]
pub struct Inspect {
    /// `web-rep-0`.
    pub id: String,
    /// `web` for replica 0, else as `id`.
    pub name: String,
    /// One lower-case word.
    pub state: &'static str,
    /// Exit code of the last attempt, when it is over.
    pub exit_code: Option<i32>,
    /// Why it failed, when it did.
    pub reason: Option<String>,
    /// Its init, while it runs.
    pub pid: Option<u32>,
    /// The reference it was created from.
    pub image: String,
    /// The manifest's digest.
    pub image_digest: Option<String>,
    /// What it runs: the spec's and the image's entrypoint and command, put together.
    pub args: Vec<String>,
    /// When it was created.
    #[serde(with = "runtime_core::time")]
    pub created_at: DateTime<Utc>,
    /// When the program of the current attempt was started.
    #[serde(with = "runtime_core::time::option")]
    pub started_at: Option<DateTime<Utc>>,
    /// When the current attempt ended.
    #[serde(with = "runtime_core::time::option")]
    pub finished_at: Option<DateTime<Utc>>,
    /// The current attempt's number, from 1.
    pub attempt: u32,
    /// How it ended, also while another one is to follow.
    pub outcome: Option<WaitOutcome>,
    /// How many times its policy restarted it since it was last started by hand.
    pub restarts: u32,
    /// The attempts before it, oldest first, the last ten.
    pub earlier_attempts: Vec<EarlierAttempt>,
    /// What was asked for.
    pub spec: ServiceSpec,
    /// Volumes and binds as they were resolved.
    pub mounts: Vec<InspectMount>,
    /// Networks.
    pub networks: Vec<InspectNetwork>,
    /// Published ports.
    pub ports: Vec<PortMapping>,
    /// The port of the host that it was given as `PORT`, in the host's network.
    pub port_override: Option<u16>,
    /// Health, when a check is configured.
    pub health: Option<HealthDetail>,
    /// Its cgroup, beneath each hierarchy's mount.
    pub cgroup_path: String,
    /// What it had used at its end.
    pub last_stats: Option<DetailedStats>,
}

/// A mount as it was resolved.
#[derive(Debug, Clone, Serialize)]
pub struct InspectMount {
    /// `bind`, `named` or `anonymous`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The name of a named volume.
    pub name: Option<String>,
    /// Path on the host.
    pub source: PathBuf,
    /// Path in the container.
    pub target: String,
    /// Whether it is read-only.
    pub readonly: bool,
}

/// A network it is attached to.
#[derive(Debug, Clone, Serialize)]
pub struct InspectNetwork {
    /// The network's name.
    pub network: String,
    /// Further names in it.
    pub aliases: Vec<String>,
    /// Its address.
    pub ipv4: Option<String>,
    /// Its IPv6 address.
    pub ipv6: Option<String>,
    /// Its hardware address.
    pub mac: Option<String>,
}

impl Inner {
    /// Everything known of `id`.
    pub(crate) async fn inspect(&self, id: &ContainerId) -> Result<Inspect> {
        let container = self.container(id)?;
        let observed = self.observe(&container).await?;
        let paused = observed.state() == ContainerState::Running && self.is_paused(&container);
        let between = matches!(&observed, Observed::Supervised(status) if status.phase == Phase::Restarting);
        let last = if between { self.exit_before(&container)? } else { None };
        let all = inspect(&container, &observed, last.as_ref());
        let attempts = Attempts::read(&container.paths.attempts())?;
        let restarts = if attempts.attempt == all.attempt { attempts.restarts } else { 0 };
        let health = self.health(&container, &observed)?;
        let all = Inspect { health, restarts, earlier_attempts: attempts.earlier, ..all };
        Ok(Inspect { state: if paused { "paused" } else { all.state }, ..all })
    }

    /// The same for all containers, by id, and whether this process could read all. One that is removed meanwhile is left out.
    pub(crate) async fn inspect_all(&self) -> Result<(Vec<Inspect>, bool)> {
        self.listed(|id| async move { self.inspect(&id).await }).await
    }

    /// What the contract's `inspect_detailed` tells.
    pub(crate) async fn details(&self, id: &ContainerId) -> Result<ContainerInspectDetails> {
        let all = self.inspect(id).await?;
        let networks: Vec<NetworkAttachmentDetail> = all
            .networks
            .into_iter()
            .map(|InspectNetwork { network, aliases, ipv4, .. }| NetworkAttachmentDetail { network, aliases, ipv4 })
            .collect();
        Ok(ContainerInspectDetails {
            ports: all.ports,
            ipv4: networks.iter().find_map(|network| network.ipv4.clone()),
            networks,
            health: all.health,
            exit_code: all.exit_code,
        })
    }

    /// A line of a listing for each container.
    pub(crate) async fn summaries(&self) -> Result<Vec<ContainerSummary>> {
        Ok(self.listed(|id| async move { self.summary(&id).await }).await?.0)
    }

    /// What `look` tells of each container, in the order of their ids. One that is removed meanwhile is left out, and one
    /// that cannot be read, or whose supervisor does not answer, hides no other. Whether this process could read all.
    pub(super) async fn listed<T, F>(&self, look: impl Fn(ContainerId) -> F) -> Result<(Vec<T>, bool)>
    where
        F: Future<Output = Result<T>>,
    {
        let looks = self.container_ids()?.into_iter().map(|id| {
            let told = look(id.clone());
            async move { (id, told.await) }
        });
        let mut looks = std::pin::pin!(stream::iter(looks).buffered(CONCURRENT_LOOKS));
        let (mut all, mut failed) = (Vec::new(), None);
        while let Some((id, told)) = looks.next().await {
            match told {
                Err(Error::NoSuchContainer { .. }) => {}
                Err(error) => {
                    tracing::error!(container = %id, error = error.chain(), "its state is not known");
                    if error.is_without_answer() || matches!(error, Error::Io { .. } | Error::ThreadLost(_)) {
                        failed = Some(error);
                    }
                }
                Ok(told) => all.push(told),
            }
        }
        match failed {
            // Not theirs, as it seems, but this process's; and nothing known is not that there is nothing.
            Some(error) if all.is_empty() => Err(error),
            failed => Ok((all, failed.is_none())),
        }
    }

    async fn summary(&self, id: &ContainerId) -> Result<ContainerSummary> {
        let container = self.container(id)?;
        let observed = self.observe(&container).await?;
        Ok(ContainerSummary {
            id: id.clone(),
            state: observed.state(),
            pid: observed.pid(),
            image: container.record.image.reference.clone(),
            labels: container.record.spec.labels.clone(),
            created_at: container.record.created_at,
        })
    }
}

/// `last`: how the last attempt ended, while it waits to be restarted.
fn inspect(container: &Container, observed: &Observed, last: Option<&ExitRecord>) -> Inspect {
    let record = &container.record;
    let state = observed.state();
    let ended = match observed {
        Observed::Ended(ended) => Some(&**ended),
        _ => last,
    };
    let started_at = match observed {
        Observed::Supervised(status) if status.started_at_nanos != 0 => {
            Some(DateTime::from_timestamp_nanos(status.started_at_nanos))
        }
        _ => ended.and_then(|ended| ended.started_at),
    };
    let mounts = record.mounts.iter().map(|mount| InspectMount {
        kind: match mount.kind {
            MountKind::Bind => "bind",
            MountKind::Named => "named",
            MountKind::Anonymous => "anonymous",
        },
        name: mount.name.clone(),
        source: mount.source.clone(),
        target: mount.target.clone(),
        readonly: mount.readonly,
    });
    let networks = match &record.network {
        NetworkRecord::Bridge(lease) => vec![InspectNetwork {
            network: lease.network.clone(),
            aliases: record.spec.network.aliases.clone(),
            ipv4: Some(lease.ip.to_string()),
            ipv6: lease.v6.as_ref().map(|v6| v6.ip.to_string()),
            mac: Some(lease.mac.to_string()),
        }],
        NetworkRecord::Host | NetworkRecord::None | NetworkRecord::Container(_) => Vec::new(),
    };
    Inspect {
        id: record.id.to_string(),
        name: if record.id.replica == 0 { record.id.service.clone() } else { record.id.to_string() },
        state: state.word(),
        exit_code: ended.map(|ended| ended.outcome.exit_code),
        reason: match state {
            ContainerState::Failed { reason } => Some(reason),
            _ => None,
        },
        pid: observed.pid(),
        image: record.image.reference.clone(),
        image_digest: (!record.image.is_to_be_pulled()).then(|| record.image.digest.clone()),
        args: record.args.clone(),
        created_at: record.created_at,
        started_at,
        finished_at: ended.and_then(|ended| ended.outcome.finished_at),
        attempt: record.attempt,
        outcome: ended.map(|ended| ended.outcome.clone()),
        restarts: 0,
        earlier_attempts: Vec::new(),
        spec: record.spec.clone(),
        mounts: mounts.collect(),
        networks,
        ports: record.ports.clone(),
        port_override: record.port_override,
        health: None,
        cgroup_path: record.cgroup_path.clone(),
        last_stats: ended.and_then(|ended| ended.stats.clone()),
    }
}

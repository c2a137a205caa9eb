//! A container's part of a network: its connection, its ports and its name.

use std::cell::Cell;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use runtime_core::spec::PortProtocol;
use runtime_core::{ContainerId, PortMapping};
use tokio::task::JoinHandle;

use super::Container;
use crate::error::{Error, Result};
use crate::lock::ContainerLock;
use crate::network::{self, Networks, PortRequest, Wish};
use crate::record::{ContainerRecord, NetworkRecord};
use crate::runtime::Inner;

/// The variable that tells a container in the host's network which port is its own.
pub(super) const PORT_VARIABLE: &str = "PORT";

/// For whoever works with an ended container to give its ports back.
const HANDOVER: Duration = Duration::from_secs(2);
/// Between two looks whether he has.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

impl Inner {
    /// Puts back what says that a running container has its address and ports, if somebody took that away.
    pub(crate) async fn hold_network_again(&self, container: &Container) -> Result<()> {
        let NetworkRecord::Bridge(lease) = &container.record.network else { return Ok(()) };
        let (id, ports) = (container.record.id.to_string(), &container.record.ports);
        if self.networks.are_held(&id, lease, ports) {
            return Ok(());
        }
        // One that has ended meanwhile has given them back, or whoever has the lock sees to that.
        let Some(lock) = ContainerLock::try_acquire(&container.paths.lock)? else { return Ok(()) };
        match self.container(&container.record.id) {
            Err(error) => {
                lock.remove();
                Err(error)
            }
            Ok(now) if now.record.attempt == container.record.attempt && self.exit_record(&now)?.is_none() => {
                self.networks.hold_again(&id, lease, ports).await
            }
            _ => Ok(()),
        }
    }

    /// Does what may wait for a lock of the networks, or looks at every process of the host, in a thread that may.
    pub(super) async fn on_networks<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Networks) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let networks = self.networks.clone();
        tokio::task::spawn_blocking(move || work(&networks)).await.map_err(Error::ThreadLost)?
    }

    /// Reserves the ports that the spec publishes; in the host's network, where there is nothing to publish, one of its
    /// own, unless the spec says `PORT` itself. Those of an earlier attempt are had again where they are free. The
    /// sockets are for the supervisor to hold.
    pub(super) async fn reserve_ports(self: &Arc<Self>, record: &mut ContainerRecord) -> Result<Vec<OwnedFd>> {
        let (inner, id) = (self.clone(), record.id.to_string());
        match &record.network {
            NetworkRecord::Bridge(lease) => {
                let (wanted, earlier, lease) = (wanted(record)?, record.ports.clone(), lease.clone());
                let reserve = move |networks: &Networks| {
                    if !wanted.is_empty() && networks.inspect(&lease.network)?.internal {
                        let reason = format!("the network {} is internal: nothing comes in", lease.network);
                        return Err(Error::invalid("port_mappings", reason));
                    }
                    let begin = Instant::now();
                    loop {
                        let is_busy = Cell::new(false);
                        let reserved = networks.reserve(&PortRequest {
                            id: &id,
                            wanted: &wanted,
                            earlier: &earlier,
                            lease: Some(&lease),
                            ended: &|holder: &str| inner.has_ended(holder, &is_busy),
                        });
                        let is_missing = match &reserved {
                            Ok(got) => !earlier.is_empty() && got.ports != earlier,
                            Err(error) => matches!(error, Error::PortTaken { .. }),
                        };
                        if !(is_missing && is_busy.get() && begin.elapsed() < HANDOVER) {
                            return reserved;
                        }
                        // Whoever works with an ended holder gives its ports back, or starts it again.
                        std::thread::sleep(LOOK_AGAIN);
                    }
                };
                let reserved = self.on_networks(reserve).await?;
                record.ports = reserved.ports;
                return Ok(reserved.sockets);
            }
            NetworkRecord::Host if !record.spec.env.contains_key(PORT_VARIABLE) => {
                let any = |host_port| PortMapping {
                    host_port,
                    container_port: 1,
                    protocol: PortProtocol::Tcp,
                    host_ip: None,
                };
                let wanted = [Wish { mapping: any(None), host_port_end: None, field: "host_network".to_owned() }];
                let earlier = [any(record.port_override)];
                let reserve = move |networks: &Networks| {
                    networks.reserve(&PortRequest {
                        id: &id,
                        wanted: &wanted,
                        earlier: &earlier,
                        lease: None,
                        ended: &|holder: &str| inner.has_ended(holder, &Cell::default()),
                    })
                };
                let got = self.on_networks(reserve).await?;
                // It binds that itself.
                record.port_override = got.ports.first().and_then(|port| port.host_port);
            }
            NetworkRecord::Host | NetworkRecord::None | NetworkRecord::Container(_) => {}
        }
        Ok(Vec::new())
    }

    /// Begins to connect the container's network namespace, which `pid` is in, if it is to have a network of a bridge's.
    pub(super) fn connect(&self, container: &Container, pid: u32) -> Result<Option<JoinHandle<Result<()>>>> {
        let Some(lease) = lease(&container.record).cloned() else { return Ok(None) };
        let ContainerRecord { id, spec, .. } = &container.record;
        let names = network::names_of(id, &container.record.hostname()?, spec);
        let (networks, id, attached) = (self.networks.clone(), id.to_string(), container.paths.attached());
        Ok(Some(tokio::spawn(async move {
            networks.attach(&lease, &id, names, pid).await?;
            File::create(&attached).map(drop).map_err(Error::io("creating", attached))
        })))
    }

    /// Connects a created container whose creator was killed before it had done that: its supervisor went on alone.
    pub(super) async fn connect_if_cut_off(&self, container: &Container, supervisor_pid: i32) -> Result<()> {
        let Ok(pid) = u32::try_from(supervisor_pid) else { return Ok(()) };
        if container.paths.attached().exists() {
            return Ok(());
        }
        match self.connect(container, pid)? {
            Some(attaching) => attaching.await.map_err(Error::ThreadLost)?,
            None => Ok(()),
        }
    }

    /// Gives back what an ended container has of the host's ports, and takes its name from the others' hosts files.
    pub(crate) async fn leave_network(&self, container: &Container) -> Result<()> {
        self.networks.leave(&container.record.id.to_string(), lease(&container.record)).await
    }

    /// The same, unless it has been started again: for all who find that it ended. Nothing to do costs a look for two
    /// files. Waits for whoever starts or removes it.
    pub(crate) async fn leave_network_if_ended(&self, container: &Container) -> Result<()> {
        if !self.networks.holds(&container.record.id.to_string(), lease(&container.record)) {
            return Ok(());
        }
        let lock = ContainerLock::acquire(container.paths.lock.clone()).await?;
        self.leave_network_locked(container, lock).await
    }

    /// The same, but whoever starts or removes it sees to it: a start may take as long as a volume's restore.
    pub(crate) async fn leave_network_if_idle(&self, container: &Container) -> Result<()> {
        if !self.networks.holds(&container.record.id.to_string(), lease(&container.record)) {
            return Ok(());
        }
        match ContainerLock::try_acquire(&container.paths.lock)? {
            Some(lock) => self.leave_network_locked(container, lock).await,
            None => Ok(()),
        }
    }

    async fn leave_network_locked(&self, container: &Container, lock: ContainerLock) -> Result<()> {
        match self.container(&container.record.id) {
            Err(Error::NoSuchContainer { .. }) => {
                lock.remove();
                Ok(())
            }
            Err(error) => Err(error),
            Ok(now) if self.exit_record(&now)?.is_some() => self.leave_network(&now).await,
            Ok(_) => Ok(()),
        }
    }

    /// Removes a network that no container is in, or is to be in once it is started.
    pub(crate) async fn remove_network(self: &Arc<Self>, name: &str) -> Result<()> {
        let (inner, network) = (self.clone(), name.to_owned());
        self.networks.remove(name, move || inner.members_on_record(&network)).await
    }

    /// The containers that have `network` on record or are being created to, and those whose record nobody can read.
    fn members_on_record(&self, network: &str) -> Result<Vec<String>> {
        let dir = self.layout.containers();
        let mut members = Vec::new();
        for entry in fs::read_dir(&dir).map_err(Error::io("listing", &dir))? {
            let name = entry.map_err(Error::io("listing", &dir))?.file_name();
            let Some(id) = name.to_str().and_then(|name| name.parse::<ContainerId>().ok()) else { continue };
            let is_member = match self.container(&id) {
                // Unless its creator is dead: then whoever looks at it next undoes it.
                Ok(Container { record, paths }) if record.image.is_to_be_pulled() => {
                    self.networks.of(record.spec.network_mode()) == Some(network)
                        && ContainerLock::try_acquire(&paths.lock)?.is_none()
                }
                Ok(container) => lease(&container.record).is_some_and(|lease| lease.network == network),
                Err(error) => !matches!(error, Error::NoSuchContainer { .. }),
            };
            members.extend(is_member.then(|| id.to_string()));
        }
        Ok(members)
    }

    /// Whether the container of that name is over: it is gone, or its current attempt has ended; and nobody makes it, or
    /// starts it, which reserves its ports before the attempt is on record: where somebody works with it `is_busy`.
    fn has_ended(&self, name: &str, is_busy: &Cell<bool>) -> bool {
        let Ok(id) = name.parse() else { return false };
        let look = || match self.container(&id) {
            Ok(container) => self.exit_record(&container).is_ok_and(|record| record.is_some()),
            Err(error) => matches!(error, Error::NoSuchContainer { .. }),
        };
        if !look() {
            return false;
        }
        let Ok(Some(lock)) = ContainerLock::try_acquire(&self.layout.container(&id).lock) else {
            is_busy.set(true);
            return false;
        };
        let over = look();
        if matches!(self.container(&id), Err(Error::NoSuchContainer { .. })) {
            lock.remove();
        }
        over
    }
}

/// What is to be published: the spec's mappings, and with `publish_all` what the image exposes beside them.
fn wanted(record: &ContainerRecord) -> Result<Vec<Wish>> {
    let mut wanted = network::wishes(&record.spec);
    if record.spec.publish_all {
        let config = record.image.config.config().as_ref();
        let exposed = config.and_then(|config| config.exposed_ports().clone()).unwrap_or_default();
        wanted.extend(network::exposed(&exposed, &wanted)?);
    }
    Ok(wanted)
}

fn lease(record: &ContainerRecord) -> Option<&network::Lease> {
    match &record.network {
        NetworkRecord::Bridge(lease) => Some(lease),
        NetworkRecord::Host | NetworkRecord::None | NetworkRecord::Container(_) => None,
    }
}

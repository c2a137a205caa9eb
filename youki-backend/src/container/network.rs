//! Ports and names of a container: what it has of its network while it runs.

use runtime_core::PortMapping;
use runtime_core::spec::PortProtocol;

use super::Container;
use crate::error::{Error, Result};
use crate::network::PortRequest;
use crate::record::{ContainerRecord, NetworkRecord};
use crate::runtime::Inner;

/// The variable that tells a container in the host's network which port is its own.
pub(super) const PORT_VARIABLE: &str = "PORT";

impl Inner {
    /// Reserves the ports that the spec publishes; in the host's network, where there is nothing to publish, one of its
    /// own, unless the spec says `PORT` itself. Those of an earlier attempt are had again where they are free.
    pub(super) fn reserve_ports(&self, record: &mut ContainerRecord) -> Result<()> {
        let id = record.id.to_string();
        let ended = |holder: &str| self.has_ended(holder);
        match &record.network {
            NetworkRecord::Bridge(lease) => {
                if !record.spec.port_mappings.is_empty() && self.networks.inspect(&lease.network)?.internal {
                    let reason = format!("the network {} is internal: nothing comes in", lease.network);
                    return Err(Error::invalid("port_mappings", reason));
                }
                record.ports = self.networks.reserve(&PortRequest {
                    id: &id,
                    wanted: &record.spec.port_mappings,
                    earlier: &record.ports,
                    lease: Some(lease),
                    ended: &ended,
                })?;
            }
            NetworkRecord::Host if !record.spec.env.contains_key(PORT_VARIABLE) => {
                let any = |host_port| PortMapping {
                    host_port,
                    container_port: 1,
                    protocol: PortProtocol::Tcp,
                    host_ip: None,
                };
                let got = self.networks.reserve(&PortRequest {
                    id: &id,
                    wanted: &[any(None)],
                    earlier: &[any(record.port_override)],
                    lease: None,
                    ended: &ended,
                })?;
                record.port_override = got.first().and_then(|port| port.host_port);
            }
            NetworkRecord::Host | NetworkRecord::None => {}
        }
        Ok(())
    }

    /// Gives back what an ended container has of the host's ports, and takes its name from the others' hosts files.
    pub(crate) async fn leave_network(&self, container: &Container) -> Result<()> {
        let lease = match &container.record.network {
            NetworkRecord::Bridge(lease) => Some(lease),
            NetworkRecord::Host | NetworkRecord::None => None,
        };
        self.networks.leave(&container.record.id.to_string(), lease).await
    }

    /// Whether the container of that name is one whose current attempt is over.
    fn has_ended(&self, name: &str) -> bool {
        let Ok(container) = name.parse().map_err(Error::from).and_then(|id| self.container(&id)) else { return false };
        self.exit_record(&container).is_ok_and(|record| record.is_some())
    }
}

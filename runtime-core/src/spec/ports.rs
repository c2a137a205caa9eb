//! Ports: what a service offers, and where it is published.

use serde::{Deserialize, Serialize};

/// A published port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortMapping {
    /// Port on the host; `None` or 0 for an ephemeral one.
    #[serde(default)]
    pub host_port: Option<u16>,
    /// Last of a range that begins with `host_port`: the first of them that is free is taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_port_end: Option<u16>,
    /// Port in the container.
    pub container_port: u16,
    /// TCP or UDP.
    #[serde(default)]
    pub protocol: PortProtocol,
    /// Address on the host; all of them if `None`.
    #[serde(default)]
    pub host_ip: Option<String>,
}

impl PortMapping {
    /// Whether it leaves the choice among several ports of the host.
    #[must_use]
    pub fn is_range(&self) -> bool {
        self.host_port_end.is_some() && self.host_port_end != self.host_port
    }
}

/// Transport of a published port.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)] // each variant is its name
pub enum PortProtocol {
    #[default]
    Tcp,
    Udp,
}

/// A name for a port that the service listens on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EndpointSpec {
    /// The name.
    pub name: String,
    /// What is spoken there.
    #[serde(default)]
    pub protocol: EndpointProtocol,
    /// The port.
    pub port: u16,
}

/// What is spoken at an endpoint.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)] // each variant is its name
pub enum EndpointProtocol {
    #[default]
    Tcp,
    Udp,
    Http,
    Https,
    Websocket,
}

//! Ports: what a service offers, and where it is published.

use serde::{Deserialize, Serialize};

/// A published port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortMapping {
    /// Port on the host; `None` or 0 for an ephemeral one.
    #[serde(default)]
    pub host_port: Option<u16>,
    /// Port in the container.
    pub container_port: u16,
    /// TCP or UDP.
    #[serde(default)]
    pub protocol: PortProtocol,
    /// Address on the host; all of them if `None`.
    #[serde(default)]
    pub host_ip: Option<String>,
}

/// A port that is published at the first of several of the host's that is free.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortRange {
    /// First of them.
    pub host_port: u16,
    /// Last of them.
    pub host_port_end: u16,
    /// Port in the container.
    pub container_port: u16,
    /// TCP or UDP.
    #[serde(default)]
    pub protocol: PortProtocol,
    /// Address on the host; all of them if `None`.
    #[serde(default)]
    pub host_ip: Option<String>,
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

//! `network …` and `port`

use clap::{ArgAction, Args, Subcommand};

use super::flags::{Flags, NoArgs};

#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub enum NetworkCommand {
    /// List the networks of this root
    Ls(Flags<NetworkLsArgs>),
    /// Define a network; its bridge is made with its first container
    Create(Flags<NetworkCreateArgs>),
    /// Remove networks that no container is in
    Rm(Flags<NetworkRmArgs>),
    /// Show networks, and who is in them
    Inspect(Flags<NetworkNamesArgs>),
    /// Put back what somebody took away: bridges, places at them, firewall rules
    Reload(Flags<NoArgs>),
    /// Remove all networks that no container is in
    Prune(Flags<NetworkPruneArgs>),
}

#[derive(Debug, Args)]
pub struct NetworkLsArgs {
    /// Print names only
    #[arg(short, long)]
    pub quiet: bool,
    /// Print this of each: {{.Name}} {{.Subnet}}; after the word table, with headings
    #[arg(long, value_name = "TEMPLATE")]
    pub format: Option<String>,
}

#[derive(Debug, Args)]
pub struct NetworkCreateArgs {
    /// Its addresses, one network of each family at most; an IPv6 one turns that on [default: a free /24]
    ///
    /// The default network's is named before the command.
    #[arg(long, value_name = "CIDR", action = ArgAction::Append)]
    pub subnet: Vec<String>,
    /// The bridge's IPv4 address [default: the first of the subnet]
    #[arg(long, value_name = "ADDRESS")]
    pub gateway: Option<std::net::Ipv4Addr>,
    /// Nothing leaves it, and nothing comes in
    #[arg(long)]
    pub internal: bool,
    /// IPv6 beside IPv4
    #[arg(long)]
    pub ipv6: bool,
    /// Its largest packet
    #[arg(long, value_name = "BYTES")]
    pub mtu: Option<u32>,
    /// There is one kind only
    #[arg(short, long, default_value = "bridge", hide = true)]
    pub driver: String,
    /// Options of docker's driver: of these the MTU is known
    #[arg(short, long, value_name = "KEY=VALUE", action = ArgAction::Append, hide = true)]
    pub opt: Vec<String>,
    /// The network
    pub name: String,
}

#[derive(Debug, Args)]
pub struct NetworkRmArgs {
    /// The networks
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<String>,
    /// One that is not there is no error
    #[arg(short, long)]
    pub force: bool,
}

#[derive(Debug, Args)]
pub struct NetworkNamesArgs {
    /// The networks
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<String>,
}

#[derive(Debug, Args)]
pub struct NetworkPruneArgs {
    /// Do not ask
    #[arg(short, long)]
    pub force: bool,
}

#[derive(Debug, Args)]
pub struct PortArgs {
    /// The container
    pub name: String,
    /// Only this port of it: 80, 53/udp
    #[arg(value_name = "PORT[/PROTOCOL]")]
    pub port: Option<String>,
}

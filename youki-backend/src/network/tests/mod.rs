//! Leases on disk, and real bridges. The latter are made in a network namespace of each test's own, so that nothing of
//! the host's is touched and nothing can be left. Without root they have nothing to check, and say so.

mod addresses;
mod bridges;
mod routers;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use super::*;

/// A root's networks with the calls of a container in the default one.
#[derive(Clone)]
struct Bridge(Networks);

pub(super) fn place(dir: &tempfile::TempDir, tag: &str, subnet: &str) -> Place {
    Place {
        table: format!("berth_{tag}"),
        default: Definition::default_network(&format!("bertht-{tag}"), subnet.parse().unwrap()),
        definitions: dir.path().join("networks"),
        run: dir.path().join("run"),
        containers: dir.path().join("containers"),
    }
}

impl Bridge {
    fn new(place: Place) -> Result<Self> {
        Networks::new(place).map(Self)
    }

    fn place(&self) -> &Place {
        &self.0.place
    }

    fn lease(&self, id: &str) -> Result<Lease> {
        self.0.lease(DEFAULT_NETWORK, id)
    }

    fn free(&self, id: &str) -> Result<()> {
        lease::free(self.place(), |holder| holder == id).map(drop)
    }

    async fn attach(&self, lease: &Lease, pid: u32) -> Result<()> {
        let held = lease::list(&self.place().leases(DEFAULT_NETWORK)).unwrap();
        let id = held.into_iter().find_map(|(ip, holder)| (ip == lease.ip).then_some(holder)).unwrap_or_default();
        self.0.attach(lease, &id, Vec::new(), pid).await
    }

    async fn detach(&self, lease: &Lease) -> Result<()> {
        self.0.detach(lease).await
    }

    async fn remove(&self) -> Result<()> {
        self.0.dismantle().await
    }
}

/// Runs a test on a thread with a network namespace of its own, with `lo` up and an uplink `up0` for the default route.
fn isolated(test: impl AsyncFnOnce() + Send + 'static) {
    if !rustix::process::geteuid().is_root() {
        eprintln!("not root: not checked");
        return;
    }
    let thread = std::thread::spawn(move || {
        // SAFETY: only the network namespace of this thread changes, on which nothing else relies.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
        let up = rtnetlink::packet_route::RouteNetlinkMessage::SetLink(bridge::up(1));
        netlink::Netlink::open().unwrap().request([(up, 0)]).unwrap();
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test());
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// A process in a network namespace of its own.
struct Container(Child);

impl Container {
    fn new() -> Self {
        let child = Command::new("unshare")
            .args(["-n", "sh", "-c", "echo in; exec sleep 600"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut container = Self(child);
        let mut line = [0; 3];
        container.0.stdout.as_mut().unwrap().read_exact(&mut line).unwrap();
        container
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Runs `work` inside.
    fn enter<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let namespace = std::fs::File::open(format!("/proc/{}/ns/net", self.pid())).unwrap();
        std::thread::spawn(move || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            work()
        })
        .join()
        .unwrap()
    }

    fn echo_server(&self, ip: Ipv4Addr) -> SocketAddr {
        let listener = self.enter(move || TcpListener::bind((ip, 0)).unwrap());
        serve(listener)
    }

    fn talks_to(&self, address: SocketAddr) -> bool {
        self.enter(move || talk(address))
    }

    /// Whether nothing comes of it in a time that is long for a network without cables.
    fn is_kept_from(&self, address: SocketAddr) -> bool {
        self.enter(move || TcpStream::connect_timeout(&address, Duration::from_secs(2)).is_err())
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// Serves one connection: a listener that stayed would hold its network namespace.
fn serve(listener: TcpListener) -> SocketAddr {
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let (mut connection, _) = listener.accept().unwrap();
        drop(listener);
        let mut bytes = [0; 5];
        connection.read_exact(&mut bytes).unwrap();
        connection.write_all(&bytes).unwrap();
    });
    address
}

fn talk(address: SocketAddr) -> bool {
    let Ok(mut connection) = TcpStream::connect_timeout(&address, Duration::from_secs(20)) else { return false };
    connection.write_all(b"hello").unwrap();
    let mut bytes = [0; 5];
    connection.read_exact(&mut bytes).is_ok() && &bytes == b"hello"
}

fn make_bridge(name: &str) {
    use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
    let mut link = LinkMessage::default();
    link.attributes =
        vec![LinkAttribute::IfName(name.into()), LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)])];
    let message = rtnetlink::packet_route::RouteNetlinkMessage::NewLink(link);
    netlink::Netlink::open().unwrap().request([(message, netlink::CREATE)]).unwrap();
}

fn links() -> Vec<String> {
    let text = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    let names = text.lines().skip(2).filter_map(|line| line.split_once(':'));
    names.map(|(name, _)| name.trim().to_owned()).filter(|name| name.starts_with('b')).collect()
}

fn tables() -> String {
    String::from_utf8(Command::new("nft").args(["list", "tables"]).output().unwrap().stdout).unwrap()
}

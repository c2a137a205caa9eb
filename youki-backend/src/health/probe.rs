//! Trying a check once. Commands run in the container; connections are made in its network namespace, so that addresses
//! mean what they mean there, in whichever network it is.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;

use futures_util::StreamExt;
use runtime_core::spec::{HealthCheck, HealthSpec, duration};
use runtime_core::{ExecEvent, ExecOptions};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::oneshot;
use url::Url;

use super::plan::target;
use super::state::Tried;
use crate::container::Container;
use crate::record::NetworkRecord;
use crate::runtime::Inner;

/// What is kept of a check's output; docker's.
const MAX_OUTPUT_BYTES: usize = 4096;
/// Longest head of an answer that its status is looked for in.
const MAX_HEAD_BYTES: usize = 16 << 10;
/// Headers that such a head may have.
const MAX_HEADERS: usize = 64;

impl Inner {
    /// Tries the check of `container`, whose init is `init`. One that takes too long has failed, and is killed with all
    /// that it started.
    pub(super) async fn probe(&self, container: &Container, init: u32, plan: &HealthSpec) -> Tried {
        let mut output = String::new();
        let trying = async {
            match &plan.check {
                HealthCheck::Command { command } => self.probe_command(container, command, &mut output).await,
                HealthCheck::Tcp { port } => {
                    let address = SocketAddr::new(own_address(container), *port);
                    connect(container, init, address).await.map(drop).map_err(|error| format!("{address}: {error}"))
                }
                HealthCheck::Http { url, expect_status } => {
                    let (url, address) = target(url).map_err(|error| error.to_string())?;
                    let answered = async { get(connect(container, init, address).await?, &url).await };
                    let status = answered.await.map_err(|error| format!("{url}: {error}"))?;
                    output = format!("{url}: {status}");
                    match expect_status {
                        Some(expected) if *expected == status => Ok(()),
                        None if (200..400).contains(&status) => Ok(()),
                        _ => Err(String::new()),
                    }
                }
            }
        };
        let tried = tokio::time::timeout(plan.timeout, trying).await;
        let (passed, said) = match tried {
            Ok(Ok(())) => (true, String::new()),
            Ok(Err(why)) => (false, why),
            Err(_) => (false, format!("it took longer than {}", duration::format(plan.timeout))),
        };
        if !said.is_empty() && !output.is_empty() && !output.ends_with('\n') {
            output.push('\n');
        }
        output.push_str(&said);
        Tried { passed, output }
    }

    /// Dropping the future kills the command.
    async fn probe_command(
        &self,
        container: &Container,
        command: &[String],
        output: &mut String,
    ) -> Result<(), String> {
        let id = &container.record.id;
        let events = self.exec_events(id, command, &ExecOptions::default(), None).await;
        let mut events = events.map_err(|error| error.chain())?;
        while let Some(event) = events.next().await {
            match event {
                ExecEvent::Stdout(text) | ExecEvent::Stderr(text) => {
                    let room = MAX_OUTPUT_BYTES.saturating_sub(output.len());
                    output.push_str(&text[..text.floor_char_boundary(room)]);
                }
                ExecEvent::Exit(0) => return Ok(()),
                ExecEvent::Exit(code) if output.is_empty() => return Err(format!("exit code {code}")),
                ExecEvent::Exit(_) => return Err(String::new()),
            }
        }
        Err("how it ended is not known".to_owned())
    }
}

/// The container's first address; the loopback's in the host's network, and where there is no network.
fn own_address(container: &Container) -> IpAddr {
    match &container.record.network {
        NetworkRecord::Bridge(lease) => IpAddr::V4(lease.ip),
        NetworkRecord::Host | NetworkRecord::None | NetworkRecord::Container(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
    }
}

/// A socket belongs to the network namespace of the thread that makes it. So that is one of its own, which ends then.
async fn connect(container: &Container, init: u32, address: SocketAddr) -> io::Result<TcpStream> {
    let make = move || if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
    let socket = if container.record.network == NetworkRecord::Host {
        make()?
    } else {
        let namespace = File::open(format!("/proc/{init}/ns/net"))?;
        let (answer, made) = oneshot::channel();
        std::thread::Builder::new().name("berth-health".to_owned()).spawn(move || {
            let entered = move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network));
            // Nobody waits any more if the check's time ran out.
            let _ = answer.send(entered.map_err(io::Error::from).and_then(|()| make()));
        })?;
        made.await.map_err(|_| io::Error::other("its thread broke off"))??
    };
    socket.connect(address).await
}

/// The status that answers a GET.
async fn get(mut stream: TcpStream, url: &Url) -> io::Result<u16> {
    let host = &url[url::Position::BeforeHost..url::Position::AfterPort];
    let path = &url[url::Position::BeforePath..url::Position::AfterQuery];
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: berth-health\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut head = Vec::new();
    loop {
        if let Some(status) = status_of(&head)? {
            return Ok(status);
        }
        let room = MAX_HEAD_BYTES - head.len();
        if (&mut stream).take(room as u64).read_buf(&mut head).await? == 0 {
            return Err(io::Error::other("it answers with no status"));
        }
    }
}

/// The status in the beginning of an answer, once that is there.
fn status_of(mut head: &[u8]) -> io::Result<Option<u16>> {
    loop {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut response = httparse::Response::new(&mut headers);
        match (response.parse(head), response.code) {
            // More is to come, but for 101 (RFC 9110, 15.2).
            (Ok(httparse::Status::Complete(length)), Some(100 | 102..200)) => head = &head[length..],
            (Ok(httparse::Status::Partial), Some(100 | 102..200)) => return Ok(None),
            (_, Some(status)) => return Ok(Some(status)),
            (Ok(_), None) => return Ok(None),
            (Err(error), None) => return Err(io::Error::other(format!("it does not answer in HTTP: {error}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_found_as_soon_as_it_is_there() {
        for (head, status) in [
            (&b""[..], None),
            (b"HTTP/1.1 2", None),
            (b"HTTP/1.1 204 No Content\r\nServer: x", Some(204)),
            (b"HTTP/1.0 503 \r\n\r\nno", Some(503)),
            (b"HTTP/1.1 103 Early Hints\r\nLink", None),
            (b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK", Some(200)),
        ] {
            assert_eq!(status_of(head).unwrap(), status, "{head:?}");
        }
        assert!(status_of(b"SSH-2.0-OpenSSH\r\n").is_err());
        // As many interim ones as are read.
        let mut many = b"HTTP/1.1 100\n\n".repeat(MAX_HEAD_BYTES / 14);
        assert_eq!(status_of(&many).unwrap(), None);
        many.extend(b"HTTP/1.1 200 OK\r\n");
        assert_eq!(status_of(&many).unwrap(), Some(200));
    }
}

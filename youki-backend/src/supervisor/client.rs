//! The agent's side of a supervisor's socket.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::UnixStream;

use super::MAX_PLAN_DESCRIPTORS;
use super::wire::{self, Reply, Request};
use crate::process::ProcessName;

/// Time for a supervisor to say what it knows. One that is stopped must not hold up what others are asked; one on a host that
/// has a hundred containers to start at once and no processor to spare answers late.
const ANSWER_PATIENCE: Duration = Duration::from_secs(30);
/// Time for it to kill a container, once that has had its time to end, and to free what it holds.
const STOP_PATIENCE: Duration = Duration::from_secs(60);

/// A connection to one supervisor.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: UnixStream,
    received: Vec<u8>,
    /// The last descriptor that came along.
    descriptor: Option<OwnedFd>,
}

impl Connection {
    /// Connects. `ConnectionRefused` and `NotFound` mean that there is no supervisor.
    pub async fn open(socket: &Path) -> io::Result<Self> {
        // By the directory's descriptor: the path may be longer than a socket address holds.
        let missing = || io::Error::from(io::ErrorKind::NotFound);
        let (dir, name) = (socket.parent().ok_or_else(missing)?, socket.file_name().ok_or_else(missing)?);
        let dir = std::fs::File::open(dir)?;
        let path = Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(name);
        UnixStream::connect(path).await.map(Self::from_stream)
    }

    pub fn from_stream(stream: UnixStream) -> Self {
        Self { stream, received: Vec::new(), descriptor: None }
    }

    /// Sends a stage its plan: a length and JSON, and beside the length the container's run directory and the sockets to be
    /// held. The only thing on a connection that is not a frame.
    pub async fn send_plan(&mut self, plan: &[u8], run_dir: &OwnedFd, held: &[OwnedFd]) -> io::Result<()> {
        let beside: Vec<BorrowedFd<'_>> = std::iter::once(run_dir).chain(held).map(AsFd::as_fd).collect();
        self.send_bytes(&(plan.len() as u32).to_le_bytes(), &beside).await?;
        self.stream.write_all(plan).await
    }

    pub async fn send(&mut self, request: &Request) -> io::Result<()> {
        self.stream.write_all(&request.encode()).await
    }

    /// Sends a request with descriptors beside it.
    pub async fn send_with(&mut self, request: &Request, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.send_bytes(&request.encode(), descriptors).await
    }

    async fn send_bytes(&mut self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let sent = self
            .stream
            .async_io(Interest::WRITABLE, || {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_PLAN_DESCRIPTORS))];
                let mut control = SendAncillaryBuffer::new(&mut space);
                if !descriptors.is_empty() {
                    control.push(SendAncillaryMessage::ScmRights(descriptors));
                }
                let parts = [IoSlice::new(bytes)];
                Ok(rustix::net::sendmsg(self.stream.as_fd(), &parts, &mut control, SendFlags::NOSIGNAL)?)
            })
            .await?;
        self.stream.write_all(&bytes[sent..]).await
    }

    /// The next reply; `None` when the supervisor is gone.
    pub async fn receive(&mut self) -> io::Result<Option<Reply>> {
        loop {
            if let Some(len) = wire::frame_len(&self.received).map_err(io::Error::other)?
                && self.received.len() >= len
            {
                let reply = Reply::decode(&self.received[..len]).map_err(io::Error::other);
                self.received.drain(..len);
                return reply.map(Some);
            }
            let mut chunk = [0; 4096];
            let (count, descriptor) =
                match self.stream.async_io(Interest::READABLE, || receive_once(&self.stream, &mut chunk)).await {
                    Err(error) if error.kind() == io::ErrorKind::ConnectionReset => (0, None),
                    other => other?,
                };
            if descriptor.is_some() {
                self.descriptor = descriptor;
            }
            if count == 0 {
                return Ok(None);
            }
            self.received.extend_from_slice(&chunk[..count]);
        }
    }

    /// Asks, and waits for the answer: for what a supervisor knows or does by itself no longer than it can take.
    pub async fn ask(&mut self, request: &Request) -> io::Result<Option<Reply>> {
        self.ask_with(request, &[]).await
    }

    /// The same with descriptors beside the request.
    pub async fn ask_with(&mut self, request: &Request, descriptors: &[BorrowedFd<'_>]) -> io::Result<Option<Reply>> {
        match self.send_with(request, descriptors).await {
            Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
                return Ok(None);
            }
            other => other?,
        }
        let patience = match request {
            Request::Status | Request::Signal(_) | Request::SetRestart(_) | Request::Plan | Request::Attach { .. } => {
                ANSWER_PATIENCE
            }
            Request::Stop { timeout_ms, .. } => Duration::from_millis(*timeout_ms).saturating_add(STOP_PATIENCE),
            // They take as long as a program does, or its execution.
            _ => return self.receive().await,
        };
        match tokio::time::timeout(patience, self.receive()).await {
            Ok(reply) => reply,
            Err(_) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("it has not answered within {} s: is it stopped?", patience.as_secs()),
            )),
        }
    }

    /// Ends who answers at `socket`, and removes that: a supervisor whose create was cut off. The directory that it was
    /// sent with its plan must be gone, so that none can appear afterwards.
    pub async fn end_at(socket: &Path) -> io::Result<()> {
        match Self::open(socket).await {
            Ok(connection) => connection.kill_peer().await?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            Err(error) => return Err(error),
        }
        match std::fs::remove_file(socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Whether the supervisor is dead, or is within `patience`.
    pub async fn peer_has_ended(&self, patience: Duration) -> io::Result<bool> {
        match self.peer()? {
            Some(supervisor) => Ok(supervisor.ended_within(patience).await),
            None => Ok(true),
        }
    }

    /// Kills the supervisor, for one that answers nothing: its container dies with it. Returns when it is dead.
    pub async fn kill_peer(&self) -> io::Result<()> {
        let Some(supervisor) = self.peer()? else { return Ok(()) };
        supervisor.kill()?;
        match supervisor.ended_within(STOP_PATIENCE).await {
            true => Ok(()),
            false => Err(io::Error::new(io::ErrorKind::TimedOut, format!("process {supervisor} survived SIGKILL"))),
        }
    }

    fn peer(&self) -> io::Result<Option<ProcessName>> {
        self.stream.peer_cred()?.pid().map_or(Ok(None), ProcessName::of)
    }

    /// The descriptor that came with the last replies.
    pub fn take_descriptor(&mut self) -> Option<OwnedFd> {
        self.descriptor.take()
    }
}

fn receive_once(stream: &UnixStream, chunk: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [io::IoSliceMut::new(chunk)];
    let message = rustix::net::recvmsg(stream.as_fd(), &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let descriptor = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        })
        .flatten()
        .last();
    Ok((message.bytes, descriptor))
}

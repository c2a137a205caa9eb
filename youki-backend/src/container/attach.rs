//! Attaching to a container's streams.

use std::os::fd::{AsFd, OwnedFd};

use futures_util::stream::{self, Stream, StreamExt as _};
use runtime_core::{AgentError, AttachEvent, AttachStream, ContainerId, ExecInput};
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tokio::task::JoinSet;

use super::exec::output_pipe;
use super::terminal::{registered, type_in};
use crate::error::{Error, Result};
use crate::runtime::Inner;
use crate::supervisor::wire::{Reply, Request};

/// Read of one stream at once.
const CHUNK_BYTES: usize = 32 << 10;

impl Inner {
    /// Copies the output of `id`, from now on, to two descriptors, which must be pipes or sockets: they are made
    /// non-blocking. A reader that is slow holds the container back, unless its log is non-blocking: then it misses whole
    /// lines, and is told on the second how much. Returns the write end of its standard input where the caller wants that
    /// `input`, it is open, and nobody has it yet; dropping it is the input's end. Of a container with a terminal it is the
    /// terminal's other end, which everybody gets: for what is typed, and for its size.
    pub(crate) async fn attach(
        &self,
        id: &ContainerId,
        stdout: OwnedFd,
        stderr: OwnedFd,
        input: bool,
    ) -> Result<Option<OwnedFd>> {
        let container = self.container(id)?;
        let not_running = || Error::NotRunning { id: id.to_string(), state: "not supervised" };
        let mut connection = self.supervisor(&container).await?.ok_or_else(not_running)?;
        let asked = connection.ask_with(&Request::Attach { input }, &[stdout.as_fd(), stderr.as_fd()]).await;
        match asked.map_err(Error::supervisor(id))? {
            Some(Reply::Ok) => Ok(connection.take_descriptor()),
            Some(Reply::Error(what)) => Err(Error::Supervisor { id: id.to_string(), what, source: None }),
            _ => Err(not_running()),
        }
    }

    /// The same as a stream of what is written. `input` goes to the standard input or the terminal, while the stream is
    /// there.
    pub(crate) async fn attach_stream(&self, id: &ContainerId, input: Option<ExecInput>) -> Result<AttachStream> {
        let ((out, stdout), (err, stderr)) = (output_pipe()?, output_pipe()?);
        let there = self.attach(id, out, err, input.is_some()).await?;
        // Dropped with the stream, and the other side's end of input with it.
        let mut typing = JoinSet::new();
        if let Some((there, input)) = there.zip(input) {
            typing.spawn(type_in(input, registered(there)?.into()));
        }
        let output = stream::select(chunks(stdout, AttachEvent::Stdout), chunks(stderr, AttachEvent::Stderr));
        Ok(Box::pin(output.map(move |event| {
            let _kept = &typing;
            event.map_err(AgentError::from)
        })))
    }
}

/// What comes from `pipe`, up to its end.
fn chunks(pipe: pipe::Receiver, event: fn(Vec<u8>) -> AttachEvent) -> impl Stream<Item = Result<AttachEvent>> + Send {
    stream::unfold(Some((pipe, vec![0; CHUNK_BYTES])), move |from| async move {
        let (mut pipe, mut chunk) = from?;
        match pipe.read(&mut chunk).await {
            Ok(0) => None,
            Ok(count) => Some((Ok(event(chunk[..count].to_vec())), Some((pipe, chunk)))),
            Err(error) => Some((Err(Error::io("reading", "a container's output")(error)), None)),
        }
    })
}

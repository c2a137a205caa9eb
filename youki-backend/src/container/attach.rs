//! Attaching to a container's streams.

use std::os::fd::{AsFd, OwnedFd};

use runtime_core::ContainerId;

use crate::error::{Error, Result};
use crate::runtime::Inner;
use crate::supervisor::wire::{Reply, Request};

impl Inner {
    /// Copies the output of `id`, from now on, to two descriptors, which must be pipes or sockets: they are made
    /// non-blocking. A reader that is slow holds the container back, unless its log is non-blocking: then it misses whole
    /// lines, and is told on the second how much. Returns the write end of its standard input where
    /// that is open and nobody has it yet; dropping it is the input's end. Of a container with a terminal it is the
    /// terminal's other end, which everybody gets: for what is typed, and for its size.
    pub(crate) async fn attach(&self, id: &ContainerId, stdout: OwnedFd, stderr: OwnedFd) -> Result<Option<OwnedFd>> {
        let container = self.container(id)?;
        let not_running = || Error::NotRunning { id: id.to_string(), state: "not supervised" };
        let mut connection = self.supervisor(&container).await?.ok_or_else(not_running)?;
        connection
            .send_with(&Request::Attach, &[stdout.as_fd(), stderr.as_fd()])
            .await
            .map_err(Error::supervisor(id))?;
        match connection.receive().await.map_err(Error::supervisor(id))? {
            Some(Reply::Ok) => Ok(connection.take_descriptor()),
            Some(Reply::Error(what)) => Err(Error::Supervisor { id: id.to_string(), what, source: None }),
            _ => Err(not_running()),
        }
    }
}

//! Bytes between descriptors, each way on a thread of its own: a slow reader holds its writer back, and nobody else.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::task::JoinHandle;

use crate::failure::{Failure, Result};

/// Read at once; as much as a pipe holds unless it is made larger.
const CHUNK_BYTES: usize = 64 << 10;

/// A pipe: its reading and its writing end.
pub fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    pipe_with(PipeFlags::CLOEXEC).map_err(|error| Failure::io("making", "a pipe", &error.into()))
}

/// One of the command's own standard streams, as a descriptor that can be given away.
pub fn own(stream: impl AsFd) -> Result<OwnedFd> {
    stream.as_fd().try_clone_to_owned().map_err(|error| Failure::io("duplicating", "a standard stream", &error))
}

/// Copies until the end of `from`; dropping both ends it for their other sides. Not cancelled by dropping the handle.
pub fn copy(from: OwnedFd, to: OwnedFd) -> JoinHandle<io::Result<()>> {
    tokio::task::spawn_blocking(move || copy_to_end(File::from(from), File::from(to)))
}

/// Waits for a copy; says what went wrong, unless it is only that nobody reads.
pub async fn finish(copy: JoinHandle<io::Result<()>>) -> Result<()> {
    match copy.await {
        Ok(Err(error)) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::io("copying", "the container's output", &error))
        }
        _ => Ok(()),
    }
}

fn copy_to_end(mut from: File, mut to: File) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let count = match from.read(&mut chunk) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) => {
                ready_again(error, &from, PollFlags::IN)?;
                continue;
            }
        };
        let mut rest = &chunk[..count];
        while !rest.is_empty() {
            match to.write(rest) {
                Ok(written) => rest = &rest[written..],
                Err(error) => ready_again(error, &to, PollFlags::OUT)?,
            }
        }
    }
}

/// Whoever gave us a descriptor may have made it non-blocking.
fn ready_again(error: io::Error, file: &File, wanted: PollFlags) -> io::Result<()> {
    match error.kind() {
        io::ErrorKind::Interrupted => Ok(()),
        io::ErrorKind::WouldBlock => match poll(&mut [PollFd::new(file, wanted)], None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        },
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_byte_goes_through_descriptors_that_do_not_block() {
        let (from, mut feed) = pipe_pair();
        let (mut drain, to) = pipe_pair();
        for end in [&from, &to] {
            rustix::io::ioctl_fionbio(end, true).unwrap();
        }
        let sent: Vec<u8> = (0..300_000u32).map(|n| n as u8).collect();
        let copying = copy(from.into(), to.into());
        let expected = sent.clone();
        let writer = std::thread::spawn(move || feed.write_all(&sent).unwrap());
        let mut received = Vec::new();
        drain.read_to_end(&mut received).unwrap();
        writer.join().unwrap();
        assert!(received == expected);
        finish(copying).await.unwrap();
    }

    fn pipe_pair() -> (File, File) {
        let (reader, writer) = pipe().unwrap();
        (reader.into(), writer.into())
    }
}

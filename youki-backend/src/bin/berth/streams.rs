//! Bytes between descriptors, each way on a thread of its own: a slow reader holds its writer back, and nobody else.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::ioctl_fionread;
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::task::JoinHandle;

use crate::failure::{Failure, Result};

/// Read at once; as much as a pipe holds unless it is made larger.
const CHUNK_BYTES: usize = 64 << 10;
/// Time for more, where a process has ended and nothing is there: what it wrote by way of another, as `tee`. Docker's is 2 s.
const LAST_OUTPUT: Duration = Duration::from_millis(500);
/// More than a terminal holds, which does not tell how much that is.
const MOST_ON_THE_WAY_BYTES: usize = 64 << 10;

/// A pipe: its reading and its writing end.
pub fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    pipe_with(PipeFlags::CLOEXEC).map_err(|error| Failure::io("making", "a pipe", &error.into()))
}

/// A descriptor whose reads and writes wait also where whoever gave it to us has made it non-blocking.
#[derive(Debug)]
pub struct Patient(File);

impl Patient {
    /// One of the command's own standard streams, or another of its descriptors, which stays open beside this.
    pub fn own(stream: impl AsFd) -> Result<Self> {
        own(stream).map(Self::from)
    }
}

impl From<OwnedFd> for Patient {
    fn from(descriptor: OwnedFd) -> Self {
        Self(descriptor.into())
    }
}

impl AsFd for Patient {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Read for Patient {
    fn read(&mut self, chunk: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.0.read(chunk) {
                Err(error) => ready_again(error, &self.0, PollFlags::IN)?,
                count => return count,
            }
        }
    }
}

impl Write for Patient {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.0.write(bytes) {
                Err(error) => ready_again(error, &self.0, PollFlags::OUT)?,
                count => return count,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Returns when it can go on after `error`, if that is only that it could not at once.
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

/// One of the command's own standard streams, as a descriptor that can be given away.
pub fn own(stream: impl AsFd) -> Result<OwnedFd> {
    stream.as_fd().try_clone_to_owned().map_err(|error| Failure::io("duplicating", "a standard stream", &error))
}

/// Copies until the end of `from`; dropping both ends it for their other sides. Not cancelled by dropping the handle.
pub fn copy(from: OwnedFd, to: OwnedFd) -> JoinHandle<io::Result<()>> {
    tokio::task::spawn_blocking(move || copy_to_end(from.into(), to.into()))
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

fn copy_to_end(mut from: Patient, mut to: Patient) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match from.read(&mut chunk)? {
            0 => return Ok(()),
            count => to.write_all(&chunk[..count])?,
        }
    }
}

/// What a process writes, on its way to one of the command's own streams. What the process leaves running may hold the other
/// end open for as long as it likes, and says nothing more that is waited for.
#[derive(Debug)]
pub struct Output {
    copying: JoinHandle<io::Result<()>>,
    /// Closed when the process has ended.
    running: OwnedFd,
}

impl Output {
    /// Begins to copy.
    pub fn copy(from: OwnedFd, to: OwnedFd) -> Result<Self> {
        let (ended, running) = pipe()?;
        let copying = tokio::task::spawn_blocking(move || copy_until(from.into(), to.into(), &ended));
        Ok(Self { copying, running })
    }

    /// The process has ended: waits until what it wrote has gone to where it goes, however slow that is to take it.
    pub async fn finish(self) -> Result<()> {
        drop(self.running);
        finish(self.copying).await
    }
}

/// Copies until the end of `from`, or until there is nothing more once the other end of `ended` is closed.
fn copy_until(mut from: Patient, mut to: Patient, ended: &OwnedFd) -> io::Result<()> {
    let read = |from: &mut Patient, chunk: &mut [u8]| match from.read(chunk) {
        // No process has the terminal open any more.
        Err(error) if error.raw_os_error() == Some(libc::EIO) => Ok(0),
        count => count,
    };
    let mut chunk = vec![0; CHUNK_BYTES];
    while !has_ended(&from, ended)? {
        match read(&mut from, &mut chunk)? {
            0 => return Ok(()),
            count => to.write_all(&chunk[..count])?,
        }
    }
    // Others may write without a pause: no more than can have been there at the end.
    let there = ioctl_fionread(&from).map_or(0, |bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
    let mut left = there.max(MOST_ON_THE_WAY_BYTES);
    // Nor is waited for more than that in all, but for who takes it.
    let mut deadline = Instant::now() + LAST_OUTPUT;
    while left > 0 && is_readable_until(&from, deadline)? {
        let most = left.min(chunk.len());
        match read(&mut from, &mut chunk[..most])? {
            0 => break,
            count => {
                left -= count;
                let begun = Instant::now();
                to.write_all(&chunk[..count])?;
                deadline += begun.elapsed();
            }
        }
    }
    Ok(())
}

/// Waits for something to read, or for the end; whether it is that.
fn has_ended(from: &Patient, ended: &OwnedFd) -> io::Result<bool> {
    loop {
        let mut both = [PollFd::new(from, PollFlags::IN), PollFd::new(ended, PollFlags::IN)];
        match poll(&mut both, None) {
            Ok(_) => return Ok(!both[1].revents().is_empty()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Whether a read says something before `deadline`; what is there already does.
fn is_readable_until(from: &Patient, deadline: Instant) -> io::Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(from, PollFlags::IN)], Some(&left)) {
            Ok(count) => return Ok(count > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
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

    /// Who goes on writing without a pause as much as who says nothing: what was there at the end comes, and no more.
    #[tokio::test]
    async fn who_holds_the_other_end_does_not_hold_the_copy() {
        for writes_on in [false, true] {
            let (from, mut feed) = pipe_pair();
            let (mut drain, to) = pipe_pair();
            feed.write_all(b"last words\n").unwrap();
            let output = Output::copy(from.into(), to.into()).unwrap();
            let held = feed.try_clone().unwrap();
            let writer = std::thread::spawn(move || while writes_on && feed.write_all(&[b'x'; 1000]).is_ok() {});
            let reader = std::thread::spawn(move || {
                let mut all = Vec::new();
                drain.read_to_end(&mut all).map(|_| all)
            });
            tokio::time::timeout(Duration::from_secs(20), output.finish()).await.expect("it goes on").unwrap();
            drop(held);
            assert!(reader.join().unwrap().unwrap().starts_with(b"last words\n"));
            writer.join().unwrap();
        }
    }

    #[tokio::test]
    async fn a_slow_reader_gets_all_that_was_written_before_the_end() {
        let (from, mut feed) = pipe_pair();
        let (mut drain, to) = pipe_pair();
        let output = Output::copy(from.into(), to.into()).unwrap();
        let held = feed.try_clone().unwrap();
        // All of it is in the two pipes and in between.
        feed.write_all(&[b'x'; 150_000]).unwrap();
        let finishing = tokio::spawn(output.finish());
        tokio::time::sleep(LAST_OUTPUT * 3).await;
        assert!(!finishing.is_finished());
        let reader = std::thread::spawn(move || {
            let mut all = Vec::new();
            drain.read_to_end(&mut all).map(|_| all.len())
        });
        finishing.await.unwrap().unwrap();
        drop(held);
        assert_eq!(reader.join().unwrap().unwrap(), 150_000);
    }

    fn pipe_pair() -> (File, File) {
        let (reader, writer) = pipe().unwrap();
        (reader.into(), writer.into())
    }
}

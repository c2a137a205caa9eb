//! Terminals: pairs of the container's own devpts, so that their names are true inside.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use futures_util::StreamExt;
use runtime_core::{ContainerId, ExecEvent, ExecEventStream, ExecInput, ExecOptions};
use rustix::fs::{CWD, Mode, OFlags, fstat, fstatfs, openat};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, watch};

use super::exec::{ExecRequest, events_of, exit_of, unfinished};
use crate::error::{Error, Result};
use crate::files::{open_within, reopen};
use crate::runtime::Inner;

/// Type of the filesystem that has terminals (`DEVPTS_SUPER_MAGIC`).
const DEVPTS: u64 = 0x1cd1;
/// The device that makes them.
const PTMX: (u32, u32) = (5, 2);

/// Both ends of a terminal in a container.
#[derive(Debug)]
pub struct Terminal {
    /// What is written here is read by the process, and the other way round. Its end is `EIO`.
    pub master: OwnedFd,
    /// The process's end.
    pub slave: OwnedFd,
}

/// Size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalSize {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

impl Default for TerminalSize {
    fn default() -> Self {
        Self { rows: 24, columns: 80 }
    }
}

impl TerminalSize {
    /// Gives it to a terminal, whose foreground process is told by SIGWINCH.
    ///
    /// # Errors
    /// The kernel's, for what is no terminal.
    pub fn set(self, terminal: impl std::os::fd::AsFd) -> io::Result<()> {
        let size = Winsize { ws_row: self.rows, ws_col: self.columns, ws_xpixel: 0, ws_ypixel: 0 };
        Ok(tcsetwinsize(terminal, size)?)
    }
}

impl Inner {
    /// A new terminal in `id`, which must run.
    pub(crate) async fn open_terminal(&self, id: &ContainerId, size: TerminalSize) -> Result<Terminal> {
        let container = self.container(id)?;
        let observed = self.observe(&container).await?;
        let not_running = || Error::NotRunning { id: id.to_string(), state: observed.state().word() };
        let init = observed.pid().ok_or_else(not_running)?;
        open(init, size).map_err(Error::io("opening a terminal of", id.to_string()))
    }
}

impl Inner {
    /// [`Inner::exec_events`] on a terminal of the container's: one stream of output, and of input.
    pub(super) async fn exec_on_terminal(
        &self,
        id: &ContainerId,
        command: &[String],
        options: &ExecOptions,
        input: Option<ExecInput>,
    ) -> Result<ExecEventStream> {
        let failed = || Error::io("using", "a terminal");
        let terminal = self.open_terminal(id, TerminalSize::default()).await?;
        let (master, stdio) = terminal.into_streams().map_err(failed())?;
        let request = ExecRequest { command: command.to_vec(), options: options.clone(), stdio };
        let exec = match self.exec(id, request).await {
            Err(error) => {
                let (code, said) = exit_of(error)?;
                return Ok(Box::pin(futures_util::stream::iter([ExecEvent::Stdout(said), ExecEvent::Exit(code)])));
            }
            Ok(exec) => exec,
        };
        let master = Arc::new(registered(master)?);
        let typed = input.map(|input| (input, master.clone()));
        let typing = async move {
            if let Some((input, master)) = typed {
                type_in(input, master).await;
            }
        };
        let reading = move |ended, events| async move { read_off(&master, ended, events).await };
        Ok(events_of(id.clone(), exec, typing, reading))
    }
}

/// What comes from a terminal, until its process has ended and there is no more.
async fn read_off(master: &AsyncFd<OwnedFd>, mut ended: watch::Receiver<bool>, events: mpsc::Sender<ExecEvent>) {
    let mut chunk = vec![0; 32 << 10];
    let mut held = 0;
    loop {
        let read = |fd: &OwnedFd, room: &mut [u8]| Ok(rustix::io::read(fd, room)?);
        let count = tokio::select! {
            biased;
            count = master.async_io(Interest::READABLE, |fd| read(fd, &mut chunk[held..])) => count,
            _ = ended.wait_for(|ended| *ended) => match rustix::io::read(master.get_ref(), &mut chunk[held..]) {
                Ok(count) => Ok(count),
                Err(_) => break,
            },
        };
        // EIO: no process has it open any more.
        let Ok(count @ 1..) = count else { break };
        let count = held + count;
        let whole = count - unfinished(&chunk[..count]);
        let text = String::from_utf8_lossy(&chunk[..whole]).into_owned();
        if whole > 0 && events.send(ExecEvent::Stdout(text)).await.is_err() {
            return;
        }
        chunk.copy_within(whole..count, 0);
        held = count - whole;
    }
}

/// A terminal, or a pipe, that is made non-blocking, to be waited for.
pub(super) fn registered(fd: OwnedFd) -> Result<AsyncFd<OwnedFd>> {
    let failed = || Error::io("using", "a terminal or a pipe");
    rustix::io::ioctl_fionbio(&fd, true).map_err(|error| failed()(error.into()))?;
    // SAFETY: the descriptor is open and owned, moves in, and is closed by the AsyncFd alone.
    unsafe { AsyncFd::register(fd) }.map_err(|error| failed()(error.into()))
}

/// Writes `input` to it, up to its end, or that of whoever reads.
pub(super) async fn type_in(mut input: ExecInput, master: Arc<AsyncFd<OwnedFd>>) {
    while let Some(bytes) = input.next().await {
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            match master.async_io(Interest::WRITABLE, |fd| Ok(rustix::io::write(fd, rest)?)).await {
                Ok(count) => rest = &rest[count..],
                Err(_) => return,
            }
        }
    }
}

fn open(init: u32, size: TerminalSize) -> io::Result<Terminal> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = openat(CWD, format!("/proc/{init}/root"), flags, Mode::empty())?;
    let found = open_within(&root, Path::new("dev/pts/ptmx"), OFlags::PATH | OFlags::NOFOLLOW)?;
    // The container may have put something else there; it is looked at before it is opened.
    let device = fstat(&found)?.st_rdev;
    let is_ptmx = (rustix::fs::major(device), rustix::fs::minor(device)) == PTMX;
    if !is_ptmx || fstatfs(&found)?.f_type as u64 != DEVPTS {
        return Err(io::Error::other("its /dev/pts/ptmx is not the kernel's"));
    }
    let master = reopen(&found, OFlags::RDWR | OFlags::NOCTTY)?;
    unlockpt(&master)?;
    let slave = ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    size.set(&master)?;
    Ok(Terminal { master, slave })
}

impl Terminal {
    /// The process's end three times over, for its standard streams; and ours.
    ///
    /// # Errors
    /// The kernel's, where there are no more descriptors.
    pub fn into_streams(self) -> io::Result<(OwnedFd, [OwnedFd; 3])> {
        let slave = File::from(self.slave);
        let (stdin, stdout) = (slave.try_clone()?, slave.try_clone()?);
        Ok((self.master, [stdin.into(), stdout.into(), slave.into()]))
    }
}

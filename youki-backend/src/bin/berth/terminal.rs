//! The command's own terminal, lent to a process in a container: raw, and as large there as here.

use std::io::{self, IsTerminal};
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use youki_backend::TerminalSize;

use crate::failure::{Failure, Result};
use crate::streams;

/// Time for what a process wrote last, once it has ended: something that it started may hold its terminal open.
const LAST_OUTPUT: Duration = Duration::from_millis(500);

/// Size of the command's own terminal; the usual one where there is none.
pub fn own_size() -> TerminalSize {
    match tcgetwinsize(io::stdout()).or_else(|_| tcgetwinsize(io::stdin())) {
        Ok(size) if size.ws_row > 0 => TerminalSize { rows: size.ws_row, columns: size.ws_col },
        _ => TerminalSize::default(),
    }
}

/// A process's terminal, connected to ours until this is dropped.
#[derive(Debug)]
pub struct Session {
    output: JoinHandle<io::Result<()>>,
    resizing: JoinHandle<()>,
    _raw: Option<Raw>,
}

impl Session {
    /// Connects `master`; with `input`, standard input too, which is made raw where it is a terminal.
    pub fn begin(master: OwnedFd, input: bool) -> Result<Self> {
        let failed = |error: io::Error| Failure::io("using", "the terminal", &error);
        let (typed, resized) = (master.try_clone().map_err(failed)?, master.try_clone().map_err(failed)?);
        let raw = if input && io::stdin().is_terminal() { Some(Raw::enter().map_err(failed)?) } else { None };
        let output = streams::copy(master, streams::own(io::stdout())?);
        if input {
            // It ends with the command.
            drop(streams::copy(streams::own(io::stdin())?, typed));
        }
        let mut changes = signal(SignalKind::window_change()).map_err(failed)?;
        let resizing = tokio::spawn(async move {
            while changes.recv().await.is_some() {
                let _ = own_size().set(&resized);
            }
        });
        Ok(Self { output, resizing, _raw: raw })
    }

    /// Takes what is left to be read.
    pub async fn end(self) {
        let Self { output, resizing, _raw } = self;
        resizing.abort();
        let _ = tokio::time::timeout(LAST_OUTPUT, output).await;
    }
}

/// Standard input as a raw terminal, until this is dropped.
#[derive(Debug)]
struct Raw(Termios);

impl Raw {
    fn enter() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw)?;
        Ok(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
    }
}

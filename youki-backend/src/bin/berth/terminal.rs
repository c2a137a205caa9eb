//! The command's own terminal, lent to a process in a container: raw, and as large there as here.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use youki_backend::TerminalSize;

use crate::failure::{Failure, Result};
use crate::streams;

/// Ctrl-P Ctrl-Q: leave the container running, as with docker.
const DETACH: [u8; 2] = [0x10, 0x11];

/// Size of the command's own terminal; the usual one where there is none.
pub fn own_size() -> TerminalSize {
    match tcgetwinsize(io::stdout()).or_else(|_| tcgetwinsize(io::stdin())) {
        Ok(size) if size.ws_row > 0 => TerminalSize { rows: size.ws_row, columns: size.ws_col },
        _ => TerminalSize::default(),
    }
}

/// Our terminal while it is a container's: until this is dropped.
#[derive(Debug)]
pub struct Lent {
    detached: Option<oneshot::Receiver<()>>,
    resizing: JoinHandle<()>,
    raw: Option<Raw>,
}

impl Lent {
    /// Keeps `there`, a terminal in a container, as large as ours. With `input`, what is typed here is typed there; that
    /// goes on until the command ends.
    pub fn to(there: OwnedFd, input: bool) -> Result<Self> {
        let failed = |error: io::Error| Failure::io("using", "the terminal", &error);
        let resized = there.try_clone().map_err(failed)?;
        let _ = own_size().set(&resized);
        let mut changes = signal(SignalKind::window_change()).map_err(failed)?;
        let resizing = tokio::spawn(async move {
            while changes.recv().await.is_some() {
                let _ = own_size().set(&resized);
            }
        });
        let (mut detached, mut raw) = (None, None);
        if input {
            let is_terminal = io::stdin().is_terminal();
            raw = if is_terminal { Some(Raw::enter().map_err(failed)?) } else { None };
            let (sender, receiver) = oneshot::channel();
            let typed = File::from(streams::own(io::stdin())?);
            tokio::task::spawn_blocking(move || {
                if type_in(typed, File::from(there), is_terminal) {
                    let _ = sender.send(());
                }
            });
            detached = Some(receiver);
        }
        Ok(Self { detached, resizing, raw })
    }

    /// Returns when the keys that ask for it were typed. Cancel-safe.
    pub async fn detached(&mut self) {
        if let Some(detached) = &mut self.detached
            && detached.await.is_ok()
        {
            return;
        }
        self.detached = None;
        std::future::pending().await
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.resizing.abort();
        drop(self.raw.take());
    }
}

/// Passes on what is typed until there is no more. Whether the last of it was [`DETACH`], which is not passed on.
fn type_in(mut from: File, mut to: File, keys: bool) -> bool {
    let mut chunk = [0; 4096];
    let mut held = false;
    while let Ok(count @ 1..) = from.read(&mut chunk) {
        let mut out = Vec::with_capacity(count + 1);
        let mut leave = false;
        for byte in &chunk[..count] {
            match (held, *byte) {
                (true, last) if last == DETACH[1] => {
                    leave = true;
                    break;
                }
                (false, first) if keys && first == DETACH[0] => held = true,
                (_, byte) => {
                    if std::mem::take(&mut held) {
                        out.push(DETACH[0]);
                    }
                    // Ctrl-P twice: the second may begin it anew.
                    if keys && byte == DETACH[0] { held = true } else { out.push(byte) }
                }
            }
        }
        let mut rest = &out[..];
        while !rest.is_empty() {
            match to.write(rest) {
                Ok(count) => rest = &rest[count..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let _ = poll(&mut [PollFd::new(&to, PollFlags::OUT)], None);
                }
                Err(_) => return false,
            }
        }
        if leave {
            return true;
        }
    }
    false
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn detach_keys_are_held_back_and_all_else_is_typed() {
        for (typed, arrives, detaches) in [
            (&b"abc"[..], &b"abc"[..], false),
            (b"a\x10\x11b", b"a", true),
            (b"\x10x", b"\x10x", false),
            (b"\x10\x10\x11", b"\x10", true),
            (b"\x11\x10", b"\x11", false),
        ] {
            let ((from, mut typing), (mut read, to)) = (pair(), pair());
            typing.write_all(typed).unwrap();
            drop(typing);
            assert_eq!(type_in(from, to, true), detaches, "{typed:?}");
            let mut arrived = Vec::new();
            read.read_to_end(&mut arrived).unwrap();
            assert_eq!(arrived, arrives, "{typed:?}");
        }
    }

    fn pair() -> (File, File) {
        let (reader, writer) = streams::pipe().unwrap();
        (reader.into(), writer.into())
    }
}

//! The command's own terminal, lent to a process in a container: raw, and as large there as here.

use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::OwnedFd;

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use youki_backend::TerminalSize;

use crate::failure::{Failure, Result};
use crate::streams::Patient;

/// Ctrl-P Ctrl-Q: leave the container running, as with docker.
const DETACH: [u8; 2] = [0x10, 0x11];

/// Size of the command's own terminal; the usual one where there is none.
pub fn own_size() -> TerminalSize {
    match tcgetwinsize(io::stdout()).or_else(|_| tcgetwinsize(io::stdin())) {
        Ok(size) if size.ws_row > 0 => TerminalSize { rows: size.ws_row, columns: size.ws_col },
        _ => TerminalSize::default(),
    }
}

/// What becomes of what is typed here while the terminal is a container's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Typed {
    /// It stays here.
    Kept,
    /// All of it is typed there.
    PassedOn,
    /// The same, but for the keys by which its user leaves.
    PassedOnUntilLeft,
}

/// Our terminal while it is a container's: until this is dropped.
#[derive(Debug)]
pub struct Lent {
    detached: Option<oneshot::Receiver<()>>,
    resizing: JoinHandle<()>,
    raw: Option<Raw>,
}

impl Lent {
    /// Keeps `there`, a terminal in a container, as large as ours. What is `typed` is passed on until the command ends.
    pub fn to(there: OwnedFd, typed: Typed) -> Result<Self> {
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
        if typed != Typed::Kept {
            let is_terminal = io::stdin().is_terminal();
            raw = if is_terminal { Some(Raw::enter().map_err(failed)?) } else { None };
            let (sender, receiver) = oneshot::channel();
            let from = Patient::own(io::stdin())?;
            let keys = is_terminal && typed == Typed::PassedOnUntilLeft;
            tokio::task::spawn_blocking(move || {
                if type_in(from, there.into(), keys) {
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
fn type_in(mut from: Patient, mut to: Patient, keys: bool) -> bool {
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
        if to.write_all(&out).is_err() {
            return false;
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
    use crate::streams;

    #[test]
    fn detach_keys_are_held_back_and_all_else_is_typed() {
        for (typed, keys, arrives, detaches) in [
            (&b"abc"[..], true, &b"abc"[..], false),
            (b"a\x10\x11b", true, b"a", true),
            (b"\x10x", true, b"\x10x", false),
            (b"\x10\x10\x11", true, b"\x10", true),
            (b"\x11\x10", true, b"\x11", false),
            (b"\x10\x11b\x10", false, b"\x10\x11b\x10", false),
        ] {
            let ((from, mut typing), (mut read, to)) = (pair(), pair());
            typing.write_all(typed).unwrap();
            drop(typing);
            assert_eq!(type_in(from, to, keys), detaches, "{typed:?}");
            let mut arrived = Vec::new();
            read.read_to_end(&mut arrived).unwrap();
            assert_eq!(arrived, arrives, "{typed:?}");
        }
    }

    /// Somebody else who has the terminal, too, may have made it so.
    #[test]
    fn what_is_typed_is_waited_for_where_standard_input_does_not_block() {
        let ((from, mut typing), (mut read, to)) = (pair(), pair());
        rustix::io::ioctl_fionbio(&from, true).unwrap();
        let passing = std::thread::spawn(move || type_in(from, to, true));
        let mut arrived = [0; 1];
        for key in *b"ab" {
            typing.write_all(&[key]).unwrap();
            read.read_exact(&mut arrived).expect("it is passed on");
            assert_eq!(arrived, [key]);
        }
        drop(typing);
        assert!(!passing.join().unwrap());
    }

    fn pair() -> (Patient, Patient) {
        let (reader, writer) = streams::pipe().unwrap();
        (reader.into(), writer.into())
    }
}

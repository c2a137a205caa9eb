//! A pseudo-terminal with a test at its other end.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use nix::libc;
use tokio::process::Child;

use super::berth;
use super::case::eventually;
use super::root::Root;

pub struct Terminal {
    master: File,
    slave: OwnedFd,
    seen: Arc<Mutex<Vec<u8>>>,
}

impl Terminal {
    pub fn open(rows: u16, columns: u16) -> Self {
        let pair = nix::pty::openpty(None, None).expect("a pseudo-terminal");
        let master = File::from(pair.master);
        let seen = Arc::<Mutex<Vec<u8>>>::default();
        let (mut reader, all) = (master.try_clone().unwrap(), seen.clone());
        std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut chunk) {
                all.lock().unwrap().extend_from_slice(&chunk[..count]);
            }
        });
        let terminal = Self { master, slave: pair.slave, seen };
        terminal.resize(rows, columns);
        terminal
    }

    /// Runs `berth ARGS…` with this as its controlling terminal and all of its standard streams.
    pub fn command(&self, root: &Root, args: &[&str]) -> Child {
        let stream = || Stdio::from(self.slave.try_clone().unwrap());
        let mut command = berth::command(root);
        command.args(args).stdin(stream()).stdout(stream()).stderr(stream()).kill_on_drop(true);
        // SAFETY: both are system calls that take integers, between fork and exec.
        unsafe {
            command.pre_exec(|| {
                libc::setsid();
                match libc::ioctl(0, libc::TIOCSCTTY, 0) {
                    0 => Ok(()),
                    _ => Err(std::io::Error::last_os_error()),
                }
            })
        };
        command.spawn().expect("starting berth")
    }

    pub fn type_in(&self, text: &str) {
        (&self.master).write_all(text.as_bytes()).expect("typing");
    }

    /// Returns once `text` was shown since the last time this was asked.
    pub async fn until(&self, text: &str) {
        let find = |seen: &[u8]| seen.windows(text.len()).position(|window| window == text.as_bytes());
        eventually(&format!("{text:?} is shown"), || async { find(&self.seen.lock().unwrap()).is_some() }).await;
        let mut seen = self.seen.lock().unwrap();
        let at = find(&seen).unwrap();
        seen.drain(..at + text.len());
    }

    pub fn resize(&self, rows: u16, columns: u16) {
        let size = rustix::termios::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&self.slave, size).unwrap();
    }

    /// Its mode, to be compared.
    pub fn mode(&self) -> String {
        format!("{:?}", rustix::termios::tcgetattr(&self.slave).unwrap())
    }
}

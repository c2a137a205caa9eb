//! The container's output: to its log, and to whoever is attached.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::super::connection::receive_descriptor;
use super::super::events::{Events, Source};
use super::super::output::ReadResult;
use super::reader::Backlog;
use super::{Attempt, place};
use crate::supervisor::wire::Reply;

/// Buffers are given back after so long without output.
const IDLE: Duration = Duration::from_millis(200);
/// Reads of what an ended container left in its pipe: more than a pipe of the largest size takes.
const MAX_LAST_READS: usize = 1024;
/// Attached clients, each of which can hold the output of a container back that waits for its log.
const MAX_ATTACHMENTS: usize = 64;

/// A client that output is copied to.
#[derive(Debug)]
pub(super) struct Attachment {
    /// By stream; `None` once the client closed it.
    pub targets: [Option<OwnedFd>; 2],
    /// What a target did not take yet. While there is some, the stream of a container that waits for its log is not read.
    pub pending: [Backlog; 2],
}

impl Attachment {
    /// Hands on what is pending. False if some of it has to wait: then it is told when there is room.
    fn send(&mut self, events: &Events, index: usize, stream: usize) -> bool {
        let Some(target) = &self.targets[stream] else { return true };
        match write_pending(target, &mut self.pending[stream].pending) {
            Written::All => true,
            Written::Gone => {
                self.close(events, stream);
                true
            }
            Written::Waits => {
                // Told already, perhaps.
                let _ = events.add_for_writing(target, Source::Attachment(index * 2 + stream));
                false
            }
        }
    }

    /// Nothing more is written to a target.
    fn close(&mut self, events: &Events, stream: usize) {
        if let Some(target) = self.targets[stream].take() {
            events.remove(target);
        }
    }

    /// Closes what nobody reads any more. False if that is all of it. Where something is pending, the next try tells.
    fn has_reader(&mut self, events: &Events) -> bool {
        for stream in 0..2 {
            let idle = self.targets[stream].as_ref().filter(|_| self.pending[stream].is_empty());
            let gone = idle.is_some_and(|target| {
                let mut target = [PollFd::new(target, PollFlags::empty())];
                // Not waiting cannot fail but for want of memory: then it stays.
                poll(&mut target, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
            });
            if gone {
                self.close(events, stream);
            }
        }
        self.targets.iter().any(Option::is_some)
    }

    /// Tells the reader, as an error, that it lacks so much of a stream.
    fn tell_missing(&mut self, events: &Events, index: usize, missing: Option<u64>) {
        if let Some(missing) = missing
            && self.targets[1].is_some()
        {
            self.pending[1].tell(missing);
            self.send(events, index, 1);
        }
    }
}

impl Attempt {
    pub(super) fn read_output(&mut self, stream: usize) {
        if stream == 0 && self.config.terminal && self.terminal.is_none() {
            return self.receive_terminal();
        }
        if self.is_held_back(stream) && self.ended.is_none() {
            return;
        }
        self.hot_until = Some(Instant::now() + IDLE);
        let waits = self.waits_for_its_log();
        let output = &mut self.outputs[stream];
        match output.read() {
            Ok(ReadResult::Bytes(count)) => {
                for (index, client) in self.attachments.iter_mut().enumerate() {
                    let Some(client) = client else { continue };
                    if client.targets[stream].is_none() {
                        continue;
                    }
                    let missing = client.pending[stream].offer(output.taken(count));
                    if !client.send(&self.events, index, stream)
                        && waits
                        && let Some(pipe) = &output.pipe
                    {
                        self.events.remove(pipe);
                    }
                    client.tell_missing(&self.events, index, missing);
                }
                output.log(count, &mut self.log, &mut self.scratch);
            }
            Ok(ReadResult::Empty) => {}
            Ok(ReadResult::End) | Err(_) => {
                output.finish(&mut self.log, &mut self.scratch);
                if let Some(pipe) = output.pipe.take() {
                    self.events.remove(&pipe);
                }
                self.end_attached(stream);
            }
        }
    }

    /// The init sends its terminal on the socket that stands for its output until then.
    fn receive_terminal(&mut self) {
        let Some(socket) = self.outputs[0].pipe.take() else { return };
        self.events.remove(&socket);
        let received = receive_descriptor(&socket).and_then(|master| Some((master.try_clone().ok()?, master)));
        // Without one the init has ended: the helper tells.
        let Some((copy, master)) = received else { return };
        let _ = rustix::io::ioctl_fionbio(&master, true);
        // Without this its output would seem to be over whenever nobody in the container has it open.
        let flags = rustix::pty::OpenptFlags::NOCTTY | rustix::pty::OpenptFlags::CLOEXEC;
        self.terminal_peer = rustix::pty::ioctl_tiocgptpeer(&master, flags).ok();
        let _ = self.events.add(&master, Source::Output(0));
        self.outputs[0].pipe = Some(master);
        self.terminal = Some(copy);
    }

    pub(super) fn flush_attachment(&mut self, index: usize, stream: usize) {
        let Some(client) = self.attachments.get_mut(index).and_then(Option::as_mut) else { return };
        let Some(target) = &client.targets[stream] else { return };
        let written = write_pending(target, &mut client.pending[stream].pending);
        if written == Written::Waits {
            return;
        }
        self.events.remove(target);
        let waits = self.config.log_buffer_bytes.is_none();
        if written == Written::Gone || self.outputs[stream].pipe.is_none() && (waits || stream == 0) {
            client.targets[stream] = None;
        }
        if waits && let (Some(pipe), false) = (&self.outputs[stream].pipe, self.is_held_back(stream)) {
            let _ = self.events.add(pipe, Source::Output(stream));
        }
    }

    /// No more will come on `stream`: its readers see the end once they have taken what there is. Of a container that does
    /// not wait the second one stays open for what is to be told, up to the end of all.
    fn end_attached(&mut self, stream: usize) {
        let closes = stream == 0 || self.waits_for_its_log();
        for (index, client) in self.attachments.iter_mut().enumerate() {
            let Some(client) = client else { continue };
            let missing = client.pending[stream].end();
            client.tell_missing(&self.events, index, missing);
            if closes && client.pending[stream].is_empty() {
                client.close(&self.events, stream);
            }
        }
    }

    fn waits_for_its_log(&self) -> bool {
        self.config.log_buffer_bytes.is_none()
    }

    /// Whether a stream is not to be read before a reader has taken what came before.
    fn is_held_back(&self, stream: usize) -> bool {
        self.waits_for_its_log() && self.attachments.iter().flatten().any(|client| !client.pending[stream].is_empty())
    }

    pub(super) fn attach(&mut self, slot: usize, input: bool) {
        let Some(connection) = self.connections[slot].as_mut() else { return };
        let (Some(stdout), Some(stderr)) = (connection.descriptors.pop_front(), connection.descriptors.pop_front())
        else {
            return self.reply(slot, &Reply::Error("attaching takes two descriptors".to_owned()));
        };
        if self.ended.is_some() {
            return self.reply(slot, &Reply::Error("it has ended".to_owned()));
        }
        // Who left a container that writes nothing is noticed here.
        for client in &mut self.attachments {
            client.take_if(|client| !client.has_reader(&self.events));
        }
        if self.attachments.iter().flatten().count() >= MAX_ATTACHMENTS {
            return self.reply(slot, &Reply::Error("too many clients are attached".to_owned()));
        }
        for fd in [&stdout, &stderr] {
            let _ = rustix::io::ioctl_fionbio(fd, true);
        }
        let pending = [(); 2].map(|()| Backlog::new(self.waits_for_its_log()));
        place(&mut self.attachments, Attachment { targets: [Some(stdout), Some(stderr)], pending });
        if let (Some(terminal), Some(connection)) = (&self.terminal, &mut self.connections[slot]) {
            // For what is typed, and for its size. Everybody may have one.
            return connection.send_with(&Reply::Ok, terminal);
        }
        match (self.stdin.take_if(|_| input), &mut self.connections[slot]) {
            // The client holds the only copy from now on: its end of input is the container's.
            (Some(stdin), Some(connection)) => {
                let _ = rustix::io::ioctl_fionbio(&stdin, false);
                connection.send_with(&Reply::Ok, &stdin);
            }
            _ => self.reply(slot, &Reply::Ok),
        }
    }

    pub(super) fn drain_output(&mut self, stream: usize) {
        for _ in 0..MAX_LAST_READS {
            if self.outputs[stream].pipe.is_none() {
                return;
            }
            // A terminal hands on less at a time than it holds: its end tells.
            let drained = self.terminal.is_none() && self.outputs[stream].is_drained();
            self.read_output(stream);
            if drained {
                break;
            }
        }
        let output = &mut self.outputs[stream];
        output.finish(&mut self.log, &mut self.scratch);
        if let Some(pipe) = output.pipe.take() {
            self.events.remove(&pipe);
        }
        self.end_attached(stream);
    }
}

/// What became of output for a client.
#[derive(Debug, PartialEq, Eq)]
enum Written {
    All,
    /// Some has to wait until it is read.
    Waits,
    /// Nobody reads any more.
    Gone,
}

fn write_pending(target: impl AsFd, pending: &mut Vec<u8>) -> Written {
    let mut written = Written::All;
    while !pending.is_empty() {
        match rustix::io::write(&target, pending) {
            Ok(count) => drop(pending.drain(..count)),
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) => return Written::Waits,
            Err(_) => {
                pending.clear();
                written = Written::Gone;
            }
        }
    }
    *pending = Vec::new();
    written
}

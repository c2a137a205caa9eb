//! Agents: their connections and what they ask.

use std::time::{Duration, Instant};

use rustix::net::SocketFlags;

use super::super::connection::{Connection, Incoming};
use super::super::events::Source;
use super::super::{exec, heap, stack};
use super::{Attempt, Stopping, place};
use crate::supervisor::wire::{CURRENT_ATTEMPT, LAST_ATTEMPT, Phase, Reply, Request, Status};

/// Connections at a time: more than all agents and commands of a host. Who comes then waits in the listener's queue.
const MAX_CONNECTIONS: usize = 1024;
/// Pause before those who wait for a connection are looked at again, where no other one has ended.
const DEAF: Duration = Duration::from_secs(1);

impl Attempt {
    pub(super) fn accept(&mut self) {
        let Some(listener) = &self.listener else { return };
        loop {
            // One that was accepted and closed would look like a supervisor that is gone.
            if self.connections.iter().flatten().count() >= MAX_CONNECTIONS {
                return self.stop_listening();
            }
            let socket = match rustix::net::accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(socket) => socket,
                Err(rustix::io::Errno::AGAIN) => return,
                Err(rustix::io::Errno::CONNABORTED | rustix::io::Errno::INTR) => continue,
                // No descriptors, or no memory.
                Err(_) => return self.stop_listening(),
            };
            // The directory is root's alone; this holds even if somebody opens it up.
            if !rustix::net::sockopt::socket_peercred(&socket).is_ok_and(|peer| peer.uid.is_root()) {
                continue;
            }
            let slot = place(&mut self.connections, Connection::new(socket));
            let added = self.connections[slot]
                .as_ref()
                .is_some_and(|connection| self.events.add(&connection.socket, Source::Connection(slot)).is_ok());
            if !added {
                self.connections[slot] = None;
            }
        }
    }

    /// Lets who connects wait. The listener would stay readable, and each turn be for nothing.
    fn stop_listening(&mut self) {
        if let Some(listener) = &self.listener {
            self.events.remove(listener);
            self.deaf_until = Some(Instant::now() + DEAF);
        }
    }

    /// Looks at those who wait for a connection, if any do.
    pub(super) fn listen_again(&mut self) {
        if self.deaf_until.take().is_some()
            && let Some(listener) = &self.listener
        {
            let _ = self.events.add(listener, Source::Listener);
        }
    }

    pub(super) fn serve(&mut self, slot: usize) {
        let Some(connection) = self.connections.get_mut(slot).and_then(Option::as_mut) else { return };
        if connection.flush() {
            let _ = self.events.set_writing(&connection.socket, Source::Connection(slot), false);
        }
        let incoming = connection.receive();
        loop {
            let Some(connection) = self.connections[slot].as_mut() else { return };
            let much = connection.holds_much();
            match connection.next_request() {
                Ok(Some(request)) => {
                    self.handle(slot, request);
                    if much {
                        heap::give_back();
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    self.reply(slot, &Reply::Error(error.to_string()));
                    return self.disconnect(slot);
                }
            }
        }
        if !matches!(incoming, Ok(Incoming::Open)) {
            self.disconnect(slot);
        }
    }

    pub(super) fn disconnect(&mut self, slot: usize) {
        let Some(connection) = self.connections[slot].take() else { return };
        self.events.remove(&connection.socket);
        let much = connection.holds_much();
        drop(connection);
        self.listen_again();
        if much {
            heap::give_back();
        }
        stack::give_back();
        self.starters.retain(|other| *other != slot);
        if let Some(stop) = &mut self.stopping {
            stop.connections.retain(|other| *other != slot);
        }
        for exec in self.execs.iter_mut().flatten() {
            if exec.connection == Some(slot) {
                exec.connection = None;
                if !exec.detached {
                    exec::kill(exec);
                }
            }
        }
        if slot == 0 && self.phase == Phase::Creating {
            self.abandon("the agent that creates it is gone");
        }
    }

    pub(super) fn handle(&mut self, slot: usize, request: Request) {
        match request {
            Request::Status => self.reply(slot, &Reply::Status(self.status())),
            Request::Start => self.start(slot),
            Request::Signal(signal) => self.signal(slot, signal),
            Request::Stop { signal, timeout_ms } => self.stop(slot, signal, Duration::from_millis(timeout_ms)),
            Request::Wait { attempt } => self.tell_end(slot, attempt),
            Request::Exec(request) => self.exec(slot, &request),
            Request::Attach { input } => self.attach(slot, input),
            Request::SetRestart(policy) => {
                let reply = self.set_restart_policy(policy);
                self.reply(slot, &reply);
            }
            Request::Plan => match (&self.plan, &mut self.connections[slot]) {
                (Some(plan), Some(connection)) => connection.send_with(&Reply::Ok, plan),
                _ => self.reply(slot, &Reply::Error("keeps no plan".to_owned())),
            },
            Request::WaitForStart { attempt } => {
                if let Some(connection) = &mut self.connections[slot] {
                    connection.waits_for_start = Some(attempt);
                }
                self.tell_of_start();
            }
        }
    }

    fn status(&self) -> Status {
        Status {
            phase: self.phase,
            pid: self.init_pid,
            supervisor_pid: std::process::id() as i32,
            started_at_nanos: self.started_at_nanos,
            attempt: self.config.attempt,
        }
    }

    /// Answers who waits for a start that has come, or will not come any more.
    pub(super) fn tell_of_start(&mut self) {
        for slot in 0..self.connections.len() {
            let Some(Connection { waits_for_start: Some(wanted), .. }) = self.connections[slot] else { continue };
            let reply = match self.phase {
                Phase::Running | Phase::Stopping if wanted <= self.config.attempt => Reply::Status(self.status()),
                Phase::Exited => match self.told_of(LAST_ATTEMPT) {
                    Some(exited) => exited,
                    None => continue,
                },
                _ => continue,
            };
            if let Some(connection) = &mut self.connections[slot] {
                connection.waits_for_start = None;
            }
            self.reply(slot, &reply);
        }
    }

    pub(super) fn reply(&mut self, slot: usize, reply: &Reply) {
        let Some(connection) = self.connections.get_mut(slot).and_then(Option::as_mut) else { return };
        connection.send(reply);
        if !connection.flush() {
            let _ = self.events.set_writing(&connection.socket, Source::Connection(slot), true);
        }
    }

    /// Now if it is known, else once it is.
    fn tell_end(&mut self, slot: usize, attempt: u32) {
        match self.told_of(attempt) {
            Some(exited) => self.reply(slot, &exited),
            None => {
                let attempt = if attempt == CURRENT_ATTEMPT { self.config.attempt } else { attempt };
                if let Some(connection) = &mut self.connections[slot] {
                    connection.waits = Some(attempt);
                }
            }
        }
    }

    pub(super) fn signal(&mut self, slot: usize, signal: i32) {
        // It is not to come again, as docker does not restart what it was told to end.
        let ends = [libc::SIGKILL, libc::SIGTERM, libc::SIGINT, self.config.stop_signal].contains(&signal);
        if self.phase == Phase::Restarting {
            if !ends {
                return self.reply(slot, &Reply::Error("it waits to be restarted".to_owned()));
            }
            if !self.restarts.stopped {
                self.give_up_restart("it was killed while it waited to be restarted");
            }
            return self.reply(slot, &Reply::Ok);
        }
        if self.ended.is_some() {
            return self.tell_end(slot, LAST_ATTEMPT);
        }
        if self.init_pid == 0 {
            return self.reply(slot, &Reply::Error("has not created it yet".to_owned()));
        }
        // What waits to be started has a handler for none.
        if self.phase == Phase::Created && self.started_at_nanos == 0 && signal != libc::SIGKILL {
            return self.reply(slot, &Reply::Error("has not started it yet: only KILL has an effect".to_owned()));
        }
        self.restarts.stopped |= ends;
        self.killed_by_us |= signal == libc::SIGKILL;
        let reply = match self.signal_init(signal) {
            Ok(()) => Reply::Ok,
            Err(error) => Reply::Error(format!("sending signal {signal}: {error}")),
        };
        self.reply(slot, &reply);
    }

    pub(super) fn stop(&mut self, slot: usize, signal: i32, timeout: Duration) {
        if self.phase == Phase::Creating {
            return self.abandon("it was stopped while it was created");
        }
        if self.phase == Phase::Restarting && !self.restarts.stopped {
            self.give_up_restart("it was stopped while it waited to be restarted");
        }
        if self.ended.is_some() {
            return self.tell_end(slot, LAST_ATTEMPT);
        }
        self.restarts.stopped = true;
        // As late as can be told apart from never.
        let kill_at = Instant::now() + timeout.min(Duration::from_secs(1 << 32));
        match &mut self.stopping {
            Some(stop) => {
                stop.connections.push(slot);
                stop.kill_at = stop.kill_at.min(kill_at);
            }
            None => self.stopping = Some(Stopping { connections: vec![slot], kill_at, killed_at: None }),
        }
        // An init that was never started has no handler: it would sit out the time.
        if self.phase == Phase::Created || signal == libc::SIGKILL {
            self.kill_all();
        } else {
            self.phase = Phase::Stopping;
            let _ = self.signal_init(signal);
            // One that is paused could not react.
            let _ = self.cgroup.thaw();
        }
    }
}

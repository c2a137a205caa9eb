//! The end: the exit record, and who is told.

use std::fs;
use std::io;
use std::time::{Duration, Instant};

use chrono::DateTime;
use runtime_core::{WaitOutcome, WaitReason};

use super::super::{events, output};
use super::Attempt;
use crate::bundle::signal;
use crate::process::ProcessName;
use crate::record::{self, ExitRecord};
use crate::stats;
use crate::supervisor::launch::exec_failure_code;
use crate::supervisor::wire::{Exit, Phase, Reply};

/// Time for clients to take their last replies and output.
const FAREWELL: Duration = Duration::from_secs(5);

impl Attempt {
    pub(super) fn finish(mut self) -> i32 {
        let finished_at_nanos = output::now_nanos();
        let status = self.ended.unwrap_or(0);
        // It may have failed to execute in the same breath.
        if self.errno.is_some() && !self.starters.is_empty() {
            self.read_errno();
        }
        let never_started = self.phase == Phase::Created;
        self.phase = Phase::Exited;
        // With a PID namespace nobody is left; without one, whoever the init left behind must go.
        for _ in 0..100 {
            if self.cgroup.pids().is_ok_and(|pids| pids.is_empty()) {
                break;
            }
            let _ = self.cgroup.signal_all();
            let _ = self.events.wait(Some(Duration::from_millis(10)));
            events::drain(&self.children);
            self.reap();
        }
        self.reap();
        for stream in 0..2 {
            self.drain_output(stream);
        }
        let oom_kills = self.cgroup.oom_kill_count().unwrap_or(0);
        let stats = stats::read(&self.cgroup, None);
        let signal = if libc::WIFSIGNALED(status) { libc::WTERMSIG(status) } else { 0 };
        let oom_killed = signal == libc::SIGKILL && oom_kills > 0 && !self.killed_by_us;
        let failure = match self.exec_errno {
            Some(errno) => Some(format!("executing its program failed: {}", io::Error::from_raw_os_error(errno))),
            None => never_started.then(|| "it ended before it was started".to_owned()),
        };
        let code = match self.exec_errno {
            Some(errno) => exec_failure_code(errno),
            None => exit_code(status),
        };
        let reason = match () {
            () if failure.is_some() => WaitReason::RuntimeError,
            () if oom_killed => WaitReason::OomKilled,
            () if signal != 0 => WaitReason::Signal,
            () => WaitReason::Exited,
        };
        let record = ExitRecord {
            attempt: self.config.attempt,
            supervisor: ProcessName::of(std::process::id() as i32).map(|name| name.to_string()),
            outcome: WaitOutcome {
                exit_code: code,
                reason,
                signal: (signal != 0).then(|| signal::name(signal)),
                finished_at: Some(DateTime::from_timestamp_nanos(finished_at_nanos)),
            },
            started_at: (self.started_at_nanos != 0).then(|| DateTime::from_timestamp_nanos(self.started_at_nanos)),
            failure,
            oom_kills,
            stats: Some(stats),
        };
        // A full disk may take it later; until then those who ask are answered from here.
        let path = self.config.container_dir.join("exit.json");
        let mut pause = Duration::from_millis(100);
        while let Err(error) = record::write(&path, &record) {
            say!("writing the exit record: {}", error.chain());
            if !self.config.container_dir.exists() {
                break;
            }
            let _ = self.turn(Some(Instant::now() + pause));
            pause = (pause * 2).min(Duration::from_secs(10));
        }
        if let Err(error) = self.cgroup.remove() {
            say!("removing the cgroup: {}", error.chain());
        }
        let _ = fs::remove_file(&self.config.socket);
        let exit = Exit { code, signal, oom_killed, finished_at_nanos };
        self.say_farewell(&Reply::Exited(exit));
        0
    }

    /// Answers all who wait, and lets attached clients take what is left.
    pub(super) fn say_farewell(&mut self, exited: &Reply) {
        let stoppers = self.stopping.take().map(|stop| stop.connections).unwrap_or_default();
        for slot in 0..self.connections.len() {
            if stoppers.contains(&slot) || self.connections[slot].as_ref().is_some_and(|connection| connection.waits) {
                self.reply(slot, exited);
            }
        }
        if let Some(listener) = self.listener.take() {
            self.events.remove(&listener);
            // Who connected before the socket was gone still finds an answer: the end of the file, and the record.
            drop(listener);
        }
        let deadline = Instant::now() + FAREWELL;
        while Instant::now() < deadline {
            let unsent = self.connections.iter_mut().flatten().any(|connection| !connection.flush());
            let pending =
                self.attachments.iter().flatten().any(|client| client.pending.iter().any(|bytes| !bytes.is_empty()));
            if !unsent && !pending {
                break;
            }
            let _ = self.turn(Some(deadline));
        }
    }
}

/// As a shell tells it: the exit code, or 128+N after signal N.
pub(super) fn exit_code(status: i32) -> i32 {
    if libc::WIFSIGNALED(status) { 128 + libc::WTERMSIG(status) } else { libc::WEXITSTATUS(status) }
}

//! The end: the exit record, and who is told.

use std::io;
use std::mem;
use std::time::{Duration, Instant};

use chrono::DateTime;
use runtime_core::{Event, EventKind, WaitOutcome, WaitReason};

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
/// First pause before an exit record that could not be written is written again; doubled each time.
const FIRST_RECORD_PAUSE: Duration = Duration::from_millis(100);
/// Longest of these pauses.
const LONGEST_RECORD_PAUSE: Duration = Duration::from_secs(10);

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
        let exit = Exit { code, signal, oom_killed, finished_at_nanos, record: Vec::new() };
        self.put_on_record(&record, &exit);
        if oom_kills > 0 {
            self.tell(Event::now(EventKind::Oom).saying(format!("{oom_kills} processes")));
        }
        self.tell(record.event(""));
        if let Err(error) = self.cgroup.remove() {
            say!("removing the cgroup: {}", error.chain());
        }
        self.remove_socket();
        self.tell_waiting(&Reply::Exited(exit));
        if let Some(listener) = self.listener.take() {
            self.events.remove(&listener);
            // Who connected before the socket was gone still finds an answer: the end of the file, and the record.
            drop(listener);
        }
        self.say_farewell();
        0
    }

    /// Writes the exit record. While a full disk does not take it, whoever asks is answered from here, and it is tried
    /// again at growing intervals.
    fn put_on_record(&mut self, record: &ExitRecord, exit: &Exit) {
        let path = self.config.container_dir.join("exit.json");
        let mut pause = FIRST_RECORD_PAUSE;
        while let Err(error) = record::write(&path, record) {
            say!("writing the exit record: {}", error.chain());
            if !self.config.container_dir.exists() {
                return;
            }
            if self.unrecorded.is_none() {
                let exit = Exit { record: serde_json::to_vec(record).unwrap_or_default(), ..exit.clone() };
                self.unrecorded = Some(exit.clone());
                self.tell_waiting(&Reply::Exited(exit));
                self.say_farewell();
            }
            let next = Instant::now() + pause;
            while Instant::now() < next && self.turn(Some(next)).is_ok() {}
            pause = (pause * 2).min(LONGEST_RECORD_PAUSE);
        }
    }

    /// Answers all who wait or stop.
    fn tell_waiting(&mut self, exited: &Reply) {
        let stoppers = self.stopping.take().map(|stop| stop.connections).unwrap_or_default();
        for slot in 0..self.connections.len() {
            let waits = self.connections[slot].as_mut().is_some_and(|connection| mem::take(&mut connection.waits));
            if waits || stoppers.contains(&slot) {
                self.reply(slot, exited);
            }
        }
    }

    /// Lets clients take their replies and attached ones what is left of the output, whose end they then see.
    fn say_farewell(&mut self) {
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
        for target in mem::take(&mut self.attachments).into_iter().flatten().flat_map(|client| client.targets).flatten()
        {
            self.events.remove(target);
        }
    }
}

/// As a shell tells it: the exit code, or 128+N after signal N.
pub(super) fn exit_code(status: i32) -> i32 {
    if libc::WIFSIGNALED(status) { 128 + libc::WTERMSIG(status) } else { libc::WEXITSTATUS(status) }
}

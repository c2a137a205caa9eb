//! The end: the exit record, and who is told.

use std::io;
use std::mem;
use std::time::{Duration, Instant};

use chrono::DateTime;
use runtime_core::{Event, EventKind, WaitOutcome, WaitReason};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_NOW, utimensat};

use super::super::{clock, events};
use super::Attempt;
use crate::bundle::signal;
use crate::process::ProcessName;
use crate::record::{self, ExitRecord, LOST_EXIT_CODE};
use crate::stats;
use crate::supervisor::launch::exec_failure_code;
use crate::supervisor::wire::{CURRENT_ATTEMPT, Exit, LAST_ATTEMPT, Phase, Reply};

/// Time for clients to take their last replies and output.
const FAREWELL: Duration = Duration::from_secs(5);
/// Time for a non-blocking log to be written to its end. Less than those who stop it wait.
const LAST_WRITES: Duration = Duration::from_secs(5);
/// First pause before an exit record that could not be written is written again; doubled each time.
const FIRST_RECORD_PAUSE: Duration = Duration::from_millis(100);
/// Longest of these pauses.
const LONGEST_RECORD_PAUSE: Duration = Duration::from_secs(10);

/// How an attempt ended: on record, and what is told of it.
#[derive(Debug)]
pub(super) struct Ended {
    pub record: ExitRecord,
    pub exit: Exit,
    /// The disk has it.
    pub recorded: bool,
    /// The disk did not take it yet: whoever asks is told from here.
    pub refused: bool,
}

impl Attempt {
    /// After the init's end: whoever is left goes, the rest of the output is logged, and the end is put on record, with
    /// whether another attempt follows.
    pub(super) fn end(&mut self) {
        let finished_at_nanos = clock::now_nanos();
        let status = self.ended.unwrap_or(0);
        // It may have failed to execute in the same breath.
        if self.errno.is_some() && self.started_at_nanos != 0 {
            self.read_errno();
        }
        let never_started = matches!(self.phase, Phase::Created | Phase::Restarting);
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
        self.terminal_peer = None;
        self.log.may_wait(Some(Instant::now() + LAST_WRITES));
        for stream in 0..2 {
            self.drain_output(stream);
        }
        self.log_gave_up = !self.log.settle();
        self.log.may_wait(None);
        let oom_kills = self.cgroup.oom_kill_count().unwrap_or(0);
        // Its interfaces are there as long as somebody is in its namespace, and we are.
        let stats = stats::read(&self.cgroup, self.config.own_network.then(std::process::id));
        let signal = if libc::WIFSIGNALED(status) { libc::WTERMSIG(status) } else { 0 };
        let oom_killed = signal == libc::SIGKILL && oom_kills > 0 && !self.killed_by_us;
        let build_failure = self.build_failure.take().filter(|_| !self.restarts.stopped);
        let could_not_be_built = build_failure.is_some();
        let failure = match self.exec_errno {
            Some(errno) => Some(format!("executing its program failed: {}", io::Error::from_raw_os_error(errno))),
            None => build_failure.or_else(|| {
                let on_its_own = never_started && !self.killed_by_us && (self.last.is_none() || !self.restarts.stopped);
                on_its_own.then(|| "it ended before it was started".to_owned())
            }),
        };
        let code = match self.exec_errno {
            Some(errno) => exec_failure_code(errno),
            None if could_not_be_built => LOST_EXIT_CODE,
            None => exit_code(status),
        };
        let reason = match () {
            () if failure.is_some() => WaitReason::RuntimeError,
            () if oom_killed => WaitReason::OomKilled,
            () if signal != 0 => WaitReason::Signal,
            () => WaitReason::Exited,
        };
        // Before the first start there is nothing to start again.
        let pause = match never_started && self.last.is_none() {
            true => None,
            false => self.restarts.pause(code, failure.is_some()),
        };
        self.restarts.due = pause.map(|pause| Instant::now() + pause);
        self.restarts.by_hand = false;
        if pause.is_some() {
            self.phase = Phase::Restarting;
        } else {
            // Who is told that it ended may have its ports.
            self.held.clear();
        }
        let record = ExitRecord {
            attempt: self.config.attempt,
            supervisor: ProcessName::own().map(|name| name.to_string()),
            outcome: WaitOutcome {
                exit_code: code,
                reason,
                signal: (signal != 0 && !could_not_be_built).then(|| signal::name(signal)),
                finished_at: Some(DateTime::from_timestamp_nanos(finished_at_nanos)),
            },
            started_at: (self.started_at_nanos != 0).then(|| DateTime::from_timestamp_nanos(self.started_at_nanos)),
            failure,
            oom_kills,
            stats: Some(stats),
            restarting: pause.is_some(),
        };
        let event = record.event("");
        let exit = Exit { code, signal, oom_killed, finished_at_nanos, record: Vec::new() };
        self.last = Some(Ended { record, exit, recorded: false, refused: false });
        match self.config.removal {
            None => self.put_on_record(),
            Some(_) => self.try_to_put_on_record(),
        }
        if oom_kills > 0 {
            self.tell(Event::now(EventKind::Oom).saying(format!("{oom_kills} processes")));
        }
        self.tell(event);
        if let Err(error) = self.cgroup.remove() {
            say!("removing the cgroup: {}", error.chain());
        }
        if self.phase == Phase::Restarting {
            self.tell_waiting();
            self.say_farewell();
        }
    }

    /// After the last attempt: lets go of everything, and tells whoever waits.
    pub(super) fn finish(mut self: Box<Self>) -> i32 {
        self.phase = Phase::Exited;
        self.held.clear();
        // What its disk did not take in the time that the end had for it is lost.
        let patience = if self.log_gave_up { Duration::ZERO } else { LAST_WRITES };
        self.log.close(Instant::now() + patience);
        let removal = self.config.removal.clone();
        // A restart was called off.
        if removal.is_none()
            && let Some(last) = &mut self.last
            && (last.record.restarting || !last.recorded)
        {
            last.record.restarting = false;
            last.recorded = false;
            self.put_on_record();
        }
        self.held.clear();
        let files = removal.and_then(|plan| self.remove_container(&plan));
        self.remove_socket();
        self.tell_waiting();
        if let Some(listener) = self.listener.take() {
            self.events.remove(&listener);
            // Who connected before the socket was gone still finds an answer: the end of the file, and the record.
            drop(listener);
        }
        self.say_farewell();
        if let Some(files) = files {
            self.delete(files);
        }
        0
    }

    /// Writes the exit record. While a full disk does not take it, whoever asks is answered from here, and it is tried
    /// again at growing intervals.
    fn put_on_record(&mut self) {
        let path = self.config.container_dir.join("exit.json");
        let mut pause = FIRST_RECORD_PAUSE;
        while let Some(last) = &mut self.last {
            match record::write(&path, &last.record) {
                Ok(()) => {
                    last.recorded = true;
                    self.tell_who_syncs();
                    return;
                }
                Err(error) => say!("writing the exit record: {}", error.chain()),
            }
            if !self.config.container_dir.exists() {
                return;
            }
            if !std::mem::replace(&mut last.refused, true) {
                self.tell_waiting();
                self.say_farewell();
            }
            let next = Instant::now() + pause;
            while Instant::now() < next && self.turn(Some(next)).is_ok() {}
            pause = (pause * 2).min(LONGEST_RECORD_PAUSE);
        }
    }

    /// The same for a container that goes with its end: it is tried once, for whoever comes between its end and that, and a
    /// disk that is full gets room.
    fn try_to_put_on_record(&mut self) {
        let Some(last) = &mut self.last else { return };
        match record::write(&self.config.container_dir.join("exit.json"), &last.record) {
            Ok(()) => last.recorded = true,
            Err(error) => {
                last.refused = true;
                say!("writing the exit record: {}", error.chain());
            }
        }
    }

    /// The keeper syncs what is on record of a container whose socket comes, goes or changes: it stays between attempts.
    pub(super) fn tell_who_syncs(&self) {
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        // It may be gone with the run directory; the kernel syncs within half a minute.
        let _ = utimensat(
            CWD,
            &self.config.socket,
            &Timestamps { last_access: now, last_modification: now },
            AtFlags::empty(),
        );
    }

    /// How the last attempt ended, for one who asked for the end of attempt `wanted`; `None` while that is to come.
    pub(super) fn told_of(&self, wanted: u32) -> Option<Reply> {
        let last = self.last.as_ref().filter(|last| last.recorded || last.refused)?;
        let is_over = match wanted {
            LAST_ATTEMPT => self.phase == Phase::Exited,
            CURRENT_ATTEMPT => self.config.attempt == last.record.attempt,
            number => number <= last.record.attempt,
        };
        let stays_on_disk = last.recorded && self.phase == Phase::Exited && self.config.removal.is_none();
        let record = if stays_on_disk { Vec::new() } else { serde_json::to_vec(&last.record).unwrap_or_default() };
        is_over.then(|| Reply::Exited(Exit { record, ..last.exit.clone() }))
    }

    /// Answers all who wait or stop.
    pub(super) fn tell_waiting(&mut self) {
        let stoppers = match self.phase {
            Phase::Exited => self.stopping.take().map(|stop| stop.connections).unwrap_or_default(),
            _ => Vec::new(),
        };
        for slot in 0..self.connections.len() {
            let wanted = match self.connections[slot].as_ref().and_then(|connection| connection.waits) {
                None if !stoppers.contains(&slot) => continue,
                None => LAST_ATTEMPT,
                Some(wanted) => wanted,
            };
            let Some(reply) = self.told_of(wanted) else { continue };
            if let Some(connection) = &mut self.connections[slot] {
                connection.waits = None;
            }
            self.reply(slot, &reply);
        }
        self.tell_of_start();
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

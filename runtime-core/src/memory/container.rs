//! One simulated container: its attempts, and what it wrote.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use tokio::sync::{mpsc, watch};

use super::program::{Behaviour, MemoryImage, Reaction};
use crate::{
    AttachEvent, ContainerId, ContainerState, LogEntry, LogSource, LogStream, ServiceSpec, WaitOutcome, WaitReason,
};

pub(super) struct Container {
    pub(super) id: ContainerId,
    pub(super) spec: ServiceSpec,
    pub(super) image: MemoryImage,
    pub(super) command: Vec<String>,
    pub(super) state: ContainerState,
    pub(super) created_at: DateTime<Utc>,
    pub(super) logs: Vec<LogEntry>,
    /// Counts the starts, so that a timer of an earlier attempt ends no later one.
    pub(super) attempt: u64,
    /// Tells the waiters of the current attempt; each attempt has its own, so that none hears of a later one's end.
    pub(super) end: watch::Sender<Option<WaitOutcome>>,
    reactions: BTreeMap<String, Reaction>,
    /// Who is attached.
    pub(super) listeners: Vec<mpsc::UnboundedSender<AttachEvent>>,
    /// What was written since the last newline, and when that began.
    unfinished: BTreeMap<u8, (DateTime<Utc>, Vec<u8>)>,
}

impl Container {
    pub(super) fn new(id: ContainerId, spec: ServiceSpec, image: MemoryImage, command: Vec<String>) -> Self {
        Self {
            id,
            spec,
            image,
            command,
            state: ContainerState::Initializing,
            created_at: Utc::now(),
            logs: Vec::new(),
            attempt: 0,
            end: watch::Sender::new(None),
            reactions: BTreeMap::new(),
            listeners: Vec::new(),
            unfinished: BTreeMap::new(),
        }
    }

    pub(super) fn is_running(&self) -> bool {
        matches!(self.state, ContainerState::Running | ContainerState::Stopping)
    }

    /// Makes the next start a new attempt with waiters of its own.
    pub(super) fn begin_attempt(&mut self) {
        self.attempt += 1;
        if self.state.is_final() {
            self.end = watch::Sender::new(None);
        }
    }

    pub(super) fn run(&mut self, behaviour: Behaviour) {
        self.state = ContainerState::Running;
        self.reactions = behaviour.reactions;
        for (stream, bytes) in &behaviour.output {
            self.write(*stream, bytes);
        }
    }

    /// Delivers a signal to the running process.
    pub(super) fn deliver(&mut self, (name, number): (&str, i32)) {
        let reaction = if name == "KILL" { None } else { self.reactions.get(name).cloned() };
        match reaction {
            Some(Reaction::Ignore) => {}
            Some(Reaction::Write(stream, bytes)) => self.write(stream, &bytes),
            Some(Reaction::Exit(code)) => self.exit(code),
            None => self.finish(WaitReason::Signal, 128 + number, Some(format!("SIG{name}"))),
        }
    }

    pub(super) fn exit(&mut self, code: i32) {
        self.finish(WaitReason::Exited, code, None);
    }

    /// Records that the program could not be executed.
    pub(super) fn fail(&mut self, reason: &str, code: i32) {
        self.finish(WaitReason::RuntimeError, code, None);
        self.state = ContainerState::Failed { reason: reason.to_owned() };
    }

    fn finish(&mut self, reason: WaitReason, exit_code: i32, signal: Option<String>) {
        for (stream, (time, bytes)) in std::mem::take(&mut self.unfinished) {
            self.push(if stream == 1 { LogStream::Stdout } else { LogStream::Stderr }, time, &bytes);
        }
        self.listeners.clear(); // which ends their streams
        self.state = ContainerState::Exited { code: exit_code };
        self.end.send_replace(Some(WaitOutcome { exit_code, reason, signal, finished_at: Some(Utc::now()) }));
    }

    fn write(&mut self, stream: LogStream, bytes: &[u8]) {
        let event = if stream == LogStream::Stdout { AttachEvent::Stdout } else { AttachEvent::Stderr };
        self.listeners.retain(|listener| listener.send(event(bytes.to_vec())).is_ok());
        let now = Utc::now();
        let key = if stream == LogStream::Stdout { 1 } else { 2 };
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (_, line) = self.unfinished.entry(key).or_insert_with(|| (now, Vec::new()));
            line.extend_from_slice(piece);
            if line.pop_if(|last| *last == b'\n').is_some()
                && let Some((time, line)) = self.unfinished.remove(&key)
            {
                self.push(stream, time, &line);
            }
        }
    }

    fn push(&mut self, stream: LogStream, timestamp: DateTime<Utc>, line: &[u8]) {
        let entry = LogEntry {
            timestamp,
            stream,
            message: String::from_utf8_lossy(line).into_owned(),
            source: LogSource::Container(self.id.to_string()),
            service: Some(self.id.service.clone()),
            deployment: None,
        };
        // A line counts from its first byte: one that was long unfinished goes before what was written since.
        let at = self.logs.partition_point(|other| other.timestamp <= timestamp);
        self.logs.insert(at, entry);
    }
}

//! One attempt: from the helper that builds the container to its exit record.

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use chrono::DateTime;
use runtime_core::{WaitOutcome, WaitReason};

use super::config::{CONTROL_FD, ERRNO_FD, LISTENER_FD, OUTPUT_FDS, RESULT_FD, ResidentConfig, STDIN_FD};
use super::connection::{Connection, Incoming};
use super::events::{self, Events, Source};
use super::exec::{self, Exec, ExecDescriptors};
use super::output::{self, Log, Output, ReadResult, Scratch};
use crate::bundle::signal;
use crate::cgroup::{CgroupPaths, Hierarchy};
use crate::process::ProcessName;
use crate::record::{self, ExitRecord};
use crate::stats;
use crate::supervisor::wire::{Exit, Phase, Reply, Request, Status};

/// Time for libcontainer to build a container: it takes milliseconds, but blocks for ever on a frozen cgroup or a dead
/// mount. What comes before, filling volumes, has no limit.
const BUILD_DEADLINE: Duration = Duration::from_secs(60);
/// Time for a process to end after SIGKILL before those who stop it are told that it does not.
const KILL_PATIENCE: Duration = Duration::from_secs(10);
/// Buffers are given back after so long without output.
const IDLE: Duration = Duration::from_millis(200);
/// Time for clients to take their last replies and output.
const FAREWELL: Duration = Duration::from_secs(5);
/// Connections at a time: more than all agents and commands of a host, fewer than would exhaust descriptors.
const MAX_CONNECTIONS: usize = 1024;
/// Attached clients, each of which can hold the container's output back.
const MAX_ATTACHMENTS: usize = 64;

/// A client that output is copied to.
#[derive(Debug)]
struct Attachment {
    /// By stream; `None` once the client closed it.
    targets: [Option<OwnedFd>; 2],
    /// What a target did not take yet. While there is some, its stream is not read.
    pending: [Vec<u8>; 2],
}

/// A stop that is under way.
#[derive(Debug)]
struct Stopping {
    connections: Vec<usize>,
    kill_at: Instant,
    killed_at: Option<Instant>,
}

#[derive(Debug)]
pub(super) struct Attempt {
    config: ResidentConfig,
    events: Events,
    children: OwnedFd,
    listener: Option<OwnedFd>,
    cgroup: CgroupPaths,
    connections: Vec<Option<Connection>>,
    phase: Phase,
    init_pid: i32,
    /// The helper, until it is reaped.
    helper_pid: Option<i32>,
    result: Option<OwnedFd>,
    result_text: Vec<u8>,
    /// The helper has done all of its work.
    built: bool,
    build_by: Option<Instant>,
    errno: Option<OwnedFd>,
    exec_errno: Option<i32>,
    starters: Vec<usize>,
    started_at_nanos: i64,
    stopping: Option<Stopping>,
    killed_by_us: bool,
    outputs: [Output; 2],
    scratch: Scratch,
    log: Log,
    hot_until: Option<Instant>,
    attachments: Vec<Option<Attachment>>,
    stdin: Option<OwnedFd>,
    execs: Vec<Option<Exec>>,
    exec_count: u64,
    /// The init's wait status, once it ended.
    ended: Option<i32>,
}

impl Attempt {
    pub fn take_over(config: ResidentConfig) -> io::Result<Self> {
        // A forked exec is for a moment in the container's PID namespace: what it still holds must not be looked at or
        // traced from inside. The program's own execve sets it back.
        crate::supervisor::launch::prctl(libc::PR_SET_DUMPABLE, 0, 0)?;
        let events = Events::new()?;
        let children = events::children()?;
        // SAFETY: the stage left these descriptors to us alone, under these numbers.
        let (control, listener, result, errno, stdin, [stdout, stderr]) = unsafe {
            (
                OwnedFd::from_raw_fd(CONTROL_FD),
                OwnedFd::from_raw_fd(LISTENER_FD),
                OwnedFd::from_raw_fd(RESULT_FD),
                OwnedFd::from_raw_fd(ERRNO_FD),
                config.stdin.then(|| OwnedFd::from_raw_fd(STDIN_FD)),
                OUTPUT_FDS.map(|fd| OwnedFd::from_raw_fd(fd)),
            )
        };
        for fd in [&control, &listener, &result, &errno, &stdout, &stderr].into_iter().chain(&stdin) {
            rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::CLOEXEC)?;
            rustix::io::ioctl_fionbio(fd, true)?;
        }
        events.add(&children, Source::Children)?;
        events.add(&listener, Source::Listener)?;
        events.add(&result, Source::Result)?;
        events.add(&stdout, Source::Output(0))?;
        events.add(&stderr, Source::Output(1))?;
        events.add(&control, Source::Connection(0))?;
        let hierarchy = Hierarchy::detect().map_err(|error| io::Error::other(error.chain()))?;
        Ok(Self {
            cgroup: hierarchy.container_dirs(&config.cgroup_path),
            log: Log::open(&config.container_dir.join("logs"), config.log_file_max_bytes, config.log_files),
            helper_pid: Some(config.helper_pid),
            config,
            events,
            children,
            listener: Some(listener),
            connections: vec![Some(Connection::new(control))],
            phase: Phase::Creating,
            init_pid: 0,
            result: Some(result),
            result_text: Vec::new(),
            built: false,
            build_by: None,
            errno: Some(errno),
            exec_errno: None,
            starters: Vec::new(),
            started_at_nanos: 0,
            stopping: None,
            killed_by_us: false,
            outputs: [Output::new(stdout, "stdout")?, Output::new(stderr, "stderr")?],
            scratch: Scratch::new()?,
            hot_until: None,
            attachments: Vec::new(),
            stdin,
            execs: Vec::new(),
            exec_count: 0,
            ended: None,
        })
    }

    /// Until the init has ended, then until the record is written and everybody told.
    pub fn run(mut self) -> i32 {
        // The end of the helper, or an agent's word, may have come before anybody listened.
        self.reap();
        self.serve(0);
        while self.ended.is_none() {
            if let Err(error) = self.turn(self.next_deadline()) {
                super::say!("waiting for events failed: {error}");
                let _ = self.cgroup.signal_all();
            }
        }
        self.finish()
    }

    fn turn(&mut self, deadline: Option<Instant>) -> io::Result<()> {
        let timeout = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        for source in self.events.wait(timeout)? {
            match source {
                Source::Children => {
                    events::drain(&self.children);
                    self.reap();
                }
                Source::Listener => self.accept(),
                Source::Result => self.read_result(),
                Source::Errno => self.read_errno(),
                Source::Output(stream) => self.read_output(stream),
                Source::Connection(slot) => self.serve(slot),
                Source::Attachment(index) => self.flush_attachment(index / 2, index % 2),
                Source::ExecErrno(slot) => self.read_exec_errno(slot),
            }
        }
        self.pass_deadlines();
        Ok(())
    }

    fn next_deadline(&self) -> Option<Instant> {
        let stop =
            self.stopping.as_ref().map(|stop| stop.killed_at.map_or(stop.kill_at, |killed| killed + KILL_PATIENCE));
        [self.build_by, stop, self.hot_until].into_iter().flatten().min()
    }

    fn pass_deadlines(&mut self) {
        let now = Instant::now();
        if self.hot_until.is_some_and(|until| until <= now) {
            self.hot_until = None;
            self.outputs.iter_mut().for_each(Output::release);
            self.scratch.release();
        }
        if self.build_by.is_some_and(|by| by <= now) {
            self.build_by = None;
            self.abandon(&format!("building it took longer than {BUILD_DEADLINE:?}"));
        }
        let Some(stop) = &mut self.stopping else { return };
        match stop.killed_at {
            None if stop.kill_at <= now => self.kill_all(),
            Some(killed) if killed + KILL_PATIENCE <= now => {
                let pids = self.cgroup.pids().unwrap_or_default();
                let connections = std::mem::take(&mut stop.connections);
                // Asked again, it is killed again.
                self.stopping = None;
                let text = format!("processes {pids:?} survived SIGKILL for {KILL_PATIENCE:?}");
                connections.iter().for_each(|slot| self.reply(*slot, &Reply::Error(text.clone())));
            }
            _ => {}
        }
    }

    fn kill_all(&mut self) {
        self.killed_by_us = true;
        if let Some(stop) = &mut self.stopping {
            stop.killed_at = Some(Instant::now());
        }
        if self.init_pid > 0 {
            // SAFETY: our child, not reaped while the attempt lasts, so the number is its own.
            unsafe { libc::kill(self.init_pid, libc::SIGKILL) };
        }
        if let Err(error) = self.cgroup.signal_all() {
            super::say!("killing the cgroup: {}", error.chain());
        }
    }

    // The helper and the init.

    fn reap(&mut self) {
        while let Some((pid, status)) = events::reap() {
            if pid == self.init_pid {
                self.ended = Some(status);
            } else if Some(pid) == self.helper_pid {
                self.helper_pid = None;
                self.read_result();
                // Not before the helper has left the cgroup with its end.
                match self.built {
                    true => self.created(),
                    false => self.abandon(&format!("its helper ended with status {status:#x}")),
                }
            } else if let Some(slot) =
                self.execs.iter().position(|exec| exec.as_ref().is_some_and(|exec| exec.pid == pid))
            {
                self.end_exec(slot, status);
            }
        }
    }

    /// The helper's lines.
    fn read_result(&mut self) {
        let Some(pipe) = self.result.take() else { return };
        let mut chunk = [0; 4096];
        let mut file = fs::File::from(pipe);
        let over = loop {
            match file.read(&mut chunk) {
                Ok(0) => break true,
                Ok(count) => self.result_text.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break false,
                Err(_) => break true,
            }
        };
        if over {
            self.events.remove(&file);
        } else {
            self.result = Some(file.into());
        }
        while let Some(end) = memchr::memchr(b'\n', &self.result_text) {
            let line: Vec<u8> = self.result_text.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line[..end]).into_owned();
            match line.split_once(' ') {
                None if line == "build" => self.build_by = Some(Instant::now() + BUILD_DEADLINE),
                None if line == "done" => self.built = true,
                Some(("pid", pid)) => self.init_pid = pid.parse().unwrap_or(0),
                Some(("error", text)) => self.abandon(text),
                _ => super::say!("the helper said {line:?}"),
            }
        }
    }

    fn created(&mut self) {
        if self.phase != Phase::Creating {
            return;
        }
        self.build_by = None;
        // Its appearance is what tells a created container from an abandoned one; by its content the init is found if
        // this process is lost.
        let init = ProcessName::of(self.init_pid).unwrap_or_default();
        if let Err(error) = fs::write(self.config.container_dir.join("created"), init.to_string()) {
            return self.abandon(&format!("writing its mark: {error}"));
        }
        self.phase = Phase::Created;
        self.result = None;
        self.reply(0, &Reply::Created { pid: self.init_pid });
    }

    /// The container could not be built: whatever there is of it is killed, and the agent told why.
    fn abandon(&mut self, why: &str) {
        if self.phase != Phase::Creating {
            return;
        }
        super::say!("creating the container failed: {why}");
        if let Some(helper) = self.helper_pid {
            // SAFETY: our child, not yet reaped.
            unsafe { libc::kill(helper, libc::SIGKILL) };
        }
        self.kill_all();
        // libcontainer's own processes are our children too, and die with their cgroup.
        let patience = Instant::now() + KILL_PATIENCE;
        while self.cgroup.pids().is_ok_and(|pids| !pids.is_empty()) && Instant::now() < patience {
            let _ = self.cgroup.signal_all();
            let _ = self.events.wait(Some(Duration::from_millis(5)));
            events::drain(&self.children);
            while events::reap().is_some() {}
        }
        let _ = self.cgroup.remove();
        let _ = fs::remove_file(&self.config.socket);
        self.reply(0, &Reply::Error(why.to_owned()));
        std::process::exit(1);
    }

    fn start(&mut self, slot: usize) {
        match self.phase {
            Phase::Created if self.starters.is_empty() => {
                self.starters.push(slot);
                let armed = self.errno.as_ref().map(|errno| self.events.add(errno, Source::Errno));
                let told = armed.unwrap_or(Ok(())).and_then(|()| self.notify_init());
                self.started_at_nanos = output::now_nanos();
                if let Err(error) = told {
                    self.answer_starters(&Reply::Error(format!("telling the init to start failed: {error}")));
                }
            }
            Phase::Created => self.starters.push(slot),
            Phase::Running => self.reply(slot, &Reply::Ok),
            _ => self.reply(slot, &Reply::Error("it is stopping".to_owned())),
        }
    }

    /// What `libcontainer::Container::start` does. From within the directory, as a socket's path is short.
    fn notify_init(&self) -> io::Result<()> {
        std::env::set_current_dir(&self.config.state_dir)?;
        let result = UnixStream::connect("notify.sock").and_then(|mut socket| socket.write_all(b"start container"));
        std::env::set_current_dir("/")?;
        result
    }

    fn read_errno(&mut self) {
        let Some(pipe) = self.errno.take() else { return };
        self.events.remove(&pipe);
        self.exec_errno = exec::read_errno(pipe);
        match self.exec_errno {
            Some(errno) => self.answer_starters(&Reply::ExecFailed { errno }),
            None => {
                self.phase = Phase::Running;
                self.answer_starters(&Reply::Ok);
            }
        }
    }

    fn answer_starters(&mut self, reply: &Reply) {
        for slot in std::mem::take(&mut self.starters) {
            self.reply(slot, reply);
        }
    }

    // Output.

    fn read_output(&mut self, stream: usize) {
        if self.attachments.iter().flatten().any(|client| !client.pending[stream].is_empty()) && self.ended.is_none() {
            return;
        }
        self.hot_until = Some(Instant::now() + IDLE);
        let output = &mut self.outputs[stream];
        match output.read() {
            Ok(ReadResult::Bytes(count)) => {
                for (index, client) in self.attachments.iter_mut().enumerate() {
                    let Some(client) = client else { continue };
                    let Some(target) = &client.targets[stream] else { continue };
                    client.pending[stream].extend_from_slice(output.taken(count));
                    if !write_pending(target, &mut client.pending[stream]) {
                        let _ = self.events.add_for_writing(target, Source::Attachment(index * 2 + stream));
                        if let Some(pipe) = &output.pipe {
                            self.events.remove(pipe);
                        }
                    }
                }
                output.log(count, &mut self.log, &mut self.scratch);
            }
            Ok(ReadResult::Empty) => {}
            Ok(ReadResult::End) | Err(_) => {
                output.finish(&mut self.log, &mut self.scratch);
                if let Some(pipe) = output.pipe.take() {
                    self.events.remove(&pipe);
                }
                for client in self.attachments.iter_mut().flatten() {
                    if client.pending[stream].is_empty()
                        && let Some(target) = client.targets[stream].take()
                    {
                        self.events.remove(&target);
                    }
                }
            }
        }
    }

    fn flush_attachment(&mut self, index: usize, stream: usize) {
        let Some(client) = self.attachments.get_mut(index).and_then(Option::as_mut) else { return };
        let Some(target) = &client.targets[stream] else { return };
        if !write_pending(target, &mut client.pending[stream]) {
            return;
        }
        self.events.remove(target);
        if self.outputs[stream].pipe.is_none() {
            client.targets[stream] = None;
        }
        let held = self.attachments.iter().flatten().any(|client| !client.pending[stream].is_empty());
        if let (Some(pipe), false) = (&self.outputs[stream].pipe, held) {
            let _ = self.events.add(pipe, Source::Output(stream));
        }
    }

    fn attach(&mut self, slot: usize) {
        let Some(connection) = self.connections[slot].as_mut() else { return };
        let (Some(stdout), Some(stderr)) = (connection.descriptors.pop_front(), connection.descriptors.pop_front())
        else {
            return self.reply(slot, &Reply::Error("attaching takes two descriptors".to_owned()));
        };
        if self.attachments.iter().flatten().count() >= MAX_ATTACHMENTS {
            return self.reply(slot, &Reply::Error("too many clients are attached".to_owned()));
        }
        for fd in [&stdout, &stderr] {
            let _ = rustix::io::ioctl_fionbio(fd, true);
        }
        self.attachments.push(Some(Attachment { targets: [Some(stdout), Some(stderr)], pending: Default::default() }));
        match (self.stdin.take(), &mut self.connections[slot]) {
            // The client holds the only copy from now on: its end of input is the container's.
            (Some(stdin), Some(connection)) => {
                let _ = rustix::io::ioctl_fionbio(&stdin, false);
                connection.send_with(&Reply::Ok, &stdin);
            }
            _ => self.reply(slot, &Reply::Ok),
        }
    }

    // Agents.

    fn accept(&mut self) {
        let Some(listener) = &self.listener else { return };
        while let Ok(socket) =
            rustix::net::accept_with(listener, rustix::net::SocketFlags::CLOEXEC | rustix::net::SocketFlags::NONBLOCK)
        {
            // The directory is root's alone; this holds even if somebody opens it up.
            let trusted = rustix::net::sockopt::socket_peercred(&socket).is_ok_and(|peer| peer.uid.is_root());
            let free = self.connections.iter().position(Option::is_none);
            if !trusted || (free.is_none() && self.connections.len() >= MAX_CONNECTIONS) {
                continue;
            }
            let slot = free.unwrap_or_else(|| {
                self.connections.push(None);
                self.connections.len() - 1
            });
            if self.events.add(&socket, Source::Connection(slot)).is_ok() {
                self.connections[slot] = Some(Connection::new(socket));
            }
        }
    }

    fn serve(&mut self, slot: usize) {
        let Some(connection) = self.connections.get_mut(slot).and_then(Option::as_mut) else { return };
        if connection.flush() {
            let _ = self.events.set_writing(&connection.socket, Source::Connection(slot), false);
        }
        let incoming = connection.receive();
        loop {
            let Some(connection) = self.connections[slot].as_mut() else { return };
            match connection.next_request() {
                Ok(Some(request)) => self.handle(slot, request),
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

    fn disconnect(&mut self, slot: usize) {
        let Some(connection) = self.connections[slot].take() else { return };
        self.events.remove(&connection.socket);
        drop(connection);
        self.starters.retain(|other| *other != slot);
        if let Some(stop) = &mut self.stopping {
            stop.connections.retain(|other| *other != slot);
        }
        for exec in self.execs.iter_mut().flatten() {
            if exec.connection == Some(slot) {
                exec.connection = None;
                exec::kill(exec);
            }
        }
        if slot == 0 && self.phase == Phase::Creating {
            self.abandon("the agent that creates it is gone");
        }
    }

    fn handle(&mut self, slot: usize, request: Request) {
        match request {
            Request::Status => {
                let status = Status {
                    phase: self.phase,
                    pid: self.init_pid,
                    supervisor_pid: std::process::id() as i32,
                    started_at_nanos: self.started_at_nanos,
                };
                self.reply(slot, &Reply::Status(status));
            }
            Request::Start => self.start(slot),
            Request::Signal(signal) => self.signal(slot, signal),
            Request::Stop { signal, timeout_ms } => self.stop(slot, signal, Duration::from_millis(timeout_ms)),
            Request::Wait => {
                if let Some(connection) = &mut self.connections[slot] {
                    connection.waits = true;
                }
            }
            Request::Exec(request) => self.exec(slot, &request),
            Request::Attach => self.attach(slot),
        }
    }

    fn reply(&mut self, slot: usize, reply: &Reply) {
        let Some(connection) = self.connections.get_mut(slot).and_then(Option::as_mut) else { return };
        connection.send(reply);
        if !connection.flush() {
            let _ = self.events.set_writing(&connection.socket, Source::Connection(slot), true);
        }
    }

    fn signal(&mut self, slot: usize, signal: i32) {
        if self.init_pid == 0 {
            return self.reply(slot, &Reply::Error("it is not created yet".to_owned()));
        }
        self.killed_by_us |= signal == libc::SIGKILL;
        // SAFETY: our child, not reaped while the attempt lasts, so the number is its own.
        let reply = match exec::check(unsafe { libc::kill(self.init_pid, signal) }) {
            Ok(_) => Reply::Ok,
            Err(error) => Reply::Error(format!("sending signal {signal}: {error}")),
        };
        self.reply(slot, &reply);
    }

    fn stop(&mut self, slot: usize, signal: i32, timeout: Duration) {
        if self.phase == Phase::Creating {
            return self.abandon("it was stopped while it was created");
        }
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
            // SAFETY: our child, not reaped while the attempt lasts, so the number is its own.
            unsafe { libc::kill(self.init_pid, signal) };
            // One that is paused could not react.
            let _ = self.cgroup.thaw();
        }
    }

    // Execs.

    fn exec(&mut self, slot: usize, request: &crate::supervisor::wire::ExecRequest) {
        if !matches!(self.phase, Phase::Running | Phase::Stopping) {
            return self.reply(slot, &Reply::Error("it does not run".to_owned()));
        }
        let Some(connection) = self.connections[slot].as_mut() else { return };
        let mut take = || connection.descriptors.pop_front();
        let (Some(stdin), Some(stdout), Some(stderr)) = (take(), take(), take()) else {
            return self.reply(slot, &Reply::Error("an exec takes three descriptors".to_owned()));
        };
        let filter = if request.has_filter { take() } else { None };
        if request.has_filter && filter.is_none() {
            return self.reply(slot, &Reply::Error("the filter's descriptor is missing".to_owned()));
        }
        self.exec_count += 1;
        let descriptors = ExecDescriptors { stdio: [stdin, stdout, stderr], filter };
        match exec::start(request, descriptors, self.init_pid, &self.cgroup, self.exec_count) {
            Ok(mut exec) => {
                exec.connection = Some(slot);
                let free = self.execs.iter().position(Option::is_none).unwrap_or_else(|| {
                    self.execs.push(None);
                    self.execs.len() - 1
                });
                if let Some(pipe) = &exec.errno_pipe {
                    let _ = self.events.add(pipe, Source::ExecErrno(free));
                }
                self.execs[free] = Some(exec);
            }
            Err(error) => self.reply(slot, &Reply::Error(format!("starting the exec failed: {error}"))),
        }
    }

    fn read_exec_errno(&mut self, slot: usize) {
        let Some(exec) = self.execs.get_mut(slot).and_then(Option::as_mut) else { return };
        let Some(pipe) = exec.errno_pipe.take() else { return };
        self.events.remove(&pipe);
        let (pid, connection) = (exec.pid, exec.connection);
        let reply = match exec::read_errno(pipe) {
            Some(errno) => {
                // Its exit code says nothing more.
                exec.connection = None;
                Reply::ExecFailed { errno }
            }
            None => Reply::ExecStarted { pid },
        };
        if let Some(connection) = connection {
            self.reply(connection, &reply);
        }
    }

    fn end_exec(&mut self, slot: usize, status: i32) {
        self.read_exec_errno(slot);
        let Some(exec) = self.execs[slot].take() else { return };
        if let Some(dir) = &exec.cgroup {
            exec::remove_cgroup(dir);
        }
        if let Some(connection) = exec.connection {
            self.reply(connection, &Reply::ExecExited { code: exit_code(status) });
        }
    }

    // The end.

    fn finish(mut self) -> i32 {
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
            super::say!("writing the exit record: {}", error.chain());
            if !self.config.container_dir.exists() {
                break;
            }
            let _ = self.turn(Some(Instant::now() + pause));
            pause = (pause * 2).min(Duration::from_secs(10));
        }
        if let Err(error) = self.cgroup.remove() {
            super::say!("removing the cgroup: {}", error.chain());
        }
        let _ = fs::remove_file(&self.config.socket);
        let exit = Exit { code, signal, oom_killed, finished_at_nanos };
        self.say_farewell(&Reply::Exited(exit));
        0
    }

    fn drain_output(&mut self, stream: usize) {
        for _ in 0..1024 {
            let before = self.outputs[stream].pipe.is_some();
            if !before {
                return;
            }
            let Some(pipe) = &self.outputs[stream].pipe else { return };
            let mut waiting: libc::c_int = 0;
            // SAFETY: FIONREAD writes one int.
            unsafe { libc::ioctl(pipe.as_raw_fd(), libc::FIONREAD, &raw mut waiting) };
            self.read_output(stream);
            if waiting == 0 {
                break;
            }
        }
        let output = &mut self.outputs[stream];
        output.finish(&mut self.log, &mut self.scratch);
        if let Some(pipe) = output.pipe.take() {
            self.events.remove(&pipe);
        }
    }

    /// Answers all who wait, and lets attached clients take what is left.
    fn say_farewell(&mut self, exited: &Reply) {
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

/// Whether everything is written, or nobody reads any more.
fn write_pending(target: impl AsFd, pending: &mut Vec<u8>) -> bool {
    while !pending.is_empty() {
        match rustix::io::write(&target, pending) {
            Ok(count) => drop(pending.drain(..count)),
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) => return false,
            Err(_) => pending.clear(),
        }
    }
    *pending = Vec::new();
    true
}

/// As a shell tells it: the exit code, or 128+N after signal N.
fn exit_code(status: i32) -> i32 {
    if libc::WIFSIGNALED(status) { 128 + libc::WTERMSIG(status) } else { libc::WEXITSTATUS(status) }
}

/// As a shell tells it: 127 when there is no such program, 126 when it cannot be executed.
pub(crate) fn exec_failure_code(errno: i32) -> i32 {
    if matches!(errno, libc::ENOENT | libc::ENOTDIR) { 127 } else { 126 }
}
